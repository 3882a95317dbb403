"""A decoder one piece of the row at a time: keys and values of what came before are kept.

Axis letters: B batch, T positions of the piece, M places of the cache, N heads, K head size, D
width. Layers come first: [depth, B, N, M, K].
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmx.core.partition import constrain
from mmx.nn.decoder import Decoder, DecoderBlock, Layout
from mmx.nn.spans import visible_keys

# Finite: a place of padding reads nothing, and a NaN there would reach whoever weighs it by 0.
_NEVER = -1e30


class Cache(NamedTuple):
    """Keys and values of the first ``length_B`` positions of each row; beyond that, anything.

    Attributes:
      k, v: [depth, B, N, M, K]; heads before places, which a product of few queries reads as it is.
      length_B: int32.
    """

    k: jax.Array
    v: jax.Array
    length_B: jax.Array


def empty_cache(decoder: Decoder, batch: int, places: int, head_size: int) -> Cache:
    """Of no position, with room for ``places``."""
    zeros = jnp.zeros((decoder.depth, batch, decoder.heads, places, head_size), decoder.dtype)
    return Cache(zeros, zeros, jnp.zeros(batch, jnp.int32))


def run_piece(
    decoder: Decoder,
    params: Any,
    x_BTD: jax.Array,
    layout: Layout,
    cache: Cache | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The blocks over the next positions of each row.

    Args:
      decoder: whose.
      params: of the decoder.
      x_BTD: embeddings of the piece.
      layout: of the piece: positions in the whole row, bounds within the piece, which are of the
        piece's own keys; all of the cache is read besides.
      cache: of what came before; None reads nothing before the piece.

    Returns:
      (x [B, T, D] before the final norm, the piece's keys, its values [depth, B, N, T, K]).
    """
    block = DecoderBlock(*decoder.block_fields())

    def layer(x_BTD, inputs):
        params, k_BNMK, v_BNMK = inputs
        apply = lambda *args, method: block.apply({"params": params}, *args, layout, method=method)
        q_BTNK, k_BTNK, v_BTNK = apply(x_BTD, method="qkv")
        own = k_BTNK.swapaxes(1, 2), v_BTNK.swapaxes(1, 2)
        before = None if cache is None else (k_BNMK, v_BNMK, cache.length_B)
        out_BTNK = attend_cached(q_BTNK, own, layout.bounds, before)
        return apply(x_BTD, out_BTNK, method="finish"), own

    kept = (None, None) if cache is None else (cache.k, cache.v)
    x_BTD, (k, v) = jax.lax.scan(layer, x_BTD, (params["blocks"], *kept))
    return x_BTD, k, v


def attend_cached(q_BTNK, own, bounds, before) -> jax.Array:
    """Softmax attention over the piece's own keys and, before them, those of the cache.

    Args:
      q_BTNK: queries, divided by sqrt(K).
      own: (keys, values) of the piece, [B, N, T, K].
      bounds: which of its own keys each query reads.
      before: (keys, values [B, N, M, K], how many of them [B]), all of which are read; or None.

    Returns:
      [B, T, N, K] in q's dtype.
    """
    q_BNTK = q_BTNK.swapaxes(1, 2)
    score = lambda k: jnp.einsum("bntk,bnmk->bntm", q_BNTK, k, preferred_element_type=jnp.float32)
    keys, values = own
    scores = [jnp.where(visible_keys(bounds, keys.shape[2])[:, None], score(keys), _NEVER)]
    all_values = [values]
    if before is not None:
        keys, values, length_B = before
        known_BM = jnp.arange(keys.shape[2]) < length_B[:, None]
        scores.append(jnp.where(known_BM[:, None, None], score(keys), _NEVER))
        all_values.append(values)
    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1).astype(q_BTNK.dtype)
    split = jnp.split(weights, [scores[0].shape[-1]], axis=-1)
    out_BNTK = sum(jnp.einsum("bntm,bnmk->bntk", w, v) for w, v in zip(split, all_values))
    return constrain(out_BNTK.swapaxes(1, 2), "act_batch", "act_len", "act_heads", None)


def write(cache: Cache, k: jax.Array, v: jax.Array, count_B: jax.Array) -> Cache:
    """The first ``count_B`` positions of a piece go behind what each row has.

    Args:
      cache: with room for them: what does not fit is lost, so callers check first.
      k, v: [depth, B, N, T, K].
      count_B: int32, 0 for a row that stays as it is.
    """
    T, M = k.shape[3], cache.k.shape[3]
    at_BT = cache.length_B[:, None] + jnp.arange(T)
    at_BT = jnp.where(jnp.arange(T) < count_B[:, None], at_BT, M)  # beyond the end: not written

    def put(old, new):
        # [B, T] places, for all layers and heads at once.
        new = new.transpose(1, 3, 0, 2, 4)
        rows = jnp.arange(old.shape[1])[:, None]
        return old.at[:, rows, :, at_BT].set(new, mode="drop")

    return Cache(put(cache.k, k), put(cache.v, v), cache.length_B + count_B)
