"""The perceptual network beside a brute-force one, and what it refuses."""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from mmx.core.errors import UserError
from mmx.pretrained.vgg import keep_vgg, load_vgg, perceptual_distance, vgg_features

RNG = np.random.default_rng(0)


def tiny_vgg(**more):
    """As torchvision counts: conv, relu, conv, relu, pool, conv, relu."""
    tensors = {}
    for number, (fan_in, fan_out) in {0: (3, 4), 2: (4, 4), 5: (4, 6)}.items():
        weight = RNG.normal(size=(fan_out, fan_in, 3, 3)) / (9 * fan_in) ** 0.5
        tensors[f"features.{number}.weight"] = weight.astype(np.float32)
        tensors[f"features.{number}.bias"] = RNG.normal(size=fan_out).astype(np.float32)
    return tensors | more


@pytest.fixture
def vgg_file(tmp_path):
    file = tmp_path / "vgg.safetensors"
    save_file(tiny_vgg(**{"classifier.0.weight": np.zeros((2, 2), np.float32)}), file)
    return file


def conv_relu(x_HWC, weight_OIyx, bias_O):
    padded = np.pad(x_HWC, ((1, 1), (1, 1), (0, 0)))
    H, W, _ = x_HWC.shape
    out = np.empty((H, W, len(bias_O)))
    for i in range(H):
        for j in range(W):
            window_yxI = padded[i : i + 3, j : j + 3]
            out[i, j] = np.einsum("yxi,oiyx->o", window_yxI, weight_OIyx) + bias_O
    return np.maximum(out, 0)


def test_features_equal_brute_force(vgg_file):
    from safetensors.numpy import load_file

    t = load_file(vgg_file)
    image_HWC = RNG.uniform(-1, 1, (6, 8, 3)).astype(np.float32)
    x = ((image_HWC + 1) / 2 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    for n in (0, 2):
        x = conv_relu(x, t[f"features.{n}.weight"], t[f"features.{n}.bias"])
    before_pool = x
    x = x.reshape(3, 2, 4, 2, 4).max((1, 3))
    last = conv_relu(x, t["features.5.weight"], t["features.5.bias"])

    layers, pools = load_vgg(vgg_file)
    assert pools == (False, False, True)
    taps = jax.jit(vgg_features, static_argnums=2)(layers, image_HWC[None], pools)
    assert len(taps) == 2
    np.testing.assert_allclose(taps[0][0], before_pool, atol=1e-4)
    np.testing.assert_allclose(taps[1][0], last, atol=1e-4)


def test_distance_is_lpips_with_equal_weights():
    a, b = ([RNG.normal(size=s).astype(np.float32) for s in ((2, 4, 4, 3), (2, 2, 2, 5))]
            for _ in range(2))  # fmt: skip
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    expected = np.mean([(np.square(unit(u) - unit(v)).sum(-1)).mean() for u, v in zip(a, b)])
    assert perceptual_distance(a, b) == pytest.approx(expected, rel=1e-5)
    assert perceptual_distance(a, a) == 0
    assert perceptual_distance(a, [3 * x for x in a]) == pytest.approx(0, abs=1e-6)


def test_a_run_keeps_the_convolutions_and_needs_the_file_no_more(vgg_file, tmp_path):
    kept = keep_vgg(vgg_file, tmp_path / "run" / "stages" / "weights.safetensors")
    before, pools = load_vgg(vgg_file)
    vgg_file.unlink()
    assert keep_vgg(vgg_file, kept) == kept
    after, pools_after = load_vgg(kept)
    assert pools == pools_after
    jax.tree.map(np.testing.assert_array_equal, before, after)
    from safetensors.numpy import load_file

    assert all(name.startswith("features.") for name in load_file(kept))


def test_mistakes_are_named_and_nothing_is_kept(tmp_path):
    file, kept = tmp_path / "bad.safetensors", tmp_path / "kept" / "weights.safetensors"
    with pytest.raises(UserError, match=r"perceptual_weights=''.*no such file"):
        load_vgg("")
    file.write_bytes(b"not tensors")
    with pytest.raises(UserError, match="not a readable safetensors"):
        keep_vgg(file, kept)
    save_file({"features.0.weight": np.zeros((4, 1, 3, 3), np.float32)}, file)
    with pytest.raises(UserError, match="3 channels"):
        keep_vgg(file, kept)
    save_file({"layer.weight": np.zeros((4, 3, 3, 3), np.float32)}, file)
    with pytest.raises(UserError, match="no features"):
        keep_vgg(file, kept)
    save_file(tiny_vgg(**{"features.1.weight": np.ones(4, np.float32)}), file)
    with pytest.raises(UserError, match="batch norm"):
        keep_vgg(file, kept)
    tensors = tiny_vgg(**{"features.2.weight": np.zeros((4, 5, 3, 3), np.float32)})
    del tensors["features.5.bias"]
    save_file(tensors, file)
    with pytest.raises(UserError, match=r"bad\.safetensors: not the weights.*, 2 of") as caught:
        keep_vgg(file, kept)
    assert "missing: features.5.bias (6,)" in str(caught.value)
    assert "features.2.weight is (4, 5, 3, 3), not (4, 4, 3, 3)" in str(caught.value)
    assert not kept.exists()
