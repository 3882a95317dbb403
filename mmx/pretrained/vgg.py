"""VGG features for the perceptual loss, from a safetensors file with torchvision's names.

Axis letters: B batch, H W pixels, C channels.
"""

import os
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from etils.epath import Path
from safetensors.numpy import load_file, save_file

from mmx.core import storage
from mmx.core.errors import UserError
from mmx.pretrained.convolutions import check_shapes

# ImageNet statistics of torchvision's VGG, for images in [0, 1].
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)


def load_vgg(path: str | os.PathLike) -> tuple[list[dict[str, np.ndarray]], tuple[bool, ...]]:
    """Convolutions in order, as ``{"kernel": [3, 3, in, out], "bias": [out]}``; and for each, does
    it follow a max-pool.

    Args:
      path: safetensors with ``features.N.weight`` [out, in, 3, 3] and ``features.N.bias``.

    Raises:
      UserError: no such file, unreadable, or no such weights in it.
    """
    given, path = str(path), storage.path(path)
    if not path.is_file():
        raise UserError(
            f"config.loss.perceptual_weights={given!r}: no such file; give a safetensors file of "
            "torchvision's vgg16, or set config.loss.perceptual=0"
        )
    try:
        with storage.fetched(path) as local:
            tensors = load_file(local)
    except Exception as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error
    return layers_of(tensors, path)


def layers_of(
    tensors: Mapping[str, np.ndarray], path: str | os.PathLike
) -> tuple[list[dict[str, np.ndarray]], tuple[bool, ...]]:
    """:func:`load_vgg` of tensors; ``path`` is for messages."""
    numbers = sorted(
        int(m.group(1)) for name in tensors if (m := re.fullmatch(r"features\.(\d+)\.weight", name))
    )
    if not numbers or tensors[f"features.{numbers[0]}.weight"].shape[1:2] != (3,):
        raise UserError(f"{path}: no features.N.weight of a VGG on 3 channels in it")
    if any(tensors[f"features.{n}.weight"].ndim != 4 for n in numbers):
        raise UserError(f"{path}: a VGG with batch norm; give the plain vgg16")
    shapes, channels = {}, 3
    for n in numbers:
        out = len(tensors[f"features.{n}.weight"])
        shapes |= {f"features.{n}.weight": (out, channels, 3, 3), f"features.{n}.bias": (out,)}
        channels = out
    given = {name: tensor for name, tensor in tensors.items() if name.startswith("features.")}
    check_shapes(given, shapes, f"{path}")
    layers, pools, previous = [], [], None
    for n in numbers:
        kernel = tensors[f"features.{n}.weight"].transpose(2, 3, 1, 0)
        # conv, relu, conv: numbers two apart; a max-pool between makes it three.
        pools.append(previous is not None and n - previous == 3)
        layers.append({"kernel": kernel, "bias": tensors[f"features.{n}.bias"]})
        previous = n
    return layers, tuple(pools)


# Channels of torchvision's vgg16; 0 is a max-pool (arXiv 1409.1556 table 1, D).
_VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)


def vgg16_shapes() -> dict[str, tuple[int, ...]]:
    """The convolutions of torchvision's vgg16: name -> shape. Each and its relu are numbered."""
    shapes, number, before = {}, 0, 3
    for channels in _VGG16:
        if channels:
            shapes[f"features.{number}.weight"] = (channels, before, 3, 3)
            shapes[f"features.{number}.bias"] = (channels,)
            before = channels
        number += 2 if channels else 1
    return shapes


def abstract_vgg16() -> tuple[list[dict[str, jax.ShapeDtypeStruct]], tuple[bool, ...]]:
    """What :func:`load_vgg` gives for vgg16, as shapes: no file is read."""
    layers, pools, before, pool = [], [], 3, False
    for channels in _VGG16:
        if channels:
            shapes = {"kernel": (3, 3, before, channels), "bias": (channels,)}
            layers.append({k: jax.ShapeDtypeStruct(s, np.float32) for k, s in shapes.items()})
            pools.append(pool)
            before = channels
        pool = not channels
    return layers, tuple(pools)


def keep_vgg(path: str | os.PathLike, kept: Path) -> Path:
    """Copy the convolutions of a VGG into a run, once: later the run needs no other file.

    Args:
      path: as of :func:`load_vgg`.
      kept: the copy; when it is there already, ``path`` is not read.

    Returns:
      ``kept``.

    Raises:
      UserError: as :func:`load_vgg`.
    """
    if not kept.is_file():
        load_vgg(path)  # its mistakes, before anything is written
        kept.parent.mkdir(parents=True, exist_ok=True)
        with storage.fetched(storage.path(path)) as local:
            tensors = load_file(local)
        convolutions = {k: v for k, v in tensors.items() if k.startswith("features.")}
        with storage.staged(kept) as local:
            save_file(convolutions, local)
    return kept


def vgg_features(layers: list[dict], image_BHWC: jax.Array, pools: tuple[bool, ...]) -> list:
    """The features before each pooling and the last, each [B, h, w, C].

    Args:
      layers: of :func:`load_vgg`.
      image_BHWC: float32 [B, H, W, 3] in [-1, 1].
      pools: which layers follow a 2x2 max-pool (static).
    """
    x = ((image_BHWC + 1.0) / 2.0 - _MEAN) / _STD
    taps = []
    for layer, pool in zip(layers, pools):
        if pool:
            taps.append(x)
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        x = jax.lax.conv_general_dilated(
            x, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + layer["bias"])
    return [*taps, x]


def perceptual_distance(features_a: list, features_b: list) -> jax.Array:
    """Mean over taps of the squared difference of features of unit length per pixel.

    LPIPS (arXiv 1801.03924 eq. 1) with equal channel weights. Scalar float32.
    """
    total = 0.0
    for a, b in zip(features_a, features_b):
        unit = lambda x: x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-10)
        total += jnp.sum(jnp.square(unit(a) - unit(b)), axis=-1).mean()
    return total / len(features_a)
