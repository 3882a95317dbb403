"""Quantizers without a codebook, FSQ and LFQ, and what all quantizers share. VQ is in `vq.py`.

Each takes latents of any leading shape and gives a `Quantized`; each has its way back from codes
to vectors (`*_decode`) and from exact vectors to codes (`*_codes`).
Legend: Z latent width, E number of codes, N all leading axes as one; `...` any shape.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmx.core.errors import UserError


class Quantized(NamedTuple):
    """What a quantizer makes of latents z [..., Z].

    codes: int32 [...] in [0, E).
    z_q: float32 [..., Z], exactly the vectors of the codes; its gradient passes straight to z.
    loss: float32 scalar, all auxiliary losses with their weights.
    metrics: float32 scalars: usage, perplexity, and each loss part without its weight.
    """

    codes: jax.Array
    z_q: jax.Array
    loss: jax.Array
    metrics: dict[str, jax.Array]


def straight_through(z: jax.Array, z_q: jax.Array) -> jax.Array:
    """The value of `z_q`, to the bit, with the gradient of `z`. Source: arXiv 1711.00937 sec. 3."""
    return jax.lax.stop_gradient(z_q) + (z - jax.lax.stop_gradient(z))


def code_histogram(codes: jax.Array, num_codes: int) -> jax.Array:
    """float32 [E]: how often each code occurs in int codes [...]. Histograms of batches add up."""
    return jnp.zeros(num_codes, jnp.float32).at[codes.reshape(-1)].add(1.0)


def usage_metrics(histogram_E: jax.Array) -> dict[str, jax.Array]:
    """Codebook use of a histogram [E].

    Returns:
      usage: share of the codes that occur, in [0, 1].
      perplexity: exp of the entropy of the codes, in [1, E]; E when all are used alike.
    """
    p_E = histogram_E / jnp.maximum(histogram_E.sum(), 1)
    return {
        "usage": (histogram_E > 0).mean(dtype=jnp.float32),
        "perplexity": jnp.exp(jax.scipy.special.entr(p_E).sum()),
    }


# ---------------------------------------------------------------- finite scalar quantization


def fsq(z: jax.Array, levels: Sequence[int]) -> Quantized:
    """Finite scalar quantization: bounds each latent dimension and rounds it to a few levels.

    No codebook and no auxiliary loss. An even number of levels is shifted by half a step, so that
    rounding still gives exactly that many values.

    Args:
      z: float [..., Z], Z = len(levels), any range.
      levels: values per dimension, each at least 3. [8, 8, 8, 4, 4] has Muse's 8192 codes.

    Returns:
      Quantized; z_q in [-1, 1].

    Raises:
      UserError: levels that are too few or too many; ValueError: z of another width.

    Source: arXiv 2309.15505 sec. 3.1, app. A.1.
    """
    levels_Z, half_Z, _ = _fsq_constants(levels, z.shape[-1])
    even_Z = (levels_Z % 2 == 0) * np.float32(0.5)
    # A little less than half a step from the last border, as in the paper: at the border itself
    # rounding could give one level more.
    reach_Z = (levels_Z - 1) * np.float32((1 - 1e-3) / 2)
    shift_Z = np.arctanh(even_Z / reach_Z).astype(np.float32)
    bounded = jnp.tanh(z.astype(jnp.float32) + shift_Z) * reach_Z - even_Z
    z_q = straight_through(bounded, jnp.round(bounded)) / half_Z
    codes = fsq_codes(jax.lax.stop_gradient(z_q), levels)
    histogram_E = code_histogram(codes, math.prod(levels))
    return Quantized(codes, z_q, jnp.float32(0), usage_metrics(histogram_E))


def fsq_codes(z_q: jax.Array, levels: Sequence[int]) -> jax.Array:
    """int32 [...]: codes of exact vectors [..., Z] in [-1, 1]; mixed radix, first digit fastest."""
    _, half_Z, basis_Z = _fsq_constants(levels, z_q.shape[-1])
    digits = jnp.round(z_q * half_Z + half_Z).astype(jnp.int32)
    return (digits * basis_Z).sum(-1)


def fsq_decode(codes: jax.Array, levels: Sequence[int]) -> jax.Array:
    """float32 [..., Z] in [-1, 1]: the vectors of int codes [...] in [0, prod(levels))."""
    levels_Z, half_Z, basis_Z = _fsq_constants(levels, len(levels))
    digits = (codes[..., None] // basis_Z) % levels_Z
    return (digits - half_Z).astype(jnp.float32) / half_Z


def _fsq_constants(levels, width):
    if min(levels) < 3 or math.prod(levels) >= 2**31:
        raise UserError(
            f"levels = {list(levels)}: at least 3 each (for 2 there is LFQ), product < 2^31"
        )
    if len(levels) != width:
        raise ValueError(f"FSQ with {len(levels)} levels needs latents that wide, not {width}")
    levels_Z = np.asarray(levels, np.int32)
    basis_Z = np.cumprod([1, *levels[:-1]]).astype(np.int32)
    return levels_Z, (levels_Z // 2).astype(np.float32), basis_Z


# ---------------------------------------------------------------- lookup-free quantization


def lfq(
    z: jax.Array,
    *,
    commitment_weight: float = 0.25,
    entropy_weight: float | jax.Array = 0.02,
    entropy_temperature: float = 0.01,
) -> Quantized:
    """Lookup-free quantization: each latent dimension becomes one bit, its sign.

    The entropy loss is the exact one over all 2^Z codes, without a table of 2^Z numbers per
    latent: softmax(2 z.c / temperature) over sign vectors c is a product over the bits, so the
    entropy of a latent is a sum over bits, and the mean distribution over the batch is one matrix
    product of the distributions of the lower and of the upper half of the bits.

    Args:
      z: float [..., Z]; 2^Z codes, Z at most 24 (the mean distribution is a table of that size).
      commitment_weight: of mean (z - sign)^2; 0.25 in arXiv 2409.16211.
      entropy_weight: of the entropy loss; 0.02 there, doubled at first. May be traced.
      entropy_temperature: 0.01 there.

    Returns:
      Quantized; z_q in {-1, 1}. Bit k of a code is 1 where z[..., k] > 0.

    Raises:
      UserError: Z > 24.

    Source: arXiv 2310.05737 sec. 3.1; weights from arXiv 2409.16211.
    """
    num_bits = z.shape[-1]
    if num_bits > 24:
        raise UserError(f"LFQ with {num_bits} bits: at most 24")
    z = z.astype(jnp.float32)
    sign = jnp.where(z > 0, 1.0, -1.0)
    codes = lfq_codes(sign)
    commitment = jnp.square(z - sign).mean()
    logit_NZ = 4 * z.reshape(-1, num_bits) / entropy_temperature
    sample_entropy = _bernoulli_entropy(logit_NZ).sum(-1).mean()
    split = num_bits // 2
    low_NE, high_NE = _sign_softmax(logit_NZ[:, :split]), _sign_softmax(logit_NZ[:, split:])
    mean_EE = high_NE.T @ low_NE / logit_NZ.shape[0]
    codebook_entropy = _entropy(mean_EE.reshape(-1))
    entropy = sample_entropy - codebook_entropy
    metrics = {
        **usage_metrics(code_histogram(codes, 2**num_bits)),
        "commitment": commitment,
        "entropy": entropy,
    }
    loss = commitment_weight * commitment + entropy_weight * entropy
    return Quantized(codes, straight_through(z, sign), loss, metrics)


def lfq_codes(z_q: jax.Array) -> jax.Array:
    """int32 [...]: codes of vectors [..., Z]; bit k is 1 where entry k is positive."""
    weight_Z = 2 ** np.arange(z_q.shape[-1], dtype=np.int32)
    return jnp.where(z_q > 0, weight_Z, 0).sum(-1, dtype=jnp.int32)


def lfq_decode(codes: jax.Array, num_bits: int) -> jax.Array:
    """float32 [..., Z] in {-1, 1}: the vectors of int codes [...] in [0, 2^num_bits)."""
    bits = (codes[..., None] >> np.arange(num_bits, dtype=np.int32)) & 1
    return 2.0 * bits.astype(jnp.float32) - 1.0


def _bernoulli_entropy(logit):
    """Entropy in nats of a bit with this logit, safe at any size."""
    p = jax.nn.sigmoid(logit)
    return p * jax.nn.softplus(-logit) + (1 - p) * jax.nn.softplus(logit)


def _sign_softmax(logit_NK):
    """[N, 2^K]: the distribution over the codes of K independent bits; column = code."""
    signs_EK = lfq_decode(jnp.arange(2 ** logit_NK.shape[1]), logit_NK.shape[1])
    return jax.nn.softmax(0.5 * logit_NK @ signs_EK.T, axis=-1)


def _entropy(p_E):
    # log(p + tiny) rather than entr: the gradient of p log p at p = 0 is infinite.
    return -(p_E * jnp.log(p_E + 1e-12)).sum()


# ---------------------------------------------------------------- entropy loss over a table


def entropy_loss(affinity_NE: jax.Array) -> jax.Array:
    """Mean entropy of each latent's distribution minus the entropy of their mean, in nats.

    Args:
      affinity_NE: float [N, E], logits of each latent over the codes.

    Returns:
      float32 scalar in [-ln E, ln E]: -ln E when each latent is sure of its code and all codes
      are used alike, 0 when all latents choose one code.

    Source: arXiv 2202.04200 (tokenizer), arXiv 2310.05737 sec. 3.1.
    """
    log_p_NE = jax.nn.log_softmax(affinity_NE.astype(jnp.float32), axis=-1)
    p_NE = jnp.exp(log_p_NE)
    return -(p_NE * log_p_NE).sum(-1).mean() - _entropy(p_NE.mean(0))
