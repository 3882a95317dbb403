"""Latents beside the images of a data set: ``mmx prepare latents``.

What comes is another config of the same data set, shard by shard and record by record as it was,
with one feature more: `LATENTS`, float16 [h, w, Z]. So example i is example i, and whoever looks
for its pixels or its texts finds them. Its metadata say what the latents are, as
``DataInfo.latents`` has it::

    {"codec": what `mmx.models.stages.identity` says of it, "run": as it was named,
     "image_size": pixels of a side, "shape": [h, w, Z], "source": the fingerprint of the data}
"""

import functools
import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.file_adapters import ArrayRecordFileAdapter
from tensorflow_datasets.proto import tf_example_pb2

from mmx.core.errors import UserError
from mmx.core.progress import Progress
from mmx.data import build
from mmx.data.image import ImageError, decode, fit
from mmx.data.source import LATENTS, Source, metadata, open_source

_INFO = "dataset_info.json"
_NAME = re.compile(r"[a-z0-9][a-z0-9_]{0,63}")
Encode = Callable[[np.ndarray], np.ndarray]


def prepare(
    spec: str,
    of: dict[str, Any],
    encode: Encode,
    at_once: int,
    name: str | None = None,
    data_dir: str | Path | None = None,
) -> tuple[str, Path, bool]:
    """Build the config with latents of a data set, unless it is there.

    Args:
      spec: ``"tfds:NAME"`` or ``"tfds:NAME/CONFIG"``.
      of: what the latents are, see above, but for the data.
      encode: uint8 [at_once, H, W, 3] -> float16 [at_once, h, w, Z].
      at_once: how many images are encoded together, always so many.
      name: of the config; ``"CONFIG_latents"``, or ``"latents"``, when None.
      data_dir: where data sets lie; the TFDS default when None.

    Returns:
      (its spec, its directory, whether this call built it).

    Raises:
      UserError: see `mmx.data.source.open_source`; the data set has latents; the name is another
        data set's; an image that cannot be read or has latents that are not finite; the disk
        refuses.
    """
    root = build.local_data_dir(data_dir)
    source = open_source(spec, "train", data_dir)
    open_source(spec, "+".join(source.info.splits), data_dir)  # a split that is not whole speaks
    dataset, _, config = source.info.name.partition("/")
    name = name or (f"{config}_latents" if config else "latents")
    if not _NAME.fullmatch(name):
        raise UserError(f"--name={name!r}: lower-case letters, digits and '_'")
    of = {**of, "source": source.info.fingerprint}
    made, target = f"tfds:{dataset}/{name}", root / dataset / name / source.info.directory.name
    if (target / _INFO).is_file():
        there = metadata(target).get(LATENTS, {})
        if {**there, "run": None} == {**of, "run": None}:
            return made, target, False
    if any((root / dataset / name).glob("[!.]*")):
        raise UserError(
            f"--name={name}: {made} is there already, with other latents or none; choose another "
            f"--name, or delete {root / dataset / name}"
        )
    write = functools.partial(_write, source, name, of, encode, at_once)
    relative = target.relative_to(root).as_posix()
    return made, target, build.make_aside(root, relative, lambda aside: write(aside / relative))


def _write(source: Source, name: str, of: dict, encode: Encode, at_once: int, folder: Path) -> None:
    """All files of the new config, into a folder that is not there."""
    directory = Path(source.info.directory)
    builder = tfds.builder_from_directory(str(directory))
    if LATENTS in builder.info.features:
        raise UserError(f"tfds:{source.info.name}: has latents; name the data set without them")
    folder.mkdir(parents=True)
    shards, sizes = {path.name for path in source.info.shards}, {}
    total = sum(source.info.splits.values())
    progress = Progress(total, "encoding images", every=max(1, total // 5))
    for split, info in builder.info.splits.items():
        raw = builder.as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        where = f"{source.info.name} {split}"
        records = _encoded(raw, where, source.image_key, of["image_size"], encode, at_once)
        for path, count in zip(info.filepaths, info.shard_lengths, strict=True):
            part = _told(progress, itertools.islice(records, count))
            ArrayRecordFileAdapter.write_examples(folder / path.name, part)
        sizes[split] = sum((folder / path.name).stat().st_size for path in info.filepaths)
    progress.close()
    for file in directory.iterdir():
        if file.is_file() and file.name not in shards:
            shutil.copyfile(file, folder / file.name)
    feature = tfds.features.Tensor(shape=tuple(of["shape"]), dtype=np.float16, encoding="bytes")
    tfds.features.FeaturesDict({**builder.info.features, LATENTS: feature}).save_config(folder)
    stated = {**metadata(source.info.directory), LATENTS: of}
    (folder / "metadata.json").write_text(json.dumps(stated, indent=2) + "\n")
    info = json.loads((directory / _INFO).read_text()) | {"configName": name}
    for split in info["splits"]:
        split["numBytes"] = str(sizes[split["name"]])
    (folder / _INFO).write_text(json.dumps(info, indent=2) + "\n")


def _told(progress: Progress, records: Iterator[bytes]) -> Iterator[tuple[None, bytes]]:
    """As TFDS writes records, after a key that this format does not use."""
    for record in records:
        yield None, record
        progress.update(progress.done + 1)


def _encoded(
    raw: Sequence[bytes], where: str, image_key: str, size: int, encode: Encode, at_once: int
) -> Iterator[bytes]:
    """The records of a split with the latents in them, in order."""

    def pixels(index: int, example: Any) -> np.ndarray:
        try:
            return fit(decode(_values(example, image_key)[0]), size)
        except ImageError as error:
            raise UserError(f"{where}[{index}]: {error}") from error

    with ThreadPoolExecutor() as pool:
        for first in range(0, len(raw), at_once):
            indices = list(range(first, min(first + at_once, len(raw))))
            examples = list(map(tf_example_pb2.Example.FromString, raw.__getitems__(indices)))
            image_u8 = np.stack(list(pool.map(pixels, indices, examples)))
            missing = at_once - len(image_u8)
            z_BhwZ = encode(np.concatenate([image_u8, np.repeat(image_u8[-1:], missing, axis=0)]))
            for index, example, z_hwZ in zip(indices, examples, z_BhwZ):
                if not np.isfinite(z_hwZ).all():
                    raise UserError(
                        f"{where}[{index}]: its latents are not finite in float16; name a codec "
                        "that is trained"
                    )
                _values(example, LATENTS).append(z_hwZ.tobytes())
                yield example.SerializeToString(deterministic=True)


def _values(example: Any, name: str) -> Any:
    """Those of a feature of a protobuf example: a list to read or to add to."""
    return example.features.feature[name].bytes_list.value
