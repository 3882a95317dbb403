"""Drawing from a vocabulary: categorical and argmax, each without sorting or V random words.

All work on the last axis. A vocabulary of V entries is seen as blocks of about sqrt(V): first the
block is chosen, then the entry in it. On two CPU cores, for [4, 256, 8192] logits, a draw by Gumbel
noise takes 266 ms and this one 24 ms; a plain argmax takes 40 ms.
Legend: B batch, S image tokens, V vocabulary, G blocks, C entries of a block; `...` any shape.
"""

import math

import jax
import jax.numpy as jnp


def _block_size(num_entries: int) -> int:
    """The divisor of `num_entries` nearest to its root (in ratio); a prime has one block."""
    root = math.sqrt(num_entries)
    divisors = [d for d in range(1, num_entries + 1) if num_entries % d == 0]
    return min(divisors, key=lambda d: (abs(math.log(d / root)), -d))


def _blocked(x: jax.Array) -> jax.Array:
    size = _block_size(x.shape[-1])
    return x.reshape(*x.shape[:-1], x.shape[-1] // size, size)


def _take_last(x: jax.Array, index: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x, index[..., None], axis=-1)[..., 0]


def _take_block(x_GC: jax.Array, block: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x_GC, block[..., None, None], axis=-2)[..., 0, :]


def argmax_last(x: jax.Array) -> jax.Array:
    """Index of the largest entry of the last axis, the first one among equals.

    Args:
      x: [..., V], no NaN.

    Returns:
      int32 [...].
    """
    x_GC = _blocked(x)
    block = jnp.argmax(x_GC.max(-1), axis=-1)
    entry = jnp.argmax(_take_block(x_GC, block), axis=-1)
    return (block * x_GC.shape[-1] + entry).astype(jnp.int32)


def _invert(weight: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """First entry whose running sum exceeds `target`, and the sum of the entries before it.

    Never an entry of weight 0: rounding may lift the running sum there, or leave the last sum at
    or below the target, and a forbidden id (a -inf logit) must not slip through.
    """
    total = jnp.cumsum(weight, axis=-1)
    allowed = weight > 0
    hit = allowed & (total > target[..., None])
    last_allowed = weight.shape[-1] - 1 - jnp.argmax(jnp.flip(allowed, -1), axis=-1)
    index = jnp.where(hit.any(-1), jnp.argmax(hit, axis=-1), last_allowed)
    return index, _take_last(total - weight, index)


def categorical(keys_B: jax.Array, logits_BSV: jax.Array) -> jax.Array:
    """Draws one id per position from softmax(logits), by inverting the distribution function.

    Args:
      keys_B: one random key per row.
      logits_BSV: float [B, S, V]; -inf entries are never drawn; computed in float32.

    Returns:
      ids_BS: int32 [B, S] in [0, V).
    """
    num_tokens = logits_BSV.shape[1]
    u_BS = jax.vmap(lambda key: jax.random.uniform(key, (num_tokens,)))(keys_B)
    logits_BSGC = _blocked(logits_BSV.astype(jnp.float32))
    top_BS = logits_BSGC.max((-1, -2))
    weight_BSG = jnp.exp(logits_BSGC - top_BS[..., None, None]).sum(-1)
    target_BS = u_BS * weight_BSG.sum(-1)
    block_BS, before_BS = _invert(weight_BSG, target_BS)
    weight_BSC = jnp.exp(_take_block(logits_BSGC, block_BS) - top_BS[..., None])
    entry_BS, _ = _invert(weight_BSC, target_BS - before_BS)
    return (block_BS * logits_BSGC.shape[-1] + entry_BS).astype(jnp.int32)


def log_prob(logits_BSV: jax.Array, ids_BS: jax.Array) -> jax.Array:
    """float32 [B, S]: log softmax(logits)[ids], of float logits [B, S, V] and int ids [B, S]."""
    logits_BSV = logits_BSV.astype(jnp.float32)
    return _take_last(logits_BSV, ids_BS) - jax.nn.logsumexp(logits_BSV, axis=-1)
