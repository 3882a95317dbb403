"""What is shown and asked: drawings of two artists, concepts trained on and not, pools of one size.

Axis letters: N drawings, C classes.
"""

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from mmx.data import scene_grammar
from mmx.data.source import open_source
from mmx.eval import retrieval

ARTISTS = {"same": "tfds:openmoji/64", "new": "tfds:noto/64"}
TRAINED = ("train", "train_toned")
SPLITS = (*TRAINED, "heldout_composition", "test")
_SAME_PICTURE = 1e-4  # of `retrieval.distances`: one grey level everywhere is 6e-5


@dataclasses.dataclass(frozen=True)
class Drawing:
    """One emoji that both artists drew.

    Attributes:
      codepoints: its name.
      caption, base, concept: of ``mmx.data.emoji_table.Entry``; tone siblings have one base.
      is_flag: whether it shows a flag.
      split: of OpenMoji.
      pictures: artist -> uint8 [64, 64, 3].
    """

    codepoints: str
    caption: str
    base: str
    concept: str
    is_flag: bool
    split: str
    pictures: dict = dataclasses.field(repr=False, compare=False)

    @property
    def is_toned(self) -> bool:
        return self.caption != self.base


def load(data_dir: str) -> list[Drawing]:
    """All that both artists drew, in the order of the splits and of OpenMoji."""
    drawings = []
    for split in SPLITS:
        theirs = open_source(ARTISTS["new"], split, data_dir)
        new = {
            example["codepoints"]: example["image"]
            for example in map(theirs.__getitem__, range(len(theirs)))
        }
        ours = open_source(ARTISTS["same"], split, data_dir)
        for example in map(ours.__getitem__, range(len(ours))):
            name = example["codepoints"]
            if name in new:
                drawings.append(
                    Drawing(
                        name,
                        example["text"],
                        example["base"],
                        example["concept"],
                        bool(example["is_flag"]),
                        split,
                        {"same": example["image"], "new": new[name]},
                    )
                )
    return drawings


def stack(drawings: Sequence[Drawing], artist: str) -> np.ndarray:
    """uint8 [N, 64, 64, 3]."""
    return np.stack([drawing.pictures[artist] for drawing in drawings])


def leaks(drawings: Sequence[Drawing]) -> dict[str, list[str]]:
    """Why a base of the test split was seen in training after all -> the bases, sorted.

    ``scenes``: a kind of the scenes is a drawing of that concept. ``picture``: OpenMoji has one
    picture under two names, and the other one is trained on.
    """
    in_scenes = set(map(scene_grammar.codepoints, scene_grammar.KINDS))
    concepts = {d.concept for d in drawings if d.codepoints in in_scenes}
    test = [d for d in drawings if d.split == "test"]
    trained = [d for d in drawings if d.split in TRAINED]
    found = {"scenes": {d.base for d in test if d.concept in concepts}, "picture": set()}
    if test and trained:
        distance = retrieval.distances(stack(test, "same"), stack(trained, "same")).min(1)
        found["picture"] = {d.base for d, near in zip(test, distance) if near < _SAME_PICTURE}
    return {why: sorted(bases) for why, bases in found.items()}


def pools(drawings: Sequence[Drawing], leaked: set[str], seed: int) -> dict[str, list[Drawing]]:
    """``unseen`` and ``seen``: alike in number of bases, of tone siblings of each, and of flags.

    Unseen is the whole test split without the bases that `leaks` found. For each of its bases one
    is drawn whose drawings were trained on, a flag for a flag, with at least as many of them; as
    many are taken, the untoned one first.

    Raises:
      ValueError: not enough bases to draw from.
    """
    unseen = _by_base(d for d in drawings if d.split == "test" and d.base not in leaked)
    trained = _by_base(d for d in drawings if d.split in TRAINED)
    rng = np.random.default_rng(seed)
    free = [list(trained.values())[i] for i in rng.permutation(len(trained))]
    seen = []
    # Those with many siblings first: few can serve them, and others would take these away.
    for wanted in sorted(unseen.values(), key=len, reverse=True):
        for place, group in enumerate(free):
            if len(group) >= len(wanted) and group[0].is_flag == wanted[0].is_flag:
                seen += free.pop(place)[: len(wanted)]
                break
        else:
            raise ValueError(f"no base of {len(wanted)} drawings is left to go with {wanted[0]}")
    return {"seen": seen, "unseen": [d for group in unseen.values() for d in group]}


def _by_base(drawings) -> dict[str, list[Drawing]]:
    groups = collections.defaultdict(list)
    for drawing in drawings:
        groups[drawing.base].append(drawing)
    for group in groups.values():
        group.sort(key=lambda d: d.is_toned)
    return {base: group for base, group in groups.items() if not group[0].is_toned}


def classes(examples: Sequence[dict]) -> dict[str, list[str]]:
    """Concept -> all its captions, of what is trained on; the C classes in order."""
    captions = collections.defaultdict(set)
    for example in examples:
        captions[example["concept"]].add(example["text"])
    return {concept: sorted(captions[concept]) for concept in sorted(captions)}


def other_view(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same drawing at three quarters of its size, somewhere else on the white page.

    Args:
      image: uint8 [H, W, 3].
    """
    size = image.shape[0] * 3 // 4
    small = retrieval.area_resize(image[None].astype(np.float32), size)[0]
    down, right = rng.integers(0, image.shape[0] - size + 1, size=2)
    view = np.full_like(image, 255)
    view[down : down + size, right : right + size] = np.floor(small + 0.5)
    return view
