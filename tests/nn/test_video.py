"""Image networks on videos: one more axis, and an image's weights in the middle of it."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mmx.core.errors import UserError
from mmx.nn import conv
from mmx.nn.autoencoder import Decoder, Encoder, make_networks
from mmx.nn.conv import Conv, fewer_frames, inflate, more_frames
from mmx.train import start

RNG = np.random.default_rng(0)
NETWORKS = {
    "rms": dict(channels=4, multipliers=(1, 2), blocks=1, mid_blocks=1, patch=2, norm="rms"),
    "group": dict(channels=4, multipliers=(1, 2), blocks=1, mid_blocks=0, patch=1, norm="group"),
}


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def fresh(net, x):
    """Parameters with nothing at zero."""
    params = nn.unbox(jax.eval_shape(net.init, jax.random.key(0), x))["params"]
    return jax.tree.map(lambda leaf: 0.3 * normal(*leaf.shape), params)


def inflated(params, net, x):
    shapes = nn.unbox(jax.eval_shape(net.init, jax.random.key(0), x))["params"]
    return jax.tree.map(lambda leaf, new: inflate(leaf, new.shape), params, shapes)


def test_a_window_of_a_video_is_as_long_as_it_is_high():
    x, net = normal(1, 4, 3, 5, 2), Conv(3)
    params = fresh(net, x)
    assert params["kernel"].shape == (3, 3, 3, 2, 3)
    padded = np.pad(x[0], [(1, 1)] * 3 + [(0, 0)])
    expected = np.zeros((4, 3, 5, 3))
    for t, i, j in np.ndindex(4, 3, 5):
        window = padded[t : t + 3, i : i + 3, j : j + 3]
        expected[t, i, j] = np.einsum("tyxc,tyxcd->d", window, params["kernel"])
    np.testing.assert_allclose(net.apply({"params": params}, x)[0], expected, atol=1e-5)


@pytest.mark.parametrize("size", [2, 3])
def test_frames_as_channels_are_the_convolution_of_three_axes(size, monkeypatch):
    """What runs on a CPU, beside what runs elsewhere: values and gradients."""
    x, weights = normal(2, 4, 3, 5, 2), normal(2, 4, 3, 5, 4)
    net = Conv(4, size)
    params = fresh(net, x)

    def run(platform, axes):
        monkeypatch.setattr(conv, "compiled_for", lambda: platform)
        equations = jax.make_jaxpr(net.apply)({"params": params}, x).eqns
        windows = [e.params["window_strides"] for e in equations if "conv" in e.primitive.name]
        assert windows == [(1,) * axes]
        loss = lambda params, x: (net.apply({"params": params}, x) * weights).sum()
        return net.apply({"params": params}, x), *jax.tree.leaves(jax.grad(loss, (0, 1))(params, x))

    for one, other in zip(run("cpu", 2), run("tpu", 3), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_stride_over_a_video_is_refused():
    with pytest.raises(ValueError, match="stride 2: of images alone, not of videos"):
        Conv(4, stride=2).init(jax.random.key(0), normal(1, 4, 4, 4, 2))


@pytest.mark.parametrize("of", NETWORKS)
def test_an_inflated_network_sees_and_draws_each_frame_as_an_image(of):
    """Central inflation (arXiv 2212.05199 sec. 3.1); and with fewer frames than the video's where
    those that become one are equal."""
    shared = NETWORKS[of] | dict(linear_path=of == "rms")
    halved = shared | dict(time=(2, 2))
    video, still = normal(1, 3, 8, 8, 3), normal(1, 1, 8, 8, 3).repeat(8, 1)
    z, z_still = normal(1, 3, 2, 2, 5), normal(1, 2, 2, 2, 5)
    if of == "group":
        z, z_still = normal(1, 3, 4, 4, 5), normal(1, 2, 4, 4, 5)
    encoder, decoder = Encoder(**shared, code_dim=5), Decoder(**shared)
    params = {"e": fresh(encoder, video[0]), "d": fresh(decoder, z[0])}
    videos = {"e": inflated(params["e"], encoder, video), "d": inflated(params["d"], decoder, z)}

    @jax.jit
    def all_of(params, videos):
        run = lambda net, of, x: net.apply({"params": of}, x)
        images = run(encoder, params["e"], jnp.concatenate([video[0], still[0, :1]]))
        drawn = run(decoder, params["d"], jnp.concatenate([z[0], z_still[0]]))
        pairs = [(run(encoder, videos["e"], video)[0], images[:3])]
        pairs.append((run(decoder, videos["d"], z)[0], drawn[:3]))
        fewer = Encoder(**halved, code_dim=5)
        pairs.append((run(fewer, videos["e"], still)[0], images[3:].repeat(2, 0)))
        more = Decoder(**halved)
        pairs.append((run(more, videos["d"], z_still)[0], drawn[3:].repeat(4, 0)))
        return pairs

    for found, expected in all_of(params, videos):
        assert np.abs(expected).max() > 0.1
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale)


def test_frames_become_fewer_and_more():
    x = normal(2, 6, 2, 1, 3)
    fewer = fewer_frames(x, 3)
    np.testing.assert_allclose(fewer[:, 1], x[:, 3:6].mean(1), atol=1e-6)
    np.testing.assert_array_equal(more_frames(fewer, 3)[:, 3:], np.stack([fewer[:, 1]] * 3, 1))


def test_a_kernel_lies_in_the_middle_of_the_new_axis():
    kernel = normal(3, 3, 2, 5)
    video = inflate(kernel, (3, 3, 3, 2, 5))
    np.testing.assert_array_equal(video[1], kernel)
    assert not video[[0, 2]].any()
    np.testing.assert_array_equal(inflate(kernel[:1, :1], (1, 1, 1, 2, 5)), kernel[None, :1, :1])
    np.testing.assert_array_equal(inflate(kernel, kernel.shape), kernel)
    for shape in [(3, 3, 3, 2, 4), (5, 3, 3, 2, 5), (3, 3, 2, 4), (2, 5)]:
        assert inflate(kernel, shape) is None
    assert inflate(kernel[0, 0], (2, 2, 5)) is None


def test_a_run_starts_from_an_image_run(monkeypatch, capsys):
    old = {"stem": {"kernel": normal(3, 3, 2, 5)}, "norm": {"scale": normal(5)}}
    shapes = {"stem": {"kernel": (3, 3, 3, 2, 5)}, "norm": {"scale": (4,)}}
    monkeypatch.setattr(start, "read_weights", lambda run, step: (old, {}, 7))
    new = jax.tree.map(jnp.ones, shapes, is_leaf=lambda x: isinstance(x, tuple))
    state = start.TrainState(0, new, None, None, {}, -1)
    state = start.init_from_run(state, types.SimpleNamespace(path="runs/image"), 7)
    kernel = state.params["stem"]["kernel"]
    np.testing.assert_array_equal(kernel, inflate(old["stem"]["kernel"], (3, 3, 3, 2, 5)))
    np.testing.assert_array_equal(state.params["norm"]["scale"], 1)
    told = capsys.readouterr().err
    assert "took 1 of 2 arrays" in told
    assert "fresh: params/norm/scale (4,) (shape (5,) there)" in told


@pytest.mark.parametrize("time", [(2,), (2, 0), (2, 2, 2)])
def test_a_number_of_frames_for_each_level(time):
    model = dict(NETWORKS["rms"], time=time, linear_path=True)
    model |= {f"{side}_{k}": 1 for side in ("encoder", "decoder") for k in ("blocks", "mid_blocks")}
    with pytest.raises(UserError, match=r"config.model.time=.*each of the 2 levels"):
        make_networks(ConfigDict(dict(model=model, dtype="float32")), 5, "config.words.code_dim")
