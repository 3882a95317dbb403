"""What networks predict, turned into each other (invariants 12 and 14)."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmx.core.errors import UserError
from mmx.ops.diffusion.predictions import (
    EDM_STD,
    PREDICTIONS,
    check,
    coefficients,
    q_sample,
    target,
    to_x0,
)
from mmx.ops.diffusion.schedules import SCHEDULES

ALL = list(itertools.product(SCHEDULES, PREDICTIONS))


def draws(schedule, num=49):
    """x0, eps and times with log-SNRs from -12 to 12, as far as the schedule goes."""
    t = schedule.time_at(np.linspace(-12.0, 12.0, num))
    t = t[(t > 0) & (t < 1)]
    x0, eps = np.random.default_rng(0).normal(size=(2, len(t), 3, 2))
    return x0, eps, t


@pytest.mark.parametrize("name", SCHEDULES)
def test_each_prediction_becomes_each_other_and_comes_back(name):
    schedule = SCHEDULES[name]
    with jax.enable_x64(True):
        x0, eps, t = draws(schedule)
        z = q_sample(schedule, x0, eps, t)
        for one, two in itertools.product(PREDICTIONS, PREDICTIONS):
            out = target(one, schedule, x0, eps, t)
            clean = to_x0(one, schedule, z, t, out)
            np.testing.assert_allclose(clean, x0, atol=1e-10, err_msg=one)
            sigma = schedule.sigma(t)[:, None, None]
            noise = (z - schedule.alpha(t)[:, None, None] * clean) / sigma
            other = target(two, schedule, clean, noise, t)
            back = target(one, schedule, to_x0(two, schedule, z, t, other), noise, t)
            np.testing.assert_allclose(back, out, rtol=1e-7, atol=1e-7, err_msg=f"{one} {two}")


@pytest.mark.parametrize("name", SCHEDULES)
def test_targets_by_their_formulas(name):
    schedule = SCHEDULES[name]
    with jax.enable_x64(True):
        x0, eps, t = draws(schedule)
        alpha, sigma = (np.asarray(f(t))[:, None, None] for f in (schedule.alpha, schedule.sigma))
        of = lambda name: target(name, schedule, x0, eps, t)
        np.testing.assert_array_equal(of("x0"), x0)
        np.testing.assert_array_equal(of("eps"), eps)
        np.testing.assert_allclose(of("v"), alpha * eps - sigma * x0, rtol=1e-12)
        # arXiv 2206.00364 eq. 7, with everything divided by alpha.
        z, level = x0 + sigma / alpha * eps, sigma / alpha
        kept = EDM_STD**2 / (level**2 + EDM_STD**2)
        scale = level * EDM_STD / np.sqrt(level**2 + EDM_STD**2)
        np.testing.assert_allclose(of("edm"), (x0 - kept * z) / scale, rtol=1e-6, atol=1e-8)
        if name == "rectified_flow":
            np.testing.assert_allclose(of("velocity"), eps - x0, rtol=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_velocity_is_the_derivative_of_z(name):
    schedule = SCHEDULES[name]
    with jax.enable_x64(True):
        x0, eps, t = draws(schedule)
        path = lambda t: q_sample(schedule, x0, eps, t)
        _, rate = jax.jvp(path, (t,), (np.ones_like(t),))
        np.testing.assert_allclose(target("velocity", schedule, x0, eps, t), rate, rtol=1e-10)


@pytest.mark.parametrize(("name", "prediction"), ALL)
def test_both_ends_are_finite_in_float32(name, prediction):
    schedule = SCHEDULES[name]
    t = jnp.array([0.0, 1e-6, 0.5, 1 - 1e-6, 1.0])
    for factor in coefficients(prediction, schedule, t):
        assert factor.shape == t.shape and np.isfinite(factor).all()
    x0, eps = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    out = target(prediction, schedule, x0, eps, t)
    assert np.isfinite(out).all()
    # At time 0 z is the image, and is taken for it whatever a network says.
    got = to_x0(prediction, schedule, q_sample(schedule, x0, eps, t), t, out)
    np.testing.assert_allclose(got[0], x0[0], atol=1e-4)


def test_corruption_has_the_moments_of_its_schedule():
    x0, num = 0.7, 1_000_000
    eps = jax.random.normal(jax.random.key(0), (num,))
    for name, t in itertools.product(SCHEDULES, (0.1, 0.5, 0.9)):
        schedule = SCHEDULES[name]
        z = np.asarray(q_sample(schedule, jnp.full(num, x0), eps, jnp.full(num, t)), np.float64)
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        assert abs(z.mean() - alpha * x0) < 5 * sigma / num**0.5
        assert abs(z.var() / sigma**2 - 1) < 5 * (2 / num) ** 0.5


def test_what_cannot_be_sampled_from_is_refused():
    for name, prediction in ALL:
        schedule = SCHEDULES[name]
        if prediction == "eps" and name in ("rectified_flow", "zero_terminal_snr"):
            with pytest.raises(UserError, match=rf"config\.p='eps'.*{name} ends in pure noise"):
                check(schedule, prediction, "config.p")
        else:
            check(schedule, prediction, "config.p")
    with pytest.raises(UserError, match=r"prediction='epsilon': use one of x0, eps, v"):
        check(SCHEDULES["cosine"], "epsilon")
