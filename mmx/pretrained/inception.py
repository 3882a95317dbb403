"""InceptionV3 as FID has it: TensorFlow's graph of 2015-12-05, 2048 features and 1008 logits.

It differs from torchvision's in three ways that move the metric: averages leave the padding out,
the last block pools by maximum, and there are 1008 classes. File and names are those of the two
known conversions, ``pt_inception-2015-12-05`` and ``weights-inception-2015-12-05``.

Source: arXiv 1512.00567 for the blocks; torch-fidelity and pytorch-fid for the three differences.
B batch, H W pixels, C channels.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from mmx.ops.resize import resize
from mmx.pretrained.convolutions import Conv, Dense, convolve
from mmx.pretrained.convolutions import convert as convert_plan

SIZE = 299
# Branches of the blocks: name -> (channels out, in, kernel height, width).
_STEM = {
    "Conv2d_1a_3x3": (32, 3, 3, 3),
    "Conv2d_2a_3x3": (32, 32, 3, 3),
    "Conv2d_2b_3x3": (64, 32, 3, 3),
    "Conv2d_3b_1x1": (80, 64, 1, 1),
    "Conv2d_4a_3x3": (192, 80, 3, 3),
}


def _block_a(into: int, pool: int) -> dict:
    return {
        "branch1x1": (64, into, 1, 1),
        "branch5x5_1": (48, into, 1, 1),
        "branch5x5_2": (64, 48, 5, 5),
        "branch3x3dbl_1": (64, into, 1, 1),
        "branch3x3dbl_2": (96, 64, 3, 3),
        "branch3x3dbl_3": (96, 96, 3, 3),
        "branch_pool": (pool, into, 1, 1),
    }


def _block_c(middle: int) -> dict:
    m = middle
    return {
        "branch1x1": (192, 768, 1, 1),
        "branch7x7_1": (m, 768, 1, 1),
        "branch7x7_2": (m, m, 1, 7),
        "branch7x7_3": (192, m, 7, 1),
        "branch7x7dbl_1": (m, 768, 1, 1),
        "branch7x7dbl_2": (m, m, 7, 1),
        "branch7x7dbl_3": (m, m, 1, 7),
        "branch7x7dbl_4": (m, m, 7, 1),
        "branch7x7dbl_5": (192, m, 1, 7),
        "branch_pool": (192, 768, 1, 1),
    }


def _block_e(into: int) -> dict:
    return {
        "branch1x1": (320, into, 1, 1),
        "branch3x3_1": (384, into, 1, 1),
        "branch3x3_2a": (384, 384, 1, 3),
        "branch3x3_2b": (384, 384, 3, 1),
        "branch3x3dbl_1": (448, into, 1, 1),
        "branch3x3dbl_2": (384, 448, 3, 3),
        "branch3x3dbl_3a": (384, 384, 1, 3),
        "branch3x3dbl_3b": (384, 384, 3, 1),
        "branch_pool": (192, into, 1, 1),
    }


_BLOCKS = {
    "Mixed_5b": _block_a(192, 32),
    "Mixed_5c": _block_a(256, 64),
    "Mixed_5d": _block_a(288, 64),
    "Mixed_6a": {
        "branch3x3": (384, 288, 3, 3),
        "branch3x3dbl_1": (64, 288, 1, 1),
        "branch3x3dbl_2": (96, 64, 3, 3),
        "branch3x3dbl_3": (96, 96, 3, 3),
    },
    "Mixed_6b": _block_c(128),
    "Mixed_6c": _block_c(160),
    "Mixed_6d": _block_c(160),
    "Mixed_6e": _block_c(192),
    "Mixed_7a": {
        "branch3x3_1": (192, 768, 1, 1),
        "branch3x3_2": (320, 192, 3, 3),
        "branch7x7x3_1": (192, 768, 1, 1),
        "branch7x7x3_2": (192, 192, 1, 7),
        "branch7x7x3_3": (192, 192, 7, 1),
        "branch7x7x3_4": (192, 192, 3, 3),
    },
    "Mixed_7b": _block_e(1280),
    "Mixed_7c": _block_e(2048),
}


def plan() -> dict[str, Conv | Dense]:
    """Path of ours -> tensors of the file, whose names are the same but for their points."""
    shapes = dict(_STEM)
    for block, branches in _BLOCKS.items():
        shapes |= {f"{block}.{branch}": shape for branch, shape in branches.items()}
    parts: dict[str, Conv | Dense] = {
        name.replace(".", "/"): Conv(f"{name}.conv", f"{name}.bn", shape)
        for name, shape in shapes.items()
    }
    return parts | {"fc": Dense("fc", (1008, 2048))}


def convert(tensors: Mapping[str, np.ndarray], file: str) -> dict:
    """The file's state dict -> our tree. Raises UserError as `convolutions.convert`."""
    return convert_plan(tensors, plan(), eps=1e-3, file=file)


def preprocess(image_u8: jax.Array, resizer: str) -> jax.Array:
    """float32 [B, 299, 299, 3] in about [-1, 1], by a recipe of arXiv 2104.11222.

    `legacy_tensorflow` and `clean` scale as the graph does, (x - 128) / 128; `legacy_pytorch` as
    pytorch-fid does, 2 x / 255 - 1.
    """
    x = resize(image_u8, SIZE, resizer)
    return 2 * x / 255 - 1 if resizer == "legacy_pytorch" else (x - 128) / 128


def forward(weights: dict, x_BHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(features [B, 2048], logits without bias [B, 1008]), float32.

    Args:
      weights: of :func:`convert`.
      x_BHWC: of :func:`preprocess`.
    """

    def conv(x, block, name, stride=1, same=True):
        layer = weights[block][name] if name else weights[block]
        return jax.nn.relu(convolve(x, layer, stride, same))

    x = conv(x_BHWC, "Conv2d_1a_3x3", "", 2, same=False)
    x = conv(x, "Conv2d_2a_3x3", "", same=False)
    x = _max_pool(conv(x, "Conv2d_2b_3x3", ""))
    x = conv(x, "Conv2d_3b_1x1", "")
    x = _max_pool(conv(x, "Conv2d_4a_3x3", "", same=False))
    for block in _BLOCKS:
        x = _run_block(
            x, block, lambda y, *names, block=block, **k: _chain(conv, y, block, names, **k)
        )
    features = x.mean((1, 2))
    return features, features @ weights["fc"]["kernel"]


def _chain(conv, x, block, names, stride=1, same=True):
    """Convolutions one after another; stride and padding are the last one's."""
    for name in names[:-1]:
        x = conv(x, block, name)
    return conv(x, block, names[-1], stride, same)


def _run_block(x, block, run):
    """The branches of a block, their channels side by side."""
    double = ("branch3x3dbl_1", "branch3x3dbl_2")
    if block.startswith("Mixed_5"):
        branches = [
            run(x, "branch1x1"),
            run(x, "branch5x5_1", "branch5x5_2"),
            run(x, *double, "branch3x3dbl_3"),
            run(_average(x), "branch_pool"),
        ]
    elif block == "Mixed_6a":
        branches = [
            run(x, "branch3x3", stride=2, same=False),
            run(x, *double, "branch3x3dbl_3", stride=2, same=False),
            _max_pool(x),
        ]
    elif block.startswith("Mixed_6"):
        branches = [
            run(x, "branch1x1"),
            run(x, *(f"branch7x7_{i}" for i in range(1, 4))),
            run(x, *(f"branch7x7dbl_{i}" for i in range(1, 6))),
            run(_average(x), "branch_pool"),
        ]
    elif block == "Mixed_7a":
        branches = [
            run(x, "branch3x3_1", "branch3x3_2", stride=2, same=False),
            run(x, *(f"branch7x7x3_{i}" for i in range(1, 5)), stride=2, same=False),
            _max_pool(x),
        ]
    else:
        single, twice = run(x, "branch3x3_1"), run(x, *double)
        # The last block pools by maximum: an accident of the graph that every FID has.
        pooled = _max_pool(x, 1) if block == "Mixed_7c" else _average(x)
        branches = [
            run(x, "branch1x1"),
            run(single, "branch3x3_2a"),
            run(single, "branch3x3_2b"),
            run(twice, "branch3x3dbl_3a"),
            run(twice, "branch3x3dbl_3b"),
            run(pooled, "branch_pool"),
        ]
    return jnp.concatenate(branches, -1)


def _max_pool(x: jax.Array, stride: int = 2) -> jax.Array:
    """3x3; at stride 1 the size stays."""
    padding = "VALID" if stride == 2 else "SAME"
    window, strides = (1, 3, 3, 1), (1, stride, stride, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, padding)


def _average(x: jax.Array) -> jax.Array:
    """3x3 at stride 1; at the edges the mean of what is there."""
    add = lambda y: jax.lax.reduce_window(y, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
    return add(x) / add(jnp.ones_like(x[:1, ..., :1]))
