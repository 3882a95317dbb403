"""What a masked generative transformer hides in training, and the loss on what was hidden.

Every function that draws takes one key per row, so a row's draw does not depend on the batch it
sits in. Legend: B batch, S image tokens, V vocabulary.
Source: Muse (arXiv 2301.00704, sec. 2.6, 2.7), MaskGIT (arXiv 2202.04200, sec. 3.1).
"""

import jax
import jax.numpy as jnp

from mmx.ops.sampling import argmax_last


def sample_mask_rate(keys_B: jax.Array) -> jax.Array:
    """Draws one mask rate a row, with density 2/pi * (1 - r^2)^(-1/2) on [0, 1].

    That is r = cos(pi u / 2) for uniform u: mean 2/pi, variance 1/2 - 4/pi^2. The rule
    2/pi * arccos(u), which others also call cosine, has the same mean and another shape.

    Args:
      keys_B: one random key per row.

    Returns:
      rate_B: float32 [B] in [0, 1].

    Source: arXiv 2301.00704 sec. 2.6 (from arXiv 2202.04200 sec. 3.3).
    """
    u_B = jax.vmap(jax.random.uniform)(keys_B)
    return jnp.cos(0.5 * jnp.pi * u_B)


def exact_mask(keys_B: jax.Array, rate_B: jax.Array, num_tokens: int) -> jax.Array:
    """Hides exactly max(1, round(rate * num_tokens)) positions of each row, all equally likely.

    Args:
      keys_B: one random key per row.
      rate_B: float [B] in [0, 1].
      num_tokens: S.

    Returns:
      is_masked_BS: bool [B, S], True where hidden. Rounding to nearest, halves to even: ours.
    """
    count_B = jnp.maximum(1, jnp.round(rate_B.astype(jnp.float32) * num_tokens)).astype(jnp.int32)
    bits_BS = jax.vmap(lambda key: jax.random.bits(key, (num_tokens,)))(keys_B)
    # argsort of random words is a random permutation; the places of its `count` smallest entries
    # are a random set of that size, so no second sort (ranks) is needed.
    return jnp.argsort(bits_BS, axis=-1) < count_B[:, None]


def keep_text(keys_B: jax.Array, drop_rate: float) -> jax.Array:
    """Draws which rows keep their text (classifier-free guidance training).

    Args:
      keys_B: one random key per row.
      drop_rate: probability in [0, 1] that a row loses its text; 0.1 in Muse.

    Returns:
      keep_B: bool [B], True = keep. Rate 0 keeps all, rate 1 drops all.

    Source: arXiv 2301.00704 sec. 2.7.
    """
    return jax.vmap(jax.random.uniform)(keys_B) >= drop_rate


def cross_entropy(
    logits_BSV: jax.Array, labels_BS: jax.Array, label_smoothing: float = 0.0
) -> jax.Array:
    """Cross entropy in nats at every position, float32 whatever the type of the logits.

    The target is (1 - label_smoothing) on the label plus label_smoothing / V on every entry.
    Written as logsumexp minus a gather: no one-hot of the vocabulary is built.

    Args:
      logits_BSV: float [..., V].
      labels_BS: int [...] in [0, V).
      label_smoothing: in [0, 1).

    Returns:
      float32 [...].
    """
    logits_BSV = logits_BSV.astype(jnp.float32)
    label_logit_BS = jnp.take_along_axis(logits_BSV, labels_BS[..., None], axis=-1)[..., 0]
    target_BS = label_logit_BS
    if label_smoothing:
        target_BS = (1 - label_smoothing) * label_logit_BS + label_smoothing * logits_BSV.mean(-1)
    return jax.nn.logsumexp(logits_BSV, axis=-1) - target_BS


def masked_cross_entropy(
    logits_BSV: jax.Array,
    labels_BS: jax.Array,
    is_masked_BS: jax.Array,
    label_smoothing: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Cross entropy and accuracy over the hidden positions only, one number per row.

    Each row is averaged over its own hidden positions, so the mean of the result weighs every
    row alike however much of it was hidden (MaskGIT's normalisation; the usual `ignore_index`
    mean would weigh rows by their mask rate).

    Args:
      logits_BSV: float [B, S, V].
      labels_BS: int [B, S] in [0, V).
      is_masked_BS: bool [B, S], True = counted.
      label_smoothing: in [0, 1), see `cross_entropy`.

    Returns:
      loss_B: float32 [B] in nats; 0 for a row with nothing hidden.
      accuracy_B: float32 [B] in [0, 1].
    """
    count_B = jnp.maximum(is_masked_BS.sum(-1), 1).astype(jnp.float32)

    def masked_mean(value_BS):
        return jnp.where(is_masked_BS, value_BS, 0).sum(-1, dtype=jnp.float32) / count_B

    loss_B = masked_mean(cross_entropy(logits_BSV, labels_BS, label_smoothing))
    hit_BS = argmax_last(jax.lax.stop_gradient(logits_BSV)) == labels_BS
    return loss_B, masked_mean(hit_BS)
