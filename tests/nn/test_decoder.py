"""The causal decoder: rotary embedding, SwiGLU, causality, both attentions, every remat policy."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mmx.core.flops import matmul_flops
from mmx.core.partition import MESH_AXES
from mmx.nn.decoder import Decoder, DecoderBlock, LanguageModel, SwiGLU
from mmx.nn.norm import RMSNorm
from mmx.nn.remat import REMAT, keep
from mmx.nn.rope import rotate
from mmx.nn.spans import attend_spans
from mmx.nn.splash import splash_flops
from mmx.train import hlo, preflight
from mmx.train.topology import before_jax, make_devices, parse_topology

VOCAB, DEPTH, HEADS, WIDTH, MLP, LENGTH = 50, 3, 2, 8, 12, 6
RNG = np.random.default_rng(0)
IDS = RNG.integers(0, VOCAB, (2, LENGTH)).astype(np.int32)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def test_rope_turns_each_pair_by_its_angle():
    x_BLNK = normal(1, 5, 1, 6)
    angle_Lk = np.arange(5)[:, None] * 100.0 ** (-np.arange(3) / 3)
    a, b = x_BLNK[0, :, 0, :3], x_BLNK[0, :, 0, 3:]
    turned = (a + 1j * b) * np.exp(1j * angle_Lk)
    out = np.asarray(rotate(x_BLNK, theta=100.0))[0, :, 0]
    np.testing.assert_allclose(out, np.concatenate([turned.real, turned.imag], -1), atol=1e-5)


def test_rope_products_depend_on_the_distance_alone():
    q_K, k_K = normal(16), normal(16)
    everywhere = lambda x: rotate(np.broadcast_to(x, (1, 40, 1, 16)))[0, :, 0]
    products_LM = np.asarray(everywhere(q_K) @ everywhere(k_K).T)
    for distance in (-7, 0, 1, 13):
        diagonal = np.diagonal(products_LM, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], atol=2e-5)
    assert np.ptp(products_LM[:, 0]) > 0.5
    assert rotate(jnp.ones((1, 2, 1, 4), jnp.bfloat16)).dtype == jnp.bfloat16


def test_rope_scales_and_turns_slopes_back():
    x_BLNK, slope_BLNK = normal(2, 5, 3, 6), normal(2, 5, 3, 6)
    turned, pull = jax.vjp(functools.partial(rotate, scale=0.3), x_BLNK)
    np.testing.assert_allclose(turned, 0.3 * rotate(x_BLNK), atol=1e-6)
    # Linear: the slope by x is what any other x shows.
    np.testing.assert_allclose(
        (pull(slope_BLNK)[0] * x_BLNK).sum(), (slope_BLNK * turned).sum(), rtol=1e-5
    )
    there_and_back = rotate(jnp.float32(pull(rotate(x_BLNK, scale=0.3))[0]))
    np.testing.assert_allclose(there_and_back, 0.09 * rotate(x_BLNK), atol=1e-6)
    assert pull(slope_BLNK)[0].dtype == jnp.float32


def test_rope_takes_positions():
    x_BLNK, slope_BLNK = normal(2, 3, 2, 6), normal(2, 3, 2, 6)
    at_BL = jnp.array([[4, 0, 2], [1, 1, 7]])
    turned, pull = jax.vjp(lambda x: rotate(x, position_BL=at_BL), x_BLNK)
    for b, l in np.ndindex(2, 3):
        alone = np.zeros((1, 8, 2, 6), np.float32)
        alone[0, at_BL[b, l]] = x_BLNK[b, l]
        np.testing.assert_allclose(turned[b, l], rotate(alone)[0, at_BL[b, l]], atol=1e-6)
    # Turning keeps lengths, so the slope turns back.
    there = rotate(pull(slope_BLNK)[0], position_BL=at_BL)
    np.testing.assert_allclose(there, slope_BLNK, atol=1e-5)


def test_swiglu_by_hand():
    x_BLD = normal(2, 3, 4)
    layer = SwiGLU(5)
    params = nn.unbox(layer.init(jax.random.key(0), x_BLD))["params"]
    gate, up, down = (np.asarray(params[n]["kernel"], np.float64) for n in ("gate", "up", "down"))
    g = x_BLD @ gate
    expected = (g / (1 + np.exp(-g)) * (x_BLD @ up)) @ down
    np.testing.assert_allclose(layer.apply({"params": params}, x_BLD), expected, atol=1e-5)


@functools.cache
def model(remat="none", dtype=jnp.float32):
    net = LanguageModel(VOCAB, WIDTH, DEPTH, HEADS, MLP, remat=remat, dtype=dtype)
    variables = nn.unbox(jax.jit(net.init)(jax.random.key(0), IDS))
    return net, variables


def test_a_position_sees_itself_and_what_is_before_it():
    net = Decoder(DEPTH, HEADS, MLP)
    x_BLD = normal(1, LENGTH, WIDTH)
    variables = nn.unbox(jax.jit(net.init)(jax.random.key(0), x_BLD))
    gradient = jax.jit(jax.jacrev(lambda x: net.apply(variables, x).sum((0, 2))))(x_BLD)
    reach_LL = np.abs(gradient[:, 0]).max(-1)  # [output, input]
    assert (np.triu(reach_LL, 1) == 0).all()
    assert (reach_LL[np.tril_indices(LENGTH)] > 1e-6).all()


def test_scan_equals_an_unrolled_loop():
    net, variables = model()
    params = variables["params"]

    @jax.jit
    def unrolled(params):
        x = params["tokens"]["embedding"][IDS]
        for layer in range(DEPTH):
            block = jax.tree.map(lambda leaf, at=layer: leaf[at], params["decoder"]["blocks"])
            x, _ = DecoderBlock(HEADS, MLP).apply({"params": block}, x, None)
        x = RMSNorm(eps=1e-5).apply({"params": params["decoder"]["final_norm"]}, x)
        return (x @ params["head"]["kernel"])[..., :VOCAB]

    logits = jax.jit(net.apply)(variables, IDS)
    hidden_BLD = net.apply(variables, IDS, method="hidden")
    np.testing.assert_allclose(hidden_BLD @ params["head"]["kernel"][:, :VOCAB], logits, atol=1e-5)
    assert logits.shape == (2, LENGTH, VOCAB) and logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, unrolled(params), atol=1e-5)


def test_half_precision_keeps_float32_parameters_and_logits():
    net, variables = model(dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits = net.apply(variables, IDS)
    assert logits.dtype == jnp.float32
    exact = model()[0].apply(variables, IDS)
    np.testing.assert_allclose(logits, exact, atol=0.1 * np.abs(exact).max())
    assert np.abs(logits - exact).max() > 0  # it did compute in half


@functools.cache
def gradient(remat):
    net, variables = model(remat)

    @jax.jit
    @jax.value_and_grad
    def loss(variables):
        return jnp.square(net.apply(variables, IDS)).mean()

    return matmul_flops(loss, variables), loss(variables)


@pytest.mark.parametrize("remat", ["full", "qkv", "attention", "attention_mlp", "dots"])
def test_remat_changes_no_number(remat):
    (a, gradient_a), (b, gradient_b) = gradient("none")[1], gradient(remat)[1]
    np.testing.assert_allclose(a, b, rtol=1e-6)
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, atol=1e-5), gradient_a, gradient_b)


def test_remat_recomputes_what_it_does_not_keep():
    flops = {remat: gradient(remat)[0] for remat in REMAT}
    rows = 2 * LENGTH
    scores = 2 * rows * LENGTH * WIDTH  # of one of attention's two products
    out, mlp = 2 * rows * WIDTH**2, 2 * 2 * rows * WIDTH * MLP  # gate and up; down is not needed
    turn = 2 * 2 * rows * WIDTH * (WIDTH // HEADS)  # q and k to their partners
    assert flops["dots"] - flops["none"] == DEPTH * (scores + turn)
    assert flops["attention"] - flops["dots"] == DEPTH * (out + mlp - turn)
    assert flops["attention"] - flops["attention_mlp"] == DEPTH * mlp / 2
    assert flops["qkv"] - flops["attention"] == DEPTH * scores  # the weights times v, again
    assert flops["full"] - flops["attention"] == DEPTH * (3 * out + scores + turn)


def test_a_name_that_no_policy_keeps_is_refused():
    with pytest.raises(ValueError, match="'querry'"):
        keep(jnp.ones(3), "querry")


@functools.cache
def attention(impl, rows=2):
    """(output, gradients) of [rows, 256, 2, 128]."""
    rng = np.random.default_rng(1)
    q, k, v, g = (rng.normal(size=(rows, 256, 2, 128)).astype(np.float32) for _ in range(4))

    @jax.jit
    def run(q, k, v):
        out, pull = jax.vjp(lambda *x: attend_spans(*x, None, impl), q, k, v)
        return out, pull(g)

    return run(q, k, v)


@pytest.mark.usefixtures("interpreted")
def test_splash_equals_dense():
    for a, b in zip(jax.tree.leaves(attention("dense")), jax.tree.leaves(attention("splash"))):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.usefixtures("interpreted")
def test_splash_equals_dense_with_rows_and_heads_on_many_devices():
    mesh = jax.make_mesh((1, 2, 2, 2), MESH_AXES, axis_types=(AxisType.Auto,) * 4)
    expected = jax.tree.leaves(attention("dense", 4))
    with jax.set_mesh(mesh):
        got = jax.tree.leaves(attention("splash", 4))
    for a, b in zip(expected, got):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "what"), [((1, 192, 1, 128), "a length .* 128"), ((1, 128, 1, 96), "a head .* 64")]
)
def test_splash_refuses_what_its_blocks_do_not_fit(shape, what):
    x = jnp.ones(shape)
    with pytest.raises(ValueError, match=what):
        attend_spans(x, x, x, None, "splash")


def test_queries_may_come_scaled():
    q, k, v = normal(3, 1, 5, 2, 16)
    expected = attend_spans(q, k, v, None, "dense")
    np.testing.assert_allclose(
        attend_spans(q / 4, k, v, None, "dense", scaled=True), expected, atol=1e-6
    )
    assert np.abs(attend_spans(q, k, v, None, "dense", scaled=True) - expected).max() > 0.01


def test_live_blocks_by_hand():
    # 4 blocks of 512 on the diagonal and 6 below it, of 16; two products, two a multiply-add.
    assert splash_flops(3, 2048, 5, 128) == 3 * 5 * 10 * 2 * (2 * 512 * 512 * 128)
    assert splash_flops(1, 384, 1, 128) == 6 * 2 * (2 * 128 * 128 * 128)


@pytest.mark.parametrize("kind", ["v5p:2x2x1", "v5e:2x2"])
def test_splash_compiles_for_a_tpu_and_its_kernels_are_counted(kind):
    topology = parse_topology(kind)
    before_jax(topology)
    mesh = jax.make_mesh(
        (1, 1, 4, 1), MESH_AXES, axis_types=(AxisType.Auto,) * 4, devices=make_devices(topology)
    )
    rows = NamedSharding(mesh, PartitionSpec("fsdp"))
    x_BLD = jax.ShapeDtypeStruct((4, 256, 256), jnp.bfloat16, sharding=rows)
    net = Decoder(3, 2, 128, "splash", "attention", jnp.bfloat16)
    variables = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros(x_BLD.shape)))
    variables = preflight.place(nn.unbox(variables), NamedSharding(mesh, PartitionSpec()))
    loss = lambda variables, x: jnp.sum(net.apply(variables, x).astype(jnp.float32))
    with jax.set_mesh(mesh):
        compiled = jax.jit(jax.grad(loss)).lower(variables, x_BLD).compile()
    cost = hlo.cost(compiled.as_text())
    # Forward once: its result is kept. dq does three products, dk and dv four, forward two.
    expected = 3 * (2 + 3 + 4) / 2 * splash_flops(1, 256, 2, 128)
    assert preflight.kernel_flops(cost) == expected
