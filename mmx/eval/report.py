"""What ``mmx evaluate`` makes of a run of any family, and the data that it is made on.

Importing this starts no jax: what is scored already is shown without it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mmx.core.errors import UserError
from mmx.data.image import fit
from mmx.data.source import open_source
from mmx.data.splits import split_parts
from mmx.eval.evaluator import Batch
from mmx.eval.grid import Section
from mmx.eval.stats import Score

# Ours: of a split; the first ones of a larger split. A report is made seldom and may take minutes:
# ``config.eval.examples`` is how many the scores see that are made again and again in training.
MAX_EXAMPLES = 5000
DRAWN = 256  # ours: captions of a split that are drawn


@dataclass(frozen=True)
class Report:
    """Scores and a picture.

    Attributes:
      scores: name -> Score, or float where there is no interval.
      sections: of the picture, for :func:`mmx.eval.grid.draw_grid`.
      subtitle: of the picture: the score that tells most.
      credit: below the picture, whose data it is; "" for none.
      info: kept in the picture's file: settings, prompts, attribution.
      measured: the rows that ``config.eval.metrics`` are of, without computing again what the
        report has computed; None for a family that has none.
    """

    scores: dict[str, Score | float]
    sections: list[Section]
    subtitle: str
    credit: str
    info: dict[str, Any]
    measured: Callable[[], Iterator[Batch]] | None = None


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


def are_scenes(source: str) -> bool:
    """Whether a config's ``data.source`` names the data set scenes: its examples carry factors."""
    return source.removeprefix("tfds:").partition("/")[0] == "scenes"


def asked_split(config, splits: Sequence[str]) -> str:
    """The split that the metrics of a run are measured on.

    Of scenes the first that it was not trained on, as each caption has its own drawing; of a
    tokenizer the last of ``config.eval.splits``; else all that was trained on, "train".

    Args:
      config: of the run.
      splits: of its data set, in order.
    Raises UserError: of scenes, where it was trained on all.
    """
    if "sample" not in config:
        return config.eval.splits[-1]
    if not are_scenes(config.data.source):
        return "train"
    trained = {name.partition("[")[0] for name in trained_splits(config.data.split)}
    for split in splits:
        if split not in trained:
            return split
    raise UserError("data.split: the run was trained on every split, so none is left to ask")


def measured_on(config, splits: Sequence[str]) -> str:
    """The rows that ``config.eval.metrics`` are of, in words: part of each one's recipe.

    Scores of other rows are other scores. How many they are is beside each score.
    """
    split = asked_split(config, splits)
    if split == "train" and "sample" in config:
        split = "+".join(trained_splits(config.data.split))
    size = f"{config.data.image_size} px"
    if "sample" not in config:
        return f"one half of {split} rebuilt, against the other half, {size}"
    return f"drawings to captions of {split}, against other images of it, {size}"


def taught_by(config) -> list[str]:
    """Files of weights that taught a run with this config, as `metrics.check_config` reads them."""
    return ["lpips_vgg"] if config.get("loss", {}).get("perceptual") else []
