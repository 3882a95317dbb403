"""How alike the words of each layer are to what a teacher says, and how many there are.

Legend: B batch, T words of an image, t those of the guided layers, V words, E teacher's width, Z
latent width.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmx.core.errors import UserError
from mmx.ops.pyramid import Pyramid, PyramidWords
from mmx.ops.quantize import code_histogram, usage_metrics
from mmx.ops.word_guidance import draw_from_pools, guidance_loss, relative_similarity


def check_guidance(guidance, pyramid: Pyramid) -> None:
    """Raises UserError: thresholds that are not in [0, 1], rise with depth, or are too many."""
    thresholds = tuple(guidance.thresholds)
    falls = all(a >= b for a, b in itertools.pairwise(thresholds))
    if not (1 <= len(thresholds) <= pyramid.num_layers and falls) or not all(
        0 <= t <= 1 for t in thresholds
    ):
        raise UserError(
            f"config.guidance.thresholds={thresholds}: one in [0, 1] for each guided layer (of "
            f"{pyramid.num_layers}), none above the one before"
        )


def guidance(
    config: Any,
    pyramid: Pyramid,
    words: PyramidWords,
    table_VZ: jax.Array,
    similarity_BV: jax.Array,
    keys_B: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The semantic loss of the upper layers.

    Args:
      config: ``config.guidance``.
      words, table_VZ: of the forward pass.
      similarity_BV: of each image with the words, as the teacher sees it.
      keys_B: a row's own, for the draws out of the pools.

    Returns:
      (float32 scalar, metrics: the share of each guided layer's words that are in its pool).
    """
    layers = len(config.thresholds)
    end, counts = pyramid.ends[layers - 1], pyramid.sizes[:layers]
    threshold_t = jnp.asarray(np.repeat(np.float32(config.thresholds), counts))
    relative_BV = jax.lax.stop_gradient(relative_similarity(similarity_BV))
    chosen_Bt = draw_from_pools(relative_BV, threshold_t, keys_B)
    targets_BtZ = words.targets_BTZ[:, :end]
    loss = guidance_loss(
        targets_BtZ, table_VZ[: relative_BV.shape[1]], chosen_Bt, config.temperature
    )
    alike_Bt = jnp.take_along_axis(relative_BV, words.words_BT[:, :end], axis=-1)
    hit_Bt = alike_Bt >= threshold_t
    metrics = {}
    for layer in range(layers):
        at = slice(pyramid.ends[layer] - counts[layer], pyramid.ends[layer])
        metrics[f"words/pool_hit_{layer + 1}"] = hit_Bt[:, at].mean(dtype=jnp.float32)
        metrics[f"words/alike_{layer + 1}"] = alike_Bt[:, at].mean()
    return loss, metrics


def use_of_words(pyramid: Pyramid, words_BT: jax.Array, num_words: int) -> dict[str, jax.Array]:
    """Of a batch's words, by layer: how many different ones, and their perplexity; a collapse to
    a few words shows here, not in a mean similarity."""
    metrics, first = {}, 0
    for layer, end in enumerate(pyramid.ends):
        histogram_V = code_histogram(words_BT[:, first:end], num_words)
        metrics[f"words/unique_{layer + 1}"] = (histogram_V > 0).sum(dtype=jnp.float32)
        metrics[f"words/perplexity_{layer + 1}"] = usage_metrics(histogram_V)["perplexity"]
        first = end
    return metrics
