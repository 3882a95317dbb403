"""The report on a text-to-image run: scores with intervals, and one picture of captioned grids.

Knows no model: it takes functions that draw, reconstruct and decode.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mmx.core.errors import UserError
from mmx.eval import images as image_scores
from mmx.eval import report as reports
from mmx.eval import retrieval, stats, tone
from mmx.eval.evaluator import Batch
from mmx.eval.grid import Section, decoding_section

COLUMNS = 8
CODEC_SPLITS = ("train", "test")
HELD_OUT = "heldout_composition"


@dataclass(frozen=True)
class Model:
    """What is scored.

    Attributes:
      draw: captions, seed -> {"image": float [n, H, W, 3]}, and of codes "codes": [n, S], "trace":
        [n, R, S].
      reconstruct: uint8 [n, H, W, 3] -> (float [n, H, W, 3], codes int [n, S], or None).
      batch_size: rows that a split is read and reconstructed by.
      decode: codes [n, S] -> float [n, H, W, 3]; None where the codec has no codes.
      num_codes: of the codec; a code of that value is hidden.
      grid: codes along one side.
    """

    draw: Callable[[Sequence[str], int], dict[str, np.ndarray]]
    reconstruct: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]
    batch_size: int
    decode: Callable[[np.ndarray], np.ndarray] | None = None
    num_codes: int = 0
    grid: int = 0


@dataclass(frozen=True)
class Seen:
    """What is kept of a split whose images may be too many for memory: 5,000 take 61 MB here.

    Attributes:
      records: the examples without their images.
      small: float32 [n, 32, 32, 3] in [-1, 1], the images at the size of `retrieval`'s distance.
      psnr: [n] of the codec and
      codes: int [n, S]; both empty for a split that did not go through the codec, and the codes
        where it has none.
    """

    records: list[dict[str, Any]]
    small: np.ndarray
    psnr: np.ndarray
    codes: np.ndarray


class Asked(NamedTuple):
    """Which examples of a split a report asks for, and what the named metrics compare.

    Attributes:
      true: int [n], those whose captions are drawn.
      seen: int [m], the places in `true` of the drawings that the metrics see: all, but in a small
        split.
      reference: int [m], as many others.
    """

    true: np.ndarray
    seen: np.ndarray
    reference: np.ndarray


def ask(candidates: np.ndarray, seed: int) -> Asked:
    """Up to `report.DRAWN` of some examples of a split, and as many of the rest.

    Args:
      candidates: int [k], places in the split.
      seed: of the choice.
    """
    count = min(reports.DRAWN, len(candidates))
    draw = np.random.default_rng(seed)
    true = candidates[np.sort(draw.choice(len(candidates), count, replace=False))]
    # A set and its reference are of one size, or their distance means nothing.
    half = min(count, len(candidates) // 2)
    seen = np.sort(np.random.default_rng(seed + 4).choice(count, half, replace=False))
    rest = np.setdiff1d(candidates, true[seen])
    reference = np.random.default_rng(seed + 3).choice(rest, half, replace=False)
    return Asked(true, seen, reference)


def report(
    model: Model, splits: dict[str, Sequence[dict[str, Any]]], seed: int = 0
) -> tuple[dict[str, Any], list[Section], Callable[[], Iterator[Batch]]]:
    """Scores and the sections of the picture.

    Args:
      model: what is scored.
      splits: split -> examples with "image" uint8 and "text"; "train" is needed. Where the examples
        carry "untoned" (OpenMoji), only untoned ones are in the gallery, and where a split
        "heldout_composition" exists, tones are scored.
      seed: of the choice of captions and of the drawing.

    Returns:
      ({name: Score or float}, sections for :func:`mmx.eval.grid.draw_grid`, :func:`measured` of
      what was drawn).
    """
    seen = {name: read(model, split, name in CODEC_SPLITS) for name, split in splits.items()}
    scores = codec_scores(seen, model.num_codes)
    gallery, first = [], 0
    for name, split in seen.items():
        if name == HELD_OUT:
            continue
        asked_for = untoned(split.records)
        if name == "train":  # where the training images stand in the gallery
            train, first = asked_for, sum(map(len, gallery))
        gallery.append(split.small[asked_for])
    asked = ask(train, seed)
    captions = [seen["train"].records[i]["text"] for i in asked.true]
    drawn, scores["not_finite"] = draw(model, captions, seed)
    reconstructed = reconstruct(model, splits["train"], asked.true)
    places = first + np.searchsorted(train, asked.true)
    scores |= retrieval.caption_recall(
        drawn["image"], reconstructed, places, np.concatenate(gallery)
    )
    scores |= nearest_training_image(drawn["image"], seen["train"].small, asked.true)

    show = np.random.default_rng(seed + 1).permutation(len(captions))[: 4 * COLUMNS]
    sections = [
        Section(
            image_scores.to_uint8(drawn["image"][show]),
            [captions[i] for i in show],
            "Training captions",
        )
    ]
    if splits.get(HELD_OUT):
        more, section = held_out_tones(model, splits[HELD_OUT], seen, seed)
        scores |= more
        sections.append(section)
    sections += decoding_row(model, drawn, captions, int(show[0]))
    image = drawn["image"]
    return scores, sections, lambda: batches(model, splits["train"], asked, image)


def measured(model: Model, examples: Sequence[dict[str, Any]], seed: int) -> Iterator[Batch]:
    """The rows of the named metrics alone: the same as :func:`report` draws, and nothing else.

    Args:
      model: what is scored.
      examples: of the split "train".
      seed: as of the report.
    """
    asked = ask(untoned(examples), seed)
    drawn, _ = draw(model, [examples[int(i)]["text"] for i in asked.true], seed)
    return batches(model, examples, asked, drawn["image"])


def untoned(records: Sequence[dict[str, Any]]) -> np.ndarray:
    """int [k]: the examples that are asked for, all where the data has no tones."""
    return np.array([i for i, record in enumerate(records) if record.get("untoned", True)], int)


def nearest_training_image(drawn: np.ndarray, training: np.ndarray, some: np.ndarray) -> dict:
    """Is what is drawn a copy? How far it is from the nearest training image, as
    `retrieval.nearest` says, and how far training images are from their nearest.

    Args:
      drawn: [Q, H, W, 3].
      training: [G, 32, 32, 3], through `retrieval.shrink`.
      some: int, those of them that are asked how far they are from others.
    """
    near, _ = retrieval.nearest(drawn, training)
    apart, _ = retrieval.nearest(training[some], training, distinct=True)
    scores = {"nearest_training_image/rms": stats.mean(near)}
    if np.isfinite(apart).all():  # else there is no other
        scores["nearest_training_image/rms_between_training_images"] = stats.mean(apart)
    return scores


def draw(model: Model, captions: Sequence[str], seed: int) -> tuple[dict, stats.Score]:
    """What the model draws, grey where it is not finite, and the share of drawings in which it was
    not: a broken model scores badly, it does not stop what scores the checkpoints after it."""
    drawn = model.draw(captions, seed)
    whole = np.isfinite(drawn["image"]).all((1, 2, 3))
    return drawn | {"image": image_scores.finite(drawn["image"])}, stats.proportion(~whole)


def batches(
    model: Model, examples: Sequence[dict[str, Any]], asked: Asked, drawn: np.ndarray
) -> Iterator[Batch]:
    """The rows of `evaluator.Evaluator`: a drawing, its caption's true image, another's true image.

    What the true images score against those of others is the floor.

    Args:
      examples: of the split that was asked.
      drawn: [n, H, W, 3], to the captions of `asked.true`.
    Raises UserError: a split with nothing to compare with.
    """
    if not len(asked.reference):
        raise UserError(
            "config.eval.metrics: drawings are compared with images of other captions, and the "
            f"split has {len(asked.true)} image"
        )
    load = lambda which: [examples[int(i)] for i in which]
    images = lambda of: np.stack([example["image"] for example in of])
    for start in range(0, len(asked.seen), model.batch_size):
        rows = slice(start, start + model.batch_size)
        true = load(asked.true[asked.seen[rows]])
        yield {
            "image": drawn[asked.seen[rows]],
            "real": images(true),
            "reference": images(load(asked.reference[rows])),
            "text": [example["text"] for example in true],
        }


def read(model: Model, examples: Sequence[dict[str, Any]], through_codec: bool) -> Seen:
    """One pass over a split, a batch of images in memory at a time."""
    records, small, psnr, codes = [], [], [np.zeros(0)], [np.zeros((0, model.grid**2), np.int32)]
    for start in range(0, len(examples), model.batch_size):
        rows = range(start, min(start + model.batch_size, len(examples)))
        batch = [examples[i] for i in rows]
        records += [{k: v for k, v in e.items() if k != "image"} for e in batch]
        image_u8 = np.stack([e["image"] for e in batch])
        small.append(retrieval.shrink(image_u8))
        if through_codec:
            recon, ids = model.reconstruct(image_u8)
            psnr.append(image_scores.psnr(image_u8, recon))
            codes += [] if ids is None else [ids]
    if not small:
        small.append(np.zeros((0, retrieval.SIZE, retrieval.SIZE, 3), np.float32))
    return Seen(records, np.concatenate(small), np.concatenate(psnr), np.concatenate(codes))


def reconstruct(model: Model, examples: Sequence[dict[str, Any]], which) -> np.ndarray:
    """Some images of a split through the codec, float [len(which), H, W, 3]."""
    return model.reconstruct(np.stack([examples[int(i)]["image"] for i in which]))[0]


def codec_scores(seen: dict[str, Seen], num_codes: int) -> dict[str, Any]:
    """PSNR of the codec on each split, and where it has codes their use on the training split."""
    scores: dict[str, Any] = {}
    for split in CODEC_SPLITS:
        if split not in seen or not seen[split].records:
            continue
        scores[f"tokenizer/psnr_{split}"] = stats.mean(seen[split].psnr)
        if split == "train" and num_codes:
            use, perplexity = image_scores.codebook_use(seen[split].codes, num_codes)
            scores["tokenizer/codebook_use"] = use
            scores["tokenizer/codebook_perplexity"] = perplexity
    return scores


def held_out_tones(
    model: Model, held_out: Sequence[dict[str, Any]], seen: dict[str, Seen], seed: int
) -> tuple[dict[str, Any], Section]:
    """Tone match on (concept, tone) pairs that were held out, and three rows of them."""
    records = [
        record | {"trained": split == "train"}
        for split in ("train", HELD_OUT)
        for record in seen[split].records
    ]
    small = np.concatenate([seen["train"].small, seen[HELD_OUT].small])
    asked = tone.questions(small, records)
    captions = [records[i]["text"] for i in asked.true_Q]
    drawn, not_finite = draw(model, captions, seed)
    drawn = drawn["image"]
    # What is asked was never trained on, so it lies behind the training split.
    reconstructed = reconstruct(model, held_out, asked.true_Q - len(seen["train"].records))
    scores = tone.tone_match(drawn, reconstructed, asked, small, records)
    scores["not_finite"] = not_finite
    show = np.random.default_rng(seed + 2).permutation(len(captions))[: 3 * COLUMNS]
    section = Section(
        image_scores.to_uint8(drawn[show]),
        [captions[i] for i in show],
        "Held-out compositions: never drawn in this tone in training",
    )
    return {f"held_out/{name}": value for name, value in scores.items()}, section


def decoding_row(model: Model, drawn: dict, captions: Sequence[str], which: int) -> list[Section]:
    """One prompt from all hidden to done, in as many frames as the picture has columns; of a model
    without codes, nothing."""
    if model.decode is None:
        return []
    trace_RS = drawn["trace"][which]
    hidden = np.full_like(trace_RS[:1], model.num_codes)
    frames_RS = np.concatenate([hidden, trace_RS])
    is_masked_RS = frames_RS == model.num_codes
    # Hidden codes have no picture of their own; they are covered by the grid's grey.
    image = model.decode(np.where(is_masked_RS, drawn["codes"][which], frames_RS))
    return [
        decoding_section(
            image_scores.to_uint8(image_scores.finite(image)),
            captions[which],
            COLUMNS,
            is_masked_RS.reshape(-1, model.grid, model.grid),
        )
    ]
