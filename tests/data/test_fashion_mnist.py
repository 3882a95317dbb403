"""`mmx prepare fashion_mnist`: what is built from a small package of the same layout."""

import gzip
import hashlib
import struct

import debian_package
import numpy as np
import pytest

from mmx.cli.main import main
from mmx.core.errors import UserError
from mmx.data import fashion_mnist
from mmx.data.source import open_source

RNG = np.random.default_rng(0)
SPLITS = {
    "train": (RNG.integers(0, 256, (4, 28, 28), np.uint8), np.array([9, 0, 8, 5], np.uint8)),
    "test": (RNG.integers(0, 256, (2, 28, 28), np.uint8), np.array([1, 9], np.uint8)),
}


def idx(array):
    return struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder, plain, files = "./usr/share/datasets/fashion-mnist/", b"", {}
    for name, (images, labels) in zip(("train", "t10k"), SPLITS.values()):
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            plain += idx(array)
            files[f"{folder}{name}-{kind}-ubyte.gz"] = gzip.compress(idx(array))
    monkeypatch.setattr(fashion_mnist, "SHA256", hashlib.sha256(plain).hexdigest())
    file = tmp_path / "fashion.deb"
    file.write_bytes(debian_package.make(files))
    return file


def test_what_is_built(package, tmp_path, capsys):
    command = ["prepare", "fashion_mnist", "--package", str(package), "--data_dir", str(tmp_path)]
    assert main(command) == 0 and main(command) == 0
    first, second = capsys.readouterr().out.split("tfds:fashion_mnist: ")[1:]
    assert first.startswith("prepared") and second.startswith("already prepared")
    assert "train 4, test 2" in first and "Zalando" in first
    for split, (images, labels) in SPLITS.items():
        source = open_source("tfds:fashion_mnist", split, tmp_path)
        assert source.label == ("label", fashion_mnist.CLASSES)
        found = {e["image"].tobytes(): e for e in (source[i] for i in range(len(source)))}
        assert len(found) == len(images)
        for image, label in zip(images, labels):
            padded = np.zeros((32, 32, 3), np.uint8)
            padded[2:30, 2:30] = image[..., None]
            example = found[padded.tobytes()]
            assert example["label"] == label
            assert example["text"] == fashion_mnist.CLASSES[label]
    assert fashion_mnist.CLASSES[9] == "ankle boot"


def test_errors(package, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="run: mmx prepare fashion_mnist --data_dir"):
        open_source("tfds:fashion_mnist", "train", tmp_path)
    monkeypatch.setattr(fashion_mnist, "SHA256", "0")
    with pytest.raises(UserError, match=r"dataset-fashion-mnist: sha256 .* expected 0"):
        fashion_mnist.read_package(package)
    damaged = bytearray(gzip.compress(bytes(1000)))
    damaged[12] ^= 0xFF
    for data in (b"no gzip", bytes(damaged)):
        monkeypatch.setattr(fashion_mnist.debian, "read", lambda *args, data=data: [data])
        with pytest.raises(UserError, match="dataset-fashion-mnist: cannot be read as that pack"):
            fashion_mnist.read_package(package)
