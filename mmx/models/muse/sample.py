"""Text to codes: parallel decoding with guidance (arXiv 2301.00704 sec. 2.7, 2.8).

Axis letters: B batch, S image codes, T text tokens, V codebook, R decoding steps.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mmx.ops.decoding import decode, guide
from mmx.ops.schedules import guidance_ramp


def sample_codes(
    logits_fn: Callable,
    text_emb_BTD: jax.Array,
    text_mask_BT: jax.Array,
    negative_emb_BTD: jax.Array,
    negative_mask_BT: jax.Array,
    ids_BS: jax.Array,
    keys_B: jax.Array,
    *,
    mask_id: int,
    options,
) -> tuple[jax.Array, jax.Array]:
    """Fill in the ``mask_id`` positions of ``ids_BS``.

    Args:
      logits_fn: (ids, text_emb, text_mask) -> logits over the codebook.
      text_emb_BTD, text_mask_BT: of the prompts.
      negative_emb_BTD, negative_mask_BT: what to keep away from; with an all-False mask, the
        unconditional model.
      ids_BS: known codes, and ``mask_id`` where unknown.
      keys_B: one a sample.
      options: steps, guidance (t at the last step; l = (1+t) cond - t uncond, rising linearly from
        0), sampling_temperature, choice_temperature, schedule, selection.

    Returns:
      (codes_BS, trace_RBS).
    """
    both_emb = jnp.concatenate([text_emb_BTD, negative_emb_BTD])
    both_mask = jnp.concatenate([text_mask_BT, negative_mask_BT])

    def guided(ids_BS, step):
        if options.guidance == 0.0:
            return logits_fn(ids_BS, text_emb_BTD, text_mask_BT)
        logits = logits_fn(jnp.concatenate([ids_BS, ids_BS]), both_emb, both_mask)
        cond, uncond = jnp.split(logits, 2)
        return guide(cond, uncond, guidance_ramp(step, options.steps, options.guidance))

    return decode(
        guided,
        ids_BS,
        keys_B,
        mask_id=mask_id,
        num_steps=options.steps,
        schedule=options.schedule,
        selection=options.selection,
        sampling_temperature=options.sampling_temperature,
        choice_temperature=options.choice_temperature,
    )
