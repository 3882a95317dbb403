"""Weights of errors, whatever the network predicts (invariant 13, min-SNR)."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmx.core.errors import UserError
from mmx.ops.diffusion.predictions import EDM_STD, PREDICTIONS, coefficients
from mmx.ops.diffusion.schedules import SCHEDULES
from mmx.ops.diffusion.weightings import WEIGHTINGS, loss_weight

# The table of the papers, on |x0 - x0_hat|^2 with s the SNR.
IN_X0 = {
    "x0": lambda s: np.ones_like(s),
    "eps": lambda s: s,
    "v": lambda s: s + 1,
    "velocity": lambda s: (1 + np.sqrt(s)) ** 2,
    "edm": lambda s: s + 1 / EDM_STD**2,
    "min_snr_5": lambda s: np.minimum(s, 5),
}
# min-SNR on each output, for alpha^2 + sigma^2 = 1: arXiv 2303.09556 sec. 3.4 and appendix.
MIN_SNR = {
    "x0": lambda s: np.minimum(s, 5),
    "eps": lambda s: np.minimum(s, 5) / s,
    "v": lambda s: np.minimum(s, 5) / (s + 1),
}


def times(schedule):
    t = np.asarray(schedule.time_at(np.linspace(-12.0, 12.0, 49)))
    return t[(t > 0) & (t < 1)]


def test_each_name_is_the_papers_function_of_the_snr():
    assert IN_X0.keys() == WEIGHTINGS.keys()
    with jax.enable_x64(True):
        log_snr = np.linspace(-30, 30, 121)
        for name, weight in IN_X0.items():
            got = jnp.exp(WEIGHTINGS[name](jnp.asarray(log_snr)))
            np.testing.assert_allclose(got, weight(np.exp(log_snr)), rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("name", ["cosine", "rectified_flow"])
def test_one_error_of_x0_costs_the_same_in_every_prediction(name):
    schedule = SCHEDULES[name]
    with jax.enable_x64(True):
        t = times(schedule)
        error = np.random.default_rng(0).normal(size=len(t))
        pairs = list(itertools.product(WEIGHTINGS, PREDICTIONS))
        gain = jax.jit(lambda t: {p: coefficients(p, schedule, t)[1] for p in PREDICTIONS})(t)
        weights = jax.jit(lambda t: [loss_weight(*pair, schedule, t) for pair in pairs])(t)
        snr = np.exp(np.asarray(schedule.log_snr(t)))
        for (weighting, prediction), weight in zip(pairs, weights):
            # x0 = a z + b out: an error of x0 is 1 / b of it in the output.
            got = weight * (error / gain[prediction]) ** 2
            wanted = IN_X0[weighting](snr) * error**2
            np.testing.assert_allclose(got, wanted, rtol=1e-12, err_msg=prediction)


def test_the_plain_loss_of_an_output_has_weight_one():
    t = jnp.array([0.0, 1e-6, 1e-3, 0.5, 1 - 1e-6, 1.0])
    own = {("cosine", p) for p in ("x0", "eps", "v", "edm")}
    own |= {("rectified_flow", p) for p in ("x0", "eps", "velocity", "edm")}
    for name, prediction in own:
        weight = loss_weight(prediction, prediction, SCHEDULES[name], t)
        np.testing.assert_allclose(weight, 1, rtol=3e-4, err_msg=f"{name} {prediction}")
    flow = loss_weight("velocity", "x0", SCHEDULES["rectified_flow"], t[1:])
    np.testing.assert_allclose(flow, 1 / t[1:] ** 2, rtol=3e-6)


def check_min_snr(forms):
    with jax.enable_x64(True):
        for name in ("cosine", "ddpm_linear", "zero_terminal_snr"):
            t = times(SCHEDULES[name])
            snr = np.exp(np.asarray(SCHEDULES[name].log_snr(t)))
            for prediction, form in forms.items():
                got = loss_weight("min_snr_5", prediction, SCHEDULES[name], t)
                np.testing.assert_allclose(got, form(snr), rtol=1e-9, err_msg=prediction)


def test_min_snr_in_every_prediction():
    check_min_snr(MIN_SNR)
    wrong = MIN_SNR | {"v": lambda s: np.minimum(s + 1, 5) / (s + 1)}
    with pytest.raises(AssertionError, match="v"):
        check_min_snr(wrong)  # published so, and mended twice


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_combination_is_finite_up_to_both_ends(name):
    pairs = list(itertools.product(WEIGHTINGS, PREDICTIONS))
    every = jax.jit(lambda t: [loss_weight(*pair, SCHEDULES[name], t) for pair in pairs])
    for pair, weight in zip(pairs, every(jnp.array([0.0, 1e-6, 0.5, 1 - 1e-6, 1.0]))):
        assert np.isfinite(weight).all() and (weight >= 0).all(), pair


def test_bad_names_say_what_to_choose():
    with pytest.raises(UserError, match=r"weighting='snr': use one of x0, eps, v"):
        loss_weight("snr", "x0", SCHEDULES["cosine"], jnp.ones(2))
