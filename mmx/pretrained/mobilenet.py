"""MobileNetV2 of ImageNet: 1280 features an image, with weights that a package registry carries.

Source: arXiv 1801.04381 table 2; weights of torchvision. B batch, H W pixels, D features.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from mmx.ops.resize import resize
from mmx.pretrained.convolutions import Conv, Dense, convolve, depthwise
from mmx.pretrained.convolutions import convert as convert_plan

SIZE = 96  # pixels: ours, for small pictures; the network was trained at 224
_STAGES = (  # expansion, channels, blocks, stride of the first block
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_STEM, _HEAD, _CLASSES = 32, 1280, 1000
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # of ImageNet, images in [0, 1]
_STD = np.array([0.229, 0.224, 0.225], np.float32)


def _blocks() -> list[tuple[int, int, int, int]]:
    """(channels in, inside, out, stride) of the 17 blocks."""
    blocks, before = [], _STEM
    for expansion, channels, count, stride in _STAGES:
        for i in range(count):
            blocks.append((before, before * expansion, channels, 1 if i else stride))
            before = channels
    return blocks


def plan() -> dict[str, Conv | Dense]:
    """Path of ours -> tensors of torchvision's ``mobilenet_v2``."""
    parts: dict[str, Conv | Dense] = {
        "stem": Conv("features.0.0", "features.0.1", (_STEM, 3, 3, 3))
    }
    for i, (before, inside, after, _) in enumerate(_blocks(), 1):
        at, first = f"features.{i}.conv", 0
        if inside != before:
            parts[f"block{i}/expand"] = Conv(f"{at}.0.0", f"{at}.0.1", (inside, before, 1, 1))
            first = 1
        middle = Conv(f"{at}.{first}.0", f"{at}.{first}.1", (inside, 1, 3, 3))
        parts[f"block{i}/depthwise"] = middle
        last = Conv(f"{at}.{first + 1}", f"{at}.{first + 2}", (after, inside, 1, 1))
        parts[f"block{i}/project"] = last
    parts["head"] = Conv("features.18.0", "features.18.1", (_HEAD, _STAGES[-1][1], 1, 1))
    parts["classifier"] = Dense("classifier.1", (_CLASSES, _HEAD))
    return parts


def convert(tensors: Mapping[str, np.ndarray], file: str) -> dict:
    """torchvision's state dict -> our tree. Raises UserError as `convolutions.convert`."""
    return convert_plan(tensors, plan(), eps=1e-5, file=file)


def forward(weights: dict, image_u8: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(features [B, 1280], logits [B, 1000]), float32; float64 where the arguments are.

    Args:
      weights: of :func:`convert`.
      image_u8: [B, H, W, 3] of 0..255; brought to 96 pixels by Pillow's bicubic.
    """
    x = (resize(image_u8, SIZE, "clean") / 255 - _MEAN) / _STD
    x = _relu6(convolve(x, weights["stem"], 2))
    for i, (*_, stride) in enumerate(_blocks(), 1):
        block = weights[f"block{i}"]
        y = _relu6(convolve(x, block["expand"])) if "expand" in block else x
        y = _relu6(depthwise(y, block["depthwise"], stride))
        y = convolve(y, block["project"])
        x = x + y if x.shape == y.shape else y
    features = _relu6(convolve(x, weights["head"])).mean((1, 2))
    logits = features @ weights["classifier"]["kernel"] + weights["classifier"]["bias"]
    return features, logits


def _relu6(x: jax.Array) -> jax.Array:
    return jnp.clip(x, 0, 6)
