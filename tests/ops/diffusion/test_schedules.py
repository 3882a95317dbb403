"""Schedules against their published tables and closed forms (invariant 11)."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmx.ops.diffusion.schedules import SCHEDULES, Schedule

STEP = np.arange(1, 1001)
NAMES = list(SCHEDULES)
VP = [name for name in NAMES if name != "rectified_flow"]


def linear_alpha_bar():
    return np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))


def scaled_alpha_bar():
    return np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)


def cosine_alpha_bar():
    """arXiv 2102.09672 eq. 17, step by step with beta at most 0.999."""
    f = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.cumprod(1 - np.minimum(1 - f[1:] / f[:-1], 0.999))


def zero_snr_alpha_bar():
    """arXiv 2305.08891 algorithm 1."""
    root = np.sqrt(scaled_alpha_bar())
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


TABLES = {
    "cosine": cosine_alpha_bar,
    "ddpm_linear": linear_alpha_bar,
    "scaled_linear": scaled_alpha_bar,
    "zero_terminal_snr": zero_snr_alpha_bar,
}


@pytest.mark.parametrize("name", TABLES)
def test_time_k_of_1000_is_step_k_of_the_published_table(name):
    with jax.enable_x64(True):
        alpha = SCHEDULES[name].alpha(STEP / 1000)
        np.testing.assert_allclose(alpha**2, TABLES[name](), rtol=1e-10, atol=1e-16)


def test_known_values():
    # Spec section 1.6, computed once from the papers' formulas.
    at = lambda name, t: float(SCHEDULES[name].alpha(t)) ** 2
    assert at("cosine", 0.001) == pytest.approx(0.999959, abs=1e-6)
    assert at("cosine", 0.5) == pytest.approx(0.4938, abs=5e-5)
    assert at("cosine", 1.0) == pytest.approx(2.43e-9, rel=1e-3)
    assert at("ddpm_linear", 1.0) == pytest.approx(4.036e-5, rel=1e-4)
    assert at("scaled_linear", 1.0) == pytest.approx(4.660e-3, rel=1e-4)


def test_zero_terminal_snr_ends_in_noise_and_keeps_its_first_step():
    schedule, other = SCHEDULES["zero_terminal_snr"], SCHEDULES["scaled_linear"]
    assert float(schedule.alpha(1.0)) == 0.0 and float(schedule.sigma(1.0)) == 1.0
    assert float(schedule.rates(1.0)[0]) < -0.1  # it gets there on a slope
    np.testing.assert_allclose(schedule.alpha(0.001), other.alpha(0.001), rtol=1e-6)
    t = np.linspace(0, 1, 10001)
    assert (np.asarray(schedule.alpha(t)) <= np.asarray(other.alpha(t)) + 1e-6).all()


@pytest.mark.parametrize("name", NAMES)
def test_what_the_flag_says_of_the_end(name):
    assert SCHEDULES[name].ends_in_noise == (float(SCHEDULES[name].alpha(1.0)) == 0)


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_from_the_image_to_noise_without_turning(name):
    schedule = SCHEDULES[name]
    assert float(schedule.alpha(0.0)) == 1 and float(schedule.sigma(0.0)) == 0
    with jax.enable_x64(True):
        t = np.linspace(1e-6, 1 - 1e-6, 20_001)
        assert (np.diff(schedule.log_snr(t)) < 0).all()
        if name in VP:
            total = schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2
            np.testing.assert_allclose(total, 1, atol=1e-12)
        np.testing.assert_allclose(schedule.time_at(schedule.log_snr(t)), t, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_float32_keeps_its_digits_at_both_ends(name):
    schedule = SCHEDULES[name]
    near = np.geomspace(1e-6, 0.5, 200)
    t = np.concatenate([near, 1 - near]).astype(np.float32)
    got = [np.asarray(f(t)) for f in (schedule.alpha, schedule.sigma, schedule.log_snr)]
    back = np.asarray(schedule.time_at(got[2]))
    with jax.enable_x64(True):
        exact = [np.asarray(f(np.float64(t))) for f in (schedule.alpha, schedule.sigma)]
        np.testing.assert_allclose(got[0], exact[0], rtol=2e-5, atol=5e-8)
        np.testing.assert_allclose(got[1], exact[1], rtol=2e-4)
    np.testing.assert_allclose(back, t, atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_ends_are_finite_and_shapes_kept(name):
    schedule = SCHEDULES[name]
    t = jnp.array([[0.0, 1e-6, 0.3], [1 - 1e-6, 1.0, 0.999]])
    for values in (
        schedule.alpha(t),
        schedule.sigma(t),
        schedule.log_snr(t),
        *schedule.rates(t),
        schedule.time_at(jnp.array([[-1e3, -40, 0], [40, 1e3, 12]])),
    ):
        assert values.shape == t.shape and np.isfinite(values).all()
    inside = jnp.array([1e-6, 0.3, 0.999, 1 - 1e-6])
    assert np.isfinite(jax.vmap(jax.grad(schedule.log_snr))(inside)).all()


@pytest.mark.parametrize("name", NAMES)
def test_rates_are_derivatives(name):
    schedule = SCHEDULES[name]
    with jax.enable_x64(True):
        t, h = np.array([0.0007, 0.1, 0.5, 0.9, 0.9995]), 1e-6
        slope = lambda f: (f(t + h) - f(t - h)) / (2 * h)
        square = lambda t: schedule.sigma(t) ** 2 / 2
        np.testing.assert_allclose(schedule.rates(t)[0], slope(schedule.alpha), rtol=1e-6)
        np.testing.assert_allclose(schedule.rates(t)[1], slope(square), rtol=1e-6)


def test_the_table_is_smooth_between_its_steps():
    # A bend at a step would show as a jump of the second difference, which here hardly changes.
    with jax.enable_x64(True):
        for name in ("ddpm_linear", "scaled_linear"):
            t = np.linspace(0.2, 0.8, 6001)
            second = np.diff(SCHEDULES[name].log_snr(t), 2)
            assert np.abs(np.diff(second)).max() < 0.005 * np.abs(second).max()


def test_cosine_is_its_closed_form_between_the_steps():
    with jax.enable_x64(True):
        t = np.array([1e-5, 0.12345, 0.6789, 0.99895])
        f = lambda t: np.cos((t + 0.008) / 1.008 * np.pi / 2)
        np.testing.assert_allclose(SCHEDULES["cosine"].alpha(t), f(t) / f(0), rtol=1e-12)


def test_a_schedule_of_ones_own_has_the_same_functions():
    plain = Schedule(
        "plain",
        lambda t: jnp.cos(t * math.pi / 2),
        lambda t: jnp.sin(t * math.pi / 2),
        lambda log_snr: jnp.arctan(jnp.exp(-log_snr / 2)) * 2 / math.pi,
        ends_in_noise=True,
    )
    np.testing.assert_allclose(plain.log_snr(0.25), -2 * math.log(math.tan(math.pi / 8)), rtol=1e-5)
