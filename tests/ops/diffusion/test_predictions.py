"""What networks predict, turned into each other (invariants 12 and 14)."""

import functools
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


@functools.cache
def compiled(name):
    """(x0, eps, t -> every target), (z, t, outs -> every x0), (x0, eps, t -> z)."""
    schedule = SCHEDULES[name]
    return (
        jax.jit(lambda x0, eps, t: {p: target(p, schedule, x0, eps, t) for p in PREDICTIONS}),
        jax.jit(lambda z, t, outs: {p: to_x0(p, schedule, z, t, outs[p]) for p in PREDICTIONS}),
        jax.jit(lambda x0, eps, t: q_sample(schedule, x0, eps, t)),
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_each_prediction_becomes_each_other_and_comes_back(name):
    targets, to_clean, corrupt = compiled(name)
    with jax.enable_x64(True):
        x0, eps, t = draws(SCHEDULES[name])
        z = corrupt(x0, eps, t)
        outs = targets(x0, eps, t)
        alpha, sigma = (f(t)[:, None, None] for f in (SCHEDULES[name].alpha, SCHEDULES[name].sigma))
        for prediction, clean in to_clean(z, t, outs).items():
            np.testing.assert_allclose(clean, x0, atol=1e-10, err_msg=prediction)
            others = targets(clean, (z - alpha * clean) / sigma, t)
            for other, back in to_clean(z, t, others).items():
                np.testing.assert_allclose(back, x0, atol=1e-10, err_msg=f"{prediction} {other}")


@pytest.mark.parametrize("name", SCHEDULES)
def test_targets_by_their_formulas(name):
    targets, _, corrupt = compiled(name)
    with jax.enable_x64(True):
        x0, eps, t = draws(SCHEDULES[name])
        alpha, sigma = (
            np.asarray(f(t))[:, None, None] for f in (SCHEDULES[name].alpha, SCHEDULES[name].sigma)
        )
        out = targets(x0, eps, t)
        np.testing.assert_allclose(corrupt(x0, eps, t), alpha * x0 + sigma * eps, rtol=1e-12)
        np.testing.assert_array_equal(out["x0"], x0)
        np.testing.assert_array_equal(out["eps"], eps)
        np.testing.assert_allclose(out["v"], alpha * eps - sigma * x0, rtol=1e-10)
        # arXiv 2206.00364 eq. 7, with everything divided by alpha.
        z, level = x0 + sigma / alpha * eps, sigma / alpha
        kept = EDM_STD**2 / (level**2 + EDM_STD**2)
        scale = level * EDM_STD / np.sqrt(level**2 + EDM_STD**2)
        np.testing.assert_allclose(out["edm"], (x0 - kept * z) / scale, rtol=1e-6, atol=1e-8)
        _, rate = jax.jvp(lambda t: corrupt(x0, eps, t), (t,), (jnp.ones_like(t),))
        np.testing.assert_allclose(out["velocity"], rate, rtol=1e-10)
        if name == "rectified_flow":
            np.testing.assert_allclose(out["velocity"], eps - x0, rtol=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_both_ends_are_finite_in_float32(name):
    targets, to_clean, corrupt = compiled(name)
    t = jnp.array([0.0, 1e-6, 0.5, 1 - 1e-6, 1.0])
    x0, eps = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    outs = targets(x0, eps, t)
    for prediction, got in to_clean(corrupt(x0, eps, t), t, outs).items():
        assert np.isfinite(outs[prediction]).all() and np.isfinite(got).all(), prediction
        # At time 0 z is the image, and is taken for it.
        np.testing.assert_allclose(got[0], x0[0], atol=1e-4, err_msg=prediction)
    factor = coefficients("velocity", SCHEDULES[name], jnp.full((2, 3), 0.5))[0]
    assert factor.shape == (2, 3)


def test_corruption_has_the_moments_of_its_schedule():
    x0, num = 0.7, 1_000_000
    eps = jax.random.normal(jax.random.key(0), (3, num))
    t = jnp.array([0.1, 0.5, 0.9])
    for name in ("cosine", "rectified_flow"):
        schedule = SCHEDULES[name]
        z = np.asarray(q_sample(schedule, jnp.full_like(eps, x0), eps, t))
        alpha, sigma = np.asarray(schedule.alpha(t)), np.asarray(schedule.sigma(t))
        assert (abs(z.mean(1) - alpha * x0) < 5 * sigma / num**0.5).all()
        assert (abs(z.var(1) / sigma**2 - 1) < 5 * (2 / num) ** 0.5).all()


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
