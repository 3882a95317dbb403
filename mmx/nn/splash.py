"""The TPU kernel of attention, which never holds a score: a band of live blocks, bounds a query.

Axis letters: B batch, L length, N heads, K head size.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)

from mmx.core.flops import kernel_scope
from mmx.core.partition import spec_for
from mmx.nn.linear import round_up

_NAMES = ("act_batch", "act_len", "act_heads", None)
_HALF = 16  # bits of one bound, of the two that a query carries in an int32
_LONGEST = 1 << (_HALF - 1)  # the start is in the half with the sign


def attend_splash(
    q_BLNK: jax.Array,
    k_BLNK: jax.Array,
    v_BLNK: jax.Array,
    bounds: tuple[jax.Array, jax.Array] | None = None,
    max_span: int = 1,
) -> jax.Array:
    """As :func:`mmx.nn.spans.attend_dense`, without scores in memory.

    Which blocks are live is the same for all rows, causal widened by the longest span: a map of its
    own for each row would make the compiler run them one after another. Inside the live blocks each
    query compares keys with its two bounds.

    Args:
      q_BLNK, k_BLNK, v_BLNK: queries, divided by sqrt(K); keys, values.
      bounds: start and end of the keys of each query, int32 [B, L]; None: all up to itself. A query
        that reads nothing gives zeros.
      max_span: with bounds, no query q reads further than ``q + max_span - 1``.

    Returns:
      [B, L, N, K] in q's dtype. Its name for remat is "attention_out".

    Raises:
      ValueError: L is not a multiple of 128 or K not of 64, or bounds do not fit into 16 bits.
    """
    _, length, _, head_size = q_BLNK.shape
    if head_size % 64:
        raise ValueError(f"splash attention needs a head size of a multiple of 64, not {head_size}")
    if bounds is not None and length > _LONGEST:
        raise ValueError(
            f"splash attention takes bounds up to a length of {_LONGEST}, not {length}"
        )

    span = 1 if bounds is None else max_span

    def local(q_BLNK, k_BLNK, v_BLNK, *bounds):
        batch, _, heads, _ = q_BLNK.shape
        kernel = _kernel(length, heads, span)
        q_BNLK, k_BNLK, v_BNLK = (x.swapaxes(1, 2) for x in (q_BLNK, k_BLNK, v_BLNK))
        with kernel_scope(splash_flops(batch, length, heads, head_size, span)):
            if not bounds:
                return jax.vmap(kernel)(q_BNLK, k_BNLK, v_BNLK).swapaxes(1, 2)
            start_BL, end_BL = bounds
            # The kernel divides by the sum of the weights: whoever reads nothing reads one key.
            both_BL = (start_BL << _HALF) | jnp.maximum(end_BL, start_BL + 1)
            attend = lambda both_L, *qkv: _with_bounds(kernel, both_L)(*qkv)
            out_BNLK = jax.vmap(attend)(both_BL, q_BNLK, k_BNLK, v_BNLK)
        return jnp.where((start_BL < end_BL)[..., None, None], out_BNLK.swapaxes(1, 2), 0)

    return on_each_device(local, q_BLNK, k_BLNK, v_BLNK, *(bounds or ()))


def on_each_device(local: Callable, *args: jax.Array) -> jax.Array:
    """A kernel of arrays [B, L, N, K] and [B, L], on each device for its own rows and heads.

    They are independent of one another (contract 5). The result is laid out as the first argument.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return local(*args)
    specs = [spec_for("attention", x.shape, _NAMES[: x.ndim], dict(mesh.shape)) for x in args]
    # No check of what varies over devices: the kernel's outputs do not say.
    sharded = jax.shard_map(local, in_specs=tuple(specs), out_specs=specs[0], check_vma=False)
    return sharded(*args)


def splash_flops(batch: int, length: int, heads: int, head_size: int, max_span: int = 1) -> float:
    """FLOPs of the two products of the kernel's forward pass, in its live blocks.

    A head of 64 counts as one of 128: the matrix unit is that wide, and half of it is idle.
    """
    block = _block(length)
    blocks = length // block
    ahead = -(-(max_span - 1) // block)  # live blocks to the right of the diagonal's
    live = sum(min(row + 1 + ahead, blocks) for row in range(blocks))
    return 2 * 2 * block**2 * round_up(head_size) * live * heads * batch


def _kernel(length: int, heads: int, max_span: int):
    """[N, L, K] three times -> [N, L, K]; what its gradient needs is named for remat."""
    block = _block(length)
    sizes = {name: block for name in (
        "block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv",
        "block_kv_dkv_compute", "block_q_dq", "block_kv_dq",
    )}  # fmt: skip
    mask = splash_attention_mask.CausalMask((length, length), offset=max_span - 1)
    return splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([mask] * heads),
        block_sizes=splash_attention_kernel.BlockSizes(**sizes),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name="attention_out",
    )


def _with_bounds(kernel, both_L: jax.Array):
    """The same live blocks; inside them each query's own two bounds instead of the band's edge."""
    infos = (kernel.fwd_mask_info, kernel.dq_mask_info, kernel.dkv_mask_info)
    return splash_attention_kernel.SplashAttentionKernel(
        *(info._replace(q_sequence=both_L) for info in infos),
        **{**kernel.kwargs, "mask_function": _within},
    )


def _within(both: jax.Array, key: jax.Array) -> jax.Array:
    """Is the key's position within the bounds? Inside the kernel, of a block."""
    start, end = both >> _HALF, both & ((1 << _HALF) - 1)
    return (start <= key) & (key < end)


def _block(length: int) -> int:
    """Side of the square blocks that are computed or left out. 512 at most: ours, as MaxText's."""
    block = math.gcd(length, 512)
    if block % 128:
        raise ValueError(f"splash attention needs a length of a multiple of 128, not {length}")
    return block
