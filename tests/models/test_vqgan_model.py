"""The tokenizer's networks as a codec: sizes, codes there and back, gradients, discriminators."""

import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmx.core.errors import UserError
from mmx.models.protocols import Codec
from mmx.models.rows import to_float
from mmx.models.vqgan import quantizer
from mmx.models.vqgan.codec import VqganCodec
from mmx.nn.autoencoder import patch_basis
from mmx.nn.discriminator import DISCRIMINATORS, _blur_down

KINDS = {
    "vq": dict(
        kind="vq",
        num_codes=32,
        code_dim=6,
        l2_normalize=False,
        commitment=0.25,
        ema=0.99,
        restart_below=0.1,
        entropy=0.0,
        entropy_temperature=0.01,
    ),
    "vq_unit": dict(
        kind="vq",
        num_codes=32,
        code_dim=6,
        l2_normalize=True,
        commitment=0.25,
        ema=0.99,
        restart_below=0.1,
        entropy=0.1,
        entropy_temperature=0.01,
    ),
    "fsq": dict(kind="fsq", levels=(5, 4, 3)),
    "lfq": dict(kind="lfq", bits=5, commitment=0.25, entropy=0.02, entropy_temperature=0.01),
}


def small(build, kind="vq", **model):
    """A codec of one or two channels' worth, and random weights for it."""
    changes = {"quantizer": KINDS[kind], "model.channels": 8, "model.linear_path": False}
    task = build.vqgan(changes=changes | {f"model.{k}": v for k, v in model.items()})
    params, extra = build.params(task)
    return task.codec, {"params": params, "extra": extra}


@pytest.mark.parametrize(
    ("patch", "multipliers", "f"),
    [(4, (1,), 4), (1, (1, 1, 1), 4), (2, (1, 1, 1), 8), (1, (1, 1, 1, 1), 8), (4, (1, 1, 2), 16)],
)
def test_f_is_exact_at_every_size(build, patch, multipliers, f):
    """Shapes only; the weights of one size serve all: fully convolutional."""
    codec = VqganCodec(
        build.changed(
            "vqgan/openmoji32:tiny",
            {"model.patch": patch, "model.multipliers": multipliers, "model.channels": 4},
        )
    )
    assert codec.scale == f

    def there_and_back(height, width):
        def fn(image):
            weights = {
                "params": {
                    "encoder": codec.encoder.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3))),
                    "decoder": codec.decoder.init(jax.random.key(0), jnp.zeros((1, 4, 4, 16))),
                }
            }
            weights = {"params": {k: v["params"] for k, v in weights["params"].items()}}
            weights["extra"] = {"vq": {"codebook_EZ": jnp.zeros((64, 16))}}
            codes = codec.encode(nn.unbox(weights), image)
            return codes, codec.decode(nn.unbox(weights), codes)

        return jax.eval_shape(fn, jnp.zeros((2, height, width, 3)))

    for height, width in [(32, 32), (48, 48), (64, 64), (32, 64)]:
        codes, image = there_and_back(height, width)
        assert (codes.shape, codes.dtype) == ((2, height // f, width // f), jnp.int32)
        assert (image.shape, image.dtype) == ((2, height, width, 3), jnp.float32)
    assert codec.grid(64) == 64 // f
    with pytest.raises(UserError, match=rf"image_size=50 is no multiple of the tokenizer's f={f}"):
        codec.grid(50)


def test_codec_keeps_the_protocol(build):
    codec, _ = small(build)
    assert isinstance(codec.num_codes, int) and isinstance(codec.scale, int)
    assert set(Codec.__annotations__) == {"num_codes", "scale"}
    for name in ("grid", "encode", "decode"):
        asked, got = (inspect.signature(getattr(c, name)) for c in (Codec, VqganCodec))
        assert list(asked.parameters) == list(got.parameters), name


@pytest.mark.parametrize("kind", list(KINDS))
def test_decoding_the_codes_equals_decoding_the_quantized_latents(build, kind):
    codec, weights = small(build, kind)
    image = to_float(build.images(3, 32))

    @jax.jit
    def both(weights, image):
        z = codec.latents(weights, image)
        quantized = quantizer.quantize_latents(
            codec.config.quantizer, weights["extra"].get("vq", {}), z
        )
        direct = codec.decoder.apply({"params": weights["params"]["decoder"]}, quantized.z_q)
        codes = codec.encode(weights, image)
        return codes, quantized.codes, codec.decode(weights, codes), direct

    codes, codes_direct, image_a, image_b = both(weights, image)
    np.testing.assert_array_equal(codes, codes_direct)
    np.testing.assert_allclose(image_a, image_b, atol=1e-5)
    assert codes.min() >= 0 and codes.max() < codec.num_codes
    assert len(np.unique(codes)) > 2
    assert np.abs(image_a[0] - image_a[1]).max() > 1e-3


def test_gradient_passes_the_quantizer_straight_and_spares_the_codebook(build):
    codec, weights = small(build)
    config, image = codec.config.quantizer, to_float(build.images(2, 32))
    decode = lambda z: codec.decoder.apply({"params": weights["params"]["decoder"]}, z)
    error = lambda z_q: jnp.square(decode(z_q) - image).sum()

    @jax.jit
    def gradients(z, state):
        quantize = lambda z, state: quantizer.quantize_latents(config, state, z)
        through = jax.grad(lambda z: error(quantize(z, state).z_q))(z)
        direct = jax.grad(error)(quantize(z, state).z_q)

        def all_losses(book):
            quantized = quantize(z, {**state, "codebook_EZ": book})
            return error(quantized.z_q) + quantized.loss

        return through, direct, jax.grad(all_losses)(state["codebook_EZ"])

    z = codec.latents(weights, image)
    through, direct, to_codebook = gradients(z, weights["extra"]["vq"])
    assert np.abs(direct).max() > 0
    np.testing.assert_allclose(through, direct, rtol=1e-5)
    np.testing.assert_array_equal(to_codebook, 0)


def test_the_linear_path_starts_as_the_smoothest_patterns(build):
    basis = patch_basis(4, 16)
    assert basis.shape == (48, 16)
    np.testing.assert_allclose(basis.T @ basis, np.eye(16), atol=1e-6)
    np.testing.assert_allclose(basis[:, 0], 48**-0.5, atol=1e-6)
    # All patterns together are a basis, so nothing is lost before quantization.
    codec, weights = small(build, linear_path=True)
    image = to_float(build.images(2, 32))
    z = jax.jit(codec.latents)(weights, image)
    patch = np.asarray(image)[0, 4:8, 8:12].reshape(48)
    np.testing.assert_allclose(z[0, 1, 2], patch @ patch_basis(4, 6), atol=1e-5)
    decoded = jax.jit(codec.decoder.apply)({"params": weights["params"]["decoder"]}, z)
    expected = (z[0, 1, 2] @ patch_basis(4, 6).T).reshape(4, 4, 3)
    np.testing.assert_allclose(decoded[0, 4:8, 8:12], expected, atol=1e-5)


def test_more_patterns_than_a_patch_has_are_refused(build):
    with pytest.raises(UserError, match=r"code_dim=64: a patch has 48 numbers"):
        build.vqgan(changes={"quantizer.code_dim": 64})


@pytest.mark.parametrize("kind", list(DISCRIMINATORS))
def test_discriminators_judge_any_size(kind):
    net = DISCRIMINATORS[kind](4, 2)
    variables = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    for height, width in [(32, 32), (33, 47), (64, 16), (4, 4)]:
        logits = jax.eval_shape(net.apply, variables, jnp.zeros((3, height, width, 3)))
        assert logits.dtype == jnp.float32
        assert logits.shape == ((3, height // 4, width // 4) if kind == "patch" else (3,))


def test_discriminators_judge_each_image_alone(build):
    image = to_float(build.images(3, 16))
    for kind in DISCRIMINATORS:
        net = DISCRIMINATORS[kind](4, 2)
        variables = jax.jit(net.init)(jax.random.key(0), image)
        apply = jax.jit(net.apply)
        whole, swapped = apply(variables, image), apply(variables, image[::-1])
        np.testing.assert_allclose(whole, swapped[::-1], atol=1e-5)
        assert np.ptp(whole) > 1e-4


def test_blur_down_is_the_four_tap_filter():
    x = np.random.default_rng(0).normal(size=(1, 6, 8, 2)).astype(np.float32)
    y = jax.jit(_blur_down)(x)
    assert y.shape == (1, 3, 4, 2)
    taps = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64
    np.testing.assert_allclose(y[0, 1, 2], np.einsum("yx,yxc->c", taps, x[0, 1:5, 3:7]), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.image_size": 50}, r"image_size=50 is no multiple"),
        ({"dtype": "float64"}, r"config.dtype='float64': use one of float32, bfloat16"),
        ({"model.norm": "batch"}, r"config.model.norm='batch': use one of group, rms"),
        ({"quantizer.kind": "pq"}, r"config.quantizer.kind='pq': use one of vq, fsq, lfq"),
        ({"loss.gan": "wgan"}, r"config.loss.gan='wgan': use one of hinge, non_saturating"),
        ({"discriminator.kind": "pixel"}, r"config.discriminator.kind='pixel'"),
        ({"discriminator.levels": 7}, r"image_size=64: .*levels halves it 7 times"),
        ({"loss.perceptual": 1.0}, r"perceptual_weights='': no such file"),
    ],
)
def test_mistakes_are_named_before_anything_runs(build, changes, message):
    with pytest.raises(UserError, match=message):
        build.vqgan("vqgan/muse256:tiny", changes)


def test_an_adversary_that_the_config_lacks_is_named(build):
    with pytest.raises(UserError, match="this config has no discriminator"):
        build.vqgan(changes={"loss.adversarial": 0.1})


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("quantizer.kind", "fsq", "'fsq' needs config.quantizer.levels, which this config has not"),
        ("quantizer.kind", "lfq", "'lfq' needs config.quantizer.bits"),
        ("quantizer.kind", "rvq", "config.quantizer.kind='rvq': use one of vq, fsq, lfq"),
        ("loss.perceptual", 0.05, "config.loss.perceptual=0.05: this config names no weights"),
    ],
)
def test_choices_that_this_config_cannot_make(build, field, value, says):
    with pytest.raises(UserError, match=says):
        build.vqgan("vqgan/openmoji32:tiny", {field: value})
