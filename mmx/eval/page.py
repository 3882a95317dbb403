"""A comparison as one HTML file: no network, no script; on a phone, in the dark, by keyboard."""

import base64
import io
import re
from html import escape

import numpy as np
from PIL import Image

from mmx.eval.comparison import Column, Comparison
from mmx.eval.ledger import spell

_TILE = 112  # CSS pixels: images are shown at whole multiples of their size up to about this wide
_STYLE = """
:root { color-scheme: light dark; --page: #f5f5f3; --ink: #1d1d1f; --grey: #5c5c61;
  --line: #dcdcd8; }
@media (prefers-color-scheme: dark) {
  :root { --page: #161618; --ink: #ececee; --grey: #a5a5ab; --line: #3a3a3e; } }
body { margin: 0 auto; padding: 1rem; max-width: 90rem; background: var(--page); color: var(--ink);
  font: 1rem/1.45 system-ui, sans-serif; }
h1 { font-size: 1.35rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p, small, footer { color: var(--grey); } code { overflow-wrap: anywhere; }
.scroll { overflow-x: auto; } .scroll:focus-visible { outline: 2px solid Highlight; }
table { border-collapse: collapse; } h2 + p { margin: 0 0 .3rem; }
th, td { padding: .3rem .6rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
thead th { white-space: nowrap; } th[scope=row] { position: sticky; left: 0; font-weight: 500;
  background: var(--page); min-width: min(13rem, 28vw); max-width: 13rem; overflow-wrap: anywhere; }
td { font-variant-numeric: tabular-nums; } td small { display: block; white-space: nowrap; }
td.first, th.first { border-left: 2px solid var(--line); }
img { display: block; image-rendering: pixelated; background: #fff; }
"""


def page(shown: Comparison) -> str:
    """The whole file. Every text in it that is not ours is escaped; images are inside."""
    title = escape(shown.title)
    parts = [
        "<!doctype html>",
        '<html lang="en">',
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">",
        f"<title>{title}</title>",
        f"<style>{_STYLE}</style>",
        f"<h1>{title}</h1>",
        f"<p>{escape(_summary(shown))}</p>",
        *_differences(shown),
        *_scores(shown),
        *_pictures(shown),
    ]
    if shown.credits:
        parts.append(f"<footer><p>{escape(' '.join(shown.credits))}</p></footer>")
    return "\n".join(parts) + "\n</html>\n"


def _summary(shown: Comparison) -> str:
    return f"All columns: seed {shown.seed}, the same {shown.rows_are}. {shown.repeat}".strip()


def _differences(shown: Comparison) -> list[str]:
    runs = list(dict.fromkeys(run for run, _ in shown.groups()))
    if len(runs) < 2:
        return []
    out = ["<h2>What differs</h2>"]
    if not shown.differences:
        return [*out, "<p>Nothing in the configs of the runs.</p>"]
    head = "".join(f'<th scope="col">{escape(run)}</th>' for run in runs)
    rows = [
        _row(name, [f"<td>{escape(values[run])}</td>" for run in runs])
        for name, values in shown.differences.items()
    ]
    head = f'<thead><tr><th scope="col">field</th>{head}</tr></thead>'
    return [*out, *_table("Config fields that differ", head, rows)]


def _scores(shown: Comparison) -> list[str]:
    rows = []
    for name, lines in shown.score_rows():
        cells = [_score(line, first) for line, first in zip(lines, _starts(shown), strict=True)]
        rows.append(_row(name, cells))
    if not rows:
        return []
    caption = "Scores; in brackets the 95 % interval for another draw of as many items"
    return ["<h2>Scores</h2>", *_table(caption, _head(shown, "score", False), rows)]


def _score(line, first: bool) -> str:
    if line is None:
        return _cell("-", first)
    value, bracket, interval = spell(line).partition(" [")
    counted = f' title="{line["n"]} items"' if "n" in line else ""
    small = f"<small{counted}>{escape(bracket.strip() + interval)}</small>" if bracket else ""
    return _cell(escape(value) + small, first)


def _pictures(shown: Comparison) -> list[str]:
    rows = []
    for i, text in enumerate(shown.rows if shown.columns[0].images is not None else ()):
        cells = []
        if shown.originals is not None:
            cells.append(_cell(_image(shown.originals[i], f"{text}: the original"), False))
        for column, first in zip(shown.columns, _starts(shown), strict=True):
            alt = f"{text}: {shown.what} by {column.run} at step {column.step}, seed {shown.seed}"
            cells.append(_cell(_image(column.images[i], alt), first))
        rows.append(_row(text, cells))
    if not rows:
        return []
    caption = f"Pictures, {shown.what} with seed {shown.seed} in every column"
    head = _head(shown, "picture", shown.originals is not None)
    return ["<h2>Pictures</h2>", *_table(caption, head, rows)]


def _head(shown: Comparison, corner: str, has_original: bool) -> str:
    """Two rows: the runs, and below each its steps."""
    original = '<th scope="col" rowspan="2">original</th>' if has_original else ""
    runs = "".join(
        f'<th scope="colgroup" class="first" colspan="{len(columns)}">{escape(run)}</th>'
        for run, columns in shown.groups()
    )
    steps = "".join(
        f'<th scope="col"{_class(first)}>step {column.step}</th>'
        for column, first in zip(shown.columns, _starts(shown), strict=True)
    )
    corner = f'<th scope="col" rowspan="2">{corner}</th>'
    return f"<thead><tr>{corner}{original}{runs}</tr><tr>{steps}</tr></thead>"


def _table(caption: str, head: str, rows: list[str]) -> list[str]:
    """Scrolls sideways by itself, with the arrow keys too: the page does not."""
    caption = escape(caption)
    return [
        f"<p>{caption}</p>",
        f'<div class="scroll" role="region" aria-label="{caption}" tabindex="0"><table>',
        head,
        "<tbody>",
        *rows,
        "</tbody></table></div>",
    ]


def _row(name: str, cells: list[str]) -> str:
    # A long name of a score breaks at its own signs first.
    name = re.sub("([_/.])", r"\1<wbr>", escape(name))
    return f'<tr><th scope="row">{name}</th>{"".join(cells)}</tr>'


def _cell(content: str, first: bool) -> str:
    return f"<td{_class(first)}>{content}</td>"


def _class(first: bool) -> str:
    return ' class="first"' if first else ""


def _starts(shown: Comparison) -> list[bool]:
    """Whether a column is the first of its run."""
    before: list[Column | None] = [None, *shown.columns]
    return [a is None or a.run != b.run for a, b in zip(before, shown.columns, strict=False)]


def _image(image_u8: np.ndarray, alt: str) -> str:
    png = io.BytesIO()
    Image.fromarray(image_u8).save(png, format="PNG", optimize=True)
    data = base64.b64encode(png.getvalue()).decode()
    height, width, _ = image_u8.shape
    scale = max(1, round(_TILE / width))
    return (
        f'<img src="data:image/png;base64,{data}" width="{width * scale}" '
        f'height="{height * scale}" alt="{escape(alt)}">'
    )
