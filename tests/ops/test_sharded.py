"""The same results with rows spread over devices, and nothing sent where rows are on their own."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mmx.ops import decoding, vq

COLLECTIVES = ("all-gather", "all-reduce", "collective-permute", "all-to-all", "reduce-scatter")


def rows_over_devices():
    devices = len(jax.devices())
    assert devices > 1, "tests/conftest.py asks for 8"
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec("data"))


def compile_for(fn, *args):
    return jax.jit(fn).lower(*args).compile()


def test_decoding_sends_nothing_between_rows():
    table = jax.random.normal(jax.random.key(3), (21, 20))
    ids, keys_B = jnp.full((16, 64), 20), jax.random.split(jax.random.key(0), 16)

    def decode(ids, keys_B):
        def logits_fn(ids, step):
            return table[ids] + table[jnp.roll(ids, 1, 1)]

        return decoding.decode(logits_fn, ids, keys_B, mask_id=20, num_steps=6)[0]

    spread = jax.device_put((ids, keys_B), rows_over_devices())
    compiled = compile_for(decode, *spread)
    assert not [word for word in COLLECTIVES if word in compiled.as_text()]
    np.testing.assert_array_equal(compiled(*spread), jax.jit(decode)(ids, keys_B))


def test_nearest_codes_send_nothing_between_rows():
    z = np.random.default_rng(0).normal(size=(64, 9, 5)).astype(np.float32)
    codebook = np.random.default_rng(1).normal(size=(2100, 5)).astype(np.float32)
    spread = jax.device_put(z, rows_over_devices())
    compiled = compile_for(vq.nearest_codes, spread, codebook)
    assert not [word for word in COLLECTIVES if word in compiled.as_text()]
    np.testing.assert_array_equal(compiled(spread, codebook), vq.nearest_codes(z, codebook))


def test_codebook_is_the_same_on_every_device():
    """Counts and sums are over the whole batch, and all devices restart the same codes."""
    z = np.random.default_rng(0).normal(size=(64, 9, 5)).astype(np.float32)
    codebook_EZ = vq.init_vq(jax.random.key(0), 300, 5).codebook_EZ
    state = vq.VQState(codebook_EZ, jnp.ones(300), codebook_EZ)

    def step(state, z, key):
        codes = vq.vq(z, state.codebook_EZ).codes
        state = vq.ema_update(state, z, codes, decay=0.5)
        return vq.restart_dead(state, z, key, threshold=0.8)

    key = jax.random.key(1)
    whole, dead = jax.jit(step)(state, z, key)
    spread_state, spread_dead = jax.jit(step)(state, jax.device_put(z, rows_over_devices()), key)
    assert 0 < int(dead) < 300 and int(dead) == int(spread_dead)
    for a, b in zip(whole, spread_state):
        assert b.is_fully_replicated
        np.testing.assert_allclose(a, b, atol=1e-5)
    copies = [np.asarray(shard.data) for shard in spread_state.codebook_EZ.addressable_shards]
    for copy in copies[1:]:
        np.testing.assert_array_equal(copy, copies[0])
