"""Guidance against identities and against a guided distribution in closed form (invariant 20)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmx.ops.diffusion.guidance import guide
from mmx.ops.diffusion.predictions import PREDICTIONS, coefficients, to_x0
from mmx.ops.diffusion.schedules import SCHEDULES

T_B = jnp.array([0.05, 0.3, 0.6, 0.95])
Z, COND, UNCOND = jax.random.normal(jax.random.key(0), (3, 4, 5, 6))


def both(z, t_B):
    return COND, UNCOND


def test_one_and_zero_are_the_branches_to_the_last_bit():
    np.testing.assert_array_equal(guide(both, 1.0)(Z, T_B), COND)
    np.testing.assert_array_equal(guide(both, 0.0)(Z, T_B), UNCOND)
    assert np.abs(guide(both, 1.5)(Z, T_B) - COND).max() > 0.1


def test_scale_by_its_formula_and_one_a_row():
    scale = jnp.array([0.0, 1.0, 3.0, 7.5])
    got = guide(both, scale)(Z, T_B)
    wanted = UNCOND + scale[:, None, None] * (COND - UNCOND)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(got[2], guide(both, 3.0)(Z, T_B)[2])


def test_an_empty_interval_is_no_guidance_and_a_full_one_is_all():
    np.testing.assert_array_equal(guide(both, 5.0, interval=(2.0, 3.0))(Z, T_B), COND)
    np.testing.assert_array_equal(guide(both, 5.0, (0.05, 0.95))(Z, T_B), guide(both, 5.0)(Z, T_B))


def test_rows_inside_the_interval_alone_are_guided():
    got = guide(both, 5.0, interval=(0.2, 0.7))(Z, T_B)
    np.testing.assert_array_equal(got[1:3], guide(both, 5.0)(Z, T_B)[1:3])
    np.testing.assert_array_equal(got[::3], COND[::3])


def test_rescale_brings_the_spread_back():
    plain = guide(both, 6.0)(Z, T_B)
    spread = lambda x: np.asarray(x).reshape(4, -1).std(1)
    assert (spread(plain) > 2 * spread(COND)).all()
    np.testing.assert_array_equal(guide(both, 6.0, rescale=0.0)(Z, T_B), plain)
    np.testing.assert_allclose(spread(guide(both, 6.0, rescale=1.0)(Z, T_B)), spread(COND), 1e-5)
    # arXiv 2305.08891 eq. 15 and 16.
    factor = (spread(COND) / spread(plain))[:, None, None]
    got = guide(both, 6.0, rescale=0.7)(Z, T_B)
    np.testing.assert_allclose(got, 0.7 * plain * factor + 0.3 * plain, rtol=1e-5, atol=1e-6)
    # Where nothing is guided, nothing is rescaled.
    out = guide(both, 6.0, interval=(2.0, 3.0), rescale=0.7)(Z, T_B)
    np.testing.assert_allclose(out, COND, rtol=1e-6)


def test_guidance_is_the_same_in_the_space_of_every_prediction():
    with jax.enable_x64(True):
        z, cond, uncond, t_B = (np.asarray(x, np.float64) for x in (Z, COND, UNCOND, T_B))
        wanted = guide(lambda z, t: (cond, uncond), 4.0)(z, t_B)
        for name in ("cosine", "rectified_flow"):
            for prediction in PREDICTIONS:
                a, b = (x[:, None, None] for x in coefficients(prediction, SCHEDULES[name], t_B))
                c, u = ((x0 - a * z) / b for x0 in (cond, uncond))
                got = to_x0(prediction, SCHEDULES[name], z, t_B, u + 4.0 * (c - u))
                np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_guided_score_of_two_gaussians_is_that_of_their_product(name):
    # p(x)^(1-w) p(x|c)^w of two normals is normal again, and its score at any level of noise is
    # the sum of theirs: the one thing that guidance promises.
    scale, means, stds = 2.5, (1.3, -0.4), (0.6, 1.1)
    with jax.enable_x64(True):
        t, z = np.linspace(0.1, 0.9, 9), np.linspace(-2, 2, 9)
        alpha, sigma = (np.asarray(f(t)) for f in (SCHEDULES[name].alpha, SCHEDULES[name].sigma))
        variance = [(alpha * s) ** 2 + sigma**2 for s in stds]
        best = lambda z, t: tuple(
            m + s**2 * alpha / v * (z - alpha * m) for m, s, v in zip(means, stds, variance)
        )
        score = (alpha * guide(best, scale)(z, t) - z) / sigma**2
        # The product's precision and mean.
        weight = (scale / variance[0], (1 - scale) / variance[1])
        precision = weight[0] + weight[1]
        mean = alpha * (weight[0] * means[0] + weight[1] * means[1]) / precision
        np.testing.assert_allclose(score, -precision * (z - mean), rtol=1e-9)
