"""Semantic guidance: which words an image's upper layers should be, as a teacher says.

    relative_BV = relative_similarity(image_BD @ word_VD.T)
    chosen_BT = draw_from_pools(relative_BV, thresholds_T, keys_B)
    loss = guidance_loss(targets_BTZ, table_VZ, chosen_BT)
    total = appearance + dynamic_weight(appearance, loss) * loss

Legend: B batch, T guided words of an image, V words of the table, Z width.
Source: arXiv 2306.17842 (SPAE), as recalled: its text was not at hand.
"""

import jax
import jax.numpy as jnp

_LEAST = 1e-6  # ours: of a loss that divides
MOST_WEIGHT = 1e3  # ours: of the guidance, should its loss vanish


def relative_similarity(similarity_BV: jax.Array) -> jax.Array:
    """float32 [B, V] in [0, 1]: each image's similarities, 0 at its least and 1 at its most alike
    word. Of an image to which all words are alike (ours): 1."""
    s_BV = similarity_BV.astype(jnp.float32)
    low_B1, high_B1 = s_BV.min(-1, keepdims=True), s_BV.max(-1, keepdims=True)
    span_B1 = high_B1 - low_B1
    return jnp.where(span_B1 > 0, (s_BV - low_B1) / jnp.where(span_B1 > 0, span_B1, 1), 1.0)


def draw_from_pools(
    relative_BV: jax.Array, thresholds_T: jax.Array, keys_B: jax.Array
) -> jax.Array:
    """One word a place, uniformly out of its pool: the words at least as alike as its threshold.

    Args:
      relative_BV: of :func:`relative_similarity`, so that no pool is empty.
      thresholds_T: float [T] in [0, 1], that of the layer of each place.
      keys_B: a row's own.

    Returns:
      int32 [B, T] in [0, V).
    """
    order_BV = jnp.argsort(-relative_BV, axis=-1)
    size_BT = (relative_BV[:, None] >= thresholds_T[:, None]).sum(-1)
    u_BT = jax.vmap(lambda key: jax.random.uniform(key, thresholds_T.shape))(keys_B)
    # u < 1, but its product with the size may be rounded up to the size.
    rank_BT = jnp.minimum((u_BT * size_BT).astype(jnp.int32), size_BT - 1)
    return jnp.take_along_axis(order_BV, rank_BT, axis=-1).astype(jnp.int32)


def guidance_loss(
    targets_BTZ: jax.Array, table_VZ: jax.Array, chosen_BT: jax.Array, temperature: float = 1.0
) -> jax.Array:
    """Cross-entropy of the chosen words under a softmax of ``-|target - e|^2 / temperature``.

    Args:
      targets_BTZ: what words are chosen to be near (`mmx.ops.pyramid.PyramidWords`), which get the
        gradient.
      table_VZ: the words; constant.
      chosen_BT: int [B, T].
      temperature: 1 is the paper's (it fits the scale of its table).

    Returns:
      float32 scalar, the mean over words.
    """
    table_VZ = jax.lax.stop_gradient(table_VZ).astype(jnp.float32)
    targets_BTZ = targets_BTZ.astype(jnp.float32)
    # Less |target|^2, which all words share.
    dot_BTV = jnp.einsum("btz,vz->btv", targets_BTZ, table_VZ, precision="highest")
    logits_BTV = (2 * dot_BTV - jnp.square(table_VZ).sum(-1)) / temperature
    log_p_BTV = jax.nn.log_softmax(logits_BTV)
    return -jnp.take_along_axis(log_p_BTV, chosen_BT[..., None], axis=-1).mean()


def dynamic_weight(appearance: jax.Array, guidance: jax.Array) -> jax.Array:
    """Constant that makes the guidance as large as the appearance loss, which is at least 0:
    float32 scalar up to MOST_WEIGHT (the bound is ours)."""
    ratio = appearance / jnp.maximum(guidance, _LEAST)
    return jax.lax.stop_gradient(jnp.minimum(ratio, MOST_WEIGHT))
