"""A comparison as one picture: rows prompts, columns checkpoints, scores and differences on top."""

from PIL import Image

from mmx.eval.comparison import Comparison
from mmx.eval.grid import GAP, GREY, INK, LINE, MARGIN, Page, fit_caption, printable, wrap
from mmx.eval.ledger import spell

_TILE = 112  # pixels: images are enlarged by whole factors until about this wide
_LABELS = 190  # pixels of the column of texts on the left


def draw_sheet(shown: Comparison) -> Image.Image:
    """Enlarged by nearest neighbour; texts wrap, see :func:`mmx.eval.grid.draw_grid`."""
    sizes = [c.images.shape[2] for c in shown.columns if c.images is not None] or [_TILE]
    width = max(max(sizes), *(size * max(1, _TILE // size) for size in sizes))
    originals = shown.originals is not None
    count = len(shown.columns) + originals
    page = Page(_LABELS + count * (width + GAP))
    x = [MARGIN + _LABELS + GAP + i * (width + GAP) for i in range(count)]
    first = x[1:] if originals else x
    page.text(shown.title, 24, INK, after=4)
    page.text(f"Seed {shown.seed} in every column. {shown.repeat}", 14, GREY, after=8)
    for name, values in shown.differences.items():
        each = ", ".join(f"{run}: {value}" for run, value in values.items())
        page.text(f"{name}: {each}", 14, INK, after=2)
    page.skip(14)
    _head(page, shown, x, first, width)
    for name, lines in shown.score_rows():
        tallest = _label(page, name)
        for left, line in zip(first, lines, strict=True):
            value, bracket, interval = ("-" if line is None else spell(line)).partition(" [")
            page.lines([value], 14, INK, left, page.y)
            if bracket:
                page.lines(["[" + interval], 11, GREY, left, page.y + 18)
        page.skip(max(tallest, 36))
    page.skip(8)
    for i, text in enumerate(shown.rows if shown.columns[0].images is not None else ()):
        tallest = _label(page, text)
        images = [shown.originals] if originals else []
        images += [column.images for column in shown.columns]
        for left, batch in zip(x, images, strict=True):
            scale = max(1, width // batch.shape[2])
            page.image(batch[i], left, scale)
            tallest = max(tallest, batch.shape[1] * scale)
        page.skip(tallest + GAP)
    page.text(" ".join(shown.credits), 13, GREY, after=0, before=4)
    return page.finish()


def _head(page: Page, shown: Comparison, x: list[int], first: list[int], width: int) -> None:
    """The runs, and below each its steps."""
    at, tallest = 0, 0
    for run, columns in shown.groups():
        lines = wrap(printable(run), 14, len(columns) * (width + GAP) - GAP)
        page.lines(lines, 14, INK, first[at], page.y)
        tallest = max(tallest, len(lines) * round(14 * LINE))
        at += len(columns)
    page.skip(tallest + 2)
    if len(x) > len(first):
        page.lines(["original"], 14, GREY, x[0], page.y)
    for left, column in zip(first, shown.columns, strict=True):
        page.lines([f"step {column.step}"], 14, GREY, left, page.y)
    page.skip(round(14 * LINE) + 8)


def _label(page: Page, text: str) -> int:
    """A row's text on the left -> the pixels that it takes."""
    lines, size = fit_caption(text, _LABELS)
    page.lines(lines, size, INK, MARGIN, page.y)
    return len(lines) * round(size * LINE) + 4
