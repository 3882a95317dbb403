"""Turn a folder of images into a TFDS data set: ``mmx prepare folder``."""

import collections
import functools
import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import tensorflow_datasets as tfds

from mmx.core.errors import UserError
from mmx.data import build, folder_scan
from mmx.data.folder_scan import Item, Problem
from mmx.data.parallel import parallel_map
from mmx.data.source import LABEL_CAPTION, OURS

VERSION = "1.0.0"
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_MIN_SIZE, _MAX_SIZE = 8, 4096
_Example = tuple[str, dict[str, Any]]


class _Folder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Features: image, caption, file_name, and label (text) where captions are classes."""

    VERSION = tfds.core.Version(VERSION)
    url_infos = {}  # noqa: RUF012  nothing is downloaded: no list of checksums to look for

    def __init__(
        self,
        name: str,
        data_dir: str,
        examples: dict[str, Iterable[_Example]],
        has_labels: bool,
        origin: str,
    ):
        self.name = name
        self._examples, self._has_labels, self._origin = examples, has_labels, origin
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "caption": tfds.features.Text(),
            "file_name": tfds.features.Text(),
        }
        if self._has_labels:
            features["label"] = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description="A folder of images with captions, prepared by mmx.",
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict({"origin": self._origin}),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterable[_Example]]:
        del dl_manager
        return self._examples

    def _generate_examples(self) -> Iterator[_Example]:  # abstract in the base class
        yield from ()


def prepare(
    folder: str | Path,
    name: str,
    data_dir: str | Path | None = None,
    size: int | None = None,
    skip_bad: bool = False,
    test_share: float = 0.05,
) -> tuple[Path, bool]:
    """Build the data set ``NAME`` of a folder and its tokenizer, unless it is there.

    Args:
      folder: of images with captions, see ``folder_scan``.
      name: of the data set: lower-case letters, digits and "_".
      data_dir: where data sets lie; the TFDS default when None.
      size: pixels of a side after a centre crop; None keeps each image's own size.
      skip_bad: leave unusable files out instead of stopping. They are listed on stderr either way.
      test_share: share of images in the split ``test``, by a hash of their names; 0 for no such
        split.

    Returns:
      (directory of the data set, whether this call built it).

    Raises:
      UserError: a bad argument; unusable files (unless ``skip_bad``); no usable image; the name
        belongs to other images; the disk refuses.
    """
    _check(name, size, test_share)
    folder, root = Path(folder).expanduser(), build.local_data_dir(data_dir)
    found = folder_scan.scan(folder)
    target = root / name / VERSION
    origin = _origin(found, size, test_share)
    if build.is_prepared(target):
        if json.loads((target / "metadata.json").read_text()).get("origin") == origin:
            return target, False
        raise UserError(
            f"--name={name}: prepared already, from other images or options; choose another name, "
            f"or delete {target}"
        )
    if any((root / name).glob("[!.]*")):
        raise UserError(f"--name={name}: taken by another data set in {root / name}")
    with _spool(root) as spool:
        stored, problems = _read_all(found.items, size, spool)
        _judge(sorted(found.problems + problems, key=lambda p: p.name), len(stored), skip_bad)
        good = [item for item in found.items if item.name in stored]
        splits = _split(good, test_share)
        captions = [_caption(item, found.has_classes) for item in splits["train"]]

        def make_builder(aside: str) -> _Folder:
            examples = {
                split: _examples(items, stored, spool, found.has_classes)
                for split, items in splits.items()
            }
            return _Folder(name, aside, examples, found.has_classes, origin)

        built = build.build(root, f"{name}/{VERSION}", make_builder, captions)
    return target, built


def _check(name: str, size: int | None, test_share: float) -> None:
    if not _NAME.fullmatch(name) or name in OURS:
        raise UserError(
            f"--name={name!r}: lower-case letters, digits and '_', a letter first, "
            f"not {' or '.join(OURS)}"
        )
    if size is not None and not _MIN_SIZE <= size <= _MAX_SIZE:
        raise UserError(f"--size={size}: must lie between {_MIN_SIZE} and {_MAX_SIZE} pixels")
    if not 0 <= test_share <= 0.5:
        raise UserError(f"--test-share={test_share}: must lie between 0 and 0.5")


def _origin(found: folder_scan.Scan, size: int | None, test_share: float) -> str:
    """Digest of what a data set is made from: a second prepare knows it without decoding."""
    digest = hashlib.sha256(repr((size, test_share, found.has_classes)).encode())
    for item in found.items:
        stat = item.path.stat()
        digest.update(repr((item.name, item.caption, stat.st_size, stat.st_mtime_ns)).encode())
    return digest.hexdigest()


def _spool(root: Path) -> IO[bytes]:
    """A nameless file for the decoded images: on the disk they go to, gone with this process."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=root)
    except OSError as error:
        raise UserError(f"--data_dir={root}: cannot write there ({error})") from error


def _read_all(
    items: list[Item], size: int | None, spool: IO[bytes]
) -> tuple[dict[str, tuple[int, int]], list[Problem]]:
    """Decode every image once. (name -> (offset, length) in the spool, problems)."""
    stored, problems, offset = {}, [], 0
    read = functools.partial(folder_scan.read_image, size=size)
    for item, result in zip(items, parallel_map(read, items, "reading images")):
        if isinstance(result, Problem):
            problems.append(result)
            continue
        try:
            spool.write(result)
        except OSError as error:
            raise UserError(f"--data_dir: cannot write there ({error})") from error
        stored[item.name] = (offset, len(result))
        offset += len(result)
    return stored, problems


def _judge(problems: list[Problem], num_good: int, skip_bad: bool) -> None:
    for problem in problems:
        print(f"{problem.name}: {problem.reason}", file=sys.stderr)
    kinds = collections.Counter(problem.reason.partition(":")[0] for problem in problems)
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    if num_good == 0:
        raise UserError(f"no usable image ({counted})")
    if problems and not skip_bad:
        raise UserError(
            f"{len(problems)} unusable files ({counted}), {num_good} good ones; mend them, or pass "
            "--skip-bad to go on without them"
        )
    if problems:
        print(f"skipped {len(problems)} unusable files ({counted})", file=sys.stderr)


def _split(items: list[Item], test_share: float) -> dict[str, list[Item]]:
    """Split -> items, by a hash of the names: an image stays on its side when others come or go."""
    if test_share == 0 or len(items) < 2:
        return {"train": items}
    ranked = sorted(items, key=lambda item: _unit_hash(item.name))
    count = sum(_unit_hash(item.name) < test_share for item in items)
    count = min(max(count, 1), len(items) - 1)  # neither split may be empty
    return {"train": ranked[count:], "test": ranked[:count]}


def _unit_hash(name: str) -> float:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def _caption(item: Item, is_class: bool) -> str:
    return LABEL_CAPTION.format(label=item.caption) if is_class else item.caption


def _examples(
    items: list[Item], stored: dict[str, tuple[int, int]], spool: IO[bytes], is_class: bool
) -> Iterator[_Example]:
    for item in items:
        offset, length = stored[item.name]
        spool.seek(offset)
        example = {
            "image": spool.read(length),
            "caption": _caption(item, is_class),
            "file_name": item.name,
        }
        yield item.name, example | ({"label": item.caption} if is_class else {})
