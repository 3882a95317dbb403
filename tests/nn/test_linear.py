"""Dense, embedding and norms over the last axis."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mmx.nn.linear import Dense, Embed, round_up
from mmx.nn.norm import LayerNorm, RMSNorm

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4), (2, 1, 3, 4)])
def test_dense_is_a_matmul_over_the_last_axis(shape):
    x, kernel, bias = normal(*shape), normal(4, 5), normal(5)
    layer = Dense(5, ("embed", "mlp"), use_bias=True)
    y = layer.apply({"params": {"kernel": kernel, "bias": bias}}, x)
    np.testing.assert_allclose(y, x @ kernel + bias, atol=1e-5)


def test_dense_starts_with_unit_variance_and_no_bias():
    layer = Dense(256, ("embed", "mlp"), use_bias=True)
    params = nn.unbox(jax.jit(layer.init)(jax.random.key(0), normal(1, 512)))["params"]
    assert params["kernel"].std() == pytest.approx(512**-0.5, rel=0.02)
    assert not params["bias"].any()


def test_dense_adds_no_collective_on_a_sharded_batch():
    """Flattening is free only while it crosses no sharded axis: rows are the leading one."""
    mesh = jax.make_mesh((8,), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    layer = Dense(16, ("embed", "mlp"))
    params = jax.eval_shape(lambda: nn.unbox(layer.init(jax.random.key(0), jnp.zeros((1, 4)))))
    x = jax.ShapeDtypeStruct((8, 6, 4), jnp.float32, sharding=rows)
    text = jax.jit(layer.apply, out_shardings=rows).lower(params, x).compile().as_text()
    for word in ("all-reduce", "all-gather", "all-to-all", "collective-permute"):
        assert word not in text


def test_embed_takes_rows_and_gives_them_their_gradient():
    table = normal(6, 3)
    layer = Embed(6, 3)
    ids = np.array([[1, 5, 1]])
    y, back = jax.vjp(lambda t: layer.apply({"params": {"embedding": t}}, ids), table)
    np.testing.assert_array_equal(y, table[ids])
    (gradient,) = back(jnp.ones_like(y))
    np.testing.assert_array_equal(gradient[:, 0], [0, 2, 0, 0, 0, 1])


def test_round_up():
    assert [round_up(n) for n in (1, 128, 129, 8193)] == [128, 128, 256, 8320]


def test_norms():
    x, scale = normal(2, 3, 8) * 4 + 1, normal(8)
    rms = RMSNorm().apply({"params": {"scale": scale}}, x)
    np.testing.assert_allclose(rms, x / np.sqrt((x**2).mean(-1, keepdims=True)) * scale, atol=1e-4)
    layer = LayerNorm().apply({"params": {"scale": scale}}, x)
    centred = x - x.mean(-1, keepdims=True)
    np.testing.assert_allclose(layer, centred / x.std(-1, keepdims=True) * scale, atol=1e-4)


@pytest.mark.parametrize("norm", [RMSNorm, LayerNorm])
def test_norms_compute_in_float32(norm):
    # 1000 + small differences vanish in bf16; a sum of squares of 300^2 overflows in fp16.
    x = (normal(4, 64) * 300).astype(jnp.float16)
    half = norm(dtype=jnp.float16)
    params = nn.unbox(half.init(jax.random.key(0), x))
    y = half.apply(params, x)
    assert y.dtype == jnp.float16
    np.testing.assert_allclose(
        np.asarray(y, np.float32), norm().apply(params, x.astype(np.float32)), atol=5e-3
    )
