"""Tokenizer losses against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmx.ops import losses


def grad(fn, argnums=0):
    return jax.jit(jax.grad(fn, argnums))


def r1(logits_fn, image):
    return jax.jit(lambda x: losses.r1_penalty(logits_fn, x))(image)


REAL = jnp.array([-2.0, 0.0, 0.5, 3.0])
FAKE = jnp.array([-3.0, -0.5, 0.0, 2.0])


def test_hinge():
    np.testing.assert_allclose(losses.hinge_d(REAL, FAKE), (3 + 1 + 0.5) / 4 + (0.5 + 1 + 3) / 4)
    np.testing.assert_allclose(losses.hinge_g(FAKE), 1.5 / 4)
    # Past the margin a logit has no pull left.
    slope = grad(losses.hinge_d, (0, 1))(REAL, FAKE)
    np.testing.assert_allclose(slope[0], [-0.25, -0.25, -0.25, 0])
    np.testing.assert_allclose(slope[1], [0, 0.25, 0.25, 0.25])


def test_non_saturating():
    def log_sigmoid(x):
        return -np.log1p(np.exp(-np.asarray(x, np.float64)))

    expected = -log_sigmoid(REAL).mean() - log_sigmoid(-FAKE).mean()
    np.testing.assert_allclose(losses.non_saturating_d(REAL, FAKE), expected, rtol=1e-6)
    np.testing.assert_allclose(losses.non_saturating_g(FAKE), -log_sigmoid(FAKE).mean(), rtol=1e-6)
    # Where the discriminator is sure, the generator still gets a full gradient.
    np.testing.assert_allclose(grad(losses.non_saturating_g)(jnp.array([-50.0])), [-1])


@pytest.mark.parametrize("g_loss", [losses.hinge_g, losses.non_saturating_g])
def test_the_players_pull_against_each_other(g_loss):
    at_zero = jnp.zeros(3)
    d_loss = losses.hinge_d if g_loss is losses.hinge_g else losses.non_saturating_d
    d_real, d_fake = grad(d_loss, (0, 1))(at_zero, at_zero)
    assert (d_real < 0).all() and (d_fake > 0).all()
    assert (grad(g_loss)(at_zero) < 0).all()


def test_r1_of_a_known_function():
    image = jax.random.normal(jax.random.key(0), (3, 4, 5, 2))
    weight = jax.random.normal(jax.random.key(1), (4, 5, 2))

    def linear(x):
        return (x * weight).sum((1, 2, 3))

    np.testing.assert_allclose(r1(linear, image), (weight**2).sum(), rtol=1e-5)
    np.testing.assert_allclose(r1(lambda x: linear(x) + 7, image), (weight**2).sum())
    # Quadratic: the gradient is 2 x, a number per row, averaged over rows.
    square = r1(lambda x: (x**2).sum((1, 2, 3)), image)
    np.testing.assert_allclose(square, 4 * (image**2).sum() / 3, rtol=1e-5)
    # A map of patches counts by its mean.
    patches = r1(lambda x: jnp.stack([linear(x), 3 * linear(x)], -1), image)
    np.testing.assert_allclose(patches, 4 * (weight**2).sum(), rtol=1e-5)


def test_r1_reaches_the_parameters_of_the_discriminator():
    image = jnp.ones((2, 2, 2, 1))

    def penalty(w):
        return losses.r1_penalty(lambda x: w * x.sum((1, 2, 3)), image)

    np.testing.assert_allclose(grad(penalty)(3.0), 2 * 3 * 4)


def test_lecam():
    state = losses.LecamState(jnp.float32(1.0), jnp.float32(-0.5))
    expected = np.square(np.asarray(REAL) + 0.5).mean() + np.square(np.asarray(FAKE) - 1).mean()
    np.testing.assert_allclose(losses.lecam_penalty(state, REAL, FAKE), expected, rtol=1e-6)
    slope = grad(losses.lecam_penalty)(state, REAL, FAKE)
    assert slope.real == 0 and slope.fake == 0


def test_lecam_means_follow_their_closed_form():
    state = losses.init_lecam()
    for _ in range(3):
        state = losses.update_lecam(state, REAL, FAKE, decay=0.9)
    np.testing.assert_allclose(state.real, REAL.mean() * (1 - 0.9**3), rtol=1e-5)
    np.testing.assert_allclose(state.fake, FAKE.mean() * (1 - 0.9**3), rtol=1e-5)
    slope = grad(lambda x: losses.update_lecam(state, x, x).real)(REAL)
    np.testing.assert_array_equal(slope, 0)


def test_reconstruction():
    a = jnp.array([0.0, 1.0, -1.0, 0.5])
    b = jnp.array([0.5, 1.0, 1.0, 0.5])
    np.testing.assert_allclose(losses.l1(a, b), 2.5 / 4)
    np.testing.assert_allclose(losses.l2(a, b), 4.25 / 4)
    assert losses.l2(a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)).dtype == jnp.float32


def test_psnr():
    a = jnp.zeros((3, 4, 4, 3))
    b = a.at[0].set(2.0).at[1].set(0.2)
    np.testing.assert_allclose(losses.psnr(a, b), [0, 20, 100], atol=1e-4)
