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
    32          0.993        0.993     0.987     0.630      0.997
    64          0.997        0.993     0.970     0.533      0.997
    128         0.973        0.957     0.953     0.543      0.963
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmx.core.errors import UserError
from mmx.data import scene_grammar, scene_splits
from mmx.data.scene_grammar import Found, Scene
from mmx.eval import evaluator, scene_reader, stats
from mmx.eval import images as image_scores
from mmx.eval.evaluator import Evaluator
from mmx.eval.grid import Section
from mmx.eval.text_to_image import COLUMNS, Model, decoding_row, draw, set_batches

DRAWN = 256  # examples of the test split that a report draws, and of each held-out split: ours
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


def are_scenes(source: str) -> bool:
    """Whether a config's ``data.source`` names this data set: its examples carry factors."""
    return source.removeprefix("tfds:").partition("/")[0] == "scenes"


def report(
    model: Model,
    splits: Mapping[str, Sequence[dict[str, Any]]],
    seed: int = 0,
    evaluators: Sequence[Evaluator] = (),
) -> tuple[dict[str, Any], list[Section]]:
    """What `mmx.eval.text_to_image.report` is for other data: scores and sections of the picture.

    Args:
      model: what is scored.
      splits: split -> examples with "image" uint8, "text" and "factors"; those of "train" are not
        asked for, as every other split has its own captions or drawings.
      seed: of the choice of examples and of the drawing.
      evaluators: of `metrics.make`: what they say of the drawings of the first split is among the
        scores.

    Raises UserError when there is no other split (all were trained on), or too few examples for the
    evaluators.

    Returns:
      ({``SPLIT/FACTOR``: Score, also ``_codec``, ``_oracle`` and ``_shuffled``}, sections). The
      ``_codec`` is of the real pictures through the model's codec: no drawing of it does better.
    """
    out: dict[str, Any] = {}
    sections = []
    unseen = {split: examples for split, examples in splits.items() if split != "train"}
    if not unseen:
        raise UserError("data.split: the run was trained on every split, so none is left to ask")
    for split, examples in unseen.items():
        order = np.random.default_rng(seed).permutation(len(examples))
        chosen, rest = order[:DRAWN], order[DRAWN : 2 * DRAWN]
        measured = () if sections else evaluators  # of the first split
        if measured and len(rest) < len(chosen):
            raise UserError(
                f"config.eval.metrics: {len(chosen)} drawings are compared with as many images of "
                f"other captions, and {split} has {len(rest)}"
            )
        asked = [examples[int(i)] for i in chosen]
        captions = [example["text"] for example in asked]
        drawn, out[f"{split}/not_finite"] = draw(model, captions, seed)
        image = drawn["image"]
        image_u8 = np.stack([example["image"] for example in asked])
        recon, _ = model.reconstruct(image_u8)
        through_codec = accuracy(
            _wanted(asked), scene_reader.read(recon, f"reading {split} through the codec")
        )
        for name, score in picture_scores(image, asked, seed).items():
            out[f"{split}/{name}"] = score
            if name in through_codec:
                out[f"{split}/{name}_codec"] = through_codec[name]
        out[f"{split}/psnr_codec"] = stats.mean(image_scores.psnr(image_u8, recon))
        shown = image_scores.to_uint8(image[: 2 * COLUMNS])
        sections.append(Section(shown, captions[: 2 * COLUMNS], f"Captions of {split}"))
        if len(sections) == 1:
            decoding = decoding_row(model, drawn, captions, 0)
        if measured:
            batches = set_batches(model, image, captions, examples, chosen, rest)
            out |= evaluator.run(measured, batches)
    return out, [*sections, decoding]
