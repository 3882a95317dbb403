"""From noise to image: solvers as tables of numbers, and one loop that runs any of them.

Every solver here makes the z of the next call linearly out of what this call and the last one saw
and said. So a solver is a function of (schedule, times) that writes the factors down, a row a call.
Legend: B rows, R steps, C calls of the denoiser, `...` any shape.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmx.core.errors import choose
from mmx.ops.diffusion.guidance import Denoise
from mmx.ops.diffusion.schedules import Schedule

# sigma / alpha at the ends of a grid: arXiv 2206.00364 table 1.
LEVELS = (80.0, 0.002)


class Table(NamedTuple):
    """The next z is a sum of five, each with its factor [C]; t_C are the times of the calls."""

    t: jax.Array
    z: jax.Array
    x0: jax.Array  # what the denoiser said of it
    last_z: jax.Array
    last_x0: jax.Array
    noise: jax.Array


def _table(t_C, z, x0, last_z=0.0, last_x0=0.0, noise=0.0) -> Table:
    """A row for every call but the last, which is added: it returns x0 as it is."""
    shape = (len(t_C) - 1,)
    wide = lambda factor, last: jnp.append(jnp.broadcast_to(factor, shape), last)
    return Table(t_C, wide(z, 0), wide(x0, 1), wide(last_z, 0), wide(last_x0, 0), wide(noise, 0))


def _ancestral(schedule: Schedule, times_R: jax.Array, eta: float) -> Table:
    """arXiv 2010.02502 eq. 12 and 16. eta = 1 draws from q(z_s | z_t, x0): arXiv 2006.11239 eq. 7.

    With ``shrink = alpha_t sigma_s / (alpha_s sigma_t)``, the variance of that q is
    ``sigma_s^2 (1 - shrink^2)`` on every schedule. (The papers' ``1 - alpha_t^2 / alpha_s^2`` is
    for alpha^2 + sigma^2 = 1 alone.)
    """
    alpha, sigma = schedule.alpha(times_R), schedule.sigma(times_R)
    shrink = alpha[:-1] * sigma[1:] / (alpha[1:] * sigma[:-1])
    kept = jnp.sqrt((1 - eta**2) + jnp.square(eta * shrink))
    return _table(
        times_R,
        z=kept * sigma[1:] / sigma[:-1],
        x0=alpha[1:] * (1 - kept * shrink),
        noise=eta * sigma[1:] * jnp.sqrt(1 - jnp.square(shrink)),
    )


def ddpm(schedule: Schedule, times_R: jax.Array) -> Table:
    """Ancestral sampling."""
    return _ancestral(schedule, times_R, 1.0)


def ddim(schedule: Schedule, times_R: jax.Array) -> Table:
    """First order in alpha and sigma: ``alpha_s x0 + sigma_s eps``; exact for a single image."""
    return _ancestral(schedule, times_R, 0.0)


def _slope(schedule: Schedule, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(p, q) of the probability flow ``dz / dt = alpha' x0 + sigma' eps = p z + q x0``."""
    alpha_rate, sigma_rates = schedule.rates(t)
    p = sigma_rates / jnp.square(schedule.sigma(t))
    return p, alpha_rate - p * schedule.alpha(t)


def euler(schedule: Schedule, times_R: jax.Array) -> Table:
    """First order in time; on the rectified flow the same as DDIM."""
    step = jnp.diff(times_R)
    p, q = (x[:-1] for x in _slope(schedule, times_R))
    return _table(times_R, z=1 + step * p, x0=step * q)


def heun(schedule: Schedule, times_R: jax.Array) -> Table:
    """Second order in time, two calls a step: an Euler step, then the mean of both slopes.

    With sigma(t) = t and alpha = 1 it is that of arXiv 2206.00364 algorithm 1.
    """
    step = jnp.diff(times_R)
    p, q = _slope(schedule, times_R)
    try_z, try_x0 = 1 + step * p[:-1], step * q[:-1]
    half = step / 2
    zero = jnp.zeros_like(step)
    paired = lambda first, second: jnp.stack([first, second], 1).reshape(-1)
    return _table(
        jnp.append(paired(times_R[:-1], times_R[1:]), times_R[-1]),
        z=paired(try_z, half * p[1:]),
        x0=paired(try_x0, half * q[1:]),
        last_z=paired(zero, 1 + half * p[:-1]),
        last_x0=paired(zero, half * q[:-1]),
    )


def dpmpp_2m(schedule: Schedule, times_R: jax.Array) -> Table:
    """DPM-Solver++(2M), arXiv 2211.01095 algorithm 2: second order, one call a step."""
    alpha, sigma = schedule.alpha(times_R), schedule.sigma(times_R)
    shrink = alpha[:-1] * sigma[1:] / (alpha[1:] * sigma[:-1])
    # Half the step in log-SNR. Infinite out of pure noise, after which nothing is extrapolated.
    h = -jnp.log(shrink)
    beyond = jnp.append(0.0, h[1:] / (2 * h[:-1]))
    fresh = alpha[1:] * (1 - shrink)
    return _table(
        times_R,
        z=sigma[1:] / sigma[:-1],
        x0=fresh * (1 + beyond),
        last_x0=-fresh * beyond,
    )


SOLVERS: dict[str, Callable[[Schedule, jax.Array], Table]] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "euler": euler,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
}


def solve(
    denoise: Denoise,
    schedule: Schedule,
    solver: str,
    times_R: jax.Array,
    z: jax.Array,
    keys_B: jax.Array,
) -> jax.Array:
    """Follow z from the first of the times to the image. Rows do not touch each other.

    Args:
      denoise: (z [B, ...], t [B]) -> x0 [B, ...], called once a step (R - 1 times more by heun).
      schedule: of the noise.
      solver: a key of ``SOLVERS``.
      times_R: falling, in (0, 1]; a grid of this module.
      z: [B, ...] at the first of the times: noise, for time 1.
      keys_B: one key a row; ddpm alone reads them.

    Returns:
      x0 [B, ...]: what the denoiser says at the last of the times, left as it is.
    """
    table = choose("solver", SOLVERS, solver)(schedule, times_R)
    z = z.astype(table.z.dtype)
    draws = solver == "ddpm"

    def call(carry, row):
        (z, last_z, last_x0), (i, row) = carry, row
        x0 = denoise(z, jnp.full(z.shape[:1], row.t)).astype(z.dtype)
        after = row.z * z + row.x0 * x0 + row.last_z * last_z + row.last_x0 * last_x0
        if draws:
            normal = lambda key: jax.random.normal(jax.random.fold_in(key, i), z.shape[1:], z.dtype)
            after += row.noise * jax.vmap(normal)(keys_B)
        return (after, z, x0), None

    rows = jnp.arange(len(table.t)), table
    return jax.lax.scan(call, (z, jnp.zeros_like(z), jnp.zeros_like(z)), rows)[0][0]


def trailing(num_steps: int) -> jax.Array:
    """Times 1, 1 - 1/R, ..., 1/R: even, and from where there is noise alone (arXiv 2305.08891)."""
    return 1 - jnp.arange(num_steps) / num_steps


def even_log_snr(
    schedule: Schedule, num_steps: int, first: float | None = None, last: float | None = None
) -> jax.Array:
    """Times that lie evenly in log-SNR, between two.

    Where none are given, those of ``LEVELS``; 1 where a schedule has less noise at its end.
    """
    level = lambda t, wanted: schedule.time_at(-2 * math.log(wanted)) if t is None else t
    first, last = level(first, LEVELS[0]), level(last, LEVELS[1])
    ends = (schedule.log_snr(t) for t in (first, last))
    return schedule.time_at(jnp.linspace(*ends, num_steps)).at[-1].set(last).at[0].set(first)


# By name: (schedule, how many) -> falling times in (0, 1].
GRIDS: dict[str, Callable[[Schedule, int], jax.Array]] = {
    "trailing": lambda schedule, num_steps: trailing(num_steps),
    "even_log_snr": even_log_snr,
}
