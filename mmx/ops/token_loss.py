"""Cross entropy over a large vocabulary without the logits of all positions at once.

Axis letters: B batch, L length, n chunks of it, C positions of a chunk, D width, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp

from mmx.core.partition import constrain


def chunked_cross_entropy(
    hidden_BLD: jax.Array,
    kernel_DV: jax.Array,
    labels_BL: jax.Array,
    weights_BL: jax.Array,
    vocab_size: int,
    chunk: int,
) -> jax.Array:
    """Weighted sum of the cross entropies of all positions, chunk by chunk along the length.

    The float32 logits and their softmax live for one chunk at a time, where the plain loss holds
    two arrays [B, L, V] of float32. Nothing is computed twice: the forward pass of a gradient
    already makes the gradient of the logits, in the hidden states' dtype, and keeps that alone.

    Args:
      hidden_BLD: what the head reads; the products are in its dtype, sums in float32.
      kernel_DV: the head's weights, without a bias; columns from ``vocab_size`` on are padding.
      labels_BL: int in [0, vocab_size).
      weights_BL: of each position, 0 for one that does not count.
      vocab_size: V less its padding.
      chunk: positions at a time; divides L.

    Returns:
      float32 scalar: sum of weight times (logsumexp of the logits - the label's logit), in nats.
      With gradients by hidden states, kernel and weights.

    Raises:
      ValueError: chunk does not divide the length.
    """
    length = hidden_BLD.shape[1]
    if chunk < 1 or length % chunk:
        raise ValueError(f"chunk={chunk} does not divide a length of {length}")
    # Gathered once and not in each turn; turned to the computation's dtype before.
    kernel_DV = constrain(kernel_DV.astype(hidden_BLD.dtype), None, "vocab")
    split = lambda x: x.reshape(x.shape[0], -1, chunk, *x.shape[2:]).swapaxes(0, 1)
    parts = map(split, (hidden_BLD, labels_BL, weights_BL))
    return _chunked(vocab_size, *parts, kernel_DV)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked(vocab_size, hidden_nBCD, labels_nBC, weights_nBC, kernel_DV):
    def one(chunk):
        hidden_BCD, labels_BC = chunk
        return _losses(_logits(hidden_BCD, kernel_DV, vocab_size), labels_BC)

    return (jax.lax.map(one, (hidden_nBCD, labels_nBC)) * weights_nBC).sum()


def _forward(vocab_size, hidden_nBCD, labels_nBC, weights_nBC, kernel_DV):
    def one(chunk):
        hidden_BCD, labels_BC, weights_BC = chunk
        logits_BCV = _logits(hidden_BCD, kernel_DV, vocab_size)
        losses_BC, pull = jax.vjp(lambda logits_BCV: _losses(logits_BCV, labels_BC), logits_BCV)
        slope_BCV = pull(weights_BC.astype(losses_BC.dtype))[0].astype(hidden_BCD.dtype)
        return losses_BC, slope_BCV, jnp.einsum("bcv,dv->bcd", slope_BCV, kernel_DV)

    losses_nBC, *slopes = jax.lax.map(one, (hidden_nBCD, labels_nBC, weights_nBC))
    return (losses_nBC * weights_nBC).sum(), (hidden_nBCD, losses_nBC, *slopes)


def _backward(vocab_size, kept, g):
    hidden_nBCD, losses_nBC, slope_nBCV, slope_nBCD = kept
    # One product for all chunks: a sum carried from chunk to chunk would be reduced over the
    # devices in each.
    kernel_DV = constrain(jnp.einsum("nbcd,nbcv->dv", hidden_nBCD, slope_nBCV), "embed", "vocab")
    # Before the model's backward pass begins: left to the compiler it comes last, and the logits'
    # gradient lives until then.
    slope_nBCD, kernel_DV = jax.lax.optimization_barrier((slope_nBCD, kernel_DV))
    scale = lambda x: (g * x).astype(x.dtype)
    return scale(slope_nBCD), None, scale(losses_nBC), scale(kernel_DV)


_chunked.defvjp(_forward, _backward)


def _logits(hidden_BCD, kernel_DV, vocab_size):
    """In float32 at least, sharded over the vocabulary where the kernel is; padding is -inf."""
    dtype = jnp.promote_types(hidden_BCD.dtype, jnp.float32)
    logits_BCV = jnp.einsum("bcd,dv->bcv", hidden_BCD, kernel_DV, preferred_element_type=dtype)
    logits_BCV = constrain(logits_BCV, "act_batch", "act_len", "act_vocab")
    return jnp.where(jnp.arange(kernel_DV.shape[1]) < vocab_size, logits_BCV, -jnp.inf)


def _losses(logits_BCV, labels_BC):
    label_BC = jnp.take_along_axis(logits_BCV, labels_BC[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits_BCV, axis=-1) - label_BC
