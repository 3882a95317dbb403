"""Vector quantization and its codebook (invariant 13; spec section 3.5, pitfall P21)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmx.ops import quantize, vq

# Compiled as a whole: op by op these tests would spend their time in the compiler.
nearest_codes = jax.jit(vq.nearest_codes)
ema_update = jax.jit(vq.ema_update, static_argnames=("decay", "normalize"))
restart_dead = jax.jit(vq.restart_dead, static_argnames=("threshold", "normalize"))
k_means = jax.jit(vq.init_from_vectors, static_argnums=2, static_argnames="normalize")


def grad(fn, argnums=0):
    return jax.jit(jax.grad(fn, argnums))


def quantize_with(**options):
    return jax.jit(lambda z, e: vq.vq(z, e, **options))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# ------------------------------------------------------------------ search


@pytest.mark.parametrize("num_codes", [1, 7, 1024, 1025, 2500])
def test_nearest_code_is_the_nearest(num_codes):
    z, codebook = normal(3, 40, 5), normal(num_codes, 5, seed=1)
    z[0] *= 0.01  # nearer to 0, with which the last piece is filled up, than to any code
    squared = np.square(z.reshape(-1, 1, 5).astype(float) - codebook).sum(-1)
    codes = nearest_codes(z, codebook)
    np.testing.assert_array_equal(codes, squared.argmin(-1).reshape(3, 40))


def test_of_equal_codes_the_lowest_is_taken():
    codebook = np.tile(normal(3, 4), (700, 1))
    np.testing.assert_array_equal(nearest_codes(codebook[:3], codebook), [0, 1, 2])


def test_search_holds_no_table_of_all_distances():
    rows, num_codes = 4096, 8192
    z, codebook = jnp.zeros((rows, 8)), jnp.zeros((num_codes, 8))
    memory = nearest_codes.lower(z, codebook).compile().memory_analysis()
    assert memory.temp_size_in_bytes < rows * num_codes * 4 / 3


# ------------------------------------------------------------------ quantizer


@pytest.mark.parametrize("normalize", [True, False])
def test_result_is_what_its_codes_say(normalize):
    z, codebook = normal(2, 4, 4, 8), normal(50, 8, seed=1)
    out = quantize_with(normalize=normalize)(z, codebook)
    decoded = vq.vq_decode(out.codes, codebook, normalize=normalize)
    np.testing.assert_allclose(out.z_q, decoded, rtol=1e-6)
    if normalize:
        z, codebook = unit(z), unit(codebook)
    np.testing.assert_array_equal(out.codes, nearest_codes(z, codebook))
    np.testing.assert_allclose(out.z_q, codebook[out.codes], rtol=1e-5)
    commitment = np.square(z - codebook[out.codes]).mean()
    np.testing.assert_allclose(out.metrics["commitment"], commitment, rtol=1e-5)
    np.testing.assert_allclose(out.loss, 0.25 * commitment, rtol=1e-5)
    assert out.codes.dtype == jnp.int32
    histogram = quantize.code_histogram(out.codes, 50)
    np.testing.assert_allclose(
        out.metrics["perplexity"], quantize.usage_metrics(histogram)["perplexity"]
    )


def test_encoder_gradient_is_straight_through():
    z, codebook, weight = normal(30, 4), normal(9, 4, seed=1), normal(30, 4, seed=2)
    slope = grad(lambda z: (weight * vq.vq(z, codebook, normalize=False).z_q).sum())(z)
    np.testing.assert_array_equal(slope, weight)
    # Normalised: the same, through the normalisation.
    slope = grad(lambda z: (weight * vq.vq(z, codebook).z_q).sum())(z)
    expected = grad(lambda z: (weight * vq.l2_normalize(z)).sum())(z)
    np.testing.assert_allclose(slope, expected, rtol=1e-6)


def test_commitment_moves_the_encoder_and_not_the_codebook():
    """Spec P21: a stop-gradient on the wrong side leaves the encoder without a gradient."""
    z, codebook = normal(30, 4), normal(9, 4, seed=1)

    def loss(z, e):
        return vq.vq(z, e, normalize=False, commitment_weight=0.25).loss

    e = codebook[np.asarray(nearest_codes(z, codebook))]
    dz, de = grad(loss, (0, 1))(z, codebook)
    np.testing.assert_allclose(dz, 0.5 * (z - e) / z.size, rtol=1e-5, atol=1e-9)
    np.testing.assert_array_equal(de, 0)


@pytest.mark.parametrize("normalize", [True, False])
def test_a_codebook_kept_by_running_means_gets_no_gradient(normalize):
    z, codebook = normal(30, 4), normal(9, 4, seed=1)

    def everything(z, e):
        out = vq.vq(z, e, normalize=normalize, entropy_weight=0.1, entropy_temperature=1.0)
        return out.loss + (out.z_q**2).sum()

    dz, de = grad(everything, (0, 1))(z, codebook)
    np.testing.assert_array_equal(de, 0)
    assert np.abs(dz).max() > 0


def test_entropy_loss_is_that_of_the_distances():
    z, codebook = normal(30, 4), normal(9, 4, seed=1)
    out = quantize_with(normalize=False, entropy_weight=0.1, entropy_temperature=0.5)(z, codebook)
    squared = np.square(z[:, None] - codebook).sum(-1)
    expected = quantize.entropy_loss(jnp.asarray(-squared / 0.5))
    np.testing.assert_allclose(out.metrics["entropy"], expected, rtol=1e-4)
    loss = 0.25 * out.metrics["commitment"] + 0.1 * expected
    np.testing.assert_allclose(out.loss, loss, rtol=1e-4)


# ------------------------------------------------------------------ codebook as state


def test_running_means_follow_their_closed_form():
    """Two codes, three batches, decay g: m and N are geometric sums, and the code is m / N."""
    g, start = 0.8, np.array([[2.0], [-1.0]], np.float32)
    state = vq.VQState(jnp.asarray(start), jnp.ones(2), jnp.asarray(start))
    batches = [[1.0, 3.0, 5.0], [2.0], []]  # code 0 gets these; code 1 gets -4 each time
    for batch in batches:
        z = jnp.array([*batch, -4.0])[:, None]
        codes = jnp.array([0] * len(batch) + [1])
        state = ema_update(state, z, codes, decay=g, normalize=False)
    count = g**3 + (1 - g) * (g**2 * 3 + g * 1 + 0)
    total = 2 * g**3 + (1 - g) * (g**2 * 9 + g * 2)
    np.testing.assert_allclose(state.count_E, [count, 1], rtol=1e-6)
    np.testing.assert_allclose(state.sum_EZ[0], [total], rtol=1e-6)
    np.testing.assert_allclose(state.codebook_EZ[0], [total / count], rtol=1e-4)
    np.testing.assert_allclose(state.codebook_EZ[1], [-4 + 3 * g**3], rtol=1e-4)


def test_a_code_without_latents_stays_finite():
    state = vq.VQState(normal(5, 3), jnp.ones(5), normal(5, 3))
    for _ in range(60):
        state = ema_update(state, normal(4, 3), jnp.zeros(4, int), decay=0.01)
    assert np.isfinite(np.asarray(state.codebook_EZ)).all()
    assert float(state.count_E[1]) < 1e-20


def test_normalised_codes_average_unit_vectors():
    z = 10 ** normal(6, 1) * normal(6, 3, seed=1)
    state = vq.VQState(jnp.ones((1, 3)), jnp.zeros(1), jnp.zeros((1, 3)))
    state = ema_update(state, z, jnp.zeros(6, int), decay=0.0)
    np.testing.assert_allclose(state.codebook_EZ[0], unit(z).mean(0), rtol=1e-3)


def restart(count=(5.0, 0.1, 3.0, 0.0, 0.5), seed=0, threshold=1.0, normalize=False):
    codebook = normal(5, 3)
    state = vq.VQState(jnp.asarray(codebook), jnp.array(count), jnp.asarray(codebook) * 2)
    z = normal(4, 6, 3, seed=9)
    key = jax.random.key(seed)
    new, dead = restart_dead(state, z, key, threshold=threshold, normalize=normalize)
    return state, z.reshape(-1, 3), new, dead


def test_restart_leaves_live_codes_untouched():
    state, _, new, dead = restart()
    assert int(dead) == 3
    for before, after in zip(state, new):
        np.testing.assert_array_equal(before[np.array([0, 2])], after[np.array([0, 2])])
    state, _, new, dead = restart(count=(5.0, 1.0, 3.0, 1.0, 2.0))
    assert int(dead) == 0
    for before, after in zip(state, new):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("normalize", [True, False])
def test_dead_codes_become_different_latents_of_the_batch(normalize):
    _, z, new, _ = restart(normalize=normalize)
    z = unit(z) if normalize else z
    fresh = np.asarray(new.codebook_EZ)[[1, 3, 4]]
    rows = [int(np.abs(z - code).sum(-1).argmin()) for code in fresh]
    np.testing.assert_allclose(z[rows], fresh, rtol=1e-6)
    assert len(set(rows)) == 3
    # They start alive, and their sums agree with their codes.
    assert (np.asarray(new.count_E) >= 1.0).all()
    mean = np.asarray(new.sum_EZ / new.count_E[:, None])[[1, 3, 4]]
    np.testing.assert_allclose(mean, fresh, rtol=1e-5)


def test_restart_depends_on_its_key_only():
    first, again, other = restart(seed=3)[2], restart(seed=3)[2], restart(seed=4)[2]
    np.testing.assert_array_equal(first.codebook_EZ, again.codebook_EZ)
    assert (first.codebook_EZ != other.codebook_EZ).any()


def test_restart_revives_a_collapsed_codebook():
    """All codes far from the data but one: with restarts nearly all get used."""
    z = normal(512, 4)
    codebook = jnp.full((32, 4), 50.0).at[0].set(0.0)
    state = vq.VQState(codebook, jnp.ones(32), codebook)

    @jax.jit
    def step(state, key):
        codes = nearest_codes(z, state.codebook_EZ)
        state = ema_update(state, z, codes, decay=0.5, normalize=False)
        return restart_dead(state, z, key, threshold=0.9, normalize=False)[0]

    for i in range(8):
        state = step(state, jax.random.key(i))
    used = len(np.unique(nearest_codes(z, state.codebook_EZ)))
    assert used >= 30


def test_k_means_finds_the_clusters():
    centres = 10 * normal(12, 3)
    z = (centres[:, None] + 0.1 * normal(12, 30, 3, seed=1)).reshape(4, 90, 3)
    state = k_means(jax.random.key(0), z, 40, normalize=False)
    codes = nearest_codes(z, state.codebook_EZ)
    error = np.square(z - np.asarray(state.codebook_EZ)[codes]).sum(-1)
    assert error.max() < 1  # the clusters are about 10 apart: none is without a code of its own
    np.testing.assert_allclose(np.asarray(state.count_E).sum(), 360)
    one = k_means(jax.random.key(0), z, 1, normalize=False)
    np.testing.assert_allclose(one.codebook_EZ[0], z.reshape(-1, 3).mean(0), rtol=1e-4)


def white_pages():
    """900 latents of one colour but for a little noise, 100 of others."""
    return np.concatenate([1e-3 * normal(900, 3), 5 + normal(100, 3, seed=1)])


def test_k_means_does_not_name_one_colour_many_times():
    state = k_means(jax.random.key(0), white_pages(), 20, normalize=False)
    near_white = np.linalg.norm(state.codebook_EZ, axis=-1) < 0.1
    assert 1 <= near_white.sum() <= 2  # 18 of 20 were the seeds drawn evenly


def test_restarts_go_where_the_error_is():
    codebook = jnp.zeros((20, 3)).at[1:].set(50.0)
    state = vq.VQState(codebook, jnp.zeros(20).at[0].set(900.0), codebook)
    new, dead = restart_dead(
        state, white_pages(), jax.random.key(0), threshold=1.0, normalize=False
    )
    assert int(dead) == 19
    assert (np.linalg.norm(new.codebook_EZ[1:], axis=-1) > 1).all()


def test_spherical_k_means_gives_unit_codes():
    state = k_means(jax.random.key(0), normal(200, 4), 16)
    np.testing.assert_allclose(jnp.linalg.norm(state.codebook_EZ, axis=-1), 1, rtol=1e-5)


def test_fresh_codebook_has_unit_length_on_average():
    state = vq.init_vq(jax.random.key(0), 4096, 16)
    np.testing.assert_allclose(np.square(state.codebook_EZ).sum(-1).mean(), 1, rtol=0.02)
    assert not state.count_E.any() and not state.sum_EZ.any()


def test_more_codes_than_latents_come_alive_over_the_batches():
    """8 latents a batch, 64 codes: each batch starts 8 codes at most, and they have time to win."""
    state = k_means(jax.random.key(0), normal(8, 4), 64)
    assert int((state.count_E > 0).sum()) <= 8
    even_use = 8 / 64

    @jax.jit
    def step(state, z, key):
        state = vq.ema_update(state, z, vq.vq(z, state.codebook_EZ).codes)
        return vq.restart_dead(state, z, key, threshold=0.1 * even_use)

    restarted = []
    for i in range(300):
        state, count = step(state, normal(8, 4, seed=i + 1), jax.random.key(i))
        restarted.append(int(count))
    assert restarted[0] == 8
    assert sum(restarted[100:]) < 0.1 * 64 * 200 / 100  # each code less than once in 1,000 batches
    assert len(np.unique(vq.vq(normal(2000, 4), state.codebook_EZ).codes)) > 50


def test_normalised_codes_are_compared_at_unit_length():
    """A live code whose running mean is short still covers its direction."""
    x, y = np.eye(2, dtype=np.float32)
    codebook = jnp.stack([0.1 * x, y])  # as it is, y would be nearer to x than 0.1 x is far
    state = vq.VQState(codebook, jnp.array([5.0, 0.0]), codebook)
    z = jnp.stack([x] * 50 + [y])
    for seed in range(5):
        new, _ = restart_dead(state, z, jax.random.key(seed), threshold=1.0, normalize=True)
        np.testing.assert_array_equal(new.codebook_EZ[1], y)
