"""How likely texts are: after a prompt, and each of many after each of many prompts.

Axis letters: B prompts, G texts, T tokens of a text, L places, V vocabulary.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mmx.models.transfusion.generate import Generator, Row
from mmx.models.transfusion.rows import NO_LABEL
from mmx.nn.cache import Cache
from mmx.ops.spans import Bounds


def token_nll(logits_BLV: jax.Array, labels_BL: jax.Array) -> jax.Array:
    """-ln p of each label [B, L], 0 at ``NO_LABEL``."""
    label_BL1 = jnp.maximum(labels_BL, 0)[..., None]
    log_p_BL = jnp.take_along_axis(jax.nn.log_softmax(logits_BLV), label_BL1, axis=-1)[..., 0]
    return jnp.where(labels_BL == NO_LABEL, 0.0, -log_p_BL)


def text_nll(
    g: Generator, row: Row, tokens_GT: jax.Array, length_G: jax.Array, ends: Sequence[int]
) -> jax.Array:
    """-ln p of each text, and that it ends there, as what follows each prompt: float32 [B, G].

    What the prompts keep is read by all texts, so each costs its own tokens alone.

    Args:
      g: the generator.
      row: the prompts, read: of :func:`mmx.models.transfusion.generate.start`.
      tokens_GT: int ids of the texts, without an end, padded with anything.
      length_G: of the texts, at most T.
      ends: ids any of which ends a text, such as the end of the document or an image's marker.
    """
    G, T = tokens_GT.shape
    place_U = jnp.arange(T + 1)
    ended_GU = jnp.pad(tokens_GT, ((0, 0), (0, 1)))
    labels_GU = jnp.where(place_U < length_G[:, None], ended_GU, NO_LABEL)
    ends_GU = place_U == length_G[:, None]
    end_GT = jnp.broadcast_to(1 + jnp.arange(T), (G, T))
    bounds = Bounds(jnp.zeros_like(end_GT), end_GT)
    nowhere_GQ = jnp.full((G, g.patches), T)
    x_GTD = g.apply(tokens_GT, method="embed_text")

    def one(prompt):
        k_NMK, v_NMK, length, logits_V = prompt  # with the layers first
        alike = lambda kept: jnp.broadcast_to(kept[:, None], (kept.shape[0], G, *kept.shape[1:]))
        start_G = jnp.full(G, length)
        cache = Cache(alike(k_NMK), alike(v_NMK), start_G)
        hidden_GTD, _, _ = g.piece(x_GTD, start_G, bounds, cache, nowhere_GQ)
        first_G1V = jnp.broadcast_to(logits_V, (G, 1, *logits_V.shape))
        logits_GTV = g.apply(hidden_GTD, method="logits")
        logits_GUV = jnp.concatenate([first_G1V, logits_GTV], axis=1)
        log_p_GU = jax.nn.logsumexp(jax.nn.log_softmax(logits_GUV)[..., jnp.array(ends)], axis=-1)
        return token_nll(logits_GUV, labels_GU).sum(1) - jnp.where(ends_GU, log_p_GU, 0.0).sum(1)

    cache = row.cache
    prompts = cache.k.swapaxes(0, 1), cache.v.swapaxes(0, 1), cache.length_B, row.logits
    return jax.lax.map(one, prompts)
