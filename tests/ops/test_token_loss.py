"""The loss in chunks against the plain one: values, gradients, work, memory, many devices."""

import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from mmx.core.flops import matmul_flops
from mmx.core.partition import MESH_AXES
from mmx.ops.token_loss import chunked_cross_entropy

B, L, D, V, VOCAB = 4, 12, 6, 32, 29


@functools.cache
def inputs():
    """hidden, kernel, weights (one of them 0), labels; float64."""
    rng = np.random.default_rng(0)
    weights_BL = rng.uniform(size=(B, L))
    weights_BL[1, 3] = 0
    hidden_BLD, kernel_DV = rng.normal(size=(B, L, D)), rng.normal(size=(D, V))
    return hidden_BLD, kernel_DV, weights_BL, rng.integers(0, VOCAB, (B, L))


def plain(hidden_BLD, kernel_DV, weights_BL, labels_BL):
    probability_BLV = jax.nn.softmax((hidden_BLD @ kernel_DV)[..., :VOCAB])
    label_BL = jnp.take_along_axis(probability_BLV, labels_BL[..., None], axis=-1)[..., 0]
    return -(weights_BL * jnp.log(label_BL)).sum()


def chunked(hidden_BLD, kernel_DV, weights_BL, labels_BL, chunk=4):
    return chunked_cross_entropy(hidden_BLD, kernel_DV, labels_BL, weights_BL, VOCAB, chunk)


def slopes(loss):
    """Of three times the loss, as the slope that comes in is seldom 1."""
    return jax.jit(jax.value_and_grad(lambda *args: 3 * loss(*args), (0, 1, 2)))


@pytest.mark.parametrize("chunk", [1, 4, L])
def test_value_and_gradients_are_those_of_the_plain_loss(chunk):
    with jax.enable_x64(True):
        expected = slopes(plain)(*inputs())
        got = slopes(functools.partial(chunked, chunk=chunk))(*inputs())
        alone = 3 * chunked(*inputs(), chunk=chunk)  # no gradient: another path
    assert got[0].dtype == jnp.float64
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13),
                 (*got, alone), (*expected, expected[0]))  # fmt: skip


@pytest.mark.parametrize("chunk", [0, 5, 24])
def test_a_chunk_that_does_not_divide_is_refused(chunk):
    with pytest.raises(ValueError, match=f"chunk={chunk} .* length of 12"):
        chunked(*inputs(), chunk=chunk)


def test_half_precision_sums_in_float32():
    hidden_BLD, kernel_DV, weights_BL, labels_BL = inputs()
    half = jnp.bfloat16(hidden_BLD), jnp.float32(kernel_DV), jnp.float32(weights_BL), labels_BL
    loss, gradients = slopes(chunked)(*half)
    expected, expected_gradients = slopes(plain)(*inputs())
    assert loss.dtype == jnp.float32
    assert [g.dtype for g in gradients] == [jnp.bfloat16, jnp.float32, jnp.float32]
    np.testing.assert_allclose(loss, expected, rtol=5e-3)
    for a, b in zip(gradients, expected_gradients):
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.02 * np.abs(b).max())


def test_computes_nothing_twice_and_holds_the_logits_of_a_chunk():
    hidden_BLD, kernel_DV, weights_BL, labels_BL = map(jnp.asarray, inputs())
    args = hidden_BLD.astype(jnp.bfloat16), kernel_DV, weights_BL, labels_BL
    assert matmul_flops(slopes(chunked), *args) == matmul_flops(slopes(plain), *args)
    assert _largest(slopes(chunked), args) == B * 4 * V
    assert _largest(slopes(plain), args) == B * L * V


def _largest(fn, args) -> int:
    """Elements of the largest array of float32 within."""

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            for out in equation.outvars:
                if out.aval.dtype == jnp.float32:
                    yield out.aval.size
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                yield from walk(inner)

    return max(walk(jax.make_jaxpr(fn)(*args).jaxpr))


def test_rows_and_vocabulary_on_many_devices():
    mesh = jax.make_mesh((1, 2, 2, 2), MESH_AXES, axis_types=(AxisType.Auto,) * 4)
    with jax.enable_x64(True):
        expected = slopes(plain)(*inputs())
        with jax.set_mesh(mesh):
            got = slopes(chunked)(*inputs())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13),
                 got, expected)  # fmt: skip
