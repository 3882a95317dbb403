"""What ``mmx evaluate`` makes of a run of any family, and the data that it is made on."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmx.data.image import fit
from mmx.data.source import open_source, split_parts
from mmx.eval import metrics
from mmx.eval.evaluator import Evaluator
from mmx.eval.grid import Section
from mmx.eval.stats import Score
from mmx.pretrained import networks

# Ours: of a split; the first ones of a larger split. A report is made seldom and may take minutes:
# ``config.eval.examples`` is how many the scores see that are made again and again in training.
MAX_EXAMPLES = 5000


@dataclass(frozen=True)
class Report:
    """Scores and a picture.

    Attributes:
      scores: name -> Score, or float where there is no interval.
      sections: of the picture, for :func:`mmx.eval.grid.draw_grid`.
      subtitle: of the picture: the score that tells most.
      credit: below the picture, whose data it is; "" for none.
      info: kept in the picture's file: settings, prompts, attribution.
    """

    scores: dict[str, Score | float]
    sections: list[Section]
    subtitle: str
    credit: str
    info: dict[str, Any]


class Examples(Sequence):
    """The first `MAX_EXAMPLES` of a split with images at one size; each is read when asked for.

    Args:
      source: of :func:`mmx.data.source.open_source`.
      size: pixels of a side.
    """

    def __init__(self, source, size: int):
        self._source, self._size = source, size

    def __len__(self) -> int:
        return min(len(self._source), MAX_EXAMPLES)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The example, its image uint8 [size, size, 3]."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        example = self._source[int(index)]
        return example | {"image": fit(example["image"], self._size)}


def trained_splits(split: str) -> list[str]:
    """The splits that training joins, each once: ``"a*4+b"`` -> ["a", "b"]."""
    return list(dict.fromkeys(name for name, _ in split_parts(split)))


def open_splits(data) -> tuple[dict[str, Examples], str]:
    """Every split of a run's data set at the run's image size; what was trained on is "train".

    Args:
      data: ``config.data``.

    Returns:
      (split -> examples, attribution).
    """
    trained = trained_splits(data.split)
    wanted = {"train": "+".join(trained)}
    info = open_source(data.source, data.split, data.data_dir).info
    seen = {name.partition("[")[0] for name in trained}
    wanted |= {split: split for split in info.splits if split not in seen}
    return {
        name: Examples(open_source(data.source, split, data.data_dir), data.image_size)
        for name, split in wanted.items()
    }, info.attribution


def evaluators(names: Sequence[str], data_dir: str | os.PathLike | None) -> list[Evaluator]:
    """Those of ``config.eval.metrics`` whose networks are there; of others, what to type.

    Args:
      names: of `metrics.METRICS`.
      data_dir: ``config.data.data_dir``.
    Raises UserError for a name that is unknown or of Python only, or damaged weights.
    """
    metrics.check_config(names)
    missing = {name: file for name in names if (file := metrics.missing_file(name, data_dir))}
    for file in dict.fromkeys(missing.values()):
        lacking = ", ".join(name for name in missing if missing[name] == file)
        print(f"mmx: not scored: {lacking}; for that: {networks.command(file, data_dir)}",
              file=sys.stderr)  # fmt: skip
    return metrics.make([name for name in names if name not in missing], data_dir)
