"""How far to trust the scorer of scenes: its accuracy on real pictures under blur and noise.

    pip install 'mmx[demo]'
    python experiments/scenes/run.py

Writes reader.json, reader.md (both for `COUNT` scenes of the test split, at 32, 64 and 128 pixels)
and scenes.png (some of them with their captions) beside this file. Eight minutes of one core.
"""

import json
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from mmx.core.progress import Progress
from mmx.data import scene_draw, scene_grammar, scene_splits, scenes
from mmx.eval import scene_reader
from mmx.eval import scenes as scorer
from mmx.eval.grid import Section, draw_grid
from mmx.eval.png import save_picture

HERE = Path(__file__).resolve().parent
COUNT = 300
# Blur: sigma in 1/32 of the side. Noise: standard deviation in grey levels of 255.
LEVELS = ((0, 0), (0.5, 0), (1, 0), (1.5, 0), (2, 0), (0, 40))


def make(pixels: int) -> tuple[list[scene_grammar.Scene], np.ndarray]:
    """(scenes, uint8 [COUNT, H, W, 3])."""
    wanted, pictures = [], []
    for index in range(COUNT):
        scene, boxes = scene_splits.make_scene("test", index)
        wanted.append(scene)
        pictures.append(scene_draw.draw(scene, boxes, pixels))
    return wanted, np.stack(pictures)


def degrade(pictures: np.ndarray, blur: float, noise: float) -> np.ndarray:
    """uint8 pictures, blurred and then with noise."""
    sigma = ImageFilter.GaussianBlur(blur * pictures.shape[1] / scene_draw.SIDE)
    blurred = [np.asarray(Image.fromarray(picture).filter(sigma)) for picture in pictures]
    draws = np.random.default_rng(0).normal(0, noise, pictures.shape)
    return np.clip(np.stack(blurred) + draws + 0.5, 0, 255).astype(np.uint8)


def measure() -> list[dict]:
    """A row a size and level, and one of the captions of others."""
    rows: list[dict] = []
    progress = Progress(len(scenes.SIZES) * len(LEVELS), "reading", every=1)
    for pixels in map(int, scenes.SIZES):
        wanted, pictures = make(pixels)
        for level in LEVELS:
            spoilt = degrade(pictures, *level)
            busy = time.process_time()
            found = scene_reader.read(spoilt)
            cpu_ms = (time.process_time() - busy) / COUNT * 1e3
            scores = scorer.scores(wanted, found, found)
            ends = {f"all{column}": scores[f"all{column}"] for column in ("", "_shuffled")}
            rows.append(
                {
                    "pixels": pixels,
                    "blur": level[0],
                    "noise": level[1],
                    "cpu_ms": cpu_ms,
                    **{name: score.value for name, score in scores.items()},
                    **{f"{name}_interval": [score.low, score.high] for name, score in ends.items()},
                }
            )
            progress.update(len(rows))
    progress.close()
    return rows


def table(rows: list[dict]) -> str:
    """Accuracy by level, then chance."""
    factors = scorer.FACTORS
    lines = [
        f"Accuracy of the reader on {COUNT} real scenes of the test split, without and with blur "
        "(sigma in 1/32 of the side) and noise (grey levels of 255).",
        "Captions `of others`: the same readings, asked of a shuffled caption. "
        "The last columns: Wilson's interval of `all`, and the time to read a picture.",
        "",
        f"| pixels | blur | noise | captions | {' | '.join(factors)} | 95 % of all | CPU ms |",
        "|---" * (len(factors) + 6) + "|",
    ]
    for row in rows:
        askings = {"its own": ""}
        if not row["blur"] and not row["noise"]:
            askings["of others"] = "_shuffled"
        for captions, column in askings.items():
            cells = [row["pixels"], row["blur"], row["noise"], captions]
            cells += [f"{row[factor + column]:.3f}" for factor in factors]
            cells.append("{:.3f} to {:.3f}".format(*row[f"all{column}_interval"]))
            lines.append(f"| {' | '.join(map(str, cells))} | {row['cpu_ms']:.0f} |")
    return "\n".join(lines) + "\n"


def summary(rows: list[dict]) -> str:
    """The table in the docstring of mmx.eval.scenes: the share in which all is right."""
    columns = ((0, 0), (0.5, 0), (1, 0), (1.5, 0), (0, 40))
    value = {(row["pixels"], row["blur"], row["noise"]): row["all"] for row in rows}
    lines = ["pixels   as they are   blur 0.5   blur 1   blur 1.5   noise 40"]
    for pixels in map(int, scenes.SIZES):
        shares = [f"{value[pixels, *level]:.3f}" for level in columns]
        lines.append("{:<12}{:<13}{:<10}{:<10}{:<11}{}".format(pixels, *shares))
    return "\n".join(lines)


def sheet() -> None:
    """scenes.png: of the test split, and of each held-out split."""
    sections = []
    for split, count in [("test", 16), *((s, 8) for s in scene_splits.SPLITS if "heldout" in s)]:
        pictures, captions = [], []
        for index in range(count):
            scene, boxes = scene_splits.make_scene(split, index)
            pictures.append(scene_draw.draw(scene, boxes, 64))
            captions.append(scene_grammar.caption(scene))
        sections.append(Section(np.stack(pictures), captions, split))
    picture = draw_grid(sections, attribution=f"Composed of {scenes.ATTRIBUTION}.")
    few = picture.quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    save_picture(HERE / "scenes.png", few, {"attribution": scenes.ATTRIBUTION})


def main() -> None:
    sheet()
    rows = measure()
    (HERE / "reader.json").write_text(json.dumps(rows, indent=1) + "\n")
    (HERE / "reader.md").write_text(table(rows))
    print(table(rows), summary(rows), sep="\n")


if __name__ == "__main__":
    main()
