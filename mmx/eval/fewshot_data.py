"""What few-shot episodes are made of: any labelled data set, captions, or questions on scenes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmx.core import preemption
from mmx.core.errors import UserError
from mmx.core.progress import Progress
from mmx.data.image import fit
from mmx.data.labels import has_field, lend_labels, read_labels, read_values
from mmx.data.mixture import entries
from mmx.data.scene_grammar import Scene
from mmx.data.scene_questions import ask
from mmx.data.source import Source, open_source
from mmx.data.splits import share, split_parts
from mmx.eval.episodes import Episode, Pool, draw_classes, draw_texts
from mmx.ops.pyramid import Pyramid, flatten, unflatten

_BATCH = 64  # ours: images that become words at once
_FACTORS = "factors"  # of the data set scenes


class Sides(NamedTuple):
    """Where the images that are shown come from, and those asked about (None: the same ones)."""

    shown: Source
    asked: Source | None

    def of(self, role: str) -> Source:
        return self.shown if role == "shown" or self.asked is None else self.asked


def open_sides(
    source: str, split: str, query_source: str, query_split: str, data_dir: Any = None
) -> Sides:
    """Open both.

    Args:
      source, query_source: ``tfds:NAME``.
      split, query_split: each image once.

    Raises:
      UserError: no such data set or split, an image twice, or one that may be on both sides.
    """
    for flag, name in (("--split", split), ("--query-split", query_split)):
        if any(times > 1 for _, times in split_parts(name)):
            raise UserError(f"{flag}={name}: name each image once")
    shown = open_source(source, split, data_dir)
    if (source, split) == (query_source, query_split):
        return Sides(shown, None)
    asked = open_source(query_source, query_split, data_dir)
    if source == query_source and share(split, query_split, shown.info.splits):
        raise UserError(
            f"--query-split={query_split}: it has images of --split={split}; name splits or slices "
            "apart, or the same one twice, whose images episodes then keep apart"
        )
    return Sides(shown, asked)


def draw(
    sides: Sides, task: str, label: str | None, key: str | None, seed: int, count: int, ways: int,
    data_dir: Any = None,
) -> list[Episode]:  # fmt: skip
    """The episodes 0..count-1.

    Args:
      task: "classes", "captions", or a question on scenes.
      label: field of the classes; None for the one label.
      key: field of both data sets by which one lends the other its labels; None for none.
      seed, count, ways: see `mmx.eval.episodes`.

    Raises:
      UserError: fields that are not there, or too few images.
    """
    both = [side for side in sides if side is not None]
    if task == "classes":
        answers = [_labels(side, both, label, key, data_dir) for side in both]
        pools = [Pool(some) for some in answers]
    elif task == "captions":
        pools = [Pool(read_values(side, "text")) for side in both]
    else:
        pools = [_questions(side, task) for side in both]
    make = draw_texts if task == "captions" else draw_classes
    return make(pools[0], pools[1] if len(pools) > 1 else None, seed, count, ways)


def _labels(side: Source, both: Sequence[Source], label, key, data_dir) -> list[str | None]:
    if label is None or key is None or has_field(side, label):
        return read_labels(side, label)
    lenders = [other for other in both if has_field(other, label)]
    if not lenders:
        names = " nor ".join(other.info.name for other in both)
        raise UserError(f"--label={label}: neither {names} has such a field")
    return lend_labels(side, key, label, lenders[0], data_dir)


def _questions(side: Source, name: str) -> Pool:
    if not has_field(side, _FACTORS):
        raise UserError(
            f"--ask={name}: {side.info.name} has no factors to ask about; name tfds:scenes/32, "
            "scenes/64 or scenes/128"
        )
    asked = [ask(name, Scene.from_json(factors)) for factors in read_values(side, _FACTORS)]
    return Pool([a and a[1] for a in asked], [a[0] if a else "" for a in asked])


def images_of(episodes: Sequence[Episode]) -> list[tuple[str, int]]:
    """(role, image), each once, in an order of their own."""
    shown = {("shown", item.image) for e in episodes for round_ in e.rounds for item in round_}
    return sorted(shown | {("asked", item.image) for e in episodes for item in e.queries})


def encode(
    sides: Sides,
    images: Sequence[tuple[str, int]],
    size: int,
    to_words: Callable[[np.ndarray], np.ndarray],
    what: str = "describe",
) -> dict[tuple[str, int], np.ndarray]:
    """The words of images.

    Args:
      size: pixels of a side that they are brought to.
      to_words: uint8 [B, H, W, 3] -> int [B, T].
      what: for the progress.

    Raises:
      Interrupted: between two batches, where `mmx.core.preemption` watches.
    """
    words: dict[tuple[str, int], np.ndarray] = {}
    progress = Progress(len(images), what, every=_BATCH * 4)
    for first in range(0, len(images), _BATCH):
        preemption.check()
        some = images[first : first + _BATCH]
        image_BHWC = np.stack([fit(sides.of(role)[n]["image"], size) for role, n in some])
        words.update(zip(some, np.asarray(to_words(image_BHWC)), strict=True))
        progress.update(len(words))
    progress.close()
    return words


def at_cells(words_BT: np.ndarray, pyramid: Pyramid, like: Pyramid) -> np.ndarray:
    """Words of another pyramid in the order and number of one like ours.

    A codebook of one layer has no few words for an image: at the cells of our first layers it has
    as many as we, from the same places.

    Args:
      words_BT: of ``pyramid``.
      like: whose cells are wanted.

    Returns:
      int [B, T of ``like``].

    Raises:
      UserError: the first layer of ``pyramid`` is not the whole grid of ``like``.
    """
    check_cells(pyramid, like)
    if pyramid.sides == like.sides:
        return words_BT
    grid_Bhw = unflatten(pyramid, words_BT)[0]
    cells = [like.cells(layer) for layer in range(like.num_layers)]
    return np.asarray(flatten([grid_Bhw[:, rows][:, :, rows] for rows in cells]))


def check_cells(pyramid: Pyramid, like: Pyramid) -> None:
    """Raises UserError as :func:`at_cells`."""
    if pyramid.sides != like.sides and pyramid.sides[0] != like.grid:
        raise UserError(
            f"--baseline: a pyramid of the sides {pyramid.sides}; give one of {like.sides}, or one "
            f"whose first layer is the whole grid of {like.grid}x{like.grid}"
        )


def trained_on(data: Any, asked: Source) -> list[str]:
    """Splits that a run was trained on and images are asked about of, "openmoji/32 train".

    Another config of the same data set counts as the same images.

    Args:
      data: ``config.data`` of the run.
    """
    told = lambda spec: spec.rpartition(":")[2]
    base = lambda name: name.partition("/")[0]
    return [
        f"{told(spec)} {part}"
        for spec, split in entries(data)
        for part, _ in split_parts(split)
        if base(told(spec)) == base(asked.info.name)
        and part.partition("[")[0] in asked.info.splits
        and share(part, asked.split, asked.info.splits)
    ]


def facts(sides: Sides) -> Mapping[str, Any]:
    """What a recipe says of the images."""
    told = lambda source: {
        "source": source.info.name,
        "split": source.split,
        "fingerprint": source.info.fingerprint,
    }
    return {"shown": told(sides.shown), "asked": told(sides.of("asked"))}
