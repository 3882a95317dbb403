"""The data set ``scenes``: composed pictures whose every factor is known, at 32, 64 or 128 pixels.

A TFDS builder that downloads nothing: OpenMoji drawings (CC BY-SA 4.0: pictures made from them
carry ``ATTRIBUTION``) put together as `scene_grammar` says, placed as `scene_draw` says, split as
`scene_splits` says. ``mmx prepare scenes`` runs it. Example i of a split is the same scene at all
three sizes, and the same bytes on each run and any number of processes. Which drawings they were is
in its metadata, and so in the fingerprint that a run records (`mmx.data.source.DataInfo`).
"""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from mmx.core.errors import UserError
from mmx.data import build, openmoji, scene_draw, scene_grammar, scene_splits
from mmx.data.parallel import parallel_map

ATTRIBUTION = openmoji.ATTRIBUTION
SIZES = ("32", "64", "128")
VERSION = "2.0.0"  # 2: no picture of test is in training


class Scenes(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Features: ``image``, ``caption``, and ``factors``, the JSON of a `scene_grammar.Scene`.

    Args:
      counts: split -> number of examples: `scene_splits.SPLITS`, or fewer of each for a test.
      processes: that draw; one a core when None.
    """

    name = "scenes"
    url_infos = {}  # noqa: RUF012  nothing is downloaded: no list of checksums to look for
    VERSION = tfds.core.Version(VERSION)
    BUILDER_CONFIGS = [  # noqa: RUF012 (the base class names it so)
        tfds.core.BuilderConfig(name=size, description=f"{size} x {size} pixels") for size in SIZES
    ]

    def __init__(self, *, counts: Mapping[str, int], processes: int | None = None, **kwargs: Any):
        self._counts, self._processes = dict(counts), processes
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        size = int(self.builder_config.name)
        return tfds.core.DatasetInfo(
            builder=self,
            description="Scenes of OpenMoji drawings with captions and factors.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(size, size, 3), encoding_format="png"),
                    "caption": tfds.features.Text(),
                    "factors": tfds.features.Text(),
                }
            ),
            homepage="https://openmoji.org",
            license="CC BY-SA 4.0",
            metadata=tfds.core.MetadataDict(
                {"attribution": ATTRIBUTION, "drawings": scene_draw.digest(size)}
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict]]]:
        del dl_manager
        return {split: self._generate_examples(split, n) for split, n in self._counts.items()}

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[str, dict[str, Any]]]:
        make = functools.partial(
            scene_splits.make_example, split=split, pixels=int(self.builder_config.name)
        )
        what = f"scenes/{self.builder_config.name} {split}: drawing"
        for index, example in enumerate(parallel_map(make, range(count), what, self._processes)):
            yield f"{split}_{index}", example


def prepare(
    config: str,
    data_dir: str | Path | None = None,
    counts: Mapping[str, int] = scene_splits.SPLITS,
    processes: int | None = None,
) -> tuple[Path, bool]:
    """Build ``scenes/CONFIG`` and its tokenizer, unless it is there.

    Args:
      config: "32", "64" or "128".
      data_dir: where data sets lie; the TFDS default when None.
      counts, processes: see `Scenes`.

    Returns:
      (directory of the data set, whether this call built it).

    Raises:
      UserError: unknown config, a package is missing, or the disk refuses.
    """
    if config not in SIZES:
        raise UserError(f"config={config!r}: scenes has the configs {', '.join(SIZES)}")

    def read() -> tuple[dict, Iterator[str]]:
        # A missing package speaks before all else.
        scene_draw.extent(scene_grammar.KINDS[0], "normal")
        train = range(counts["train"])
        captions = (scene_grammar.caption(scene_splits.make_scene("train", i)[0]) for i in train)
        return {"counts": counts, "processes": processes}, captions

    return build.prepare(Scenes, data_dir, read, config)
