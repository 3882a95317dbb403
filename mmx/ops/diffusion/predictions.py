"""What a network predicts of ``z = alpha x0 + sigma eps``, and what that says of x0.

Every prediction is linear both ways, ``out = p x0 + q eps`` and ``x0 = a z + b out``, so any two of
them convert into each other by way of x0. Times t broadcast over the trailing axes of z.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmx.core.errors import UserError, choose
from mmx.ops.diffusion.schedules import LEAST, Schedule

# Standard deviation of the data in EDM's prediction: arXiv 2206.00364 table 1, images in [-1, 1].
EDM_STD = 0.5

Pair = tuple[jax.Array, jax.Array]


class Prediction(NamedTuple):
    """One kind of output.

    Attributes:
      of_clean_and_noise: (schedule, t) -> (p, q), ``out = p x0 + q eps``.
      to_clean: (schedule, t) -> (a, b), ``x0 = a z + b out``; finite from t = 0 to 1.
    """

    of_clean_and_noise: Callable[[Schedule, jax.Array], Pair]
    to_clean: Callable[[Schedule, jax.Array], Pair]


def _both(schedule: Schedule, t) -> Pair:
    return schedule.alpha(t), schedule.sigma(t)


def _constant(first: float, second: float):
    ones = lambda schedule, t: jnp.ones_like(schedule.alpha(t))
    return lambda schedule, t: (first * ones(schedule, t), second * ones(schedule, t))


def _eps_to_clean(schedule, t):
    alpha, sigma = _both(schedule, t)
    alpha = jnp.maximum(alpha, LEAST)
    return 1 / alpha, -sigma / alpha


def _v(schedule, t):
    """arXiv 2202.00512 appendix D."""
    alpha, sigma = _both(schedule, t)
    return -sigma, alpha


def _v_to_clean(schedule, t):
    # The paper's alpha z - sigma v where alpha^2 + sigma^2 = 1.
    alpha, sigma = _both(schedule, t)
    square = jnp.square(alpha) + jnp.square(sigma)
    return alpha / square, -sigma / square


def _velocity(schedule, t):
    """dz / dt: noise minus image on the rectified flow (arXiv 2210.02747, time the other way)."""
    alpha_rate, sigma_rates = schedule.rates(t)
    return alpha_rate, sigma_rates / schedule.sigma(jnp.maximum(t, 1e-12))


def _velocity_to_clean(schedule, t):
    alpha, sigma = _both(schedule, t)
    alpha_rate, sigma_rates = schedule.rates(t)
    # Eliminating eps, times sigma: below zero at every time, as alpha / sigma falls.
    scale = alpha_rate * jnp.square(sigma) - sigma_rates * alpha
    return -sigma_rates / scale, jnp.square(sigma) / scale


def _edm_parts(schedule, t):
    alpha, sigma = _both(schedule, t)
    return alpha, sigma, jnp.sqrt(jnp.square(sigma) + jnp.square(EDM_STD * alpha))


def _edm(schedule, t):
    """The network F of arXiv 2206.00364 eq. 7, its noise level being sigma / alpha."""
    alpha, sigma, total = _edm_parts(schedule, t)
    return sigma / (EDM_STD * total), -EDM_STD * alpha / total


def _edm_to_clean(schedule, t):
    alpha, sigma, total = _edm_parts(schedule, t)
    return EDM_STD**2 * alpha / jnp.square(total), EDM_STD * sigma / total


PREDICTIONS: dict[str, Prediction] = {
    "x0": Prediction(_constant(1, 0), _constant(0, 1)),
    "eps": Prediction(_constant(0, 1), _eps_to_clean),
    "v": Prediction(_v, _v_to_clean),
    "velocity": Prediction(_velocity, _velocity_to_clean),
    "edm": Prediction(_edm, _edm_to_clean),
}


def check(schedule: Schedule, prediction: str, field: str = "prediction") -> None:
    """Refuse what cannot be sampled from; for the place that reads a config.

    Raises:
      UserError: no such prediction, or noise is predicted where at time 1 all is noise: the answer
        is z itself there, whatever the image (arXiv 2305.08891 sec. 3.2).
    """
    choose(field, PREDICTIONS, prediction)
    if prediction == "eps" and schedule.ends_in_noise:
        raise UserError(
            f"{field}='eps': the schedule {schedule.name} ends in pure noise, of which a predicted "
            "noise gives no image back; use x0, v, velocity or edm, or the schedule cosine"
        )


def q_sample(schedule: Schedule, x0: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
    """``z = alpha(t) x0 + sigma(t) eps``; t broadcasts over the trailing axes."""
    return _mix(_both(schedule, t), x0, eps)


def coefficients(prediction: str, schedule: Schedule, t: jax.Array) -> Pair:
    """(a, b) of ``x0 = a z + b out``, each of the shape of t."""
    return choose("prediction", PREDICTIONS, prediction).to_clean(schedule, t)


def to_x0(
    prediction: str, schedule: Schedule, z: jax.Array, t: jax.Array, out: jax.Array
) -> jax.Array:
    """The clean image that a network's output means, given what it saw."""
    return _mix(coefficients(prediction, schedule, t), z, out)


def target(
    prediction: str, schedule: Schedule, x0: jax.Array, eps: jax.Array, t: jax.Array
) -> jax.Array:
    """What the network is to say of ``z = alpha x0 + sigma eps``."""
    of = choose("prediction", PREDICTIONS, prediction).of_clean_and_noise
    return _mix(of(schedule, t), x0, eps)


def _mix(factors: Pair, first: jax.Array, second: jax.Array) -> jax.Array:
    a, b = (f.reshape(f.shape + (1,) * (first.ndim - f.ndim)) for f in factors)
    return a * first + b * second
