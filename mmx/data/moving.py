"""Videos of drawings that move, made of a data set of images as they are read.

``moving:openmoji/32``: each drawing, half as large, on white, moving to each of four sides in 16
frames, at two speeds: "a red heart moves left", "a red heart moves slowly up". The splits are those
of the data set. What a video shows hangs on its number alone: nothing is drawn at random.
"""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils.epath import PathLike

from mmx.core.errors import UserError
from mmx.data.image import fit
from mmx.data.source import DataInfo, Source, open_source

FRAMES = 16
_WHITE = 255
# Where to -> (axis, sign) of the way.
SIDES = {"left": (1, -1), "right": (1, 1), "up": (0, -1), "down": (0, 1)}
# How -> the share of the room that the way takes.
SPEEDS = {"": 1.0, "slowly ": 0.5}
MOTIONS = tuple(itertools.product(SPEEDS, SIDES))
_STEP = 7  # pixels aside from one drawing's way to the next one's: no two neighbours move alike


def move(image: np.ndarray, speed: str, side: str, aside: int = 0) -> np.ndarray:
    """A drawing, half as large, on its way to a side; through the middle at half time.

    Args:
      image: uint8 [S, S, 3], of even S.
      speed: of `SPEEDS`.
      side: of `SIDES`.
      aside: pixels from the upper or left border to the way; taken modulo the room, S / 2 + 1.

    Returns:
      uint8 [16, S, S, 3].
    """
    size = image.shape[0]
    small, room = fit(image, size // 2), size - size // 2
    axis, sign = SIDES[side]
    half = sign * SPEEDS[speed] * room / 2
    # In steps of half a pixel numpy would round to even numbers, which stutters.
    way = np.floor(room / 2 + np.linspace(-half, half, FRAMES) + 0.5).astype(int)
    video = np.full((FRAMES, *image.shape), _WHITE, np.uint8)
    for frame, place in zip(video, way, strict=True):
        top, left = (place, aside % (room + 1)) if axis == 0 else (aside % (room + 1), place)
        frame[top : top + small.shape[0], left : left + small.shape[1]] = small
    return video


@dataclasses.dataclass(frozen=True)
class MovingInfo(DataInfo):
    """Of videos: as of the data set of their drawings."""

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the data set's examples and of how they move."""
        ways = f"{super().fingerprint} {FRAMES} {SIDES} {SPEEDS} {_STEP}"
        return hashlib.sha256(ways.encode()).hexdigest()[:16]


class Moving:
    """Random access to one split of videos: to its readers a :class:`mmx.data.source.Source`.

    ``moving[i]`` is the drawing's example with ``"image"`` uint8 [16, S, S, 3], ``"text"`` its
    caption with the motion, and ``"motion"``, such as "slowly left". All drawings follow each
    other, neighbours moving in different ways, and again, until each has moved in every way.

    Attributes:
      info: of the data set, with the splits' numbers of videos.
      split: its name.
      label, class_names: none.
    """

    label, class_names = None, {}

    def __init__(self, info: MovingInfo, drawings: Source):
        self.info, self.split, self._drawings = info, drawings.split, drawings

    def __len__(self) -> int:
        return len(self._drawings) * len(MOTIONS)

    def __repr__(self) -> str:
        return f"Moving({self.info.name}, {self.split}, {len(self)} videos)"

    def __getitem__(self, index: int) -> dict[str, Any]:
        turn, drawing = divmod(index, len(self._drawings))
        example, motion = self._drawings[drawing], _motion(turn, drawing)
        video = move(example["image"], *motion, _STEP * drawing)
        return _told(example, motion) | {"image": video}

    def outlines(self) -> Iterator[dict[str, Any]]:
        """All in order, with None for their videos, which are not made."""
        for turn in range(len(MOTIONS)):
            for drawing, example in enumerate(self._drawings.outlines()):
                yield _told(example, _motion(turn, drawing))


def _motion(turn: int, drawing: int) -> tuple[str, str]:
    return MOTIONS[(turn + drawing) % len(MOTIONS)]


def _told(example: dict[str, Any], motion: tuple[str, str]) -> dict[str, Any]:
    told = "".join(motion)
    return example | {"text": f"{example['text']} moves {told}", "motion": told}


def open_moving(spec: str, split: str, data_dir: PathLike | None = None) -> Moving:
    """Open a split of ``"moving:NAME/CONFIG"``.

    Raises:
      UserError: see :func:`mmx.data.source.open_source`; drawings that are not square, or odd.
    """
    drawings = open_source(f"tfds:{spec.partition(':')[2]}", split, data_dir)
    height, width = drawings[0]["image"].shape[:2]
    if height != width or height % 2:
        raise UserError(
            f"data.source={spec}: its images are {width}x{height}; what moves has to be square, of "
            "an even size"
        )
    fields = {f.name: getattr(drawings.info, f.name) for f in dataclasses.fields(DataInfo)}
    counts = {name: count * len(MOTIONS) for name, count in drawings.info.splits.items()}
    return Moving(MovingInfo(**fields | {"name": spec, "splits": counts}), drawings)
