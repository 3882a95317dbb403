"""How much of the image and how much noise there is at a time: ``z = alpha(t) x + sigma(t) eps``.

Time runs from 0, clean, to 1, noise; time k / 1000 is step k of the published tables, which are
continued between their steps. Functions take times of any shape and return that shape.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

STEPS = 1000  # of the tables of arXiv 2006.11239 and 2102.09672
LEAST = math.exp(-20.0)  # alpha and sigma in a log-SNR, which so stays in [-40, 40]


@dataclass(frozen=True)
class Schedule:
    """One law of noise.

    Attributes:
      name: a key of ``SCHEDULES``.
      alpha, sigma: t -> factor of the image, of the noise.
      time_at: log-SNR -> t, the inverse of :meth:`log_snr`.
      ends_in_noise: alpha(1) = 0: at its end z says nothing of the image.
    """

    name: str
    alpha: Callable[[jax.Array], jax.Array]
    sigma: Callable[[jax.Array], jax.Array]
    time_at: Callable[[jax.Array], jax.Array]
    ends_in_noise: bool

    def log_snr(self, t: jax.Array) -> jax.Array:
        """``2 ln(alpha / sigma)``, falling; -40 or 40 at an end where it is infinite."""
        alpha, sigma = (jnp.maximum(f(t), LEAST) for f in (self.alpha, self.sigma))
        return 2 * (jnp.log(alpha) - jnp.log(sigma))

    def rates(self, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        """``(alpha', sigma sigma')`` by time. The second is finite also where sigma' is not."""
        t = jnp.maximum(_float(t), 1e-12)
        slope = lambda f: jax.jvp(f, (t,), (jnp.ones_like(t),))
        sigma, sigma_rate = slope(self.sigma)
        return slope(self.alpha)[1], sigma * sigma_rate


def _float(t) -> jax.Array:
    return jnp.asarray(t, jnp.result_type(float))


def _cosine() -> Schedule:
    """arXiv 2102.09672 eq. 17 with its s = 0.008 and its beta <= 0.999.

    That cut meets the last step alone, which ends at ``alpha(1) = 4.9e-5`` instead of 0; alpha is
    drawn straight over it.
    """
    s = 0.008
    turn = math.pi / 2 / (1 + s)
    first = turn * s  # the angle at time 0
    knee = 1 - 1 / STEPS
    alpha_knee = math.sin(turn / STEPS) / math.cos(first)
    alpha_end = alpha_knee * math.sqrt(1 - 0.999)

    def alpha(t):
        left = 1 - _float(t)
        bend = jnp.sin(turn * left) / math.cos(first)
        line = alpha_end + (alpha_knee - alpha_end) * left * STEPS
        return jnp.where(t > knee, line, bend)

    def sigma(t):
        t = _float(t)
        # 1 - alpha^2 as a product, which keeps its digits where it is small.
        start = jnp.sin(turn * t) * jnp.sin(turn * t + 2 * first) / math.cos(first) ** 2
        end = 1 - jnp.square(alpha(t))
        return jnp.sqrt(jnp.where(t > knee, end, start))

    def time_at(log_snr):
        alpha, sigma = _vp(log_snr)
        cos = alpha * math.cos(first)
        sin = jnp.sqrt(math.sin(first) ** 2 + jnp.square(sigma * math.cos(first)))
        line = 1 - (alpha - alpha_end) / (alpha_knee - alpha_end) / STEPS
        t = jnp.where(alpha < alpha_knee, line, (jnp.arctan2(sin, cos) - first) / turn)
        return jnp.clip(t, 0, 1)

    return Schedule("cosine", alpha, sigma, time_at, ends_in_noise=False)


def _vp(log_snr) -> tuple[jax.Array, jax.Array]:
    """alpha and sigma with ``alpha^2 + sigma^2 = 1``."""
    log_snr = _float(log_snr)
    return jnp.sqrt(jax.nn.sigmoid(log_snr)), jnp.sqrt(jax.nn.sigmoid(-log_snr))


class _Table:
    """``ln alpha^2 = sum over steps of ln(1 - beta)`` as a function of continuous time.

    beta is a polynomial in the step, so the sum is almost one: a low degree meets all 1000 steps to
    1e-14, and is smooth between them, as solvers of second order want.
    """

    def __init__(self, beta: np.ndarray, degree: int):
        t = np.arange(1, STEPS + 1) / STEPS
        powers = np.vander(t, degree, increasing=True)
        # Of -ln(alpha^2) / t; all above zero, so nothing cancels at any time.
        decay = -np.cumsum(np.log1p(-beta))
        self.factors = np.linalg.lstsq(powers, decay / t, rcond=None)[0].tolist()
        self.alpha_bar = np.exp(-decay)

    def decay(self, t) -> jax.Array:
        """``-ln alpha(t)^2``."""
        t = _float(t)
        return t * self._horner(self.factors, t)

    def time_at(self, decay) -> jax.Array:
        """The inverse: Newton from above, where this convex function leads it down without fail."""
        one, two = self.factors[:2]
        t = jnp.minimum(2 * decay / (one + jnp.sqrt(one**2 + 4 * two * decay)), 1)
        slope = [(i + 1) * c for i, c in enumerate(self.factors)]
        for _ in range(6):
            t = t - (self.decay(t) - decay) / self._horner(slope, t)
        return jnp.clip(t, 0, 1)

    @staticmethod
    def _horner(factors, t):
        value = jnp.zeros_like(t)
        for factor in reversed(factors):
            value = value * t + factor
        return value


def _from_table(name: str, table: _Table) -> Schedule:
    alpha = lambda t: jnp.exp(-table.decay(t) / 2)
    sigma = lambda t: jnp.sqrt(-jnp.expm1(-table.decay(t)))
    time_at = lambda log_snr: table.time_at(jax.nn.softplus(-_float(log_snr)))
    return Schedule(name, alpha, sigma, time_at, ends_in_noise=False)


def _zero_terminal_snr(table: _Table) -> Schedule:
    """Another table's alpha moved and stretched to end at 0 and keep its first step.

    arXiv 2305.08891 algorithm 1. Before the first step, where the published table has no say, the
    other table's alpha stands: the stretched one would exceed 1.
    """
    first, last = (math.sqrt(table.alpha_bar[k]) for k in (0, -1))
    stretch = first / (first - last)

    def alpha(t):
        other = jnp.exp(-table.decay(t) / 2)
        value = jnp.where(_float(t) * STEPS < 1, other, stretch * (other - last))
        # Exactly 0 at the end in any precision, with the slope as it is.
        return value - jax.lax.stop_gradient(jnp.where(_float(t) < 1, 0, value))

    def sigma(t):
        other = -jnp.expm1(-table.decay(t) / 2)
        moved = stretch * other + (1 - stretch * (1 - last))
        missing = jnp.where(_float(t) * STEPS < 1, other, moved)  # 1 - alpha
        return jnp.sqrt(missing * (2 - missing))

    def time_at(log_snr):
        decay = jax.nn.softplus(-_float(log_snr))
        moved = -2 * jnp.log(jnp.exp(-decay / 2) / stretch + last)
        return table.time_at(jnp.where(decay < -2 * math.log(first), decay, moved))

    return Schedule("zero_terminal_snr", alpha, sigma, time_at, ends_in_noise=True)


def _rectified_flow() -> Schedule:
    """arXiv 2209.03003."""
    return Schedule(
        "rectified_flow",
        lambda t: 1 - _float(t),
        _float,
        lambda log_snr: jax.nn.sigmoid(-_float(log_snr) / 2),
        ends_in_noise=True,
    )


# arXiv 2006.11239 sec. 4; Stable Diffusion's (arXiv 2112.10752), straight in the root of beta.
_DDPM = _Table(np.linspace(1e-4, 0.02, STEPS), degree=8)
_SCALED = _Table(np.linspace(0.00085**0.5, 0.012**0.5, STEPS) ** 2, degree=10)

SCHEDULES: dict[str, Schedule] = {
    schedule.name: schedule
    for schedule in (
        _cosine(),
        _from_table("ddpm_linear", _DDPM),
        _from_table("scaled_linear", _SCALED),
        _rectified_flow(),
        _zero_terminal_snr(_SCALED),
    )
}
