"""Mesh, shardings of parameters and optimiser state, one jit that loop and sampler share."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mmx.core import tree
from mmx.core.errors import UserError
from mmx.core.partition import MESH_AXES, RULES, ShardingError, spec_for
from mmx.train import compiler


def make_mesh(mesh_config, devices: list | None = None) -> Mesh:
    """The mesh of a config: four axis sizes, one of which may be -1 (what is left).

    Neighbours on an axis are neighbours in the network; the axis ``slice`` alone crosses from one
    TPU slice to another.

    Args:
      mesh_config: axis -> size.
      devices: all that are here, when None; else those that preflight compiles for.

    Raises:
      UserError: the sizes do not multiply to the number of devices, or to its slices.
    """
    sizes = [int(mesh_config[axis]) for axis in MESH_AXES]
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if sizes.count(-1) == 1:
        rest = -int(np.prod(sizes))
        sizes[sizes.index(-1)] = count // max(rest, 1)
    if min(sizes) < 1 or int(np.prod(sizes)) != count:
        asked = ", ".join(f"{a}={mesh_config[a]}" for a in MESH_AXES)
        raise UserError(f"config.mesh ({asked}) does not multiply to the {count} devices here")
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1 and sizes[0] != slices:
        raise UserError(
            f"config.mesh.slice={sizes[0]}, but there are {slices} TPU slices: "
            f"--config.mesh.slice={slices}"
        )
    # Splitting: an axis of 256 on 8x8x8 chips is a part of a dimension more than two whole ones.
    kwargs = dict(devices=devices, allow_split_physical_axes=True)
    if slices > 1:
        grid = mesh_utils.create_hybrid_device_mesh((1, *sizes[1:]), (slices, 1, 1, 1), **kwargs)
    else:
        grid = mesh_utils.create_device_mesh(sizes, **kwargs)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(sizes))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over slice, data and fsdp; a tensor axis reads the same rows."""
    return NamedSharding(mesh, PartitionSpec(RULES["act_batch"]))


def place(values: Any, sharding: NamedSharding) -> Any:
    """A tree of values that every process has whole -> arrays laid out by one sharding.

    Each process takes the parts of its own devices: no process sends another anything. Random keys
    are computed anew on all.
    """

    def one(x):
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return _copy_to(sharding)(x)
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    if sharding.is_fully_addressable:
        return jax.device_put(values, sharding)
    return jax.tree.map(one, values)


def whole(x: jax.Array, mesh: Mesh) -> np.ndarray:
    """All of a sharded array, on the host of every process."""
    return np.asarray(_copy_to(replicated(mesh))(x))


@functools.cache
def _copy_to(sharding: NamedSharding):
    return jax.jit(lambda x: x, out_shardings=sharding)


def infer_shardings(boxed_abstract: Any, mesh: Mesh) -> Any:
    """Shardings of parameters whose leaves carry logical names.

    Args:
      boxed_abstract: ``jax.eval_shape`` of an init: leaves boxed by ``with_logical_partitioning``.
        A leaf without a box has no names and is refused, unless it is a scalar.

    Raises:
      ShardingError: see :func:`mmx.core.partition.spec_for`.
    """

    def one(path, leaf):
        names = getattr(leaf, "names", ())
        shape = nn.unbox(leaf).shape
        return NamedSharding(mesh, spec_for(path, shape, names, dict(mesh.shape)))

    return tree.map_with_path(one, boxed_abstract, is_leaf=_is_box)


def frozen_shardings(abstract: Any, mesh: Mesh) -> Any:
    """Shardings of frozen weights: a leaf that carries logical names lies by the rules (a table of
    words, which may be larger than a device), any other whole on each device.

    Raises:
      ShardingError: see :func:`mmx.core.partition.spec_for`.
    """

    def one(path, leaf):
        names = leaf.names if _is_box(leaf) else (None,) * leaf.ndim
        return NamedSharding(mesh, spec_for(path, nn.unbox(leaf).shape, names, dict(mesh.shape)))

    return tree.map_with_path(one, abstract, is_leaf=_is_box)


def _is_box(leaf) -> bool:
    return isinstance(leaf, nn.Partitioned)


def infer_optimizer_shardings(opt_abstract: Any, params_abstract: Any, shardings: Any) -> Any:
    """Optimiser state sharded by shape: a moment as its parameter, a factored row or column as its
    parameter less the dimension that it lost, single numbers whole on each device.

    Raises:
      ShardingError: a state of another shape, which would lie whole on each device in silence.
    """
    params, specs = tree.flatten(params_abstract), tree.flatten(shardings)
    mesh = next(iter(specs.values())).mesh

    def one(path, leaf):
        if leaf.size == 1:  # a count, or the place of a moment that is not kept
            return replicated(mesh)
        owner = max(
            (p for p in params if path == p or path.endswith("/" + p)), key=len, default=None
        )
        shape = params[owner].shape if owner else ()
        spec = list(specs[owner].spec) if owner else []
        spec += [None] * (len(shape) - len(spec))
        if leaf.shape == shape:
            return NamedSharding(mesh, PartitionSpec(*spec))
        lost = _lost_dimension(path.removesuffix(owner or ""), shape)
        if lost is None or leaf.shape != shape[:lost] + shape[lost + 1 :]:
            raise ShardingError(
                f"optimiser state {path} {leaf.shape}: of no parameter's shape ({owner} {shape}), "
                "so no rule shards it"
            )
        return NamedSharding(mesh, PartitionSpec(*spec[:lost], *spec[lost + 1 :]))

    return tree.map_with_path(one, opt_abstract)


def _lost_dimension(path: str, shape: tuple[int, ...]) -> int | None:
    """Which dimension optax's factored second moment sums away: a row's the largest, a column's the
    next (arXiv 1804.04235 sec. 3). By name, as the two of a square matrix have one shape."""
    kinds = {"v_row": -1, "v_col": -2}
    kind = next((part for part in reversed(path.split("/")) if part in kinds), None)
    return None if kind is None else int(np.argsort(shape)[kinds[kind]])


def report_shardings(boxed_abstract: Any, shardings: Any) -> str:
    """A table: parameter, shape, spec, bytes on each device; then what is replicated on purpose."""
    rows = [("parameter", "shape", "spec", "MiB/device")]
    total = 0
    flat = tree.flatten(nn.unbox(boxed_abstract))
    for path, sharding in tree.flatten(shardings).items():
        leaf = flat[path]
        size = int(np.prod(sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        total += size
        spec = ",".join(str(axis) for axis in sharding.spec) or "-"
        rows.append((path, "x".join(map(str, leaf.shape)), spec, f"{size / 2**20:.3f}"))
    rows.append(("total", f"{tree.num_params(flat):,} parameters", "", f"{total / 2**20:.3f}"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths)).rstrip() for row in rows]
    return "\n".join(
        [*lines, f"replicated by rule: {', '.join(_replicated_names(boxed_abstract))}"]
    )


def _replicated_names(boxed_abstract: Any) -> list[str]:
    """The logical axes of these parameters that a rule leaves whole on each device."""
    boxes = jax.tree.leaves(boxed_abstract, is_leaf=_is_box)
    names = {name for box in boxes for name in getattr(box, "names", ()) if name}
    return sorted(name for name in names if RULES[name] is None) or ["nothing"]


def jit_sharded(fn, mesh: Mesh, *, out_shardings=None, donate=()):
    """``jax.jit`` under the mesh, which reaches the layers by ``set_mesh``; what goes in is already
    laid out, what comes out goes by ``out_shardings``. The compiler's options are those of the
    mesh's devices."""
    kwargs = {} if out_shardings is None else {"out_shardings": out_shardings}
    kwargs["compiler_options"] = compiler.options_of(mesh.devices.flat[0]) or None
    # Unused arguments too (the codec's decoder while Muse learns): a run holds them all the same,
    # so preflight has to count them.
    jitted = jax.jit(fn, donate_argnums=donate, keep_unused=True, **kwargs)

    def call(*args):
        with jax.set_mesh(mesh):
            return jitted(*args)

    call.jitted = jitted
    return call
