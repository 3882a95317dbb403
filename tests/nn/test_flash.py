"""The GPU kernels of attention over spans, interpreted: values, gradients, and blocks left out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmx.nn.flash import KERNELS, Blocks, Kernels, _ranges, attend_flash
from mmx.nn.spans import attend_dense, attend_spans, visible_keys
from mmx.ops.spans import bounds_of
from tests.layouts import random_layouts

ROWS, LENGTH, SPAN = 8, 256, 100


def attention(attend, dtype, bounds, head_size=16):
    """[output, gradients by q, k and v] in float32."""
    rng = np.random.default_rng(1)
    shape = (4, ROWS, LENGTH, 1, head_size)
    q, k, v, slope = jnp.asarray(rng.normal(size=shape) / 2, dtype)

    @jax.jit
    def run(q, k, v, bounds):
        out, pull = jax.vjp(lambda *qkv: attend(*qkv, bounds, SPAN), q, k, v)
        return out, *pull(slope)

    return [np.asarray(x, np.float32) for x in run(q, k, v, bounds)]


@pytest.mark.usefixtures("interpreted")
def test_flash_equals_dense_in_half_precision():
    bounds = bounds_of(*random_layouts(ROWS, LENGTH, seed=2, longest=SPAN))
    got = attention(attend_flash, jnp.bfloat16, bounds)
    for a, b in zip(got, attention(attend_dense, jnp.bfloat16, bounds), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-2)


@pytest.mark.usefixtures("interpreted")
def test_flash_is_causal_without_bounds_and_of_any_blocks():
    wide = Kernels(Blocks(32, 128, 4, 1), Blocks(128, 32, 4, 1), Blocks(128, 64, 4, 1))
    got = attention(functools.partial(attend_flash, kernels=wide), jnp.float32, None)
    for a, b in zip(got, attention(attend_dense, jnp.float32, None), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("sizes", [Blocks(8, 8, 4, 1), Blocks(16, 4, 4, 1), Blocks(4, 32, 4, 1)])
def test_loops_visit_what_is_read_and_compare_only_where_they_must(sizes):
    length = 128
    bounds = bounds_of(*random_layouts(200, length, seed=3, longest=20))
    start_BL, end_BL = bounds.start_BL, jnp.maximum(bounds.end_BL, bounds.start_BL + 1)
    seen = np.asarray(visible_keys((start_BL, end_BL), length))
    seen = seen.reshape(200, length // sizes.queries, sizes.queries, -1, sizes.keys)
    of_keys, of_queries = _ranges(start_BL, end_BL, sizes)
    for pairs, ranges, exact in (
        (seen, of_keys, True),
        (seen.transpose(0, 3, 4, 1, 2), of_queries, False),
    ):
        number = np.arange(pairs.shape[3])
        first, whole, broken, end = np.moveaxis(np.asarray(ranges)[..., None], 2, 0)
        assert (first <= whole).all() and (whole <= broken).all() and (broken <= end).all()
        visited = (first <= number) & (number < end)
        assert (visited >= pairs.any((2, 4))).all()
        assert visited.sum() <= pairs.any((2, 4)).sum() * (1 if exact else 1.05)
        plain = (whole <= number) & (number < broken)
        assert (plain <= pairs.all((2, 4))).all()
        assert plain.sum() >= 0.95 * pairs.all((2, 4)).sum() > 0


@pytest.mark.parametrize("shape", [(1, 192, 1, 64), (1, 128, 1, 96), (1, 128, 1, 8)])
def test_flash_refuses_what_its_blocks_do_not_fit(shape):
    x = jnp.ones(shape)
    with pytest.raises(ValueError, match=f"not {shape[1]} and {shape[3]}"):
        attend_spans(x, x, x, None, "flash")


def test_flash_becomes_three_kernels_of_a_gpu():
    device = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", None, "gpu")
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)
    bound = jax.ShapeDtypeStruct((2, 1024), jnp.int32)
    for dtype in (jnp.bfloat16, jnp.float32):
        x = jax.ShapeDtypeStruct((2, 1024, 2, 128), dtype)

        def loss(q, k, v, *bounds):
            return attend_flash(q, k, v, bounds, 256).astype(jnp.float32).sum()

        with jax.sharding.use_abstract_mesh(mesh):
            traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(x, x, x, bound, bound)
            text = traced.lower(lowering_platforms=("cuda",)).as_text()
        assert text.count("stablehlo.custom_call @__gpu$xla.gpu.triton") == 3
    assert set(KERNELS) == {2, 4}
