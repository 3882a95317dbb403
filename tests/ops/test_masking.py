"""Masking laws and the masked loss (spec section 12, invariants 1-3, 5 and 10)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmx.ops import masking


def keys(num, seed=0):
    return jax.random.split(jax.random.key(seed), num)


def check_rate_law(sample):
    rate = np.asarray(jax.jit(sample)(keys(200_000)), np.float64)
    assert rate.min() >= 0 and rate.max() <= 1
    assert abs(rate.mean() - 2 / np.pi) < 0.003
    assert abs(rate.var() - (0.5 - 4 / np.pi**2)) < 0.002
    assert abs((rate < 0.25).mean() - 0.1609) < 0.004
    assert abs((rate < 0.5).mean() - 1 / 3) < 0.004
    assert abs((rate > 0.9).mean() - 0.2871) < 0.004


def arccos_law(keys_B):
    return 2 / jnp.pi * jnp.arccos(jax.vmap(jax.random.uniform)(keys_B))


def test_mask_rate_follows_the_cosine_law():
    check_rate_law(masking.sample_mask_rate)


def test_rate_check_catches_the_arccos_law_of_equal_mean():
    mean = float(arccos_law(keys(200_000)).mean())
    assert abs(mean - 2 / np.pi) < 0.003
    with pytest.raises(AssertionError):
        check_rate_law(arccos_law)


@pytest.mark.parametrize("num_tokens", [1, 7, 64, 256])
def test_exact_mask_counts(num_tokens):
    rate_B = jnp.linspace(0, 1, 301)
    is_masked = np.asarray(masking.exact_mask(keys(301), rate_B, num_tokens))
    expected = np.maximum(1, np.round(np.asarray(rate_B) * np.float32(num_tokens)))
    np.testing.assert_array_equal(is_masked.sum(-1), expected)


def test_exact_mask_positions_are_equally_likely():
    num, tokens = 20_000, 16
    is_masked = np.asarray(masking.exact_mask(keys(num), jnp.full(num, 0.3), tokens), float)
    p = 5 / tokens  # round(4.8) of 16
    variance = num * p * (1 - p) * tokens / (tokens - 1)
    chi_square = np.square(is_masked.sum(0) - num * p).sum() / variance
    assert chi_square < 44.3  # 1e-4 tail, 15 degrees of freedom
    # Neighbours are hidden together as often as chance says: no blocks, no stripes.
    together = (is_masked[:, :-1] * is_masked[:, 1:]).mean(0)
    np.testing.assert_allclose(together, 5 * 4 / (16 * 15), atol=0.01)


def test_a_row_does_not_depend_on_its_batch():
    all_keys = keys(6)
    rate = masking.sample_mask_rate(all_keys)
    mask = masking.exact_mask(all_keys, rate, 40)
    keep = masking.keep_text(all_keys, 0.5)
    for i in range(6):
        one, row = all_keys[i : i + 1], slice(i, i + 1)
        np.testing.assert_array_equal(masking.sample_mask_rate(one), rate[row])
        np.testing.assert_array_equal(masking.exact_mask(one, rate[row], 40), mask[row])
        np.testing.assert_array_equal(masking.keep_text(one, 0.5), keep[row])
    assert len({bytes(row) for row in np.asarray(mask)}) == 6


def check_text_drop(keep_text):
    kept = np.asarray(keep_text(keys(100_000), 0.1)).mean()
    assert abs(kept - 0.9) < 0.003


def test_text_is_dropped_at_the_given_rate():
    check_text_drop(masking.keep_text)
    assert bool(masking.keep_text(keys(10_000), 0.0).all())
    assert not bool(masking.keep_text(keys(10_000), 1.0).any())


def test_rate_zero_keeps_even_the_smallest_draw(monkeypatch):
    monkeypatch.setattr(jax.random, "uniform", lambda key: jnp.zeros(()))
    assert bool(masking.keep_text(keys(3), 0.0).all())


def test_text_drop_check_catches_the_inverted_mask():
    """Spec P1: kept where (u < p), so 10 % of the rows keep their text instead of 90 %."""
    with pytest.raises(AssertionError):
        check_text_drop(lambda k, rate: ~masking.keep_text(k, rate))


masked_loss = jax.jit(masking.masked_cross_entropy, static_argnums=3)


def example(dtype=jnp.float32, rows=5, tokens=12, vocab=30):
    k = jax.random.split(jax.random.key(3), 3)
    logits = (3 * jax.random.normal(k[0], (rows, tokens, vocab))).astype(dtype)
    labels = jax.random.randint(k[1], (rows, tokens), 0, vocab)
    mask = masking.exact_mask(keys(rows), jnp.linspace(0.1, 1, rows), tokens)
    return logits, labels, mask


def mean_loss(logits, labels, mask, smoothing=0.1):
    return masked_loss(logits, labels, mask, smoothing)[0].mean()


def test_gradient_at_visible_positions_is_exactly_zero():
    logits, labels, mask = example()
    grad = np.asarray(jax.jit(jax.grad(mean_loss))(logits, labels, mask))
    assert (grad[~np.asarray(mask)] == 0).all()
    assert (np.abs(grad[np.asarray(mask)]).max(-1) > 0).all()


def test_labels_at_visible_positions_do_not_matter():
    logits, labels, mask = example()
    other = jnp.where(mask, labels, (labels + 1) % 30)
    a = masked_loss(logits, labels, mask)
    b = masked_loss(logits, other, mask)
    np.testing.assert_array_equal(a[0], b[0])
    np.testing.assert_array_equal(a[1], b[1])


def test_every_row_counts_alike():
    logits, labels, mask = example()
    loss_B = masked_loss(logits, labels, mask)[0]
    order = jnp.array([3, 0, 4, 1, 2])
    permuted = masked_loss(logits[order], labels[order], mask[order])[0]
    np.testing.assert_array_equal(permuted, loss_B[order])
    # A row given twice weighs twice, whatever its number of hidden positions.
    twice = jnp.array([0, 0, 4])
    expected = (2 * loss_B[0] + loss_B[4]) / 3
    got = mean_loss(logits[twice], labels[twice], mask[twice], 0.0)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert mask[0].sum() != mask[4].sum()


@pytest.mark.parametrize("vocab, log_vocab", [(8192, 9.011), (1000, 6.908)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_of_a_fresh_head_is_log_vocab(vocab, log_vocab, smoothing):
    logits = jnp.zeros((2, 4, vocab))
    labels = jnp.array([[0, 5, vocab - 1, 2], [1, 2, 3, 4]])
    loss_B, _ = masked_loss(logits, labels, labels > 1, smoothing)
    np.testing.assert_allclose(loss_B, log_vocab, atol=1e-3)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_equals_the_definition(smoothing):
    logits, labels, mask = example()
    x, y, m = np.asarray(logits, np.float64), np.asarray(labels), np.asarray(mask)
    log_p = x - np.log(np.exp(x).sum(-1, keepdims=True))
    target = (1 - smoothing) * np.eye(30)[y] + smoothing / 30
    expected = (-(target * log_p).sum(-1) * m).sum(-1) / m.sum(-1)
    loss_B, accuracy_B = masked_loss(logits, labels, mask, smoothing)
    np.testing.assert_allclose(loss_B, expected, rtol=1e-5)
    np.testing.assert_allclose(accuracy_B, ((x.argmax(-1) == y) * m).sum(-1) / m.sum(-1), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_logits_give_a_float32_loss(dtype):
    logits, labels, mask = example(dtype)
    half = mean_loss(logits, labels, mask)
    assert half.dtype == jnp.float32
    full = mean_loss(logits.astype(jnp.float32), labels, mask)
    np.testing.assert_allclose(half, full, rtol=1e-6)
    large = jnp.full((1, 2, 8), 6e4, dtype)  # exp overflows unless the maximum is taken off
    assert np.isfinite(mean_loss(large, jnp.zeros((1, 2), int), jnp.ones((1, 2), bool)))


def test_a_row_with_nothing_hidden_has_loss_zero():
    logits, labels, mask = example()
    loss_B, accuracy_B = masked_loss(logits, labels, mask.at[0].set(False))
    assert loss_B[0] == 0 and accuracy_B[0] == 0
