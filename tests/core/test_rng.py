"""Draws are functions of (seed, stream, position) and of nothing else."""

import jax
import jax.numpy as jnp
import numpy as np

from mmx.core import rng

POSITION_B = jnp.arange(64, dtype=jnp.uint32)


def draws(key, name, position_B=POSITION_B):
    keys_B = rng.row_keys(key, name, position_B)
    return np.asarray(jax.vmap(lambda k: jax.random.bits(k, (4,)))(keys_B))


def test_a_row_draws_by_its_position_alone():
    key = rng.base_key(0)
    whole = draws(key, "mask")
    assert np.array_equal(draws(key, "mask", POSITION_B[40:48]), whole[40:48])
    shuffled = np.random.default_rng(0).permutation(64)
    assert np.array_equal(draws(key, "mask", POSITION_B[shuffled]), whole[shuffled])
    assert np.array_equal(jax.jit(draws_of_mask)(key), whole)
    # Up to the last position that uint32 holds, and not wrapped at the sign.
    far = jnp.asarray([2**31 - 1, 2**31, 2**32 - 1, 0], jnp.uint32)
    rows = draws(key, "mask", far)
    assert len({row.tobytes() for row in rows}) == 4 and np.array_equal(rows[3], whole[0])


def draws_of_mask(key):
    return jax.vmap(lambda k: jax.random.bits(k, (4,)))(rng.row_keys(key, "mask", POSITION_B))


def test_seeds_streams_and_rows_do_not_meet():
    rows = [
        row.tobytes()
        for seed in (0, 1, 2**31)
        for name in ("mask", "drop", "mask_rate", "sample", "noise")
        for row in draws(rng.base_key(seed), name)
    ]
    assert len(set(rows)) == len(rows) == 3 * 5 * 64


def test_streams_are_uncorrelated():
    key, position_B = rng.base_key(3), jnp.arange(4096, dtype=jnp.uint32)
    uniform = lambda name: np.asarray(
        jax.vmap(jax.random.uniform)(rng.row_keys(key, name, position_B))
    )
    a, b = uniform("mask"), uniform("drop")
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.06  # four standard deviations
    assert abs(np.corrcoef(a[1:], a[:-1])[0, 1]) < 0.06
    assert abs(a.mean() - 0.5) < 0.02 and abs(b.var() - 1 / 12) < 0.005


def test_the_numbers_stay_what_they_are():
    """A changed number here means that no old run can be resumed: change it only on purpose."""
    key = rng.base_key(7)
    assert np.asarray(jax.random.key_data(key)).tolist() == [0, 7]
    assert jax.random.key_impl(key) == "threefry2x32"
    assert np.asarray(jax.random.key_data(rng.stream(key, "mask"))).tolist() == MASK_STREAM
    row = rng.row_keys(key, "mask", jnp.asarray([5], jnp.uint32))
    assert np.asarray(jax.random.key_data(row)).tolist() == [ROW_5]


MASK_STREAM = [631831457, 3032815227]
ROW_5 = [2441771728, 3401660065]
