"""Open a prepared TFDS data set of images with texts, or of texts: random access, no builder code,
no tensorflow.

A data set is found by its directory, ``DATA_DIR/NAME[/CONFIG]/VERSION`` (newest version). It has to
be prepared as ArrayRecord, the format of TFDS with random access. DATA_DIR may be ``gs://...``;
then each example is a request of its own, and a mount of the bucket (gcsfuse), which keeps what it
has read, is faster.
"""

import bisect
import dataclasses
import functools
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils.epath import Path, PathLike

from mmx.core import storage
from mmx.core.errors import UserError
from mmx.data.build import default_data_dir
from mmx.data.image import ImageError, decode
from mmx.data.roles import label_of, of_type, roles_of
from mmx.data.splits import split_parts
from mmx.data.text import FILE_NAME as TOKENIZER_FILE

LABEL_CAPTION = "a photo of a {label}"
_CACHE_BYTES = 512 * 2**20  # ours: decoded examples kept in memory, a process and split
_BATCH = 1024  # ours: records read at once, where all are
_TEXT_BYTES = 1024  # ours: what an example takes in memory without its image, about
_HASH_BYTES = 64 * 2**20  # ours: a split's files below this size enter the fingerprint whole
# Data sets that mmx makes itself -> how, and which config is meant where none is named.
OURS = {
    "openmoji": ("mmx prepare openmoji --config {}", "32"),
    "scenes": ("mmx prepare scenes --config {}", "64"),
    "noto": ("mmx prepare noto", "64"),
    "wordnet": ("mmx prepare wordnet", ""),
    "fashion_mnist": ("mmx prepare fashion_mnist", ""),
}
LATENTS = "latents"  # the feature and the record that mmx.data.latents adds to a data set
_VIEWS = ("edits", "series")  # of a data set, see mmx.data.views
_MOVING = "moving:"  # a data set's images, see mmx.data.moving
_PLACEHOLDER = "NAME"  # in configs whose data nobody but the user has
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """What is known of a data set without reading its examples.

    Attributes:
      name: ``"openmoji/32"``.
      directory: of the version that was opened.
      attribution: who made it and its licence, to be shown with every picture; "" when not stated.
      tokenizer_path: the tokenizer trained on its captions, None when there is none.
      splits: split -> number of examples.
      shards: the files that hold the examples of all splits.
      latents: what the latents are that its images have beside them, see `mmx.data.latents`; None
        where they have none.
    """

    name: str
    directory: Path
    attribution: str
    tokenizer_path: Path | None
    splits: Mapping[str, int]
    shards: tuple[Path, ...]
    latents: Mapping[str, Any] | None

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digest of the examples and what they mean: equal for equal builds, wherever they lie.

        Of the shards of all splits, the features, the names of the labels and, where the metadata
        states one, the digest of the ``drawings`` that the images were made from, and of the codec
        of their latents. Not of the tokenizer, of which each run keeps a copy, nor of anything else
        in the directory. Files are hashed whole up to 64 MiB together; beyond that, the shards by
        name and size only.
        """
        there = storage.sizes(self.directory)
        shards = {path.name for path in self.shards}
        meaning = {n for n in there if n == "features.json" or n.endswith(".labels.txt")}
        sizes = {name: there[name] for name in sorted(there) if name in shards | meaning}
        whole = sum(sizes.values()) <= _HASH_BYTES
        digest = hashlib.sha256()
        for name, size in sizes.items():
            digest.update(f"{name} {size}\n".encode())
            if whole or name in meaning:
                digest.update(storage.read_bytes(self.directory / name))
        digest.update(str(metadata(self.directory).get("drawings", "")).encode())
        digest.update((self.latents or {}).get("codec", "").encode())
        return digest.hexdigest()[:16]


class Source:
    """Random access to one split; safe to share between threads.

    ``source[i]`` is a dict: ``"image"`` uint8 [H, W, 3] (read-only; absent from a data set of texts
    alone; with ``latents`` its latents, float16 [h, w, Z]), ``"text"`` the caption (str), and every
    other scalar or text feature by its name.

    Attributes:
      info: of the whole data set.
      image_key: the name of its image feature, None for none.
      split: ``"train"``, or a slice such as ``"train[:10%]"``.
      label: (feature, names of its classes) where the data set has one label feature, or one called
        "label"; else None. ``source[i][feature]`` is the number of the class.
      class_names: label feature -> names of its classes, of all of them.
    """

    def __init__(
        self,
        info: DataInfo,
        split: str,
        records: Any,
        features: Any,
        needs_image: bool = True,
        latents: bool = False,
    ):
        self.info, self.split = info, split
        self._records, self._latents = records, latents
        roles = roles_of(info.name, features, needs_image)
        self.image_key, self._text_key, self._label_key, self._kept = roles
        if latents and self.image_key is not None and info.latents is None:
            raise UserError(
                f"config.data.latents=True: the images of {info.name} have none; add them by: mmx "
                f"prepare latents tfds:{info.name} --codec RUN; or give --noconfig.data.latents"
            )
        if self._label_key is not None:
            self._label_name = features[self._label_key].int2str
        key = label_of(features)
        labels = of_type(features, "ClassLabel")
        self.class_names = {label: tuple(features[label].names) for label in labels}
        self.label = None if key is None else (key, self.class_names[key])
        self._cache: dict[int, dict[str, Any]] = {}
        self._cached_bytes = 0

    def __len__(self) -> int:
        return len(self._records)

    def __repr__(self) -> str:  # Grain prints its sources; the records would be long
        return f"Source({self.info.name}, {self.split}, {len(self)} examples)"

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._cache.get(index)
        if example is None:
            example = self._read(index)
            # Threads may count a race twice or keep an example too many; both are harmless.
            if self._cached_bytes < _CACHE_BYTES:
                self._cached_bytes += example["image"].nbytes if "image" in example else _TEXT_BYTES
                self._cache[index] = example
        return dict(example)

    def caption(self, index: int) -> str:
        """``self[index]["text"]`` without decoding the image."""
        return self._text(self._records[index])

    def outline(self, index: int) -> dict[str, Any]:
        """``self[index]`` with None for its image, which is not decoded."""
        return self._outline(self._records[index])

    def outlines(self) -> Iterator[dict[str, Any]]:
        """:meth:`outline` of all, in order, at a tenth of the time each."""
        for first in range(0, len(self), _BATCH):
            batch = range(first, min(first + _BATCH, len(self)))
            yield from map(self._outline, self._records.__getitems__(list(batch)))

    def _outline(self, record: Mapping[str, Any]) -> dict[str, Any]:
        example = {key: _plain(record[key]) for key in self._kept}
        image = {} if self.image_key is None else {"image": None}
        return {**example, **image, "text": self._text(record)}

    def _read(self, index: int) -> dict[str, Any]:
        record = self._records[index]
        example = self._outline(record)
        if self.image_key is not None and self._latents:
            example["image"] = record[LATENTS]
            example["image"].setflags(write=False)
        elif self.image_key is not None:
            try:
                image = decode(record[self.image_key])
            except ImageError as error:
                raise ImageError(f"{self.info.name} {self.split}[{index}]: {error}") from error
            image.setflags(write=False)
            example["image"] = image
        return example

    def _text(self, record: Mapping[str, Any]) -> str:
        if self._text_key is not None:
            return _plain(record[self._text_key])
        label = self._label_name(int(record[self._label_key])).replace("_", " ")
        return LABEL_CAPTION.format(label=label)


class Joined:
    """Several splits as one: ``"train*4+train_toned"`` holds each example of ``train`` four times.

    Attributes:
      info: of the data set, the same for all parts.
      split: as it was asked for.
      parts: the splits, in order; one that occurs several times is the same object each time.
      label, class_names: as of :class:`Source`.
    """

    def __init__(self, split: str, parts: list[Source]):
        self.info, self.split, self.parts = parts[0].info, split, parts
        self.label, self.class_names = parts[0].label, parts[0].class_names
        self._ends = list(itertools.accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __repr__(self) -> str:
        return f"Source({self.info.name}, {self.split}, {len(self)} examples)"

    def __getitem__(self, index: int) -> dict[str, Any]:
        part = bisect.bisect_right(self._ends, index)
        return self.parts[part][index - (self._ends[part - 1] if part else 0)]

    def outlines(self) -> Iterator[dict[str, Any]]:
        """:meth:`Source.outlines` of all, in order."""
        for part in self.parts:
            yield from part.outlines()


def open_source(
    spec: str,
    split: str,
    data_dir: PathLike | None = None,
    needs_image: bool = True,
    latents: bool = False,
) -> Source | Joined:
    """Open a split of a prepared data set, or several as one.

    Args:
      spec: ``"tfds:NAME"`` or ``"tfds:NAME/CONFIG"``; ``"moving:NAME/CONFIG"``, the videos of
        `mmx.data.moving`; or one of the views of `mmx.data.views`, such as ``"edits:openmoji/32"``.
      split: a split's name, a slice of one in the syntax of TFDS (``"train[:10%]"``), or several
        joined by +, each with how often its examples occur: ``"train*4+train_toned"``.
      data_dir: where data sets lie; $TFDS_DATA_DIR or ~/tensorflow_datasets when None.
      needs_image: False takes a data set of texts alone, too.
      latents: give those that are stored in the place of images.

    Raises:
      UserError: malformed spec; not prepared (names the command that prepares it); prepared in
        another format than ArrayRecord; no such split (lists the splits); no image, or no one text
        or label feature; images without latents.
    """
    sources = []
    if is_view(spec) and needs_image:
        raise UserError(
            f"data.source={spec}: documents of several parts are for a family that packs documents"
        )
    for name, times in split_parts(split):
        if is_view(spec):
            from mmx.data.views import open_view

            sources += [open_view(spec, name, data_dir, latents)] * times
            continue
        if spec.startswith(_MOVING):
            from mmx.data.moving import open_moving

            if latents:
                raise UserError(f"{spec}: videos are drawn anew and have no stored latents")
            sources += [open_moving(spec, name, data_dir)] * times
            continue
        sources += [_open_one(spec, name, data_dir, needs_image, latents)] * times
    return sources[0] if len(sources) == 1 else Joined(split, sources)


def is_view(spec: str) -> bool:
    """Whether a spec names documents that are made of a data set, as `mmx.data.views` does."""
    return spec.partition(":")[0] in _VIEWS


def _open_one(
    spec: str, split: str, data_dir: PathLike | None, needs_image: bool, latents: bool
) -> Source:
    import tensorflow_datasets as tfds

    name = _parse(spec)
    directory = _find(name, storage.path(default_data_dir(data_dir)))
    try:
        builder = tfds.builder_from_directory(str(directory))
    except Exception as error:  # TFDS raises whatever its JSON and protobuf readers raise
        raise UserError(f"{directory}: TFDS cannot open this data set ({error})") from error
    file_format = builder.info.file_format
    if file_format is None or file_format.value != "array_record":
        raise UserError(
            f"data.source={spec}: prepared as {getattr(file_format, 'value', None)}, but mmx "
            f"reads array_record; prepare it again with: {_command(name)} --data_dir=ANOTHER_DIR"
        )
    info = DataInfo(
        name=name,
        directory=directory,
        attribution=_attribution(directory, builder.info),
        tokenizer_path=directory / TOKENIZER_FILE
        if (directory / TOKENIZER_FILE).is_file()
        else None,
        splits={key: value.num_examples for key, value in builder.info.splits.items()},
        shards=tuple(
            storage.path(p) for split in builder.info.splits.values() for p in split.filepaths
        ),
        latents=metadata(directory).get(LATENTS),
    )
    if split.partition("[")[0] not in info.splits:
        raise UserError(f"data.split={split}: {name} has the splits {', '.join(info.splits)}")
    there = storage.sizes(directory)
    for path in builder.info.splits[split.partition("[")[0]].filepaths:
        if path.name not in there:
            raise UserError(f"{path}: missing; the data set {name} is not whole, prepare it again")
    features = dict(builder.info.features.items())
    skip = {key: tfds.decode.SkipDecoding() for key in of_type(features, "Image")}
    try:
        records = builder.as_data_source(split, decoders=skip)
    except Exception as error:  # a malformed slice, or a file of the split is missing
        raise UserError(f"data.split={split}: cannot open it in {name} ({error})") from error
    return Source(info, split, records, features, needs_image, latents)


def _parse(spec: str) -> str:
    kind, _, name = spec.partition(":")
    parts = name.split("/")
    if kind != "tfds" or len(parts) > 2 or not all(map(_NAME.fullmatch, parts)):
        raise UserError(f"data.source={spec!r}: expected tfds:NAME or tfds:NAME/CONFIG")
    return name


def _versions(directory: Path) -> list[Path]:
    """Prepared versions in a directory, oldest first."""
    found = [path.parent for path in directory.glob("*.*.*/dataset_info.json")]
    found = [path for path in found if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
    return sorted(found, key=lambda path: [int(part) for part in path.name.split(".")])


def _find(name: str, root: Path) -> Path:
    """Directory of the newest prepared version."""
    versions = _versions(root / name)
    if versions:
        return versions[-1]
    configs = [path.name for path in sorted((root / name).glob("[!.]*")) if _versions(path)]
    if "/" not in name and configs:
        raise UserError(
            f"data.source=tfds:{name}: name one of its configs: "
            + ", ".join(f"tfds:{name}/{config}" for config in configs)
        )
    if name == _PLACEHOLDER:
        raise UserError(
            f"data.source=tfds:{name} stands for data of your own: name it with "
            f"--config.data.source=tfds:YOURS; to prepare images: mmx prepare folder DIR --name "
            f"YOURS --data_dir {root}"
        )
    run = f"{_command(name)} --data_dir {root}"
    if name.partition("/")[0] not in OURS and "/" not in name:
        run += f"; or, of your own images: mmx prepare folder DIR --name {name} --data_dir {root}"
    raise UserError(f"data.source=tfds:{name}: not prepared in {root}; run: {run}")


def _command(name: str) -> str:
    dataset, _, config = name.partition("/")
    if dataset in OURS:
        command, usual = OURS[dataset]
        return command.format(config or usual)
    return f"tfds build {name} --file_format=array_record"


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.item() if isinstance(value, np.generic | np.ndarray) else value


def metadata(directory: Path) -> dict[str, Any]:
    """What a builder of TFDS says of its data in words of its own; {} where it says nothing."""
    file = directory / "metadata.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def _attribution(directory: Path, info: Any) -> str:
    if stated := metadata(directory).get("attribution"):
        return str(stated)
    return (info.redistribution_info.license or "").strip()
