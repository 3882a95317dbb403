"""The conditional tasks as data: of each, the examples that are shown and what is asked for.

    episode = TASKS["rotate"].make(picture, pool, count=6, shape=(8, 8))

SPAE (arXiv 2306.17842 sec. 4, as recalled) shows class to image, in-painting, and a value between
those of the examples; V2L (arXiv 2403.07874) restores pictures that were blurred, rotated, shifted,
or of which a part is hidden. As in V2L's evaluation script, the examples of a restoration are the
very picture that is asked for, each with other noise: it tests whether the language model sees
through the noise. "rotate_others" has examples of other pictures: there it has to find the rule.
Legend: h w latent grid.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mmx.core.errors import UserError
from mmx.models.spae.in_context import pictures
from mmx.ops.pyramid import Pyramid

SHIFT_CELLS = 2  # ours: how far "shift" moves, in cells of the grid
BLUR = 1 / 16  # ours: the radius of "deblur" over the width, 2 pixels of 32
DIMMEST, BRIGHTEST = 40, 100  # ours: percent, of the outermost examples of "brighten"

Shape = tuple[int, ...]  # of the latent grid: (h, w), of a video (t, h, w)


class Picture(NamedTuple):
    """A picture of a data set: its caption or label, uint8 [H, W, 3]; of a video [T, H, W, 3]."""

    caption: str
    image: np.ndarray


class Example(NamedTuple):
    """An image or a text, and the image that is to follow."""

    given: np.ndarray | str
    wanted: np.ndarray


class Episode(NamedTuple):
    """What a prompt is made of.

    Attributes:
      supports: the examples, nearest to the query last.
      query: what is asked for, whose `wanted` no prompt shows unless a support does.
      wrong: an image for each support that does not belong to what it gives: of the control.
      is_asked_hw: bool [h, w] (of a video [t, h, w]), the cells whose words are asked for.
    """

    supports: list[Example]
    query: Example
    wrong: list[np.ndarray]
    is_asked_hw: np.ndarray


class Task(NamedTuple):
    """A conditional task.

    Attributes:
      title: for a reader.
      make: (the picture that is asked for, others, number of supports, shape of the grid) ->
        Episode. Raises UserError where there are too few others.
    """

    title: str
    make: Callable[[Picture, Sequence[Picture], int, Shape], Episode]


def nearest_captions(caption: str, pool: Sequence[Picture], count: int) -> list[Picture]:
    """Those with the most words in common and then the fewest others; the nearest one last, and
    among equals the first of the pool."""
    words = set(caption.lower().split())

    def distance(picture: Picture) -> tuple[int, int]:
        own = set(picture.caption.lower().split())
        return -len(own & words), len(own - words)

    return sorted(pool, key=distance)[:count][::-1]


def _others(pool: Sequence[Picture], count: int) -> Sequence[Picture]:
    if len(pool) < count:
        raise UserError(f"{count} examples of other pictures: there are {len(pool)}")
    return pool[:count]


def _everywhere(shape: Shape) -> np.ndarray:
    return np.ones(shape, bool)


def _moved(supports: Sequence[Example]) -> list[np.ndarray]:
    """Each support's wrong image: the next one's.

    Raises:
      UserError: there is one alone.
    """
    if len(supports) < 2:
        raise UserError("supports=1: at least 2, so that there is a wrong image for each")
    return [example.wanted for example in [*supports[1:], supports[0]]]


def _class(own: Picture, pool: Sequence[Picture], count: int, shape: Shape) -> Episode:
    near = nearest_captions(own.caption, pool, count)
    supports = [Example(picture.caption, picture.image) for picture in _others(near, count)]
    return Episode(supports, Example(own.caption, own.image), _moved(supports), _everywhere(shape))


def _between(
    low: int, high: int, count: int, make: Callable[[int], Example], shape: Shape
) -> Episode:
    """Examples at even steps of a value, the query at the middle one."""
    values = np.linspace(low, high, count + 1).round().astype(int).tolist()
    middle = values.pop(count // 2)
    values.sort(key=lambda value: (-abs(value - middle), value))
    supports = [make(value) for value in values]
    return Episode(supports, make(middle), _moved(supports), _everywhere(shape))


def _interpolate(own: Picture, pool: Sequence[Picture], count: int, shape: Shape) -> Episode:
    (other,) = _others(pool, 1)

    def make(percent: int) -> Example:
        text = f"{100 - percent}% {own.caption}, {percent}% {other.caption}"
        return Example(text, pictures.blend(own.image, other.image, percent))

    return _between(0, 100, count, make, shape)


def _brighten(own: Picture, pool: Sequence[Picture], count: int, shape: Shape) -> Episode:
    make = lambda percent: Example(f"{percent}%", pictures.brighten(own.image, percent))
    return _between(DIMMEST, BRIGHTEST, count, make, shape)


def _restore(
    spoil: Callable[[np.ndarray, Shape], np.ndarray],
    cells: Callable[[Shape], np.ndarray] = _everywhere,
    by_others: bool = False,
) -> Callable[[Picture, Sequence[Picture], int, Shape], Episode]:
    """Of (image, shape of the grid) -> spoilt image: from the spoilt one back."""

    def make(own: Picture, pool: Sequence[Picture], count: int, shape: Shape) -> Episode:
        query = Example(spoil(own.image, shape), own.image)
        others = _others(pool, count)
        supports = [query] * count
        if by_others:
            supports = [Example(spoil(picture.image, shape), picture.image) for picture in others]
        wrong = _moved(supports) if by_others else [picture.image for picture in others]
        return Episode(supports, query, wrong, cells(shape))

    return make


def _rotated(image: np.ndarray, shape: Shape) -> np.ndarray:
    return pictures.rotate(image)


def _shifted(image: np.ndarray, shape: Shape) -> np.ndarray:
    return pictures.shift(image, SHIFT_CELLS * (len(image) // shape[0]))


def _blurred(image: np.ndarray, shape: Shape) -> np.ndarray:
    return pictures.blur(image, max(1, round(BLUR * len(image))))


def _hidden(cells: Callable[[Shape], np.ndarray]) -> Callable[[np.ndarray, Shape], np.ndarray]:
    return lambda image, shape: pictures.hide(image, cells(shape))


TASKS: dict[str, Task] = {
    "class": Task("Class to image: the most similar captions", _class),
    "interpolate": Task("Text to image, between two labels", _interpolate),
    "brighten": Task("Brightness, between those shown", _brighten),
    "rotate": Task("Rotated by 90 degrees, back", _restore(_rotated)),
    "rotate_others": Task(
        "Rotated, by examples of other pictures", _restore(_rotated, by_others=True)
    ),
    "shift": Task("Shifted by two cells, back", _restore(_shifted)),
    "deblur": Task("Blurred, back", _restore(_blurred)),
    "inpaint": Task("In-painting: the middle", _restore(_hidden(pictures.centre), pictures.centre)),
    "outpaint": Task(
        "Out-painting: the lower half", _restore(_hidden(pictures.later_half), pictures.later_half)
    ),
}
_continue = functools.partial(_restore, _hidden(pictures.later_half), pictures.later_half)
VIDEO_TASKS: dict[str, Task] = {
    "class": Task("Class to video: the most similar captions", _class),
    "continue": Task("Continued: the later half of the frames", _continue()),
    "continue_others": Task("Continued, by examples of other videos", _continue(by_others=True)),
}


def tasks_of(pyramid: Pyramid) -> dict[str, Task]:
    """Those of images, or of videos."""
    return VIDEO_TASKS if pyramid.frames else TASKS
