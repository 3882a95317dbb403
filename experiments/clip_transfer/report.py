"""The table, the plot and the picture of results.json."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import scores
from drawings import ARTISTS, Drawing
from PIL import Image

from mmx.data import noto, openmoji
from mmx.eval.grid import Section, draw_grid
from mmx.eval.png import save_picture

NAMES = {
    "clip": "CLIP, OpenMoji and scenes",
    "clip_openmoji": "CLIP, OpenMoji",
    "classifier": "classifier",
    "untrained": "untrained",
    "pixels": "pixels, no network",
}
COLOURS = {"clip": "#1f77b4", "clip_openmoji": "#17a2a2", "classifier": "#d9752b"}
CELLS = [(pool, artist) for pool in ("seen", "unseen") for artist in ARTISTS]
_QUERIES = {"unseen": 7, "seen": 3}  # rows of the picture, drawn at random: ours
_SHOWN = 3  # nearest ones of each way
_RIGHT = (38, 150, 70)  # the frame of a right one


def unfinished(results: Mapping) -> list[str]:
    """Arms and seeds that are asked for and not there."""
    done = {f"{arm}-{seed}" for arm, of in results["arms"].items() for seed in of["seeds"]}
    return [name for name in results["settings"]["every"] if name not in done]


def not_measured(results: Mapping) -> list[str]:
    """Arms of which some seed is done, with the kinds of questions that were not put to them."""
    found = []
    for arm, of in results["arms"].items():
        asked = {name.split("/")[0] for name in of["scores"]}
        wanted = _ASKED if "clip" in arm else [kind for kind in _ASKED if kind not in _OF_CLIP]
        missing = [_ASKED[kind] for kind in wanted if kind not in asked]
        if of["seeds"] and missing:
            found.append(f"{NAMES[arm]}: {', '.join(missing)}")
    return found


_ASKED = {
    "text_to_image": "retrieval",
    "match": "picture to picture",
    "top1": "top-1",
    "pgd": "PGD",
    "typo": "words on pictures",
    "reading": "reading",
}
_OF_CLIP = ("text_to_image", "reading")


def _cell(score: Mapping | None, with_seeds: bool = True) -> str:
    if score is None:
        return ""
    text = f"{score['value']:.2f} [{score['low']:.2f}, {score['high']:.2f}]"
    seeds = score.get("seeds", [])
    if with_seeds and len(seeds) > 1:
        text += f" ({min(seeds):.2f}-{max(seeds):.2f})"
    return text


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def table(results: Mapping) -> str:
    """Markdown, of all that is done; what is not is named."""
    arms = {arm: of["scores"] for arm, of in results["arms"].items()}
    seeds = {arm: len(of["seeds"]) for arm, of in results["arms"].items()}
    chance, pool = results["chance"], results["pools"]["unseen"]
    missing, unasked = unfinished(results), not_measured(results)
    lines = [
        f"Unfinished: {', '.join(missing)}." if missing else "All arms and seeds are finished.",
        *([f"Not measured: {'; '.join(unasked)}."] if unasked else []),
        "Mean of the seeds [95 % interval over concepts] (least and most of a seed).",
        "",
        f"**Retrieval**, of {pool['drawings']} pictures of {pool['bases']} emoji "
        f"({pool['flags']} of them flags) in each cell; "
        f"chance R@1 {chance['unseen/r1']:.3f}, R@5 {chance['unseen/r5']:.3f}.",
        "",
    ]
    head = ["", "", "seen, same artist", "seen, new artist", "unseen, same artist"]
    head.append("unseen, new artist")
    rows = []
    for arm in ("clip", "clip_openmoji", "untrained"):
        for way in ("text_to_image", "image_to_text"):
            for k in ("r1", "r5", "exact_r1"):
                found = [arms.get(arm, {}).get(f"{way}/{p}/{a}/{k}") for p, a in CELLS]
                if any(found) and not (arm == "untrained" and k != "r1"):
                    what = f"{way.replace('_', ' ')} {_K[k]}"
                    rows.append([NAMES[arm], what, *map(_cell, found)])
    lines += _rows(head, rows)
    lines += [
        "**Picture to picture**: which OpenMoji picture of the pool is nearest, by features? Asked "
        "with the new artist's picture of it, and with another view of the same artist's.",
        "",
    ]
    rows = []
    for arm, of in arms.items():
        for k in ("r1", "r5"):
            found = [of.get(f"match/{p}/{a}/{k}") for p, a in CELLS]
            rows.append([NAMES[arm], f"picture to picture {_K[k]}", *map(_cell, found)])
    lines += _rows(head, rows)
    lines += [
        f"**Top-1 among the {chance['classes']} concepts trained on** (chance "
        f"{1 / chance['classes']:.4f}); CLIP is given the captions of each. `tone`: a trained "
        "concept in a tone of skin that was held out.",
        "",
    ]
    head = ["", "trained, same artist", "trained, new artist", "new / same"]
    head += ["tone, same artist", "tone, new artist"]
    rows = []
    for arm, of in arms.items():
        if "top1/trained/same/right" in of:
            found = [of[f"top1/{g}/{a}/right"] for g in ("trained", "tone") for a in ARTISTS]
            ratio = _cell(results["ratios"].get(arm))
            cells = list(map(_cell, found))
            rows.append([NAMES[arm], *cells[:2], ratio, *cells[2:]])
    lines += _rows(head, rows)
    for name, score in results["ratios"].items():
        if " - " in name:
            one, other = (NAMES[arm] for arm in name.split(" - "))
            lines += [f"new / same of {one} less that of the {other}: {_cell(score)}.", ""]
    lines += _pgd_lines(arms) + _typo_lines(arms, chance) + _reading_lines(arms)
    lines += ["**Cost**, CPU minutes of a seed: " + _cost(results, seeds) + "."]
    return "\n".join(lines) + "\n"


_K = {"r1": "R@1", "r5": "R@5", "exact_r1": "R@1, tone too"}


def _pgd_lines(arms: Mapping) -> list[str]:
    """Accuracy by eps, and the check of the attack's strength."""
    n = _first(arms, "pgd/same/eps0/right")["n"]
    lines = [
        f"**PGD** (L-inf, {scores.PGD_STEPS} steps, eps in grey levels of 255): top-1 of {n} "
        "emoji that were trained on as OpenMoji draws them.",
        "",
    ]
    levels = [f"{eps:g}" for eps in (0, *scores.EPS)]
    rows = []
    for artist in ARTISTS:
        for arm, of in arms.items():
            found = [of.get(f"pgd/{artist}/eps{eps}/right") for eps in levels]
            if any(found) and arm != "untrained":
                rows.append([NAMES[arm], f"{artist} artist", *(_cell(s, False) for s in found)])
    lines += _rows(["", "", *(f"eps {eps}" for eps in levels)], rows)
    checks = []
    for arm, of in arms.items():
        found = {n.split("/")[2]: s for n, s in of.items() if n.startswith("pgd_check/")}
        if found and arm != "untrained":
            eps = next(n for n in of if n.startswith("pgd_check/")).split("/")[1][3:]
            said = ", ".join(f"{what} {s['value']:.2f}" for what, s in found.items())
            checks.append(f"{NAMES[arm]} at eps {eps}: {said}")
    if checks:
        lines += [f"Is the attack strong enough? Seed 0: {'; '.join(checks)}.", ""]
    return lines


def _typo_lines(arms: Mapping, chance: Mapping) -> list[str]:
    n = _first(arms, "typo/clean/right")["n"]
    lines = [
        f"**A word on the picture** ({n} pictures, one of {chance['words']} words each). right: "
        "the picture's class is the answer; target: the word's class is; above: the word's class "
        "is likelier than the picture's.",
        "",
    ]
    rows = []
    for arm, of in arms.items():
        if arm == "untrained" or "typo/clean/right" not in of:
            continue
        for what, said in _WRITTEN.items():
            found = [of[f"typo/{what}/{asked}"] for asked in ("right", "target", "above")]
            rows.append([NAMES[arm], said, *map(_cell, found[:1])])
            rows[-1] += [_fine(score) for score in found[1:]]
    return lines + _rows(["", "on the picture", "right", "target", "above"], rows)


_WRITTEN = {
    "clean": "nothing",
    "large/word": "the word, large",
    "large/other": "another word, large",
    "large/scrambled": "its ink in pieces, large",
    "small/word": "the word, small",
    "small/other": "another word, small",
    "small/scrambled": "its ink in pieces, small",
}


def _fine(score: Mapping) -> str:
    return f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"


def _reading_lines(arms: Mapping) -> list[str]:
    rows = []
    for arm, of in arms.items():
        found = [of.get(f"reading/{group}/r1") for group in ("trained", "heldout")]
        if any(found):
            rows.append([NAMES[arm], *map(_cell, found)])
    from mmx.data.scene_grammar import WORDS

    said = f"**Reading**: the word of a sign of the scenes, among {len(WORDS)} words (chance "
    said += f"{1 / len(WORDS):.3f})."
    return [said, "", *_rows(["", "words of training", "words held out"], rows)]


def _first(arms: Mapping, name: str) -> Mapping:
    return next(of[name] for of in arms.values() if name in of)


def _cost(results: Mapping, seeds: Mapping) -> str:
    said = []
    for arm, count in seeds.items():
        if count and arm != "untrained":
            records = results["arms"][arm]["seeds"].values()
            minutes = [
                f"{np.mean([r[key] for r in records]) / 60:.1f}"
                for key in ("cpu_seconds", "measuring_cpu_seconds")
            ]
            said.append(
                f"{NAMES[arm]} {minutes[0]} training, {minutes[1]} measuring ({count} seeds)"
            )
    return "; ".join(said)


def queries(pools: Mapping[str, Sequence[Drawing]]) -> dict[str, list[int]]:
    """Pool -> places of the drawings that the picture asks for: drawn at random, none chosen."""
    chosen = {}
    for pool, count in _QUERIES.items():
        untoned = [i for i, drawing in enumerate(pools[pool]) if not drawing.is_toned]
        order = np.random.default_rng(0).permutation(len(untoned))[:count]
        chosen[pool] = [untoned[i] for i in order]
    return chosen


def draw_matches(results: Mapping, pools: Mapping[str, Sequence[Drawing]], path: Path) -> None:
    """matches.png: pictures of the new artist, each with the nearest ones of the other."""
    ways = [way for way in _SHORT if way in results["nearest"]]
    sections = []
    for pool, places in queries(pools).items():
        drawings = {d.codepoints: d for d in pools[pool]}
        for query in (pools[pool][i] for i in places):
            images, captions = [query.pictures["new"]], [f"Noto: {query.caption}"]
            for way in ways:
                nearest = results["nearest"][way][pool][query.codepoints][:_SHOWN]
                for rank, near in enumerate(map(drawings.get, nearest), start=1):
                    images.append(_framed(near.pictures["same"], near.base == query.base))
                    captions.append(f"{_SHORT[way]} {rank}: {near.caption}")
            title = f"{query.caption} ({pool} in training)"
            sections.append(Section(np.stack(images), captions, title))
    credit = f"{openmoji.ATTRIBUTION}; {noto.ATTRIBUTION}"
    picture = draw_grid(
        sections,
        columns=1 + _SHOWN * len(ways),
        title="The nearest OpenMoji pictures to a picture of Noto",
        subtitle=f"{len(sections)} emoji drawn at random; of "
        f"{results['pools']['unseen']['drawings']} pictures the nearest, by features of CLIP "
        "(OpenMoji and scenes), of the classifier, and by pixels. Green frame: the same "
        "emoji, or a tone of it.",
        attribution=f"{credit}.",
    )
    few = picture.quantize(192, dither=Image.Dither.NONE)
    save_picture(path, few, {"attribution": credit})


_SHORT = {"clip": "CLIP", "classifier": "classifier", "pixels": "pixels"}


def _framed(image: np.ndarray, is_right: bool) -> np.ndarray:
    image = image.copy()
    if is_right:
        image[:2], image[-2:], image[:, :2], image[:, -2:] = (_RIGHT,) * 4
    return image
