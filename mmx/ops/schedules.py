"""Schedules of parallel decoding, tiny and pure: how many, how noisy, how guided, in what order.

Legend: R decoding steps, S image tokens, h w token grid.
"""

from collections.abc import Callable

import jax
import numpy as np

from mmx.core.errors import UserError

# Share of the unknown tokens still hidden when a share x of the steps is done.
HIDDEN_SHARE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "cosine": lambda x: np.cos(0.5 * np.pi * x),  # arXiv 2301.00704 sec. 2.8
    "arccos": lambda x: 2 / np.pi * np.arccos(x),  # arXiv 2503.17076: more tokens early
    "linear": lambda x: 1 - x,  # equal steps: the baseline
}


def hidden_counts(schedule: str, num_steps: int, max_unknown: int) -> np.ndarray:
    """How many tokens stay hidden after each step, for every number unknown at the start.

    A table made in float64, because float32 on a device gets the floor wrong wherever the product
    is a whole number (64 * cos(pi / 3) is 31.99...) or just beside one.

    Args:
      schedule: a name in `HIDDEN_SHARE`.
      num_steps: R, at least 1.
      max_unknown: the largest number of unknown tokens at the start.

    Returns:
      int32 [R, max_unknown + 1]: floor(n * share((t + 1) / R)); 0 in the last row.

    Raises:
      UserError: unknown schedule, or num_steps < 1.

    Source: arXiv 2202.04200 sec. 3.2; arXiv 2301.00704 sec. 2.8.
    """
    if schedule not in HIDDEN_SHARE:
        raise UserError(f"schedule = {schedule!r}: choose one of {', '.join(HIDDEN_SHARE)}")
    if num_steps < 1:
        raise UserError(f"num_steps = {num_steps}: take at least 1")
    share_R = HIDDEN_SHARE[schedule](np.arange(1, num_steps + 1) / num_steps)
    share_R[-1] = 0
    # 1e-9 lifts whole numbers over the float64 rounding and is far below any other distance.
    return np.floor(share_R[:, None] * np.arange(max_unknown + 1) + 1e-9).astype(np.int32)


def choice_temperature_at(step: jax.Array, num_steps: int, temperature: float) -> jax.Array:
    """Weight of the noise on the confidence at a step: temperature * (1 - (step + 1) / num_steps).

    Falls on a straight line from the starting value; it must not be multiplied up over the steps.
    """
    return temperature * (1 - (step + 1) / num_steps)


def guidance_ramp(step: jax.Array, num_steps: int, scale: float) -> jax.Array:
    """Guidance t at a step: rises linearly from 0 at the first to `scale` at the last.

    With one step the whole scale applies. Source: arXiv 2301.00704 sec. 2.7.
    """
    return scale * (step + (num_steps == 1)) / max(num_steps - 1, 1)


def halton_order(grid: tuple[int, int]) -> np.ndarray:
    """Place of every cell of a grid in the Halton sequence of bases 2 (rows) and 3 (columns).

    Args:
      grid: (h, w).

    Returns:
      int32 [h * w], a permutation: 0 for the cell revealed first. Rows first, as token ids lie.

    Source: arXiv 2503.17076 sec. 3.
    """
    height, width = grid
    place = np.full(height * width, -1, np.int32)
    found = index = 0
    while found < place.size:
        index += 1
        cell = int(_radical_inverse(index, 2) * height) * width
        cell += int(_radical_inverse(index, 3) * width)
        if place[cell] < 0:
            place[cell] = found
            found += 1
    return place


def _radical_inverse(index: int, base: int) -> float:
    """Digits of `index` in `base`, mirrored at the point: in [0, 1)."""
    numerator, denominator = 0, 1
    while index:
        index, digit = divmod(index, base)
        numerator, denominator = numerator * base + digit, denominator * base
    return numerator / denominator
