"""Parallel decoding of masked tokens (MaskGIT, Muse): one loop that knows no network.

It takes a function from tokens to logits, so the same loop draws images, fills holes and fixes
edits. Legend: B batch, S image tokens, V vocabulary, R decoding steps.
Source: MaskGIT (arXiv 2202.04200 sec. 3.2), Muse (arXiv 2301.00704 sec. 2.7, 2.8).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mmx.core.errors import UserError
from mmx.ops import sampling, schedules

SELECTIONS = ("confidence", "random", "halton")


def decode(
    logits_fn: Callable[[jax.Array, jax.Array], jax.Array],
    ids_BS: jax.Array,
    keys_B: jax.Array,
    *,
    mask_id: int,
    num_steps: int,
    schedule: str = "cosine",
    selection: str = "confidence",
    sampling_temperature: float = 1.0,
    choice_temperature: float = 4.5,
) -> tuple[jax.Array, jax.Array]:
    """Fills every position that holds `mask_id`, some at each step; the others never change.

    At each step ids are drawn for all hidden positions, the best ones (by rank, so that the count
    is exact whatever ties there are) are revealed for good, the rest is hidden again. Each row
    follows the schedule of its own number of unknown tokens: floor(unknown at the start * share)
    stay hidden, at least 1 and at least one less than before. The last step reveals all; a row
    with fewer unknown tokens than steps is done early.

    Args:
      logits_fn: (ids_BS, step) -> logits float [B, S, V]; step is a traced int32 in [0, R).
        Guidance happens in here (`guide`, `schedules.guidance_ramp`), as does cutting the logits
        down to the codebook.
      ids_BS: int [B, S], `mask_id` where unknown.
      keys_B: one random key per row; a row's result does not depend on the others.
      mask_id: at least V, so that it can never be drawn.
      num_steps: R. Muse: 24 (base), 8 (super-resolution).
      schedule: a name in `schedules.HIDDEN_SHARE`.
      selection: which positions to reveal: "confidence" (largest log-probability of the drawn id
        plus noise), "random" (unbiased), "halton" (a fixed spread-out order over a square grid).
      sampling_temperature: divides the logits before drawing; 0 takes the most likely id.
      choice_temperature: weight of the Gumbel noise on the confidence at the start, falling to 0
        at the last step; 4.5 in MaskGIT. No effect on the other selections.

    Returns:
      ids_BS: as given, no `mask_id` left.
      trace_RBS: the ids after each step, hidden positions as `mask_id`.

    Raises:
      UserError: a name, temperature or number of steps outside the above.
      ValueError: `mask_id` < V, or "halton" on a number of tokens that is no square (mistakes of
        the calling code).
    """
    if selection not in SELECTIONS:
        raise UserError(f"selection = {selection!r}: choose one of {', '.join(SELECTIONS)}")
    for name, value in [("sampling", sampling_temperature), ("choice", choice_temperature)]:
        if value < 0:
            raise UserError(f"{name}_temperature = {value}: give 0 or more")
    num_tokens = ids_BS.shape[1]
    hidden_RN = schedules.hidden_counts(schedule, num_steps, num_tokens)
    unknown_B = (ids_BS == mask_id).sum(-1)
    hidden_RB = jnp.asarray(hidden_RN)[:, unknown_B]
    place_S = _halton_place(num_tokens) if selection == "halton" else None

    def score(logits_BSV, drawn_BS, keys_B, step):
        if selection == "halton":
            return jnp.broadcast_to(-place_S.astype(jnp.float32), drawn_BS.shape)
        if selection == "random":
            return jax.vmap(lambda key: jax.random.uniform(key, (num_tokens,)))(keys_B)
        noise_BS = jax.vmap(lambda key: jax.random.gumbel(key, (num_tokens,)))(keys_B)
        weight = schedules.choice_temperature_at(step, num_steps, choice_temperature)
        # Of the logits as they are: at temperature 0 every drawn id would otherwise have
        # probability 1 and the order would say nothing (ours).
        return sampling.log_prob(logits_BSV, drawn_BS) + weight * noise_BS

    def one_step(ids_BS, step_and_hidden):
        step, hidden_B = step_and_hidden
        logits_BSV = logits_fn(ids_BS, step)
        if logits_BSV.shape[-1] > mask_id:
            raise ValueError(
                f"mask_id = {mask_id} is one of the {logits_BSV.shape[-1]} ids that the logits can "
                "draw: cut the logits to the codebook, or move mask_id behind it"
            )
        keys_KB = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, step)), 0, 1)(
            keys_B
        )
        drawn_BS = _draw(keys_KB[0], logits_BSV, sampling_temperature)
        is_unknown_BS = ids_BS == mask_id
        left_B = is_unknown_BS.sum(-1)
        # min last: a row with a single hidden token reveals it, and then has nothing to reveal.
        hidden_B = jnp.minimum(jnp.maximum(hidden_B, 1), left_B - 1)
        count_B = jnp.where(step == num_steps - 1, left_B, left_B - hidden_B)
        score_BS = score(logits_BSV, drawn_BS, keys_KB[1], step)
        reveal_BS = top_count(score_BS, is_unknown_BS, count_B)
        ids_BS = jnp.where(reveal_BS, drawn_BS.astype(ids_BS.dtype), ids_BS)
        return ids_BS, ids_BS

    steps_R = jnp.arange(num_steps, dtype=jnp.int32)
    return jax.lax.scan(one_step, ids_BS, (steps_R, hidden_RB))


def _draw(keys_B, logits_BSV, temperature: float) -> jax.Array:
    if temperature == 0:
        return sampling.argmax_last(logits_BSV)
    return sampling.categorical(keys_B, logits_BSV.astype(jnp.float32) / temperature)


def _halton_place(num_tokens: int) -> jax.Array:
    side = math.isqrt(num_tokens)
    if side**2 != num_tokens:
        raise ValueError(f"{num_tokens} tokens are no square grid: halton orders squares only")
    return jnp.asarray(schedules.halton_order((side, side)))


def top_count(score_BS: jax.Array, eligible_BS: jax.Array, count_B: jax.Array) -> jax.Array:
    """Marks the `count` largest scores among the eligible positions of each row.

    Ranks, never a threshold: with ties (a bf16 score has a few hundred values) a comparison marks
    too many or too few. Among equals the lower position wins.

    Args:
      score_BS: float [B, S]; NaN ranks last among the eligible.
      eligible_BS: bool [B, S], True = may be marked.
      count_B: int [B].

    Returns:
      bool [B, S] with min(count, eligible) True in each row.
    """
    place_BS = jnp.broadcast_to(jnp.arange(score_BS.shape[1], dtype=jnp.int32), score_BS.shape)
    # Eligible first by a key of its own: no value of a score, not even infinity, can mix them.
    *_, order_BS = jax.lax.sort(
        (~eligible_BS, -score_BS, place_BS), dimension=1, is_stable=True, num_keys=2
    )
    first_BS = place_BS < count_B[:, None]

    # Row by row, so that XLA keeps the scatter on the devices that hold the rows.
    def scatter(order_S, first_S):
        return jnp.zeros_like(first_S).at[order_S].set(first_S, unique_indices=True)

    return eligible_BS & jax.vmap(scatter)(order_BS, first_BS)


def guide(cond: jax.Array, uncond: jax.Array, t: jax.Array | float) -> jax.Array:
    """Classifier-free guidance on logits: (1 + t) * cond - t * uncond.

    t = 0 gives `cond` and so does uncond = cond, both to the bit. The scale s of the form
    uncond + s * (cond - uncond) is s = 1 + t. For a negative prompt give its logits as `uncond`.

    Args:
      cond, uncond: finite float arrays of one shape (cut padding entries off before).
      t: guidance, 0 or more.

    Source: arXiv 2301.00704 sec. 2.7.
    """
    return cond + t * (cond - uncond)
