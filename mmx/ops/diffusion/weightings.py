"""How much an error at a noise level counts: functions of log-SNR on ``|x0 - x0_hat|^2``.

Written so, a weighting knows nothing of the prediction; :func:`loss_weight` carries it over to the
network's own output. (On the output itself, min-SNR has one form a prediction, of which the one for
v has been published wrong: its denominator is SNR + 1 and its numerator is not.)
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mmx.core.errors import choose
from mmx.ops.diffusion.predictions import EDM_STD, coefficients
from mmx.ops.diffusion.schedules import LEAST, Schedule

# Name -> log-SNR -> logarithm of the weight: SNRs run over e^80, more than products bear.
WEIGHTINGS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "x0": jnp.zeros_like,
    "eps": lambda log_snr: log_snr,  # SNR
    "v": jax.nn.softplus,  # SNR + 1
    # (1 + sqrt(SNR))^2, on the rectified flow 1 / t^2: the mean square of its velocity there.
    "velocity": lambda log_snr: 2 * jax.nn.softplus(log_snr / 2),
    # SNR + 1 / std^2: arXiv 2206.00364 table 1.
    "edm": lambda log_snr: jnp.logaddexp(log_snr, -2 * math.log(EDM_STD)),
    # min(SNR, 5): arXiv 2303.09556 sec. 3.4.
    "min_snr_5": lambda log_snr: jnp.minimum(log_snr, math.log(5)),
}


def loss_weight(weighting: str, prediction: str, schedule: Schedule, t: jax.Array) -> jax.Array:
    """The factor of ``|target - out|^2`` that makes it the weighted ``|x0 - x0_hat|^2``.

    By ``x0 = a z + b out`` that is weight * b^2. Finite at both ends: exactly 1 where the output is
    what the weighting measures, though weight and b^2 are infinite and 0 there.

    Args:
      weighting, prediction: keys of ``WEIGHTINGS`` and ``PREDICTIONS``.
      schedule: of the noise.
      t: times of any shape.

    Returns:
      float, of the shape of t.
    """
    log_weight = choose("weighting", WEIGHTINGS, weighting)(schedule.log_snr(t))
    _, b = coefficients(prediction, schedule, t)
    return jnp.exp(log_weight + 2 * jnp.log(jnp.maximum(jnp.abs(b), LEAST)))
