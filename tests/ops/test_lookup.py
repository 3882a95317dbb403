"""The nearest row of a table, in pieces and over devices, and back (SPAE pitfalls 9, 10, 23)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mmx.core.partition import ShardingError
from mmx.ops import lookup
from mmx.ops.pyramid import Pyramid, quantize

nearest_words = jax.jit(lookup.nearest_words, static_argnums=2)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def data_and_tensor():
    kinds = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((2, len(jax.devices()) // 2), ("data", "tensor"), axis_types=kinds)


def spread(mesh, z, table):
    rows, words = PartitionSpec("data"), PartitionSpec("tensor")
    put = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
    return put(z, rows), put(table, words)


# ------------------------------------------------------------------ one device


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ids_are_those_of_brute_force_in_float64(dtype):
    """A table of words has a large mean in common, next to which words differ by little."""
    table = jnp.asarray(normal(2500, 24, seed=1) + 5, dtype)
    z = jnp.asarray(normal(1000, 24, seed=2) + 5, dtype)
    z_64, table_64 = np.asarray(z, np.float64), np.asarray(table, np.float64)
    norm = np.square(z_64).sum(-1, keepdims=True)
    squared = norm + np.square(table_64).sum(-1) - 2 * z_64 @ table_64.T
    first, second = np.partition(squared, 1, axis=-1)[:, :2].T
    found = np.asarray(nearest_words(z, table))
    agrees = found == squared.argmin(-1)
    # What float32 rounds away of numbers as large as |e|^2, some 24 * 26.
    assert agrees[second - first > 24 * 26 * 2e-6].all()
    assert agrees.mean() >= 0.999


def test_products_are_in_full_float32_on_every_device():
    jaxpr = str(jax.make_jaxpr(lookup.nearest_words)(jnp.zeros((3, 4), jnp.bfloat16), normal(9, 4)))
    products = [line for line in jaxpr.splitlines() if "dot_general[" in line or "HIGHEST" in line]
    assert "f32[3,9] = dot_general" in jaxpr and any("HIGHEST" in line for line in products)


@pytest.mark.parametrize("num_words", [700, 2099])
def test_of_equal_words_the_lowest_id_is_found(num_words):
    """2,099 rows are 3 pieces of 700, of which the last begins before the second ends."""
    table = np.tile(normal(7, 16), (300, 1))[:num_words]
    order = np.random.default_rng(1).permutation(num_words)
    lowest = [np.flatnonzero((table[order] == row).all(-1))[0] for row in table[:7]]
    np.testing.assert_array_equal(nearest_words(table[:7], table[order]), lowest)


@pytest.mark.parametrize("num_words", [1, 1024, 1500])
def test_rows_that_fill_the_table_up_are_never_found(num_words):
    table = normal(2048, 8, seed=1) + 3
    table[num_words:] = 0
    z = normal(20, 8, seed=2) * 0.1  # nearest to 0, that is to what fills up
    found = nearest_words(z, table, num_words)
    np.testing.assert_array_equal(found, nearest_words(z, table[:num_words]))
    assert (np.asarray(nearest_words(z, table)) == num_words).all()


def test_rows_that_can_be_words():
    table = normal(8, 4)
    table[2], table[4], table[5], table[6, 1] = 0, table[1], -0.0, np.nan
    table[0, 0], table[7] = 0.0, table[0]
    table[7, 0] = -0.0
    np.testing.assert_array_equal(lookup.distinct_rows(table), [0, 1, 3])


# ------------------------------------------------------------------ rows over devices


def test_a_table_over_devices_gives_the_same_words(monkeypatch):
    """Each device seeks in its own rows, in pieces; no device is sent another's rows."""
    table, z = normal(2400, 16, seed=1), normal(4, 4, 4, 16, seed=2)
    table[1500:1700] = table[100:300]  # equal words on different devices
    table[2350:] = 0
    z[0] = table[1500:1516].reshape(4, 4, 16)
    pyramid = Pyramid((1, 2, 4, 4))
    whole = jax.jit(lambda z, table: quantize(pyramid, z, table, 2350))(z, table)
    monkeypatch.setattr(lookup, "_CHUNK", 100)
    mesh = data_and_tensor()
    with jax.set_mesh(mesh):
        fn = jax.jit(lambda z, table: quantize(pyramid, z, table, 2350))
        args = spread(mesh, z, table)
        compiled = fn.lower(*args).compile()
        over = compiled(*args)
    np.testing.assert_array_equal(over.words_BT, whole.words_BT)
    np.testing.assert_allclose(over.stages_PBhwZ, whole.stages_PBhwZ, atol=1e-6)
    np.testing.assert_array_equal(over.words_BT[0, 5:21], range(100, 116))  # and not 1500 on
    text = compiled.as_text()
    assert "all-reduce" in text
    assert not [word for word in ("all-gather", "all-to-all", "permute") if word in text]
    # 2 rows of 16 cells by 100 words of a piece, not by the 600 of a device.
    assert "f32[32,100]" in text and "f32[32,600]" not in text


def test_a_million_words_over_devices():
    """Planted at known rows, the ends of devices' parts among them: no device holds the table."""
    count, width = 2**20, 4
    rng = np.random.default_rng(0)
    table = rng.random((count, width), np.float32)
    parts = len(jax.devices()) // 2
    rows = np.array([0, count // parts - 1, count // parts, 777_777, count - 1, 5])
    table[rows] += 10 * np.arange(1, 7)[:, None]  # alone in their places
    mesh = data_and_tensor()
    with jax.set_mesh(mesh):
        z, spread_table = spread(mesh, table[rows] + 0.01, table)
        assert {s.data.shape for s in spread_table.addressable_shards} == {(count // parts, width)}
        np.testing.assert_array_equal(nearest_words(z, spread_table), rows)


def test_words_come_back_from_whichever_device_and_so_does_their_gradient():
    table, ids = normal(24, 3), np.arange(24).reshape(4, 6)
    loss = lambda table: (jnp.square(lookup.embed_words(ids, table)) * normal(4, 6, 3)).sum()
    slope = jax.grad(loss)(table)
    mesh = data_and_tensor()
    with jax.set_mesh(mesh):
        over = spread(mesh, ids, table)
        found = jax.jit(lookup.embed_words)(*over)
        over_slope = jax.jit(jax.grad(loss))(over[1])
    np.testing.assert_array_equal(found, table[ids])
    np.testing.assert_array_equal(over_slope, slope)


def test_a_table_that_does_not_divide_is_refused():
    with jax.set_mesh(data_and_tensor()), pytest.raises(ShardingError, match="table of words"):
        lookup.nearest_words(normal(2, 3), normal(9, 3))
