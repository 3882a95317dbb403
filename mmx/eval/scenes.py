"""Is a scene what was asked for, factor by factor? For pictures and for captions.

A factor is right when the objects it speaks of are there and it holds of them (as GenEval counts,
Ghosh et al. 2023, arXiv:2310.11513):
  - object: the kinds are those asked for, no more and no fewer;
  - count: of each kind asked for, so many as asked;
  - size: of each kind asked for there are some, all of the size asked for;
  - relation: it holds between the two kinds, and no other does (scenes with two kinds);
  - background: its colour;
  - word: every letter of it (scenes with a sign);
  - all: everything above at once.

Beside each, its value on real pictures of the same captions (``_oracle``: what the reader can see)
and on the same pictures with the captions of others (``_shuffled``: chance).

What the reader gets of 300 real scenes (factor by factor: `experiments/scenes/reader.md`): the
share in which all is right, under a blur (sigma in 1/32 of the side) or noise (grey levels):

    pixels   as they are   blur 0.5   blur 1   blur 1.5   noise 40
    32          0.987        0.987     0.977     0.900      0.980
    64          0.993        0.980     0.963     0.883      0.990
    128         0.990        0.980     0.953     0.893      0.993
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmx.core.errors import UserError
from mmx.data import scene_grammar, scene_splits
from mmx.data.scene_grammar import Found, Scene
from mmx.eval import images as image_scores
from mmx.eval import report as reports
from mmx.eval import scene_reader, stats
from mmx.eval.evaluator import Batch
from mmx.eval.grid import Section
from mmx.eval.text_to_image import (
    COLUMNS,
    Asked,
    Model,
    batches,
    decoding_row,
    draw,
    nearest_training_image,
    read,
)

FACTORS = ("object", "count", "size", "relation", "background", "word", "all")


def hits(wanted: Scene, found: Found) -> dict[str, bool]:
    """factor -> is it right? Only the factors that the scene has."""
    groups = wanted.groups
    right = {"background": found.background == wanted.background}
    if groups:
        there = {g.kind: found.groups.get(g.kind, (0, frozenset())) for g in groups}
        right["object"] = set(found.groups) == set(there)
        right["count"] = all(there[g.kind][0] == g.count for g in groups)
        right["size"] = all(there[g.kind][1] == {g.size} for g in groups)
    if wanted.relation is not None:
        asked = (groups[0].kind, wanted.relation, groups[1].kind)
        # Two answers to one question are no answer, be one of them right.
        said = {r for r in found.relations if {r[0], r[2]} == {asked[0], asked[2]}}
        right["relation"] = said == {asked}
    if wanted.word is not None:
        right["word"] = found.word == wanted.word
    extra = (not groups and found.groups) or (wanted.word is None and found.word is not None)
    return right | {"all": all(right.values()) and not extra}


def accuracy(wanted: Sequence[Scene], found: Sequence[Found]) -> dict[str, stats.Score]:
    """factor -> share of the scenes that have it in which it is right.

    The scenes of a held-out combination are one cluster of the interval, which so speaks of other
    combinations too: 256 pictures of 27 held-out words say little more than 27 pictures.

    Raises ValueError unless there are as many found as wanted, at least one.
    """
    if len(wanted) != len(found) or not wanted:
        raise ValueError(f"{len(wanted)} scenes wanted, {len(found)} found")
    right = [hits(scene, seen) for scene, seen in zip(wanted, found)]
    # A scene that breaks no rule stands for itself.
    clusters = [
        tuple(scene_splits.broken_rules(scene).items()) or index
        for index, scene in enumerate(wanted)
    ]
    of = {factor: [i for i, row in enumerate(right) if factor in row] for factor in FACTORS}
    return {
        factor: stats.proportion(
            np.array([right[i][factor] for i in rows]), [clusters[i] for i in rows]
        )
        for factor, rows in of.items()
        if rows
    }


def scores(
    wanted: Sequence[Scene], found: Sequence[Found], real: Sequence[Found], seed: int = 0
) -> dict[str, stats.Score]:
    """`accuracy` as ``FACTOR``, with ``FACTOR_oracle`` and ``FACTOR_shuffled`` beside it.

    Args:
      wanted: what was asked for.
      found: what was read from the answers, pictures or captions.
      real: what was read, in the same way, from true answers.
      seed: of the shuffling; every caption moves.
    """
    order = np.random.default_rng(seed).permutation(len(wanted))
    other = np.empty(len(wanted), int)
    other[order] = np.roll(order, 1)
    columns = {
        "": accuracy(wanted, found),
        "_oracle": accuracy(wanted, real),
        "_shuffled": accuracy([wanted[i] for i in other], found),
    }
    return {
        f"{factor}{column}": columns[column][factor]
        for factor in FACTORS
        if factor in columns[""]
        for column in columns
    }


def picture_scores(
    pictures: Sequence[np.ndarray], examples: Sequence[dict[str, Any]], seed: int = 0
) -> dict[str, stats.Score]:
    """`scores` of generated pictures.

    Args:
      pictures: one for each example, drawn to its caption; uint8 or float in [-1, 1].
      examples: of the data set scenes: "image" and "factors".
    """
    found = scene_reader.read(pictures, "reading pictures")
    real = scene_reader.read([example["image"] for example in examples], "reading real pictures")
    return scores(_wanted(examples), found, real, seed)


def _wanted(examples: Sequence[dict[str, Any]]) -> list[Scene]:
    return [Scene.from_json(example["factors"]) for example in examples]


def caption_scores(
    captions: Sequence[str], examples: Sequence[dict[str, Any]], seed: int = 0
) -> dict[str, stats.Score]:
    """Factor recall of generated captions: `scores` of what they say of the examples' pictures."""
    real = [scene_grammar.read(example["text"]) for example in examples]
    found = [scene_grammar.read(caption) for caption in captions]
    return scores(_wanted(examples), found, real, seed)


def report(
    model: Model, splits: Mapping[str, Sequence[dict[str, Any]]], seed: int = 0
) -> tuple[dict[str, Any], list[Section], Callable[[], Iterator[Batch]]]:
    """What `mmx.eval.text_to_image.report` is for other data: scores and sections of the picture.

    Args:
      model: what is scored.
      splits: split -> examples with "image" uint8, "text" and "factors"; those of "train" are not
        asked for, as every other split has its own captions or drawings. Whether a drawing is a
        copy is asked of the first split's, among the examples of "train" that are here.
      seed: of the choice of examples and of the drawing.

    Raises UserError when there is no other split (all were trained on).

    Returns:
      ({``SPLIT/FACTOR``: Score, also ``_codec``, ``_oracle`` and ``_shuffled``}, sections,
      :func:`measured` of what was drawn to the first split). The ``_codec`` is of the real pictures
      through the model's codec: no drawing of it does better.
    """
    out: dict[str, Any] = {}
    sections = []
    unseen = {split: examples for split, examples in splits.items() if split != "train"}
    if not unseen:
        raise UserError("data.split: the run was trained on every split, so none is left to ask")
    for split, examples in unseen.items():
        asked = _ask(examples, seed)
        true = [examples[int(i)] for i in asked.true]
        captions = [example["text"] for example in true]
        drawn, out[f"{split}/not_finite"] = draw(model, captions, seed)
        image = drawn["image"]
        image_u8 = np.stack([example["image"] for example in true])
        recon, _ = model.reconstruct(image_u8)
        through_codec = accuracy(
            _wanted(true), scene_reader.read(recon, f"reading {split} through the codec")
        )
        for name, score in picture_scores(image, true, seed).items():
            out[f"{split}/{name}"] = score
            if name in through_codec:
                out[f"{split}/{name}_codec"] = through_codec[name]
        out[f"{split}/psnr_codec"] = stats.mean(image_scores.psnr(image_u8, recon))
        shown = image_scores.to_uint8(image[: 2 * COLUMNS])
        sections.append(Section(shown, captions[: 2 * COLUMNS], f"Captions of {split}"))
        if len(sections) == 1:
            decoding = decoding_row(model, drawn, captions, 0)
            rows = functools.partial(batches, model, examples, asked, image)
            training = read(model, splits["train"], through_codec=False).small
            some = np.random.default_rng(seed + 1).permutation(len(training))[: reports.DRAWN]
            near = nearest_training_image(image, training, some)
            # The first ones of the split: `read` takes no more.
            of = f"nearest_of_{len(training)}_training_images"
            out |= {k.replace("nearest_training_image", of): score for k, score in near.items()}
    return out, sections + decoding, rows


def measured(model: Model, examples: Sequence[dict[str, Any]], seed: int) -> Iterator[Batch]:
    """The rows of the named metrics alone: the same as :func:`report` draws, and nothing else.

    Args:
      model: what is scored.
      examples: of the first split that the run was not trained on.
      seed: as of the report.
    """
    asked = _ask(examples, seed)
    drawn, _ = draw(model, [examples[int(i)]["text"] for i in asked.true], seed)
    return batches(model, examples, asked, drawn["image"])


def _ask(examples: Sequence[dict[str, Any]], seed: int) -> Asked:
    order = np.random.default_rng(seed).permutation(len(examples))
    half = min(reports.DRAWN, len(order) // 2)
    return Asked(order[: reports.DRAWN], np.arange(half), order[half : 2 * half])
