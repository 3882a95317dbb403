"""The report on a text-to-image run: scores with intervals, and one picture of captioned grids.

Knows no model: it takes functions that draw, reconstruct and decode.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmx.eval import images as image_scores
from mmx.eval import retrieval, stats, tone
from mmx.eval.grid import Section, decoding_section

NUM_CAPTIONS = 256  # training captions that are asked for
COLUMNS = 8


@dataclass(frozen=True)
class Model:
    """What is scored.

    Attributes:
      draw: captions, seed -> {"image": float [n, H, W, 3], "codes": [n, S], "trace": [n, R, S]}.
      reconstruct: uint8 [n, H, W, 3] -> (float [n, H, W, 3], codes int [n, S]).
      decode: codes [n, S] -> float [n, H, W, 3].
      num_codes: of the codec; a code of that value is hidden.
      grid: codes along one side.
    """

    draw: Callable[[Sequence[str], int], dict[str, np.ndarray]]
    reconstruct: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    decode: Callable[[np.ndarray], np.ndarray]
    num_codes: int
    grid: int


def report(
    model: Model, splits: dict[str, list[dict[str, Any]]], seed: int = 0
) -> tuple[dict[str, Any], list[Section]]:
    """Scores and the sections of the picture.

    Args:
      model: what is scored.
      splits: split -> examples with "image" uint8 and "text"; "train" is needed. Where the examples
        carry "untoned" (OpenMoji), only untoned ones are in the gallery, and where a split
        "heldout_composition" exists, tones are scored.
      seed: of the choice of captions and of the drawing.

    Returns:
      ({name: Score or float}, sections for :func:`mmx.eval.grid.draw_grid`).
    """
    scores = codec_scores(model, splits)
    untoned = {
        split: [e for e in examples if e.get("untoned", True)]
        for split, examples in splits.items()
        if split != "heldout_composition"
    }
    gallery = np.stack([e["image"] for examples in untoned.values() for e in examples])
    first = 0
    for split in untoned:  # where the training images stand in the gallery
        if split == "train":
            break
        first += len(untoned[split])
    train = untoned["train"]
    count = min(NUM_CAPTIONS, len(train))
    chosen = np.sort(np.random.default_rng(seed).choice(len(train), count, replace=False))
    true_image = np.stack([train[i]["image"] for i in chosen])
    captions = [train[i]["text"] for i in chosen]
    drawn = model.draw(captions, seed)
    reconstructed, _ = model.reconstruct(true_image)
    scores |= retrieval.caption_recall(drawn["image"], reconstructed, first + chosen, gallery)

    training_images = np.stack([e["image"] for e in splits["train"]])
    near, _ = retrieval.nearest(drawn["image"], training_images)
    apart, _ = retrieval.nearest(true_image, training_images, distinct=True)
    scores["nearest_training_image/rms"] = stats.mean(near)
    scores["nearest_training_image/rms_between_training_images"] = stats.mean(apart)

    show = np.random.default_rng(seed + 1).permutation(count)[: 4 * COLUMNS]
    sections = [
        Section(
            image_scores.to_uint8(drawn["image"][show]),
            [captions[i] for i in show],
            "Training captions",
        )
    ]
    if splits.get("heldout_composition"):
        more, section = held_out_tones(model, splits, seed)
        scores |= more
        sections.append(section)
    sections.append(decoding_row(model, drawn, captions, int(show[0])))
    return scores, sections


def codec_scores(model: Model, splits: dict[str, list[dict]]) -> dict[str, Any]:
    """PSNR of the codec on each split, and its codebook use on the training split."""
    scores: dict[str, Any] = {}
    for split in ("train", "test"):
        if not splits.get(split):
            continue
        image = np.stack([e["image"] for e in splits[split]])
        recon, codes = model.reconstruct(image)
        scores[f"tokenizer/psnr_{split}"] = image_scores.mean_psnr(image, recon)
        if split == "train":
            use, perplexity = image_scores.codebook_use(codes, model.num_codes)
            scores["tokenizer/codebook_use"] = use
            scores["tokenizer/codebook_perplexity"] = perplexity
    return scores


def held_out_tones(model: Model, splits, seed: int) -> tuple[dict[str, Any], Section]:
    """Tone match on (concept, tone) pairs that were held out, and three rows of them."""
    examples, records = [], []
    for split in ("train", "heldout_composition"):
        for example in splits[split]:
            examples.append(example)
            records.append(example | {"trained": split == "train"})
    image = np.stack([e["image"] for e in examples])
    asked = tone.questions(image, records)
    captions = [examples[i]["text"] for i in asked.true_Q]
    drawn = model.draw(captions, seed)["image"]
    reconstructed, _ = model.reconstruct(image[asked.true_Q])
    scores = tone.tone_match(drawn, reconstructed, asked, image, records)
    show = np.random.default_rng(seed + 2).permutation(len(captions))[: 3 * COLUMNS]
    section = Section(
        image_scores.to_uint8(drawn[show]),
        [captions[i] for i in show],
        "Held-out compositions: never drawn in this tone in training",
    )
    return {f"held_out/{name}": value for name, value in scores.items()}, section


def decoding_row(model: Model, drawn: dict, captions: Sequence[str], which: int) -> Section:
    """One prompt from all hidden to done, in as many frames as the picture has columns."""
    trace_RS = drawn["trace"][which]
    hidden = np.full_like(trace_RS[:1], model.num_codes)
    frames_RS = np.concatenate([hidden, trace_RS])
    is_masked_RS = frames_RS == model.num_codes
    # Hidden codes have no picture of their own; they are covered by the grid's grey.
    image = model.decode(np.where(is_masked_RS, drawn["codes"][which], frames_RS))
    return decoding_section(
        image_scores.to_uint8(image),
        captions[which],
        COLUMNS,
        is_masked_RS.reshape(-1, model.grid, model.grid),
    )
