"""Inputs of the metrics' goldens, drawn from seeds: the tests make them anew, none is committed."""

from collections.abc import Mapping

import numpy as np

from mmx.pretrained.convolutions import Conv, Dense

# Words as CIDEr sees them: split already, lower case, no punctuation.
CAPTIONS = [
    "a cat sits on a red mat",
    "two dogs run in the park",
    "a man rides a horse on the beach",
    "the blue sky the blue sky",
    "a bowl of fruit on a table near a window",
]
REFERENCES = [
    ["a cat sits on the mat", "there is a cat on a red mat", "a cat on a mat"],
    ["two dogs are running in a park", "dogs run"],
    ["a person rides a brown horse on a sandy beach", "a man on a horse near the sea"],
    ["the sky is blue today", "a blue sky"],
    ["a bowl of fruit on a table", "fruit in a bowl on a wooden table near the window"],
]


def features() -> tuple[np.ndarray, np.ndarray]:
    """Two sets [60, 24], float32, of different mean and spread."""
    rng = np.random.default_rng(11)
    mix = rng.normal(size=(24, 24)) / 5
    a, b = rng.normal(size=(2, 60, 24))
    return a.astype(np.float32), (b @ (np.eye(24) + mix) + 0.3).astype(np.float32)


def images(count: int = 2, height: int = 40, width: int = 56) -> np.ndarray:
    """uint8 [count, height, width, 3]: smooth colours with noise."""
    rng = np.random.default_rng(12)
    y, x = np.mgrid[:height, :width][:, None, :, :, None] / 8
    waves = np.sin(y * rng.uniform(0.5, 2, (count, 1, 1, 3)) + x * rng.uniform(-2, 2, (3,)))
    noise = rng.normal(size=(count, height, width, 3)) * 12
    return np.clip(127 + 100 * waves + noise, 0, 255).astype(np.uint8)


def noisy(image_u8: np.ndarray) -> np.ndarray:
    """uint8: the same with more noise in later images."""
    rng = np.random.default_rng(13)
    strength = np.arange(1, len(image_u8) + 1)[:, None, None, None] * 15
    noise = rng.normal(size=image_u8.shape) * strength
    return np.clip(image_u8 + noise, 0, 255).astype(np.uint8)


def network(plan: Mapping[str, Conv | Dense], seed: int) -> dict[str, np.ndarray]:
    """A published network's tensors, drawn so that signals neither die nor grow."""
    rng = np.random.default_rng(seed)
    tensors = {}
    draw = lambda low, high, size: rng.uniform(low, high, size).astype(np.float32)
    for part in plan.values():
        fan_in = float(np.prod(part.shape[1:]))
        weight = rng.standard_normal(part.shape, np.float32) * np.float32((2 / fan_in) ** 0.5)
        if isinstance(part, Dense):
            tensors[f"{part.name}.weight"] = weight
            tensors[f"{part.name}.bias"] = draw(-1, 1, part.shape[0])
            continue
        tensors[f"{part.conv}.weight"] = weight
        for name, low, high in (
            ("weight", 0.8, 1.2),
            ("bias", -0.2, 0.2),
            ("running_mean", -0.2, 0.2),
            ("running_var", 0.8, 1.2),
        ):
            tensors[f"{part.norm}.{name}"] = draw(low, high, part.shape[0])
    return tensors


# Channels of torchvision's vgg16 by their number in it, and of LPIPS's five layers.
_VGG16 = {0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256, 17: 512, 19: 512, 21: 512,
          24: 512, 26: 512, 28: 512}  # fmt: skip


def vgg16(seed: int = 23) -> dict[str, np.ndarray]:
    """The convolutions of torchvision's vgg16."""
    rng = np.random.default_rng(seed)
    tensors, before = {}, 3
    for number, channels in _VGG16.items():
        scale = np.float32((2 / (9 * before)) ** 0.5)
        weight = rng.standard_normal((channels, before, 3, 3), np.float32) * scale
        tensors[f"features.{number}.weight"] = weight
        tensors[f"features.{number}.bias"] = rng.uniform(-0.1, 0.1, channels).astype(np.float32)
        before = channels
    return tensors


def lpips_heads(seed: int = 24) -> dict[str, np.ndarray]:
    """The linear heads of LPIPS, which are never negative."""
    rng = np.random.default_rng(seed)
    return {
        f"lin{i}.model.1.weight": rng.uniform(0, 1, (1, channels, 1, 1)).astype(np.float32)
        for i, channels in enumerate((64, 128, 256, 512, 512))
    }
