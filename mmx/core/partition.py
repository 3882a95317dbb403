"""Contract 5: logical axis names -> mesh axes, by one table, with errors instead of silent drops.

Parameters and activations name their axes with the words of ``RULES``. Flax's own mapping drops a
conflict or an uncovered name in silence; this one raises and says which parameter, shape and rule.
"""

from collections.abc import Sequence

import jax
from jax.sharding import PartitionSpec

from mmx.core.errors import UserError

MESH_AXES = ("slice", "data", "fsdp", "tensor")

# One rule a logical name. None: replicated on purpose.
RULES: dict[str, str | tuple[str, ...] | None] = {
    # parameters
    "embed": "fsdp",
    "mlp": "tensor",
    "heads": "tensor",
    "vocab": "tensor",
    "conv_out": "fsdp",
    "conv_in": None,
    "layers": None,
    "codes": None,  # a codebook is small and is read whole by every row
    "code_dim": None,
    "norm": None,
    "position": None,
    "pixels": None,
    "joint": None,  # the width that images and texts share
    # activations
    "act_batch": ("slice", "data", "fsdp"),
    "act_len": None,
    "act_t": None,
    "act_h": None,
    "act_w": None,
    "act_channels": None,
    "act_embed": None,
    "act_heads": "tensor",
    "act_mlp": "tensor",
    "act_vocab": "tensor",
}


class ShardingError(UserError):
    """A shape, its logical names and the rules do not go together on this mesh."""


def spec_for(
    what: str, shape: Sequence[int], names: Sequence[str | None], mesh_shape: dict[str, int]
) -> PartitionSpec:
    """The mesh axes of an array.

    Args:
      what: the array's name, for messages.
      shape: its shape.
      names: one logical name (or None: replicated) a dimension.
      mesh_shape: mesh axis -> size.

    Raises:
      ShardingError: a name without a rule, names and shape of different length, two dimensions on
        one mesh axis, or a dimension that its mesh axes do not divide.
    """
    if len(names) != len(shape):
        raise ShardingError(f"{what}: shape {tuple(shape)} has {len(names)} axis names {names}")
    used: dict[str, str] = {}
    entries = []
    for size, name in zip(shape, names):
        if name is None:
            entries.append(None)
            continue
        if name not in RULES:
            raise ShardingError(f"{what}: no rule for the logical axis {name!r} of shape {shape}")
        rule = RULES[name]
        axes = (rule,) if isinstance(rule, str) else (rule or ())
        ways = 1
        for axis in axes:
            if axis in used and mesh_shape.get(axis, 1) > 1:
                raise ShardingError(
                    f"{what} {tuple(shape)}: the axes {used[axis]!r} and {name!r} both map to the "
                    f"mesh axis {axis!r}"
                )
            used[axis] = name
            ways *= mesh_shape.get(axis, 1)
        if size % ways:
            raise ShardingError(
                f"{what} {tuple(shape)}: the axis {name!r} of size {size} does not divide over "
                f"{ways} devices ({name} -> {rule}): change config.mesh or the size"
            )
        entries.append(rule if ways > 1 else None)
    return PartitionSpec(*entries)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Lay an activation out by its logical names on the mesh that is set; without one, nothing."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    spec = spec_for("activation", x.shape, names, dict(mesh.shape))
    return jax.lax.with_sharding_constraint(x, spec)


def compiled_for() -> str:
    """Platform of the mesh that is set, "cpu", "gpu" or "tpu"; without a mesh, JAX's own.

    Preflight's mesh is of TPUs that nobody has here.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()
