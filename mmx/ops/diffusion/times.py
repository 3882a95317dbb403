"""At which times a network learns: quantile functions, which turn a uniform number into a time.

How often a time is drawn is kept apart from how much it counts (the weightings).
"""

from collections.abc import Callable

import jax

from mmx.ops.diffusion.schedules import Schedule


def _logit_normal(u: jax.Array, schedule: Schedule) -> jax.Array:
    """arXiv 2403.03206 sec. 3.1 with m = 0, s = 1."""
    return jax.nn.sigmoid(jax.scipy.special.ndtri(u))


def _edm(u: jax.Array, schedule: Schedule) -> jax.Array:
    """``ln(sigma / alpha) ~ N(-1.2, 1.2^2)``: arXiv 2206.00364 table 1."""
    return schedule.time_at(-2 * (1.2 * jax.scipy.special.ndtri(u) - 1.2))


def _shift_4(u: jax.Array, schedule: Schedule) -> jax.Array:
    """arXiv 2403.03206 eq. 23 with a factor of 4, as of arXiv 2505.14683's large images.

    Half of the draws are above 0.8. On the rectified flow sigma / alpha is 4 times that at u.
    """
    return 4 * u / (1 + 3 * u)


# Name -> (u in (0, 1), schedule) -> t in (0, 1), rising in u.
TIMES: dict[str, Callable[[jax.Array, Schedule], jax.Array]] = {
    "uniform": lambda u, schedule: u,
    "logit_normal": _logit_normal,
    "edm": _edm,
    "shift_4": _shift_4,
}
