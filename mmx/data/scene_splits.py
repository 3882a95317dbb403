"""Which scenes are in which split: drawn by a seed, with combinations that training never sees.

Each word of the language is in training, and so is each of a held-out combination's parts in
other combinations. One hash a combination decides:
  - ``heldout_relation``: a tenth of the (kind, relation, kind);
  - ``heldout_background``: for each kind, one of the eight colours behind it;
  - ``heldout_count``: for a quarter of the kinds, two of it or three of it;
  - ``heldout_word``: a fifth of the words, of which each letter is in training at its place.
A scene of such a split breaks that rule and no other. ``test`` breaks none: its scenes are of the
distribution of training, of captions of which 55 % are there too (all of one group and of signs,
10 % of two groups). But no picture of it is in training, at any size: of the places where the
objects of a scene can stand, in whole 1/32 of the side, a hash keeps a quarter for ``test``.

Imports nothing heavy: each worker process imports it anew.
"""

import functools
import hashlib
import zlib
from typing import Any

import numpy as np

from mmx.data import scene_draw
from mmx.data import scene_grammar as grammar
from mmx.data.image import encode_png
from mmx.data.scene_draw import Box
from mmx.data.scene_grammar import Group, Scene

SPLITS = {
    "train": 50_000,
    "test": 5_000,
    "heldout_relation": 1_000,
    "heldout_background": 1_000,
    "heldout_count": 1_000,
    "heldout_word": 500,
}
_KEPT = 4  # one in so many places is kept for "test": ours; each sign has 48 places
_SEED = 20210226  # ours
# Of one group, of two groups, of signs: ours. What is held out is drawn anew, most often of two.
_SHARES = (0.3, 0.55, 0.15)
_COUNTS_OF_TWO = ((1, 1), (1, 2), (2, 1))


def broken_rules(scene: Scene) -> dict[str, tuple[str, ...]]:
    """``heldout_*`` split -> the combination by which a scene breaks its rule.

    Empty for what may be trained on; of two combinations of one split, the first group's.
    """
    broken: dict[str, tuple[str, ...]] = {}
    if scene.relation is not None:
        first, second = (group.kind for group in scene.groups)
        if _hash(f"relation {first} {scene.relation} {second}") % 10 == 0:
            broken["heldout_relation"] = (first, scene.relation, second)
    for group in scene.groups:
        held = _hash(f"background {group.kind}") % len(grammar.BACKGROUNDS)
        if scene.background == grammar.BACKGROUNDS[held]:
            broken.setdefault("heldout_background", (group.kind, scene.background))
        # Never both counts of a kind: else its plural would be in no caption of training.
        draw = _hash(f"count {group.kind}")
        if draw % 4 == 0 and group.count == 2 + draw // 4 % 2:
            broken.setdefault("heldout_count", (group.kind,))
    if scene.word is not None and scene.word in heldout_words():
        broken["heldout_word"] = (scene.word,)
    return broken


@functools.cache
def heldout_words() -> frozenset[str]:
    """A fifth of `grammar.WORDS`, less those with a letter that no other word has at its place."""
    held = {word for word in grammar.WORDS if _hash(f"word {word}") % 5 == 0}
    while True:
        seen = {at for word in grammar.WORDS if word not in held for at in _places(word)}
        lonely = {word for word in held if not set(_places(word)) <= seen}
        if not lonely:
            return frozenset(held)
        held -= lonely


def _places(word: str) -> list[tuple[int, int, str]]:
    return [(len(word), place, letter) for place, letter in enumerate(word)]


def make_scene(split: str, index: int) -> tuple[Scene, list[Box]]:
    """Scene ``index`` of a split, and where its objects stand.

    A pure function of its arguments. Raises ValueError on an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; there are {', '.join(SPLITS)}")
    rng = np.random.default_rng([_SEED, zlib.crc32(split.encode()), index])
    wanted = {split} if split.startswith("heldout_") else set()
    while broken_rules(scene := _draw(rng, split)).keys() != wanted:
        pass
    boxes = scene_draw.place(scene, rng)
    # The other splits hold no scene of training at all.
    while split in ("train", "test") and is_kept(scene, boxes) != (split == "test"):
        boxes = scene_draw.place(scene, rng)
    return scene, boxes


def is_kept(scene: Scene, boxes: list[Box]) -> bool:
    """Whether a scene's objects stand where only those of ``test`` may."""
    at = zip(boxes, scene_draw.corners(boxes, 32))
    things = sorted((box.kind, box.size, *corner) for box, corner in at)
    return _hash(f"place {scene.background} {scene.word} {things}") % _KEPT == 0


def make_example(index: int, split: str, pixels: int) -> dict[str, Any]:
    """Example ``index`` of a split as TFDS takes it: a PNG, its caption, its factors as JSON."""
    scene, boxes = make_scene(split, index)
    return {
        "image": encode_png(scene_draw.draw(scene, boxes, pixels)),
        "caption": grammar.caption(scene),
        "factors": scene.to_json(),
    }


def _draw(rng: np.random.Generator, split: str) -> Scene:
    """Any scene; of the form whose rule the split breaks, so that few are drawn in vain."""
    form = rng.choice(3, p=_SHARES)
    form = {"heldout_relation": 1, "heldout_word": 2}.get(split, form)
    background = _pick(rng, grammar.BACKGROUNDS)
    if form == 2:
        return Scene((), None, background, _pick(rng, grammar.WORDS))
    kinds = rng.choice(len(grammar.KINDS), size=form + 1, replace=False)
    relation = _pick(rng, grammar.RELATIONS) if form == 1 else None
    if relation is None:
        counts = (1 + int(rng.integers(3)),)
    else:
        counts = (1, 1) if relation == "on" else _pick(rng, _COUNTS_OF_TWO)
    groups = tuple(
        Group(grammar.KINDS[kind], count, _pick(rng, grammar.SIZES))
        for kind, count in zip(kinds, counts)
    )
    return Scene(groups, relation, background, None)


def _pick(rng: np.random.Generator, items):
    return items[int(rng.integers(len(items)))]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
