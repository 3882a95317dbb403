"""Convolutions, norms and reshapings beside plain numpy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmx.nn.conv import (
    Conv,
    GroupNorm,
    ResBlock,
    depth_to_space,
    downsample,
    space_to_depth,
    upsample,
)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 6, 4, 3)).astype(np.float32)


def init_apply(layer, x, noise=0.3):
    """(params moved away from zeros and ones, output), compiled."""
    params = nn.unbox(jax.jit(layer.init)(jax.random.key(0), x))["params"]
    params = jax.tree.map(
        lambda p: np.asarray(p + noise * RNG.normal(size=p.shape), np.float32), params
    )
    return params, jax.jit(layer.apply)({"params": params}, x)


def convolve(x_HWC, kernel):
    size = kernel.shape[0]
    low = (size - 1) // 2
    padded = np.pad(x_HWC, ((low, size - 1 - low), (low, size - 1 - low), (0, 0)))
    out = np.zeros((*x_HWC.shape[:2], kernel.shape[-1]))
    for i in range(x_HWC.shape[0]):
        for j in range(x_HWC.shape[1]):
            out[i, j] = np.einsum("yxc,yxcd->d", padded[i : i + size, j : j + size], kernel)
    return out


@pytest.mark.parametrize(("size", "use_bias"), [(1, True), (3, False), (3, True)])
def test_conv(size, use_bias):
    params, y = init_apply(Conv(5, size, use_bias), X)
    for b in range(2):
        expected = convolve(X[b], params["kernel"]) + params.get("bias", 0)
        np.testing.assert_allclose(y[b], expected, atol=1e-5)


@pytest.mark.parametrize("size", [3, 5])
def test_a_stride_takes_every_other_place_of_the_same_window(size):
    params, y = init_apply(Conv(5, size, stride=2), X)
    expected = convolve(X[0], params["kernel"])[::2, ::2]
    np.testing.assert_allclose(y[0], expected, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_stride_of_a_window_without_a_middle_or_a_border_is_refused(size):
    with pytest.raises(ValueError, match=f"needs an odd window from 3 on, not {size}"):
        Conv(5, size, stride=2).init(jax.random.key(0), X)


@pytest.mark.parametrize(("channels", "groups"), [(4, 4), (48, 16), (64, 32)])
def test_group_norm(channels, groups):
    x = RNG.normal(3, 2, size=(2, 3, 4, channels)).astype(np.float32)
    params, y = init_apply(GroupNorm(), x)
    g = x.reshape(2, 12, groups, channels // groups).astype(np.float64)
    mean, std = g.mean((1, 3), keepdims=True), g.std((1, 3), keepdims=True)
    expected = ((g - mean) / std).reshape(x.shape) * params["scale"] + params["bias"]
    np.testing.assert_allclose(y, expected, atol=1e-4)


@pytest.mark.parametrize("norm", ["group", "rms"])
@pytest.mark.parametrize("features", [3, 5])
def test_res_block_has_an_identity_path(norm, features):
    layer = ResBlock(features, norm)
    params, _ = init_apply(layer, X)
    assert ("shortcut" in params) == (features != 3)
    params["conv_1"] = {"kernel": 0 * params["conv_1"]["kernel"]}
    y = jax.jit(layer.apply)({"params": params}, X)
    expected = X if features == 3 else X @ params["shortcut"]["kernel"][0, 0]
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_space_to_depth_lays_out_each_patch_row_by_row_and_back():
    y = space_to_depth(X, 2)
    assert y.shape == (2, 3, 2, 12)
    for i in range(3):
        for j in range(2):
            patch = X[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            np.testing.assert_array_equal(y[:, i, j], patch.reshape(2, 12))
    np.testing.assert_array_equal(depth_to_space(y, 2), X)


def test_down_and_up():
    y = downsample(X)
    np.testing.assert_allclose(y[:, 1, 0], X[:, 2:4, 0:2].mean((1, 2)), atol=1e-6)
    z = upsample(y)
    assert z.shape == X.shape
    np.testing.assert_array_equal(z[:, 2:4, 2:4], np.broadcast_to(y[:, 1:2, 1:2], (2, 2, 2, 3)))


@pytest.mark.parametrize("layer", [Conv(4, use_bias=True), GroupNorm(), ResBlock(3), ResBlock(5)])
def test_half_precision(layer):
    half = layer.copy(dtype=jnp.bfloat16)
    params, y = init_apply(layer, X)
    fresh = jax.eval_shape(half.init, jax.random.key(0), X)
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}
    y_half = jax.jit(half.apply)({"params": params}, X.astype(jnp.bfloat16))
    assert y_half.dtype == jnp.bfloat16
    scale = np.abs(y).max()
    np.testing.assert_allclose(np.asarray(y_half, np.float32), y, atol=0.03 * scale)
