"""Layers scanned under a remat policy: what the backward pass keeps and what it computes again.

A named policy trades memory for compute and changes no number. Scanning compiles one layer whatever
the depth.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

# Names that layers give their tensors (:func:`keep`; mmx.nn.spans names its own result). "mlp": an
# inner product of the MLP, of two where there is a gate.
_ATTENTION = ("q", "k", "v", "attention_out")
_NAMES = (*_ATTENTION, "mlp")
_policies = jax.checkpoint_policies

# From the least memory to the most; "none" keeps all that the backward pass reads.
REMAT: dict[str, Callable | None] = {
    "full": _policies.nothing_saveable,
    "qkv": _policies.save_only_these_names("q", "k", "v"),
    "attention": _policies.save_only_these_names(*_ATTENTION),
    "attention_mlp": _policies.save_only_these_names(*_NAMES),
    "dots": _policies.save_from_both_policies(
        _policies.dots_with_no_batch_dims_saveable,  # the dense layers' products
        _policies.save_only_these_names("attention_out"),  # not a kernel's work twice
    ),
    "none": None,
}


def keep(x: jax.Array, name: str) -> jax.Array:
    """Give a tensor the name by which a policy keeps it.

    Raises:
      ValueError: a name that no policy knows.
    """
    if name not in _NAMES:
        raise ValueError(f"{name!r} is none of {_NAMES}")
    return checkpoint_name(x, name)


def scan_layers(block: type[nn.Module], depth: int, remat: str) -> Callable:
    """``depth`` blocks as one module: arguments of the block, then ``(x, *inputs) -> (x, None)``.

    Args:
      block: a module ``(x, *inputs) -> (x, None)``; the inputs are the same for all layers.
      depth: layers.
      remat: a key of ``REMAT``.

    Raises:
      KeyError: no such policy; tasks check their config first.
    """
    if remat != "none":
        block = nn.remat(block, prevent_cse=False, policy=REMAT[remat])
    return nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=depth,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
