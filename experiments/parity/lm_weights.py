"""Weights by a rule, so that a golden of a model of texts needs to hold none of them.

The script that runs `transformers` and the tests both draw them here.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


def weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """Tensors by name, float32: each from its own name, so none is like another.

    Vectors (norms, biases) are far from their start, matrices keep the size of what they multiply.
    """
    return {name: _one(name, tuple(shape)) for name, shape in shapes.items()}


def lay_down(golden: Path, folder: Path) -> None:
    """A published model: a golden's JSON files, and the weights that its tensors.json names."""
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text((golden / name).read_text())
    shapes = json.loads((golden / "tensors.json").read_text())
    save_file(weights(shapes), folder / "model.safetensors")


def _one(name: str, shape: tuple[int, ...]) -> np.ndarray:
    # RandomState: its stream is fixed for good, that of newer generators is not.
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) < 2:
        noise = 0.3 * noise + 0.7 * name.endswith("weight")
    else:
        noise *= 1.5 * min(shape) ** -0.5
    return noise.astype(np.float32)
