"""Attention over intervals of keys: leakage, padding, and every implementation equals the dense."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mmx.core.partition import MESH_AXES
from mmx.nn.spans import AUTO, IMPLS, attend_spans
from mmx.nn.splash import attend_splash, splash_flops
from mmx.ops.spans import bounds_of
from mmx.train import hlo, preflight
from mmx.train.topology import before_jax, make_devices, parse_topology
from tests.layouts import random_layouts, visible

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def test_dense_equals_the_boolean_definition():
    """500 layouts, in float64 by NumPy; what reads nothing is zero."""
    document_BL, image_BL = random_layouts(500, 24)
    q, k, v = normal(3, 500, 24, 2, 4)
    attend = jax.jit(lambda *x: attend_spans(*x, bounds_of(document_BL, image_BL), "dense", 12))
    out = np.asarray(attend(q, k, v))
    seen = np.stack([visible(*row) for row in zip(document_BL, image_BL)])[:, None]
    scores = np.einsum("blnk,bmnk->bnlm", np.float64(q), k) / 2
    weights = np.where(seen, np.exp(scores), 0)
    total = weights.sum(-1, keepdims=True)
    weights = np.divide(weights, total, where=total > 0, out=np.zeros_like(weights))
    np.testing.assert_allclose(out, np.einsum("bnlm,bmnk->blnk", weights, v), atol=1e-5)
    assert (out[document_BL < 0] == 0).all() and (document_BL < 0).any()


def test_gradients_reach_exactly_what_is_read():
    """Exactly 0 elsewhere: later text, later images, other documents, padding (invariant 1)."""
    document_BL, image_BL = random_layouts(6, 24, seed=1)
    q, k, v = normal(3, 6, 24, 1, 4)

    def out(k, v):
        bounds = bounds_of(document_BL, image_BL)
        return attend_spans(q, k, v, bounds, "dense", 12, scaled=True).sum((0, 2, 3))

    by_k, by_v = jax.jit(jax.jacrev(out, (0, 1)))(k, v)
    seen = np.stack([visible(*row) for row in zip(document_BL, image_BL)], 1)  # [query, row, key]
    reach = lambda jacobian: np.abs(jacobian).max((-1, -2))
    assert ((reach(by_v) > 0) == seen).all() and np.isfinite(by_v).all()
    alone = seen.sum(-1, keepdims=True) == 1  # a softmax over one key does not move
    assert ((reach(by_k) > 0) == seen & ~alone).all() and np.isfinite(by_k).all()


ROWS, LENGTH, SPAN = 8, 384, 100  # three blocks of 128, and one of the nine is dead


def attention(impl, heads, head_size, calls):
    """[output, gradients by q, k and v] of so many random layouts times 8; one compilation."""
    rng = np.random.default_rng(1)
    bounds = bounds_of(*random_layouts(ROWS * calls, LENGTH, seed=2, longest=SPAN))

    @jax.jit
    def run(q, k, v, slope, bounds):
        out, pull = jax.vjp(lambda *qkv: attend_spans(*qkv, bounds, impl, SPAN), q, k, v)
        return out, *pull(slope)

    found = []
    for start in range(0, ROWS * calls, ROWS):
        x = rng.normal(size=(4, ROWS, LENGTH, heads, head_size)).astype(np.float32)
        found.append(run(*x, [bound_BL[start : start + ROWS] for bound_BL in bounds]))
    return [np.concatenate(x) for x in zip(*found)]


def assert_equal(got, expected):
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=3e-5)


# Whatever is added to IMPLS is tested here by that alone.
KERNELS = sorted(IMPLS.keys() - {"dense"})


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("impl", KERNELS)
def test_200_layouts_equal_the_dense_ones(impl):
    out = attention(impl, 1, 64, calls=25)
    assert len(out[0]) == 200
    assert_equal(out, attention("dense", 1, 64, calls=25))
    assert (out[0] == 0).all((-1, -2)).any(), "padding"


def test_auto_takes_what_is_tested():
    assert set(AUTO) == {"cpu", "gpu", "tpu"}
    assert set(AUTO.values()) <= {"dense", *KERNELS}


@pytest.mark.usefixtures("interpreted")
def test_splash_equals_dense_at_a_head_size_of_128():
    assert_equal(attention("splash", 1, 128, calls=2), attention("dense", 1, 128, calls=2))


@pytest.mark.usefixtures("interpreted")
def test_splash_equals_dense_with_rows_and_heads_on_many_devices():
    mesh = jax.make_mesh((1, 2, 2, 2), MESH_AXES, axis_types=(AxisType.Auto,) * 4)
    expected = attention("dense", 2, 64, calls=1)
    with jax.set_mesh(mesh):
        assert_equal(attention("splash", 2, 64, calls=1), expected)


def test_live_blocks_of_a_band():
    """Counted one by one, for spans shorter than a block, longer, and longer than the row."""
    for length, block in ((2048, 512), (640, 128)):
        query, key = np.arange(length)[:, None], np.arange(length)
        for span in (1, 2, 128, 129, 130, 513, 514, 5000):
            blocks = (key < query + span).reshape(length // block, block, -1, block)
            live = blocks.any((1, 3)).sum()
            assert splash_flops(3, length, 5, 128, span) == 3 * 5 * live * 4 * block**2 * 128
    assert splash_flops(1, 512, 1, 64) == splash_flops(1, 512, 1, 128)


def test_bounds_that_do_not_fit_in_16_bits_are_refused():
    x = jax.ShapeDtypeStruct((1, 2**15 + 128, 1, 128), jnp.float32)
    bounds = (jnp.zeros(x.shape[:2], jnp.int32),) * 2
    with pytest.raises(ValueError, match="a length of 32768, not 32896"):
        jax.eval_shape(lambda x: attend_splash(x, x, x, bounds), x)


@pytest.mark.parametrize("kind", ["v5p:2x2x1", "v5e:2x2"])
def test_a_tpu_gets_the_kernel_and_it_is_counted(kind):
    """By "auto": the mesh's devices decide, not those of the machine that compiles."""
    topology = parse_topology(kind)
    before_jax(topology)
    mesh = jax.make_mesh(
        (1, 1, 4, 1), MESH_AXES, axis_types=(AxisType.Auto,) * 4, devices=make_devices(topology)
    )
    at = NamedSharding(mesh, PartitionSpec("fsdp"))
    for head_size in (64, 128):
        x = jax.ShapeDtypeStruct((4, 1024, 2, head_size), jnp.bfloat16, sharding=at)
        bound = jax.ShapeDtypeStruct(x.shape[:2], jnp.int32, sharding=at)

        def loss(q, k, v, *bounds):
            return attend_spans(q, k, v, bounds, "auto", 256).astype(jnp.float32).sum()

        with jax.set_mesh(mesh):
            lowered = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x, bound, bound)
        cost = hlo.cost(lowered.compile().as_text())
        expected = (2 + 3 + 4) / 2 * splash_flops(1, 1024, 2, head_size, 256)
        assert preflight.kernel_flops(cost) == expected
        assert expected == 4.5 * 4 * 4 * 512**2 * 128 * 2  # all four blocks are live
