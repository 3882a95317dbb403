"""Grids of captioned pictures, as one PIL image. `png.save_picture` writes it with its metadata."""

import functools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmx.eval import images as im

TILE = 128  # pixels: images are enlarged by whole factors until about this wide
GAP = 12
MARGIN = 28
CAPTION_FITS = ((14, 2), (12, 4))  # (font size, lines) tried in turn; then an ellipsis
LINE = 1.25  # line height, in font sizes
PAGE, CARD, EDGE = "#f5f5f3", "#ffffff", "#dcdcd8"
INK, GREY = "#1d1d1f", "#6c6c70"
HIDDEN = (np.array([222, 222, 226], np.uint8), np.array([208, 208, 214], np.uint8))
_SPELT = str.maketrans(  # en dash, em dash, times, arrow
    {"\u2013": "-", "\u2014": "-", "\u00d7": "x", "\u2192": "->", "\n": " ", "\t": " "}
)


@dataclass(frozen=True)
class Section:
    """A heading and its images, `columns` to a row.

    Attributes:
      images: [n, H, W, 3], uint8 or float in [-1, 1].
      captions: n texts, one under each image.
      title: "" for no heading.
    """

    images: np.ndarray
    captions: Sequence[str]
    title: str = ""


def draw_grid(
    sections: Sequence[Section],
    columns: int = 8,
    title: str = "",
    subtitle: str = "",
    attribution: str = "",
) -> Image.Image:
    """Sections below each other: heading, rows of images, under each image its caption.

    Images are enlarged by nearest neighbour, so that what a model drew is what one sees. Captions
    wrap, then shrink, then end in an ellipsis; letters that the built-in font lacks lose their
    accent or become "?" (the metadata keep the true text).

    Args:
      columns: images in a row; a section with fewer leaves the rest empty.
      title, subtitle: at the top; attribution: at the foot. All wrap.
    Raises ValueError if images differ in size, captions in number, or there is no image.
    """
    batches = [_as_uint8(section) for section in sections]
    shapes = {batch.shape[1:] for batch in batches if len(batch)}
    if len(shapes) != 1:
        raise ValueError(f"a grid needs images of one size, got {sorted(shapes)}")
    height, width, _ = shapes.pop()
    scale = max(1, TILE // width)
    cell_w, cell_h = width * scale, height * scale
    columns = max(1, min(columns, max(len(batch) for batch in batches)))
    inner = columns * cell_w + (columns - 1) * GAP

    page = Page(inner)
    page.text(title, 24, INK, after=4)
    page.text(subtitle, 15, GREY, after=4)
    for section, batch in zip(sections, batches):
        if not len(batch):
            continue
        page.skip(14 if page.y > MARGIN else 0)
        page.text(section.title, 17, INK, after=8)
        for first in range(0, len(batch), columns):
            row = batch[first : first + columns]
            fits = [fit_caption(c, cell_w) for c in section.captions[first : first + columns]]
            for i, (image, (lines, size)) in enumerate(zip(row, fits)):
                x = MARGIN + i * (cell_w + GAP)
                page.image(image, x, scale)
                page.lines(lines, size, INK, x, page.y + cell_h + 5, centre=cell_w)
            tallest = max(len(lines) * round(size * LINE) for lines, size in fits)
            page.skip(cell_h + 5 + tallest + GAP)
    page.text(attribution, 13, GREY, after=0, before=4)
    return page.finish()


def decoding_section(
    images_RHWC: np.ndarray, prompt: str, columns: int = 8, is_masked_Rhw: np.ndarray | None = None
) -> Section:
    """A row that shows how an image was decoded, from all hidden to done.

    Args:
      images_RHWC: frame 0 is before the first step, frame r after step r; `columns` of them, evenly
        spaced, first and last included, are shown.
      is_masked_Rhw: bool, tokens still hidden in each frame; they are covered with grey squares.
    """
    num_steps = len(images_RHWC) - 1
    frames = np.unique(np.round(np.linspace(0, num_steps, min(columns, num_steps + 1))).astype(int))
    images = np.asarray(images_RHWC)[frames]
    if is_masked_Rhw is not None:
        images = cover_hidden(images, np.asarray(is_masked_Rhw)[frames])
    captions = ["start" if r == 0 else f"step {r} of {num_steps}" for r in frames]
    return Section(images, captions, f"Decoding “{prompt}”")


def cover_hidden(images_BHWC: np.ndarray, is_masked_Bhw: np.ndarray) -> np.ndarray:
    """uint8 images with every hidden token's square in a grey of the token chessboard.

    H and W must be multiples of h and w.
    """
    images = _to_uint8(images_BHWC)
    (height, width), (h, w) = images.shape[1:3], is_masked_Bhw.shape[1:]
    if len(images) != len(is_masked_Bhw) or height % h or width % w:
        raise ValueError(f"cannot lay tokens {is_masked_Bhw.shape} over images {images.shape}")
    dark_hw = (np.arange(h)[:, None] + np.arange(w)) % 2
    board_hwC = np.stack(HIDDEN)[dark_hw]
    square = np.ones((height // h, width // w), np.uint8)
    board_HWC = np.kron(board_hwC, square[..., None])
    is_masked_BHW = np.kron(is_masked_Bhw.astype(np.uint8), square[None]).astype(bool)
    return np.where(is_masked_BHW[..., None], board_HWC, images)


def fit_caption(text: str, width: int) -> tuple[list[str], int]:
    """(lines, font size) of a caption in `width` pixels: the first of `CAPTION_FITS` that holds."""
    text = printable(text)
    for size, max_lines in CAPTION_FITS:
        lines = wrap(text, size, width)
        if len(lines) <= max_lines:
            return lines, size
    last = lines[max_lines - 1]
    while last and font(size).getlength(last.rstrip() + "…") > width:
        last = last[:-1]
    return [*lines[: max_lines - 1], last.rstrip() + "…"], size


def wrap(text: str, size: int, width: int) -> list[str]:
    """Break text at spaces, and inside words longer than a line, into lines of <= width pixels."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".lstrip()
        if font(size).getlength(joined) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font(size).getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return [line for line in lines if line]


def printable(text: str) -> str:
    """Text in letters that the built-in font has: accents dropped where needed, else "?"."""
    out = []
    for letter in unicodedata.normalize("NFC", text).translate(_SPELT):
        if _has_glyph(letter):
            out.append(letter)
        else:
            parts = [
                c for c in unicodedata.normalize("NFKD", letter) if not unicodedata.combining(c)
            ]
            out.append("".join(parts) if parts and all(map(_has_glyph, parts)) else "?")
    return "".join(out)


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=size)  # comes with Pillow: no font file to ship or to find


@functools.cache
def _has_glyph(letter: str) -> bool:
    missing = font(16).getmask("\U000effff")  # no font has it: drawn as the box for "no glyph"
    drawn = font(16).getmask(letter)
    return drawn.size != missing.size or bytes(drawn) != bytes(missing)


def _to_uint8(images: np.ndarray) -> np.ndarray:
    images = np.asarray(images)
    return images if images.dtype == np.uint8 else im.to_uint8(images)


def _as_uint8(section: Section) -> np.ndarray:
    images = _to_uint8(section.images)
    if images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"expected images [n, H, W, 3], got {images.shape}")
    if len(images) != len(section.captions):
        raise ValueError(f"{len(images)} images but {len(section.captions)} captions")
    return images


class Page:
    """A canvas that grows downwards; `y` is where the next thing goes."""

    def __init__(self, inner: int):
        self.inner = inner
        self.y = MARGIN
        self._canvas = Image.new("RGB", (inner + 2 * MARGIN, 1), PAGE)

    def skip(self, pixels: int) -> None:
        self.y += pixels

    def text(self, text: str, size: int, colour: str, after: int, before: int = 0) -> None:
        """Text across the page, wrapped, moving `y` below it; nothing if it is empty."""
        if lines := wrap(printable(text), size, self.inner):
            self.y += before
            self.lines(lines, size, colour, MARGIN, self.y)
            self.y += len(lines) * round(size * LINE) + after

    def lines(self, lines, size, colour, x, y, centre: int = 0) -> None:
        """Lines from (x, y) down, centred in `centre` pixels if given."""
        self._grow(y + len(lines) * round(size * LINE))
        draw = ImageDraw.Draw(self._canvas)
        for i, line in enumerate(lines):
            shift = (centre - font(size).getlength(line)) / 2 if centre else 0
            draw.text((round(x + shift), y + i * round(size * LINE)), line, colour, font(size))

    def image(self, image_u8: np.ndarray, x: int, scale: int) -> None:
        tile = Image.fromarray(image_u8)
        tile = tile.resize((tile.width * scale, tile.height * scale), Image.Resampling.NEAREST)
        self._grow(self.y + tile.height)
        box = (x - 1, self.y - 1, x + tile.width, self.y + tile.height)
        ImageDraw.Draw(self._canvas).rectangle(box, CARD, EDGE)
        self._canvas.paste(tile, (x, self.y))

    def finish(self) -> Image.Image:
        return self._canvas.crop((0, 0, self._canvas.width, self.y + MARGIN - GAP))

    def _grow(self, bottom: int) -> None:
        if bottom + MARGIN > self._canvas.height:
            taller = Image.new("RGB", (self._canvas.width, 2 * (bottom + MARGIN)), PAGE)
            taller.paste(self._canvas, (0, 0))
            self._canvas = taller
