"""Text to codes: parallel decoding with guidance (arXiv 2301.00704 sec. 2.7, 2.8).

Axis letters: B batch, S image codes, T text tokens, V codebook, R decoding steps.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import jax
import jax.numpy as jnp

from mmx.core.errors import UserError, choose
from mmx.ops.decoding import SELECTIONS, decode, guide
from mmx.ops.schedules import HIDDEN_SHARE, guidance_ramp


@dataclass(frozen=True)
class SampleOptions:
    """How to decode; the defaults of a run are its ``config.sample``.

    Attributes:
      steps: decoding steps R.
      guidance: t at the last step, rising linearly from 0; logits (1+t) cond - t uncond.
      sampling_temperature: of the logits; 0 takes the most likely code.
      choice_temperature: of the noise on the confidence, falling linearly to 0.
      schedule, selection: names of :mod:`mmx.ops.schedules` and :mod:`mmx.ops.decoding`.
    """

    steps: int
    guidance: float
    sampling_temperature: float
    choice_temperature: float
    schedule: str
    selection: str

    @classmethod
    def of(cls, config, **changes) -> "SampleOptions":
        """Of ``config.sample``, with the changes that are not None.

        Raises:
          UserError: a value out of range, named ``config.sample.steps`` or, of a change, ``steps``.
        """
        base = cls(**{f.name: config.sample[f.name] for f in fields(cls)})
        base._check("config.sample.")
        options = replace(base, **{k: v for k, v in changes.items() if v is not None})
        options._check("")
        return options

    def _check(self, prefix: str) -> None:
        if self.steps < 1:
            raise UserError(f"{prefix}steps={self.steps}: at least one decoding step is needed")
        for name in ("guidance", "sampling_temperature", "choice_temperature"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise UserError(f"{prefix}{name}={value}: give a finite number of 0 or more")
        choose(f"{prefix}schedule", HIDDEN_SHARE, self.schedule)
        choose(f"{prefix}selection", dict.fromkeys(SELECTIONS), self.selection)


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
    options: SampleOptions,
) -> tuple[jax.Array, jax.Array]:
    """Fill in the ``mask_id`` positions of ``ids_BS``.

    Args:
      logits_fn: (ids, text_emb, text_mask) -> logits over the codebook.
      text_emb_BTD, text_mask_BT: of the prompts.
      negative_emb_BTD, negative_mask_BT: what to keep away from; with an all-False mask, the
        unconditional model.
      ids_BS: known codes, and ``mask_id`` where unknown.
      keys_B: one a sample.
      options: how to decode.

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
