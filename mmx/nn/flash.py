"""The GPU kernels of attention over intervals of keys: forward and backward, dead blocks left out.

Flash attention (arXiv 2307.08691) whose loops run from the first block of keys that a block of
queries reads to the last, and which compares positions with bounds only in blocks that are not read
whole. So other documents cost nothing, and an image costs what lies beyond the diagonal.
Axis letters: B batch, L length, N heads, K head size; i and j blocks of queries and of keys.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mmx.nn.splash import on_each_device

_LOG2_E = math.log2(math.e)
_MASKED = -1e30  # finite: the first block of a row may hold no key that it reads


class Blocks(NamedTuple):
    """Sizes of one kernel: queries and keys in a block, warps, and loads in flight."""

    queries: int
    keys: int
    warps: int
    stages: int


class Kernels(NamedTuple):
    """Of the forward pass, of the queries' gradient, of the keys' and values'."""

    forward: Blocks
    by_q: Blocks
    by_kv: Blocks


# Ours, by the bytes of a number. Of 2: the fastest of twenty on an H100 at head size 128. Of 4:
# what fits beside one another in one of its multiprocessors, not timed.
KERNELS = {
    2: Kernels(Blocks(128, 64, 8, 3), Blocks(64, 64, 4, 2), Blocks(64, 64, 4, 2)),
    4: Kernels(Blocks(64, 32, 4, 1), Blocks(64, 32, 4, 1), Blocks(32, 64, 4, 1)),
}


def attend_flash(q_BLNK, k_BLNK, v_BLNK, bounds, max_span, kernels: Kernels | None = None):
    """As :func:`mmx.nn.spans.attend_dense`, without scores in memory; needs no band either.

    Raises:
      ValueError: L is not a multiple of 128, or K is no power of two of at least 16.
    """
    batch, length, _, head_size = q_BLNK.shape
    if length % 128 or head_size & (head_size - 1) or head_size < 16:
        raise ValueError(
            "flash attention needs a length of a multiple of 128 and a head size of 16, 32, 64, "
            f"128, not {length} and {head_size}"
        )
    kernels = kernels or KERNELS[q_BLNK.dtype.itemsize]
    if bounds is None:
        position_BL = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
        bounds = (jnp.zeros_like(position_BL), position_BL + 1)
    start_BL, end_BL = bounds
    # The softmax divides by the sum of its weights: whoever reads nothing reads one key.
    some_BL = jnp.maximum(end_BL, start_BL + 1)
    flash = functools.partial(_flash, kernels)
    out_BLNK = on_each_device(flash, q_BLNK, k_BLNK, v_BLNK, start_BL, some_BL)
    return jnp.where((start_BL < end_BL)[..., None, None], out_BLNK, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _flash(kernels, q_BLNK, k_BLNK, v_BLNK, start_BL, end_BL):
    return _forward(kernels, q_BLNK, k_BLNK, v_BLNK, start_BL, end_BL)[0]


def _forward(kernels, q_BLNK, k_BLNK, v_BLNK, start_BL, end_BL):
    batch, length, heads, _ = q_BLNK.shape
    sizes = kernels.forward
    ranges_Bi4, _ = _ranges(start_BL, end_BL, sizes)
    out_BLNK, lse_BNL = _call(
        _forward_kernel,
        sizes,
        length // sizes.queries,
        [(q_BLNK, "q"), (k_BLNK, "all"), (v_BLNK, "all"), (start_BL, "q"), (end_BL, "q"),
         (ranges_Bi4, "ranges")],
        [(q_BLNK, "q"), (jax.ShapeDtypeStruct((batch, heads, length), jnp.float32), "q")],
    )  # fmt: skip
    out_BLNK, lse_BNL = (checkpoint_name(x, "attention_out") for x in (out_BLNK, lse_BNL))
    return out_BLNK, (q_BLNK, k_BLNK, v_BLNK, start_BL, end_BL, out_BLNK, lse_BNL)


def _backward(kernels, kept, slope_BLNK):
    q_BLNK, k_BLNK, v_BLNK, start_BL, end_BL, out_BLNK, lse_BNL = kept
    product_BLNK = out_BLNK.astype(jnp.float32) * slope_BLNK.astype(jnp.float32)
    delta_BNL = product_BLNK.sum(-1).swapaxes(1, 2)
    ranges_Bi4, _ = _ranges(start_BL, end_BL, kernels.by_q)
    (by_q_BLNK,) = _call(
        _by_q_kernel,
        kernels.by_q,
        q_BLNK.shape[1] // kernels.by_q.queries,
        [(q_BLNK, "q"), (k_BLNK, "all"), (v_BLNK, "all"), (slope_BLNK, "q"), (lse_BNL, "q"),
         (delta_BNL, "q"), (start_BL, "q"), (end_BL, "q"), (ranges_Bi4, "ranges")],
        [(q_BLNK, "q")],
    )  # fmt: skip
    _, ranges_Bj4 = _ranges(start_BL, end_BL, kernels.by_kv)
    by_k_BLNK, by_v_BLNK = _call(
        _by_kv_kernel,
        kernels.by_kv,
        q_BLNK.shape[1] // kernels.by_kv.keys,
        [(q_BLNK, "all"), (k_BLNK, "kv"), (v_BLNK, "kv"), (slope_BLNK, "all"), (lse_BNL, "all"),
         (delta_BNL, "all"), (start_BL, "all"), (end_BL, "all"), (ranges_Bj4, "ranges")],
        [(k_BLNK, "kv"), (v_BLNK, "kv")],
    )  # fmt: skip
    return by_q_BLNK, by_k_BLNK, by_v_BLNK, None, None


_flash.defvjp(_forward, _backward)


def _ranges(start_BL, end_BL, sizes):
    """The blocks that a loop visits, int32: [B, i, 4] of keys, [B, j, 4] of queries.

    The four are: the first block, the first and the end of those that all read whole, the end.
    """
    batch, length = start_BL.shape
    start_Bix, end_Bix = (x.reshape(batch, -1, sizes.queries, 1) for x in (start_BL, end_BL))
    first_j = jnp.arange(0, length, sizes.keys)
    after_j = first_j + sizes.keys
    live_Bij = (start_Bix.min(2) < after_j) & (first_j < end_Bix.max(2))
    whole_Bij = (start_Bix.max(2) <= first_j) & (after_j <= end_Bix.min(2))

    def ranges(live_Bab, whole_Bab):
        number_b = jnp.arange(live_Bab.shape[2])
        first_Ba = jnp.argmax(live_Bab, 2)
        end_Ba = jnp.max(jnp.where(live_Bab, number_b + 1, 0), 2)
        from_Ba = jnp.where(whole_Bab.any(2), jnp.argmax(whole_Bab, 2), end_Ba)
        broken_Bab = ~whole_Bab & (number_b >= from_Ba[..., None])
        to_Ba = jnp.where(broken_Bab.any(2), jnp.argmax(broken_Bab, 2), end_Ba)
        to_Ba = jnp.clip(to_Ba, from_Ba, end_Ba)
        return jnp.stack([first_Ba, from_Ba, to_Ba, end_Ba], -1).astype(jnp.int32)

    return ranges(live_Bij, whole_Bij), ranges(live_Bij.swapaxes(1, 2), whole_Bij.swapaxes(1, 2))


def _call(kernel, sizes, blocks, inputs, outputs):
    """One program a block, row and head. What each array gives it: a block of "q" or "kv", "all" of
    the row, or the block's own "ranges"."""
    batch, _, heads, _ = inputs[0][0].shape

    def spec(x, which):
        if which == "ranges":
            return pl.BlockSpec((None, None, 4), lambda a, b, n: (b, a, 0))
        size = {"q": sizes.queries, "kv": sizes.keys, "all": x.shape[1 if x.ndim != 3 else 2]}[
            which
        ]
        at = (lambda a: 0) if which == "all" else (lambda a: a)
        if x.ndim == 4:
            return pl.BlockSpec((None, size, None, x.shape[3]), lambda a, b, n: (b, at(a), n, 0))
        if x.ndim == 3:
            return pl.BlockSpec((None, None, size), lambda a, b, n: (b, n, at(a)))
        return pl.BlockSpec((None, size), lambda a, b, n: (b, at(a)))

    return pl.pallas_call(
        functools.partial(kernel, sizes),
        grid=(blocks, batch, heads),
        in_specs=[spec(*one) for one in inputs],
        out_specs=[spec(*one) for one in outputs],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x, _ in outputs],
        compiler_params=plgpu.CompilerParams(num_warps=sizes.warps, num_stages=sizes.stages),
        name=kernel.__name__.strip("_"),
    )(*(x for x, _ in inputs))


def _loop(ranges_ref, body, carry):
    """Over the blocks of the ranges; ``body(masked, number, carry)``."""
    first, whole, broken, end = (ranges_ref[at] for at in range(4))
    masked, plain = (functools.partial(body, mask) for mask in (True, False))
    carry = jax.lax.fori_loop(first, whole, masked, carry)
    carry = jax.lax.fori_loop(whole, broken, plain, carry)
    return jax.lax.fori_loop(broken, end, masked, carry)


def _scores(q, k, start, end, first_key, masked):
    """Base-2 logarithms of the weights [queries, keys], before they are normed."""
    scores = _dot(q, k.T) * _LOG2_E
    if not masked:
        return scores
    key = first_key + jnp.arange(k.shape[0])
    visible = (start[:, None] <= key[None]) & (key[None] < end[:, None])
    return jnp.where(visible, scores, _MASKED)


def _dot(a, b):
    """Of 32-bit numbers in full: the default would round them to 19 bits."""
    exact = jax.lax.Precision.HIGHEST if a.dtype.itemsize == 4 else None
    return plgpu.dot(a, b, precision=exact)


def _forward_kernel(sizes, q_ref, k_ref, v_ref, start_ref, end_ref, ranges_ref, out_ref, lse_ref):
    q, start, end = q_ref[...], start_ref[...], end_ref[...]

    def body(masked, j, carry):
        out, top, total = carry
        keys = pl.ds(j * sizes.keys, sizes.keys)
        scores = _scores(q, k_ref[keys, :], start, end, j * sizes.keys, masked)
        next_top = jnp.maximum(top, scores.max(-1))
        weights = jnp.exp2(scores - next_top[:, None])
        shrink = jnp.exp2(top - next_top)
        v = v_ref[keys, :]
        out = out * shrink[:, None] + _dot(weights.astype(v.dtype), v)
        return out, next_top, total * shrink + weights.sum(-1)

    zero = jnp.zeros(sizes.queries, jnp.float32)
    carry = jnp.zeros(q.shape, jnp.float32), zero + _MASKED, zero
    out, top, total = _loop(ranges_ref, body, carry)
    out_ref[...] = (out / total[:, None]).astype(out_ref.dtype)
    lse_ref[...] = top + jnp.log2(total)


def _by_q_kernel(
    sizes, q_ref, k_ref, v_ref, slope_ref, lse_ref, delta_ref, start_ref, end_ref, ranges_ref,
    by_q_ref,
):  # fmt: skip
    q, start, end, slope = q_ref[...], start_ref[...], end_ref[...], slope_ref[...]
    lse, delta = lse_ref[...], delta_ref[...]

    def body(masked, j, by_q):
        keys = pl.ds(j * sizes.keys, sizes.keys)
        k = k_ref[keys, :]
        weights = jnp.exp2(_scores(q, k, start, end, j * sizes.keys, masked) - lse[:, None])
        by_weights = _dot(slope, v_ref[keys, :].T)
        by_scores = weights * (by_weights - delta[:, None])
        return by_q + _dot(by_scores.astype(k.dtype), k)

    by_q = _loop(ranges_ref, body, jnp.zeros(q.shape, jnp.float32))
    by_q_ref[...] = by_q.astype(by_q_ref.dtype)


def _by_kv_kernel(
    sizes, q_ref, k_ref, v_ref, slope_ref, lse_ref, delta_ref, start_ref, end_ref, ranges_ref,
    by_k_ref, by_v_ref,
):  # fmt: skip
    k, v, first_key = k_ref[...], v_ref[...], pl.program_id(0) * sizes.keys

    def body(masked, i, carry):
        by_k, by_v = carry
        queries = pl.ds(i * sizes.queries, sizes.queries)
        q, slope = q_ref[queries, :], slope_ref[queries, :]
        scores = _scores(q, k, start_ref[queries], end_ref[queries], first_key, masked)
        weights = jnp.exp2(scores - lse_ref[queries][:, None])
        by_v = by_v + _dot(weights.astype(slope.dtype).T, slope)
        by_weights = _dot(slope, v.T)
        by_scores = weights * (by_weights - delta_ref[queries][:, None])
        return by_k + _dot(by_scores.astype(q.dtype).T, q), by_v

    zeros = jnp.zeros(k.shape, jnp.float32)
    by_k, by_v = _loop(ranges_ref, body, (zeros, zeros))
    by_k_ref[...], by_v_ref[...] = by_k.astype(by_k_ref.dtype), by_v.astype(by_v_ref.dtype)
