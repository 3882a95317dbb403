"""At which times a network learns: quantile functions, which turn a uniform number into a time.

How often a time is drawn is kept apart from how much it counts (the weightings).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mmx.core import rng as rngs
from mmx.ops.diffusion.schedules import Schedule


def _logit_normal(u: jax.Array, schedule: Schedule) -> jax.Array:
    """arXiv 2403.03206 sec. 3.1 with m = 0, s = 1."""
    return jax.nn.sigmoid(jax.scipy.special.ndtri(u))


def _edm(u: jax.Array, schedule: Schedule) -> jax.Array:
    """``ln(sigma / alpha) ~ N(-1.2, 1.2^2)``: arXiv 2206.00364 table 1."""
    return schedule.time_at(-2 * (1.2 * jax.scipy.special.ndtri(u) - 1.2))


# Name -> (u in (0, 1), schedule) -> t in (0, 1), rising in u.
TIMES: dict[str, Callable[[jax.Array, Schedule], jax.Array]] = {
    "uniform": lambda u, schedule: u,
    "logit_normal": _logit_normal,
    "edm": _edm,
}


def stratified(key: jax.Array, position_B: jax.Array, num: int) -> jax.Array:
    """Uniform numbers spread evenly over each block of ``num`` rows that follow one another.

    A block has one random offset, and its rows lie 1 / num apart (arXiv 2107.00630 appendix I.1).
    So the loss of a batch varies less, and yet a row's number depends on its position alone.

    Args:
      key: the run's base key.
      position_B: uint32 [B], the rows' positions in the data stream.
      num: rows a block, such as the batch size.

    Returns:
      float32 [B] in (0, 1).
    """
    keys_B = rngs.row_keys(key, "stratified", position_B // num)
    offset_B = jax.vmap(jax.random.uniform)(keys_B)
    u_B = jnp.mod(offset_B + (position_B % num) / num, 1.0)
    return jnp.clip(u_B, 1e-6, 1 - 1e-6)
