"""The scanned stack beside an unrolled one, remat, precision, masks."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmx.core import tree
from mmx.core.flops import matmul_flops
from mmx.nn.norm import LayerNorm
from mmx.nn.remat import REMAT
from mmx.nn.text import TextEncoder
from mmx.nn.transformer import ACTIVATIONS, Block, Transformer

DEPTH, HEADS, WIDTH, MLP = 3, 2, 8, 16
RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 5, WIDTH)).astype(np.float32)
TEXT = RNG.normal(size=(2, 4, WIDTH)).astype(np.float32)
TEXT_MASK = np.arange(4) < np.array([[2], [4]])


@functools.cache
def make(**changes):
    """(network, variables, abstract boxed variables, compiled output)."""
    net = Transformer(DEPTH, HEADS, MLP, **changes)
    boxed = jax.eval_shape(net.init, jax.random.key(0), X, None, TEXT, TEXT_MASK)
    x = X.astype(changes.get("dtype", np.float32))

    @jax.jit
    def run():
        variables = nn.unbox(net.init(jax.random.key(0), x, None, TEXT, TEXT_MASK))
        return variables, net.apply(variables, x, None, TEXT, TEXT_MASK)

    variables, y = run()
    return net, variables, boxed, y


def test_scan_equals_an_unrolled_loop():
    _, variables, _, y = make()

    @jax.jit
    def unrolled(params):
        x = X
        for layer in range(DEPTH):
            block = jax.tree.map(lambda leaf, at=layer: leaf[at], params["blocks"])
            x, _ = Block(HEADS, MLP).apply({"params": block}, x, None, TEXT, TEXT_MASK)
        return LayerNorm().apply({"params": params["final_norm"]}, x)

    np.testing.assert_allclose(y, unrolled(variables["params"]), atol=1e-5)


def test_activations():
    x = jnp.array([-2.0, -0.5, 0.5, 3.0])
    np.testing.assert_allclose(ACTIVATIONS["relu2"](x), [0, 0, 0.25, 9])
    tanh_form = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    np.testing.assert_allclose(ACTIVATIONS["gelu"](x), tanh_form, atol=1e-6)


def test_a_block_is_three_pre_normed_residuals():
    _, variables, _, _ = make()
    params = jax.tree.map(lambda leaf: leaf[0], variables["params"]["blocks"])
    apply = jax.jit(
        lambda p, x: Block(HEADS, MLP).apply({"params": p}, x, None, TEXT, TEXT_MASK)[0]
    )
    silent = lambda *names: tree.map_with_path(
        lambda path, leaf: 0 * leaf if any(n in path for n in names) else leaf, params
    )
    # With all outputs at zero, a block is the identity: nothing acts outside a residual.
    np.testing.assert_array_equal(apply(silent("/out/", "mlp_out"), X), X)
    # Pre-normed: the update does not see a shift and a scale of the input.
    only_mlp = silent("/out/")
    update = lambda x: apply(only_mlp, x) - x
    assert np.abs(update(X)).max() > 0.1
    np.testing.assert_allclose(update(X), update(3 * X + 5), atol=1e-4)


def test_layers_start_different_and_name_their_axes():
    _, variables, boxed, _ = make()
    kernel = variables["params"]["blocks"]["mlp_in"]["kernel"]
    assert kernel.shape == (DEPTH, WIDTH, MLP)
    assert np.abs(kernel[0] - kernel[1]).max() > 0.01
    assert boxed["params"]["blocks"]["mlp_in"]["kernel"].names == ("layers", "embed", "mlp")


def test_the_program_does_not_grow_with_depth():
    def size(depth):
        net = Transformer(depth, HEADS, MLP)
        params = jax.eval_shape(net.init, jax.random.key(0), X)
        return str(jax.make_jaxpr(net.apply)(params, X)).count("\n")

    assert size(9) == size(2)


@functools.cache
def gradient(remat):
    """(FLOPs of loss and gradient, what they are) under a policy."""
    # relu2, as the gradient of gelu recomputes it in any case.
    net = Transformer(DEPTH, HEADS, MLP, "relu2", remat)
    variables = make()[1]

    @jax.jit
    @jax.value_and_grad
    def loss(variables):
        return jnp.square(net.apply(variables, X, None, TEXT, TEXT_MASK)).sum()

    return matmul_flops(loss, variables), loss(variables)


@pytest.mark.parametrize("remat", ["full", "attention", "dots"])
def test_remat_changes_no_number(remat):
    (a, gradient_a), (b, gradient_b) = gradient("none")[1], gradient(remat)[1]
    np.testing.assert_allclose(a, b, rtol=1e-6)
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, atol=2e-4), gradient_a, gradient_b)


def test_remat_recomputes_the_less_the_more_it_keeps():
    flops = {remat: gradient(remat)[0] for remat in REMAT}
    assert flops["attention"] > flops["dots"]
    # Two rows, 5 queries, 5 keys of their own and 4 + 1 of the text, in self and cross attention.
    products = 2 * (2 * 2 * 5 * 5 * WIDTH)  # of queries and keys; of weights and values alike
    projections = 2 * 2 * (4 * 5 + 2 * 4) * WIDTH**2  # q, k, v, q of queries; k, v of the text
    assert flops["full"] - flops["attention"] == DEPTH * (projections + products)
    assert flops["dots"] - flops["none"] == DEPTH * products


def test_half_precision_computes_in_half_and_keeps_float32_parameters():
    net, variables, _, y_half = make(dtype=jnp.bfloat16)
    assert y_half.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y_half, np.float32), make()[3], atol=0.15)
    x = X.astype(jnp.bfloat16)
    gradient = jax.eval_shape(
        jax.grad(lambda v: net.apply(v, x, None, TEXT, TEXT_MASK).sum().astype("float32")),
        variables,
    )
    for leaf in jax.tree.leaves([variables, gradient]):
        assert leaf.dtype == jnp.float32


def test_masked_positions_are_not_read():
    net = Transformer(2, HEADS, MLP)
    variables = nn.unbox(jax.jit(net.init)(jax.random.key(0), X))
    apply = jax.jit(net.apply)
    mask_BL = np.arange(5) < np.array([[3], [5]])
    other = X.copy()
    other[0, 3:] = X[1, 3:]
    a, b = (apply(variables, x, mask_BL) for x in (X, other))
    np.testing.assert_array_equal(a[0, :3], b[0, :3])
    assert np.abs(a[0, 3:] - b[0, 3:]).max() > 0.1


IDS = np.array([[5, 6, 1, 0, 0], [7, 8, 9, 3, 1]], np.int32)
MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)


@functools.cache
def text_encoder(depth):
    net = TextEncoder(vocab_size=20, width=WIDTH, depth=depth, heads=HEADS)
    return jax.jit(net.apply), nn.unbox(jax.jit(net.init)(jax.random.key(0), IDS, MASK))


def test_text_encoder_does_not_read_padding():
    apply, variables = text_encoder(2)
    a, b = (apply(variables, ids, MASK) for ids in (IDS, np.where(MASK, IDS, 13)))
    np.testing.assert_array_equal(a[0, :3], b[0, :3])
    np.testing.assert_array_equal(a[1], b[1])


def test_text_encoder_one_by_one_equals_the_batch():
    apply, variables = text_encoder(2)
    whole = apply(variables, IDS, MASK)
    for b in range(2):
        alone = apply(variables, IDS[b : b + 1], MASK[b : b + 1])
        np.testing.assert_allclose(alone[0], whole[b], atol=1e-5)


def test_text_encoder_knows_the_order_of_words_and_stays_finite_on_nothing():
    apply, variables = text_encoder(2)
    a, b = (apply(variables, ids, MASK) for ids in (IDS, IDS[:, [1, 0, 2, 3, 4]]))
    assert np.abs(a[:, 2] - b[:, 2]).max() > 1e-4
    assert np.isfinite(apply(variables, IDS, np.zeros_like(MASK))).all()


def test_text_encoder_of_depth_zero_is_words_and_places():
    apply, variables = text_encoder(0)
    p = variables["params"]
    assert p["tokens"]["embedding"].shape == (128, WIDTH)  # padded so that it divides
    expected = p["tokens"]["embedding"][IDS] + p["positions"]
    np.testing.assert_allclose(apply(variables, IDS, MASK), expected, atol=1e-6)
