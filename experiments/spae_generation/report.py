"""table.md and generation.png: what results.json and the words say."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image
from scoring import ANSWERS

from mmx.eval.grid import Section, draw_grid

Row = tuple[str, list[np.ndarray], list[str]]  # title, uint8 images, their captions
_BLANK = 245  # grey of the tile of a text


def table(results: Mapping) -> str:
    """Markdown: PSNR against the picture, against its reconstruction, right words by layer."""
    lines = [told(results), ""]
    for measure, title in (
        ("psnr", "PSNR against the picture, dB"),
        ("psnr_recon", "PSNR against the codec's picture of the true words, dB"),
    ):
        names = [name for name in ANSWERS if (name, measure) != ("codec", "psnr_recon")]
        lines += [f"**{title}**", "", _row("task", "n", *(ANSWERS[n] for n in names))]
        lines += [_row(*["---"] * (2 + len(names)))]
        for task in results["tasks"].values():
            cells = [_interval(task["mean"].get(name, {}).get(measure), task) for name in names]
            lines.append(_row(task["title"], str(len(task["pictures"])), *cells))
        lines.append("")
    layers = len(results["settings"]["sides"])
    names = [name for name in ANSWERS if name != "codec"]
    lines += [f"**Right words, %, in layers 1 to {layers}** (- where none is asked for)", ""]
    lines += [_row("task", *(ANSWERS[n] for n in names)), _row(*["---"] * (1 + len(names)))]
    for task in results["tasks"].values():
        cells = [_shares(task["mean"].get(name, {}).get("right")) for name in names]
        lines.append(_row(task["title"], *cells))
    return "\n".join(lines) + "\n"


def told(results: Mapping) -> str:
    """One paragraph of what was run."""
    of = results["settings"]
    unfinished = [name for name in of["every"] if name not in results["tasks"]]
    minutes = sum(task["cpu_seconds"] for task in results["tasks"].values()) / 60
    lacks = f" **Unfinished: {', '.join(unfinished)}.**" if unfinished else ""
    return (
        f"{of['lm']} reads {of['supports']} examples a prompt (noise {of['ratios'][0]:.0%} to "
        f"{of['ratios'][-1]:.0%} of the words below layer {of['kept_layers']}, "
        f"{'mask word ' + of['mask_word'] if of['mask_word'] else 'random words'}) and writes at "
        f"most {of['block']} words at a time, the likeliest of {of['words']}; "
        f"{minutes:.1f} CPU-minutes.{lacks}"
    )


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _interval(value: Sequence[float] | None, task: Mapping) -> str:
    if value is None:
        return "-"
    interval = f" [{value[1]:.1f}, {value[2]:.1f}]" if len(task["pictures"]) > 1 else ""
    return f"{value[0]:.1f}{interval}"


def _shares(right: Sequence[float | None] | None) -> str:
    if right is None:
        return "-"
    return " / ".join("-" if share is None else f"{100 * share:.0f}" for share in right)


def text_tile(size: tuple[int, int]) -> np.ndarray:
    """What stands for a text: its caption is below."""
    return np.full((*size, 3), _BLANK, np.uint8)


def figure(rows: Sequence[Row], results: Mapping) -> Image.Image:
    """One row a task."""
    sections = [Section(np.stack(images), captions, title) for title, images, captions in rows]
    columns = max(len(images) for _, images, _ in rows)
    title = "Images written by a frozen language model"
    subtitle = f"{told(results).replace('**', '')} First picture of each task; dB of PSNR."
    return draw_grid(sections, columns, title, subtitle, results["settings"]["attribution"])
