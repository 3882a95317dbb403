"""Times at which to learn, against the distributions they are drawn from."""

from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmx.ops.diffusion.schedules import SCHEDULES
from mmx.ops.diffusion.times import TIMES

U = np.linspace(0.001, 0.999, 999)
LEVEL = lambda schedule, t: np.exp(-np.asarray(schedule.log_snr(t)) / 2)  # sigma / alpha


def normal_cdf(x, mean=0.0, std=1.0):
    return np.array([NormalDist(mean, std).cdf(value) for value in np.asarray(x).tolist()])


@pytest.mark.parametrize("name", SCHEDULES)
def test_quantiles_are_those_of_the_distribution(name):
    schedule = SCHEDULES[name]
    with jax.enable_x64(True):
        np.testing.assert_array_equal(TIMES["uniform"](U, schedule), U)
        t = np.asarray(TIMES["logit_normal"](U, schedule))
        np.testing.assert_allclose(normal_cdf(np.log(t / (1 - t))), U, atol=1e-10)
        t = np.asarray(TIMES["edm"](U, schedule))
        inside = (t > 0) & (t < 1)  # a table does not reach the level of every draw
        assert inside.mean() > 0.95
        cdf = normal_cdf(np.log(LEVEL(schedule, t[inside])), -1.2, 1.2)
        np.testing.assert_allclose(cdf, U[inside], atol=1e-8)


def test_shifted_times_are_at_four_times_the_noise():
    flow = SCHEDULES["rectified_flow"]
    with jax.enable_x64(True):
        t = np.asarray(TIMES["shift_4"](U, flow))
        np.testing.assert_allclose(LEVEL(flow, t), 4 * LEVEL(flow, U), rtol=1e-9)


def test_times_rise_with_u_and_are_finite_at_the_last_float32():
    u = jnp.array([1e-6, 0.1, 0.5, 0.9, 1 - 1e-6])
    for schedule in SCHEDULES.values():
        for name, quantile in TIMES.items():
            t = quantile(u, schedule)
            assert (np.diff(t) > 0).all() and t[0] >= 0 and t[-1] <= 1, (schedule.name, name)
