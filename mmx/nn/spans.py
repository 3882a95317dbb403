"""Attention in which each query reads an interval of keys: text, images and documents in one row.

Axis letters: B batch, L length, M keys, N heads, K head size.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from mmx.core.partition import compiled_for
from mmx.nn.flash import attend_flash
from mmx.nn.splash import attend_splash


def attend_spans(
    q_BLNK: jax.Array,
    k_BLNK: jax.Array,
    v_BLNK: jax.Array,
    bounds: tuple[jax.Array, jax.Array] | None,
    impl: str,
    max_span: int = 1,
    scaled: bool = False,
) -> jax.Array:
    """Softmax attention in which query q reads the keys ``start[q] <= k < end[q]``.

    Args:
      q_BLNK, k_BLNK, v_BLNK: queries, keys, values.
      bounds: start and end, int32 [B, L] (:func:`mmx.ops.spans.bounds_of`); None: each query reads
        all up to itself, plain causal attention. A query that reads nothing gives zeros.
      impl: a key of ``IMPLS``, or "auto": the one that ``AUTO`` has for the devices at hand.
      max_span: with bounds, no query q reads further than ``q + max_span - 1``
        (:func:`mmx.ops.spans.check_spans`).
      scaled: the queries come divided by sqrt(K); else that is done here.

    Returns:
      [B, L, N, K] in q's dtype. Its name for remat is "attention_out".

    Raises:
      ValueError: a shape that the implementation has no blocks for.
    """
    if not scaled:
        # Here and in float32, so that no implementation rounds it in its own way.
        q_BLNK = (q_BLNK.astype(jnp.float32) * q_BLNK.shape[-1] ** -0.5).astype(q_BLNK.dtype)
    if impl == "auto":
        impl = _fastest(q_BLNK.dtype)
    return IMPLS[impl](q_BLNK, k_BLNK, v_BLNK, bounds, max_span)


def _fastest(dtype) -> str:
    """For the devices that are compiled for."""
    platform = compiled_for()
    if platform == "gpu" and dtype.itemsize > 2:
        # In float32 flash equals it there too, and takes 4 to 22 times as long: its products are
        # in full, those of "dense" in TF32 (experiments/throughput/README.md).
        return "dense"
    return AUTO[platform]


def visible_keys(bounds: tuple[jax.Array, jax.Array], keys: int) -> jax.Array:
    """bool [B, L, keys]: the mask that the bounds stand for."""
    start_BL1, end_BL1 = (x[:, :, None] for x in bounds)
    key_M = jnp.arange(keys)
    return (start_BL1 <= key_M) & (key_M < end_BL1)


def attend_dense(q_BLNK, k_BLNK, v_BLNK, bounds, max_span):
    """The definition. It needs no band: a longer span is read whole."""
    position_1L = jnp.arange(q_BLNK.shape[1])[None]
    start_BL, end_BL = bounds or (jnp.zeros_like(position_1L), position_1L + 1)
    visible_BLM = visible_keys((start_BL, end_BL), k_BLNK.shape[1])
    scores_BNLM = jnp.einsum("blnk,bmnk->bnlm", q_BLNK, k_BLNK, preferred_element_type=jnp.float32)
    # Finite, so that a query that reads nothing has no NaN to pass on; it is cut off below.
    scores_BNLM = jnp.where(visible_BLM[:, None], scores_BNLM, -1e30)
    weights_BNLM = jax.nn.softmax(scores_BNLM, axis=-1).astype(v_BLNK.dtype)
    out_BLNK = jnp.einsum("bnlm,bmnk->blnk", weights_BNLM, v_BLNK)
    out_BLNK = jnp.where((start_BL < end_BL)[..., None, None], out_BLNK, 0)
    return checkpoint_name(out_BLNK, "attention_out")


IMPLS: dict[str, Callable] = {
    "dense": attend_dense,
    "splash": attend_splash,  # TPUs
    "flash": attend_flash,  # NVIDIA's GPUs
}

# The fastest on each kind of device of those that a test holds equal to "dense".
AUTO = {
    "cpu": "dense",  # kernels run here step by step
    "tpu": "splash",  # equal in the kernel's interpreter, and compiled for v5e and v5p
    # On an H100, 200 layouts each of head sizes 64 and 128 (experiments/throughput/README.md): 1.02
    # times its own causal attention, where cuDNN with the mask as a bias takes 2.9 times cuDNN's.
    "gpu": "flash",
}
