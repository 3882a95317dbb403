"""A closer look at what was found in a picture of a scene: the word on a sign, and who is in front.

As in `mmx.eval.scene_reader` by synthesis: what could be there is drawn, also blurred, and what
comes nearest to the picture is what it shows.
"""

import functools
import itertools
import math
import string
from typing import NamedTuple

import numpy as np

from mmx.data import scene_draw

BLURS = (0.0, 0.5, 1.0, 1.5, 2.0)  # sigmas, in 1/32 of the side, that are tried
_INK = 1 - 30 / 255  # of a letter: darkness, of 1
_MARGIN = 2  # in 1/32 of the side: around a letter's cell, which its blur reaches
_AROUND = 2  # in 1/32 of the side: around two things, what of the picture is looked at


class Thing(NamedTuple):
    """A found object: its kind, size ("sign" for a sign) and box, in 1/32 of the side."""

    kind: str
    size: str
    x: float
    y: float
    w: float
    h: float


Box = tuple[float, float, float, float]  # left, top, right, bottom in 1/32 of the side


def union(things: list[Thing]) -> Box:
    return (
        min(t.x for t in things),
        min(t.y for t in things),
        max(t.x + t.w for t in things),
        max(t.y + t.h for t in things),
    )


def blurred(pictures_BHWC: np.ndarray, sigma: float) -> np.ndarray:
    """A gaussian blur out to about 3 sigma; the edge pixels go on beyond the edge."""
    reach = math.ceil(2.8 * sigma)
    x = np.arange(-reach, reach + 1)
    kernel = np.exp(-(x**2) / (2 * max(sigma, 1e-3) ** 2)).astype(np.float32)
    kernel /= kernel.sum()
    for axis in (1, 2):
        pad = [(0, 0)] * 4
        pad[axis] = (reach, reach)
        padded, n = np.pad(pictures_BHWC, pad, mode="edge"), pictures_BHWC.shape[axis]
        parts = [k * padded.take(range(i, i + n), axis=axis) for i, k in enumerate(kernel)]
        pictures_BHWC = np.sum(parts, axis=0)
    return pictures_BHWC


def in_front(picture: np.ndarray, shade: np.ndarray, a: Thing, b: Thing, blur: float) -> bool:
    """Whether a picture [side, side, 3] on ground [3] shows a in front of b, not b in front of a.

    Which of the two drawings comes nearer; true where they are one drawing.
    """
    scale = len(picture) / scene_draw.SIDE
    left, top, right, bottom = union([a, b])
    left, top = max(math.floor(left - _AROUND), 0), max(math.floor(top - _AROUND), 0)
    part = picture[
        round(top * scale) : round((bottom + _AROUND) * scale),
        round(left * scale) : round((right + _AROUND) * scale),
    ]
    a, b = (thing._replace(x=thing.x - left, y=thing.y - top) for thing in (a, b))
    return _misfit(part, shade, a, b, blur, scale) <= _misfit(part, shade, b, a, blur, scale)


def _misfit(picture, shade, front: Thing, back: Thing, blur: float, scale: float) -> float:
    """Squared error of two things drawn as like a picture [h, w, 3] as they get.

    Each is moved by up to 1/64 of the side each way, at a blur that is about that of the picture;
    then those of `BLURS` that are near are tried.
    """

    def error(front: Thing, back: Thing, blur: float = blur) -> float:
        drawn = np.empty(picture.shape, np.float32)
        drawn[:] = shade
        for thing in (back, front):
            _paste(drawn, thing, scale)
        return float(((blurred(drawn[None], blur * scale)[0] - picture) ** 2).sum())

    steps = np.arange(-math.ceil(scale / 2), math.ceil(scale / 2) + 1) / scale
    places = lambda thing: [
        thing._replace(x=thing.x + x, y=thing.y + y) for x, y in itertools.product(steps, repeat=2)
    ]
    front = min(places(front), key=lambda front: error(front, back))
    back = min(places(back), key=lambda back: error(front, back))
    return min(error(front, back, b) for b in BLURS if abs(b - blur) <= 0.5)


def _paste(canvas: np.ndarray, thing: Thing, scale: float) -> None:
    """Draws a thing on a canvas [h, w, 3], what is inside of it."""
    ink = scene_draw.sprite(thing.kind, thing.size, round(scale * scene_draw.SIDE))
    y, x = round(thing.y * scale), round(thing.x * scale)
    under = canvas[max(y, 0) : max(y + len(ink), 0), max(x, 0) : max(x + ink.shape[1], 0)]
    ink = ink[max(-y, 0) :, max(-x, 0) :][: under.shape[0], : under.shape[1]]
    under[:] = ink[..., :3] + under * (1 - ink[..., 3:])


def read_word(picture: np.ndarray, shade: np.ndarray, sign: Thing) -> str:
    """The 2 or 3 capitals on a found sign that explain it best.

    Args:
      picture: [side, side, 3], 0..255, of whatever side `scene_draw` draws.
      shade: [3], what is behind the sign.
      sign: where it is; its place is improved by up to 1/32 of the side each way.

    The least squared error of the whole board over all words, places and the `BLURS` that a
    picture may have. A blurred letter reaches into the next one's cell: beside what each letter
    explains stands what two neighbours explain together.
    """
    side = len(picture)
    scale = side / scene_draw.SIDE
    w, h = (round(length * scale) for length in scene_draw.BOARD)
    reach = round(scale)
    dark = np.pad(1 - picture.mean(-1) / 255, reach, mode="edge")  # 1 is black
    empty, see_through = _empty(side)
    boards = empty + see_through * (1 - shade.mean() / 255)  # [blurs, h, w]
    letters, own, both = _letters(side)
    lh, lw = letters.shape[2:]
    margin = round(_MARGIN * scale)
    best = (np.inf, "")
    for down, right in itertools.product(range(2 * reach + 1), repeat=2):
        top, left = round(sign.y * scale) + down, round(sign.x * scale) + right
        board = dark[max(top, 0) : top + h, max(left, 0) : left + w]
        if board.shape != (h, w):
            continue
        rest = board - boards
        paper = (rest**2).sum((1, 2))
        for length in (2, 3):
            corners = scene_draw.letter_corners(length, side)
            cells = [rest[:, y - margin :, x - margin :][:, :lh, :lw] for x, y in corners]
            seen = np.einsum("pbhw,blhw->bpl", np.stack(cells), letters, optimize=True)
            alone = own[:, None] - 2 * seen  # [blur, place, letter]: more error than empty paper
            words = alone[:, 0, :, None] + alone[:, 1, None] + both
            if length == 3:
                words = words[..., None] + (alone[:, 2, None] + both)[:, None]
            errors = paper[:, None] + words.reshape(len(words), -1)
            blur, word = np.unravel_index(errors.argmin(), errors.shape)
            chosen = (string.ascii_uppercase[i] for i in np.unravel_index(word, words.shape[1:]))
            best = min(best, (errors[blur, word], "".join(chosen)))
    return best[1]


@functools.cache
def _letters(side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The capitals at each of `BLURS`, with `_MARGIN` around their cells.

    Darkness float32 [blurs, 26, h, w]; its energy [blurs, 26]; and twice what two neighbours, the
    first and the second, have in common [blurs, 26, 26].
    """
    scale = side / scene_draw.SIDE
    margin, step = round(_MARGIN * scale), round(scene_draw.LETTER[0] * scale)
    sharp = np.stack([scene_draw.letter(c, side) for c in string.ascii_uppercase]) * _INK
    sharp = np.pad(sharp, ((0, 0), (margin, margin), (margin, margin)))
    dark = np.stack([blurred(sharp[..., None], blur * scale)[..., 0] for blur in BLURS])
    both = 2 * np.einsum("blhw,bmhw->blm", dark[..., step:], dark[..., :-step], optimize=True)
    return dark, (dark**2).sum((2, 3)), both


@functools.cache
def _empty(side: int) -> tuple[np.ndarray, np.ndarray]:
    """A sign without its word at each of `BLURS`: darkness, and the share of what is behind it.

    Both float32 [blurs, h, w], of the board alone.
    """
    scale = side / scene_draw.SIDE
    w, h = (round(length * scale) for length in scene_draw.BOARD)
    margin = math.ceil(3 * max(BLURS) * scale)
    ink = np.pad(scene_draw.board(side), ((margin, margin), (margin, margin), (0, 0)))
    soft = np.stack([blurred(ink[None], blur * scale)[0] for blur in BLURS])
    soft = soft[:, margin : margin + h, margin : margin + w]
    return soft[..., 3] - soft[..., :3].mean(-1) / 255, 1 - soft[..., 3]
