"""Continuous latents: KL, draws and running moments, against closed forms and brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmx.core import rng as rngs
from mmx.ops import latents

kl = jax.jit(latents.kl_to_normal)


def test_the_kl_of_the_standard_normal_is_0_and_so_is_its_slope():
    zero = jnp.zeros(3)
    np.testing.assert_array_equal(kl(zero, zero), 0)
    for slope in jax.jit(jax.grad(lambda m, v: latents.kl_to_normal(m, v).sum(), (0, 1)))(
        zero, zero
    ):
        np.testing.assert_array_equal(slope, 0)


@pytest.mark.parametrize(("mean", "log_var"), [(0.7, -1.3), (-2.0, 0.4), (0.0, 0.03), (3.0, -20.0)])
def test_the_kl_is_the_integral_of_its_definition(mean, log_var):
    std = np.exp(log_var / 2)
    x = mean + std * np.linspace(-12, 12, 200_001)
    log_q = -0.5 * ((x - mean) / std) ** 2 - np.log(std)
    density = np.exp(log_q) / (2 * np.pi) ** 0.5
    expected = np.trapezoid(density * (log_q + 0.5 * x**2), x)
    got = kl(jnp.float32(mean), jnp.float32(log_var))
    assert got == pytest.approx(expected, rel=1e-4)


def test_a_draw_has_the_mean_and_the_variance_of_the_posterior():
    mean = jnp.tile(jnp.array([0.5, -3.0]), (1, 200, 200, 1))
    log_var = jnp.tile(jnp.array([-2.0, 1.0]), (1, 200, 200, 1))
    keys = rngs.row_keys(rngs.base_key(0), "posterior", jnp.arange(1, dtype=jnp.uint32))
    z = np.asarray(jax.jit(latents.draw_posterior)(mean, log_var, keys), np.float64)[0]
    error = np.exp(np.array([-2.0, 1.0]) / 2) / 200  # of a mean of 40,000
    assert (np.abs(z.mean((0, 1)) - [0.5, -3.0]) < 4 * error).all()
    np.testing.assert_allclose(z.var((0, 1)), np.exp([-2.0, 1.0]), rtol=0.03)
    assert abs(np.corrcoef(z.reshape(-1, 2).T)[0, 1]) < 0.02
    gradient = jax.jit(jax.grad(lambda m: latents.draw_posterior(m, log_var, keys).sum()))(mean)
    np.testing.assert_array_equal(gradient, 1)  # reparameterised: the draw moves with its mean


def test_the_draw_of_a_row_is_of_its_key_alone():
    rng = np.random.default_rng(0)
    mean, log_var = rng.normal(size=(2, 4, 3, 3, 2)).astype(np.float32)
    keys = rngs.row_keys(rngs.base_key(1), "posterior", jnp.array([7, 2, 9, 4], jnp.uint32))
    draw = jax.jit(latents.draw_posterior)
    z = draw(mean, log_var, keys)
    order = np.array([2, 0])
    np.testing.assert_array_equal(draw(mean[order], log_var[order], keys[order]), z[order])
    noise = (z - mean) / np.exp(log_var / 2)
    assert np.abs(noise[0] - noise[1]).max() > 0.1


@pytest.fixture(scope="module")
def batches():
    """Latents [5, 30, 2, 3] whose mean and spread move from batch to batch, far from 0."""
    rng = np.random.default_rng(2)
    z = rng.normal(size=(5, 30, 2, 3)) * rng.uniform(0.5, 2, (5, 1, 1, 3))
    return (z + rng.normal(size=(5, 1, 1, 3)) + 10).astype(np.float32)


def test_moments_are_those_of_all_latents_with_the_late_ones_weighing_more(batches):
    update = jax.jit(lambda m, z: latents.update_moments(m, z, 0.8))
    moments = latents.init_moments(3)
    for count, z in enumerate(batches, 1):
        moments = update(moments, z)
        so_far = batches[:count].reshape(count, 60, 3).astype(np.float64)
        weight = 0.8 ** np.arange(count)[::-1]
        weight = np.broadcast_to((weight / weight.sum())[:, None], (count, 60)) / 60
        mean = np.einsum("tn,tnz->z", weight, so_far)
        var = np.einsum("tn,tnz->z", weight, np.square(so_far - mean))
        np.testing.assert_allclose(moments.mean_Z, mean, rtol=1e-6)
        np.testing.assert_allclose(moments.var_Z, var, rtol=1e-5)
        assert moments.count == count


def test_normalized_latents_have_mean_0_and_deviation_1_and_come_back(batches):
    z = batches[0]
    moments = jax.jit(lambda z: latents.update_moments(latents.init_moments(3), z, 0.99))(z)
    normal = np.asarray(latents.normalize(moments, z), np.float64)
    np.testing.assert_allclose(normal.mean((0, 1)), 0, atol=1e-5)
    np.testing.assert_allclose(normal.std((0, 1)), 1, rtol=1e-5)
    np.testing.assert_allclose(latents.denormalize(moments, normal), z, rtol=1e-6)
    # Before any batch they change nothing; a channel that never varies stays finite.
    np.testing.assert_array_equal(latents.normalize(latents.init_moments(3), z), z)
    flat = latents.Moments(jnp.zeros(3), jnp.zeros(3), jnp.ones(()))
    assert np.isfinite(latents.normalize(flat, jnp.zeros((2, 3)))).all()


def test_no_gradient_passes_through_the_moments(batches):
    def loss(z):
        moments = latents.update_moments(latents.init_moments(3), z, 0.9)
        return (moments.mean_Z + moments.var_Z).sum()

    np.testing.assert_array_equal(jax.jit(jax.grad(loss))(batches[0]), 0)
