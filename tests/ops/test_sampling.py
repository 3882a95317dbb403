"""Draws, argmax and top-k over a vocabulary, against their plain definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmx.ops import sampling


def keys(num, seed=0):
    return jax.random.split(jax.random.key(seed), num)


# 240 and 1000 are FSQ codebooks, 97 is prime (one block), 1 and 2 are the smallest.
@pytest.mark.parametrize("vocab", [1, 2, 97, 240, 1000])
def test_argmax_is_the_first_of_the_largest(vocab):
    argmax = jax.jit(sampling.argmax_last)
    x = np.random.default_rng(0).normal(size=(3, 50, vocab)).astype(np.float32)
    np.testing.assert_array_equal(argmax(x), x.argmax(-1))
    np.testing.assert_array_equal(argmax(np.round(x)), np.round(x).argmax(-1))
    assert (np.asarray(argmax(np.zeros_like(x))) == 0).all()


@pytest.mark.parametrize("vocab", [5, 12, 30])
def test_draws_follow_the_softmax(vocab):
    rows, tokens = 200, 500
    logits_V = 1.5 * jax.random.normal(jax.random.key(vocab), (vocab,))
    logits = jnp.broadcast_to(logits_V, (rows, tokens, vocab))
    ids = np.asarray(jax.jit(sampling.categorical)(keys(rows), logits))
    p = np.asarray(jax.nn.softmax(logits_V), np.float64)
    expected = p * rows * tokens
    chi_square = (np.square(np.bincount(ids.ravel(), minlength=vocab) - expected) / expected).sum()
    assert chi_square < vocab + 4 * np.sqrt(2 * vocab) + 8
    # Neighbouring positions are independent.
    same = (ids[:, 1:] == ids[:, :-1]).mean()
    assert abs(same - np.square(p).sum()) < 0.01


def test_a_forbidden_id_is_never_drawn():
    logits = jnp.where(jnp.arange(64) % 7 == 3, 0.0, -jnp.inf)
    ids = np.asarray(
        jax.jit(sampling.categorical)(keys(50), jnp.broadcast_to(logits, (50, 200, 64)))
    )
    assert set(ids.ravel() % 7) == {3}
    assert len(set(ids.ravel())) == 9


@pytest.mark.parametrize("target, expected", [(0.0, 1), (0.25, 1), (0.5, 3), (1.0, 3), (2.0, 3)])
def test_the_ends_of_the_distribution_function_land_on_allowed_entries(target, expected):
    weight = jnp.array([0.0, 0.5, 0.0, 0.5, 0.0])
    index, before = sampling._invert(weight, jnp.asarray(target))
    assert int(index) == expected
    assert float(before) == (0.0 if expected == 1 else 0.5)


def test_rounding_of_the_running_sum_never_yields_a_forbidden_entry(monkeypatch):
    """Backends bracket a running sum as they like: with pairs first it may rise where nothing is.

    1 + 2^-24 + 2^-24 is 1 in float32 from left to right, and 1 + 2^-23 with the small ones first.
    """

    def pairwise(x, axis):
        return jax.lax.associative_scan(jnp.add, x, axis=axis)

    monkeypatch.setattr(jnp, "cumsum", pairwise)
    weight = jnp.array([1, 0, 0, 0, 2.0**-24, 0, 2.0**-24, 0])
    assert pairwise(weight, -1)[7] > pairwise(weight, -1)[6]
    index, _ = sampling._invert(weight, jnp.float32(1.0))
    assert int(index) == 6


def test_a_row_does_not_depend_on_its_batch():
    all_keys = keys(4)
    logits = jax.random.normal(jax.random.key(1), (4, 9, 24))
    draw = jax.jit(sampling.categorical)
    ids = draw(all_keys, logits)
    for i in range(4):
        one = draw(all_keys[i : i + 1], logits[i : i + 1])
        np.testing.assert_array_equal(one, ids[i : i + 1])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_log_prob_is_float32_log_softmax(dtype):
    logits = (4 * jax.random.normal(jax.random.key(2), (2, 5, 11))).astype(dtype)
    ids = jax.random.randint(jax.random.key(3), (2, 5), 0, 11)
    expected = jax.nn.log_softmax(logits.astype(jnp.float32))
    expected = jnp.take_along_axis(expected, ids[..., None], -1)[..., 0]
    got = jax.jit(sampling.log_prob)(logits, ids)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
