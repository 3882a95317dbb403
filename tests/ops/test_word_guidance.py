"""Semantic guidance against hand-made cases, brute force and the law of its draws."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmx.core import rng as rngs
from mmx.ops import word_guidance as guide


def test_similarity_is_relative_to_each_images_own_words():
    similarity = np.array([[1.0, 3.0, 2.0, -1.0], [10.0, 10.5, 10.25, 11.0], [2.0] * 4])
    relative = guide.relative_similarity(similarity)
    np.testing.assert_allclose(relative[0], [0.5, 1.0, 0.75, 0.0])
    np.testing.assert_allclose(relative[1], [0.0, 0.5, 0.25, 1.0])
    np.testing.assert_array_equal(relative[2], 1.0)  # nothing tells them apart


def test_words_are_drawn_evenly_out_of_the_pool_and_never_from_outside():
    relative = jnp.asarray([[0.0, 0.99, 0.5, 1.0, 0.9, 0.94], [1.0, 0.1, 0.2, 0.3, 0.95, 0.0]])
    thresholds = jnp.asarray([1.0, 0.9, 0.0])
    pools = [[{3}, {1, 3, 4, 5}, set(range(6))], [{0}, {0, 4}, set(range(6))]]
    rows, draws = 2, 4000
    keys = rngs.row_keys(rngs.base_key(0), "pool", jnp.arange(rows * draws))
    chosen = guide.draw_from_pools(jnp.tile(relative, (draws, 1)), thresholds, keys)
    chosen = np.asarray(chosen).reshape(draws, rows, 3)
    for row in range(rows):
        for place in range(3):
            words, counts = np.unique(chosen[:, row, place], return_counts=True)
            pool = pools[row][place]
            assert set(words) == pool
            expected = draws / len(pool)
            # Chi-squared of at most 5 degrees of freedom: 25 is passed once in 7,000.
            assert (np.square(counts - expected) / expected).sum() < 25
    # A row's draw is its own, whoever is beside it; of its places each has a draw of its own.
    alone = guide.draw_from_pools(relative[:1], thresholds, keys[:1])
    np.testing.assert_array_equal(alone[0], chosen[0, 0])
    assert (chosen[:, 1, 1] == 0).mean() != (chosen[:, 1, 2] == 0).mean()


def test_pools_of_falling_thresholds_are_nested():
    """Pitfall 11: whatever the images, layer l's pool has all words of layer l - 1's."""
    similarity = np.random.default_rng(2).normal([[0], [7], [-3]], [[1], [0.1], [9]], (3, 40))
    thresholds = jnp.asarray([0.98, 0.95, 0.9, 0.85, 0.8, 0.3])
    draws = 1000  # of the 33 words or so of the last pool, one is missed once in 10^12
    keys = rngs.row_keys(rngs.base_key(1), "pool", jnp.arange(3 * draws))
    relative = jnp.tile(guide.relative_similarity(similarity), (draws, 1))
    chosen = np.asarray(guide.draw_from_pools(relative, thresholds, keys)).reshape(draws, 3, 6)
    for image in range(3):
        pools = [set(chosen[:, image, layer].tolist()) for layer in range(6)]
        assert similarity[image].argmax() in pools[0]
        assert all(above <= below for above, below in itertools.pairwise(pools))
        assert len(pools[0]) < len(pools[-1]) < 40


def test_the_loss_is_a_softmax_over_squared_distances():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(7, 3)).astype(np.float32)
    targets = rng.normal(size=(2, 4, 3)).astype(np.float32)
    chosen = rng.integers(0, 7, (2, 4))
    for temperature in (1.0, 2.5):
        loss = guide.guidance_loss(targets, table, chosen, temperature)
        total = 0.0
        for b in range(2):
            for t in range(4):
                distance = np.square(targets[b, t].astype(np.float64) - table).sum(-1)
                logits = -distance / temperature
                total += np.log(np.exp(logits).sum()) - logits[chosen[b, t]]
        assert loss == pytest.approx(total / 8, rel=1e-5)
    # Words of equal length, a target at 0: nothing is preferred.
    even = table / np.linalg.norm(table, axis=-1, keepdims=True)
    start = guide.guidance_loss(np.zeros((1, 1, 3)), even, np.array([[2]]))
    assert start == pytest.approx(np.log(7), rel=1e-5)


def test_the_gradient_moves_the_target_and_not_the_table():
    rng = np.random.default_rng(1)
    table = rng.normal(size=(7, 3)).astype(np.float32)
    targets = rng.normal(size=(1, 1, 3)).astype(np.float32)
    to_target, to_table = jax.grad(guide.guidance_loss, (0, 1))(targets, table, np.array([[3]]))
    p = jax.nn.softmax(-np.square(targets[0, 0] - table).sum(-1))
    np.testing.assert_allclose(to_target[0, 0], 2 * (p @ table - table[3]), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(to_table, 0)


def test_the_dynamic_weight_evens_the_losses_and_is_constant():
    evened = lambda a, g: guide.dynamic_weight(a, g) * g
    assert evened(jnp.float32(0.3), jnp.float32(7.0)) == pytest.approx(0.3, rel=1e-6)
    d_appearance, d_guidance = jax.grad(evened, (0, 1))(jnp.float32(0.3), jnp.float32(7.0))
    assert d_appearance == 0
    assert d_guidance == pytest.approx(0.3 / 7, rel=1e-6)
    assert guide.dynamic_weight(jnp.float32(1.0), jnp.float32(0.0)) == guide.MOST_WEIGHT
