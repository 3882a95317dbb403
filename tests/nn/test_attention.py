"""Attention beside a plain numpy one, and what its masks and its null slot promise."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmx.nn.attention import Attention, attend

HEADS, HEAD_SIZE, CONTEXT = 3, 4, 7
WIDTH = HEADS * HEAD_SIZE


def rms(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale


def reference(p, x_LD, context_MD, mask_M, null_slot):
    """One row, one head, one query at a time, float64."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), p)
    q_LD, k_MD, v_MD = (
        y @ p[name]["kernel"] for name, y in (("q", x_LD), ("k", context_MD), ("v", context_MD))
    )
    out_LD = np.zeros_like(q_LD)
    for n in range(HEADS):
        head = slice(n * HEAD_SIZE, (n + 1) * HEAD_SIZE)
        k, v = rms(k_MD[:, head], p["k_norm"]["scale"]), v_MD[:, head]
        k, v = k[mask_M], v[mask_M]
        if null_slot:
            k = np.concatenate([p["null_k"][None, head], k])
            v = np.concatenate([p["null_v"][None, head], v])
        for i in range(len(x_LD)):
            score_M = k @ rms(q_LD[i, head], p["q_norm"]["scale"]) / np.sqrt(HEAD_SIZE)
            weight_M = np.exp(score_M - score_M.max())
            out_LD[i, head] = weight_M / weight_M.sum() @ v
    return out_LD @ p["out"]["kernel"]


def make(null_slot, cross, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    x_BLD = rng.normal(size=(2, 5, WIDTH)).astype(np.float32)
    context_BMD = rng.normal(size=(2, 6, CONTEXT)).astype(np.float32) if cross else None
    layer = Attention(HEADS, null_slot, dtype)
    params = nn.unbox(jax.jit(layer.init)(jax.random.key(0), x_BLD, context_BMD))["params"]
    # Away from the initial ones and zeros, so that a forgotten scale shows.
    params = jax.tree.map(
        lambda leaf: np.asarray(leaf + 0.3 * rng.normal(size=leaf.shape), np.float32), params
    )
    return layer, params, x_BLD, context_BMD


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("null_slot", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_plain_attention(cross, null_slot, masked):
    layer, params, x_BLD, context_BMD = make(null_slot, cross)
    length = 6 if cross else 5
    mask_BM = np.arange(length) < np.array([[3], [length]]) if masked else None
    out_BLD = jax.jit(layer.apply)({"params": params}, x_BLD, context_BMD, mask_BM)
    for b in range(2):
        context = x_BLD[b] if context_BMD is None else context_BMD[b]
        mask = mask_BM[b] if masked else np.ones(length, bool)
        expected = reference(params, x_BLD[b], context, mask, null_slot)
        np.testing.assert_allclose(out_BLD[b], expected, atol=2e-5)


def test_masked_keys_do_not_matter_to_the_bit():
    layer, params, x_BLD, context_BMD = make(True, True)
    mask_BM = np.arange(6) < np.array([[3], [6]])
    apply = jax.jit(lambda context: layer.apply({"params": params}, x_BLD, context, mask_BM))
    other = context_BMD.copy()
    other[0, 3:] = 1e4
    np.testing.assert_array_equal(apply(context_BMD)[0], apply(other)[0])
    other[1, 5] += 1
    assert np.abs(apply(context_BMD)[1] - apply(other)[1]).max() > 1e-3


def test_all_masked_leaves_the_null_slot_alone():
    layer, params, x_BLD, context_BMD = make(True, True)
    nothing_BM = np.zeros((2, 6), bool)
    apply = jax.jit(lambda context: layer.apply({"params": params}, x_BLD, context, nothing_BM))
    out_BLD = apply(context_BMD)
    expected_D = params["null_v"] @ params["out"]["kernel"]
    np.testing.assert_allclose(out_BLD, np.broadcast_to(expected_D, out_BLD.shape), atol=1e-5)
    gradient = jax.jit(jax.grad(lambda context: apply(context).sum()))(jnp.asarray(context_BMD))
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("name", ["q", "k"])
def test_qk_norm_takes_the_scale_out(name):
    layer, params, x_BLD, context_BMD = make(True, True)
    louder = {**params, name: {"kernel": 50 * params[name]["kernel"]}}
    apply = jax.jit(lambda p: layer.apply({"params": p}, x_BLD, context_BMD))
    np.testing.assert_allclose(apply(params), apply(louder), atol=1e-4)


def test_scores_and_softmax_are_float32_in_half_precision():
    # 2048 equal weights: a sum of them in bf16 would stop growing at 256.
    q, k, v = (jnp.ones((1, m, 1, 1), jnp.bfloat16) for m in (1, 2048, 2048))
    out = attend(q, k, v)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float32), 1.0, atol=0.01)
    exponentials = [
        line for line in str(jax.make_jaxpr(attend)(q, k, v)).splitlines() if "= exp " in line
    ]
    assert exponentials and all(":f32[" in line for line in exponentials)


def test_half_precision_is_close_and_keeps_float32_parameters():
    layer, params, x_BLD, context_BMD = make(True, True)
    half = Attention(HEADS, True, jnp.bfloat16)
    fresh = jax.eval_shape(half.init, jax.random.key(0), x_BLD, context_BMD)
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}
    out, out_half = (
        jax.jit(net.apply)({"params": params}, x_BLD, context_BMD) for net in (layer, half)
    )
    assert out_half.dtype == jnp.bfloat16
    scale = np.abs(out).max()
    np.testing.assert_allclose(np.asarray(out_half, np.float32), out, atol=0.03 * scale)
