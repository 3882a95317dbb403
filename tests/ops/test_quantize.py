"""FSQ, LFQ and what quantizers share (invariant 13)."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmx.core.errors import UserError
from mmx.ops import quantize

LEVELS = [(8, 8, 8, 4, 4), (8, 6, 5), (7, 5, 5, 5, 5), (3,), (4, 3)]

# Compiled as a whole: op by op these tests would spend their time in the compiler.
fsq = jax.jit(quantize.fsq, static_argnums=1)
fsq_decode = jax.jit(quantize.fsq_decode, static_argnums=1)
fsq_codes = jax.jit(quantize.fsq_codes, static_argnums=1)
lfq = jax.jit(quantize.lfq)
lfq_decode = jax.jit(quantize.lfq_decode, static_argnums=1)
entropy_loss = jax.jit(quantize.entropy_loss)


def grad(fn, argnums=0):
    return jax.jit(jax.grad(fn, argnums))


def latents(width, seed=0, scale=2.0, shape=(4, 6, 6)):
    rng = np.random.default_rng(seed)
    return (scale * rng.normal(size=(*shape, width))).astype(np.float32)


# ------------------------------------------------------------------ FSQ


@pytest.mark.parametrize("levels", LEVELS)
def test_fsq_codes_and_vectors_are_one_to_one(levels):
    num_codes = math.prod(levels)
    codes = np.arange(num_codes)
    vectors = np.asarray(fsq_decode(codes, levels))
    np.testing.assert_array_equal(fsq_codes(vectors, levels), codes)
    assert len(np.unique(vectors, axis=0)) == num_codes
    assert np.abs(vectors).max() == 1
    for dim, count in enumerate(levels):
        assert len(np.unique(vectors[:, dim])) == count


@pytest.mark.parametrize("levels", LEVELS)
def test_fsq_reaches_every_level_and_no_other(levels):
    """The half offset: without it an even dimension has one level too many or too few."""
    x = np.linspace(-12, 12, 4001, dtype=np.float32)
    z = np.stack([x] * len(levels), -1)
    out = fsq(z, levels)
    for dim, count in enumerate(levels):
        expected = (np.arange(count) - count // 2) / np.float32(count // 2)
        np.testing.assert_array_equal(np.unique(out.z_q[:, dim]), expected.astype(np.float32))
        assert (np.diff(out.z_q[:, dim]) >= 0).all()
    assert int(out.codes.min()) == 0 and int(out.codes.max()) == math.prod(levels) - 1
    np.testing.assert_array_equal(fsq(np.zeros((1, len(levels))), levels).z_q, 0)


def test_fsq_result_is_what_its_codes_say():
    levels = (8, 5, 5, 5)
    out = fsq(latents(4), levels)
    assert out.codes.shape == (4, 6, 6) and out.codes.dtype == jnp.int32
    np.testing.assert_array_equal(fsq_decode(out.codes, levels), out.z_q)
    np.testing.assert_array_equal(fsq_codes(out.z_q, levels), out.codes)
    assert out.loss == 0
    half = fsq(latents(4).astype(jnp.bfloat16), levels)
    assert half.z_q.dtype == jnp.float32


def test_fsq_gradient_is_that_of_the_bounding_alone():
    levels, z = (8, 5), latents(2)
    weight = latents(2, seed=1)
    slope = grad(lambda z: (weight * fsq(z, levels).z_q).sum())(z)
    reach = np.array([7, 4]) * (1 - 1e-3) / 2
    shift = np.arctanh(np.array([0.5, 0]) / reach)
    expected = weight * reach * (1 - np.tanh(z + shift) ** 2) / np.array([4, 2])
    np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-6)


def test_fsq_mistakes():
    with pytest.raises(UserError, match="at least 3 each"):
        quantize.fsq(latents(2), [8, 2])
    with pytest.raises(UserError, match="product < 2"):
        quantize.fsq(latents(4), [256] * 4)
    with pytest.raises(ValueError, match="3 levels needs latents that wide, not 4"):
        quantize.fsq(latents(4), [8, 6, 5])


# ------------------------------------------------------------------ LFQ


@pytest.mark.parametrize("bits", [1, 6, 13])
def test_lfq_codes_and_vectors_are_one_to_one(bits):
    codes = np.arange(2**bits)
    vectors = np.asarray(lfq_decode(codes, bits))
    np.testing.assert_array_equal(quantize.lfq_codes(vectors), codes)
    np.testing.assert_array_equal((vectors > 0) @ 2 ** np.arange(bits), codes)
    assert set(np.unique(vectors)) == {-1, 1}


def test_lfq_result_is_what_its_codes_say():
    z = latents(6)
    out = lfq(z)
    np.testing.assert_array_equal(out.z_q, np.where(z > 0, 1, -1))
    np.testing.assert_array_equal(lfq_decode(out.codes, 6), out.z_q)
    np.testing.assert_allclose(
        out.metrics["commitment"], np.square(np.abs(z) - 1).mean(), rtol=1e-5
    )
    expected = 0.25 * out.metrics["commitment"] + 0.02 * out.metrics["entropy"]
    np.testing.assert_allclose(out.loss, expected, rtol=1e-6)


@pytest.mark.parametrize("bits", [1, 5, 6])
@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_lfq_entropy_equals_the_table_over_all_codes(bits, temperature):
    z = latents(bits, scale=0.5)
    signs = np.asarray(lfq_decode(np.arange(2**bits), bits))
    table = entropy_loss(2 * z.reshape(-1, bits) @ signs.T / temperature)
    factored = lfq(z, entropy_temperature=temperature).metrics["entropy"]
    np.testing.assert_allclose(factored, table, rtol=1e-4, atol=1e-5)


def test_lfq_gradients_are_finite_and_straight_through():
    z, weight = latents(6), latents(6, seed=1)
    value = grad(lambda z: (weight * lfq(z).z_q).sum())(z)
    np.testing.assert_array_equal(value, weight)
    loss = grad(lambda z: lfq(100 * z).loss)(z)
    assert np.isfinite(loss).all() and np.abs(loss).max() > 0
    # Commitment pulls every entry towards its sign: 2 w (z - sign) / number of entries.
    commitment = grad(lambda z: lfq(z, entropy_weight=0.0).loss)(z)
    np.testing.assert_allclose(commitment, 0.5 * (z - np.sign(z)) / z.size, rtol=1e-4, atol=1e-9)


def test_lfq_with_too_many_bits():
    with pytest.raises(UserError, match="25 bits: at most 24"):
        lfq(latents(25))


# ------------------------------------------------------------------ shared


def test_straight_through_has_the_value_of_one_and_the_gradient_of_the_other():
    z, z_q = latents(3), latents(3, seed=1, scale=1e-4)
    np.testing.assert_array_equal(quantize.straight_through(z, z_q), z_q)
    slopes = grad(lambda a, b: (quantize.straight_through(a, b) ** 2).sum(), (0, 1))(z, z_q)
    np.testing.assert_array_equal(slopes[0], 2 * z_q)
    np.testing.assert_array_equal(slopes[1], 0)


def test_usage_and_perplexity():
    histogram = quantize.code_histogram(jnp.array([[0, 3], [3, 5]]), 8)
    np.testing.assert_array_equal(histogram, [1, 0, 0, 2, 0, 1, 0, 0])
    metrics = quantize.usage_metrics(histogram)
    assert metrics["usage"] == 3 / 8
    np.testing.assert_allclose(metrics["perplexity"], 2**1.5, rtol=1e-6)
    np.testing.assert_allclose(quantize.usage_metrics(jnp.ones(8))["perplexity"], 8, rtol=1e-6)
    assert quantize.usage_metrics(jnp.eye(8)[0])["perplexity"] == 1


def test_entropy_loss_is_least_when_sure_and_even():
    sure = 1e4 * jnp.eye(16)
    np.testing.assert_allclose(entropy_loss(sure), -math.log(16), rtol=1e-5)
    collapsed = 1e4 * jnp.eye(16)[jnp.zeros(16, int)]
    np.testing.assert_allclose(entropy_loss(collapsed), 0, atol=1e-6)
    np.testing.assert_allclose(entropy_loss(jnp.zeros((16, 16))), 0, atol=1e-5)
    for table in (sure, collapsed):
        assert np.isfinite(grad(entropy_loss)(table)).all()
