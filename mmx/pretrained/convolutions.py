"""Convolutions of published image networks: from PyTorch's tensors to ours, and how they run.

Batch norms are folded into the convolutions when a file is converted, so {"kernel": [h, w, in,
out], "bias": [out]} is all that is kept. B batch, H W pixels, C channels.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmx.core import tree
from mmx.core.errors import UserError


class Conv(NamedTuple):
    """A convolution without bias and the batch norm behind it, by their names in the file.

    `shape` is PyTorch's: [out, in, h, w], `in` being 1 for a filter on each channel alone.
    """

    conv: str
    norm: str
    shape: tuple[int, int, int, int]


class Dense(NamedTuple):
    """A matrix with bias; `shape` is [out, in]."""

    name: str
    shape: tuple[int, int]


def convert(
    tensors: Mapping[str, np.ndarray], plan: Mapping[str, Conv | Dense], eps: float, file: str
) -> dict:
    """Our tree of a published state dict; folding is worked out in float64.

    Args:
      tensors: by name.
      plan: path of ours -> what it is made of.
      eps: of the batch norms.
      file: its name, for messages.

    Raises:
      UserError: tensors that are missing, of another shape or of no layer; lists all of them.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for part in plan.values():
        if isinstance(part, Dense):
            shapes |= {f"{part.name}.weight": part.shape, f"{part.name}.bias": part.shape[:1]}
        else:
            shapes[f"{part.conv}.weight"] = part.shape
            shapes |= {f"{part.norm}.{name}": part.shape[:1] for name in _NORM}
    given = {k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}
    check_shapes(given, shapes, file)
    flat = {}
    for path, part in plan.items():
        if isinstance(part, Dense):
            kernel, bias = given[f"{part.name}.weight"].T, given[f"{part.name}.bias"]
        else:
            weight, bias, mean, var = (given[f"{part.norm}.{n}"].astype(np.float64) for n in _NORM)
            scale = weight / np.sqrt(var + eps)
            kernel = given[f"{part.conv}.weight"].transpose(2, 3, 1, 0) * scale
            bias = bias - mean * scale
        flat[f"{path}/kernel"] = np.ascontiguousarray(kernel, np.float32)
        flat[f"{path}/bias"] = np.ascontiguousarray(bias, np.float32)
    return tree.unflatten(flat)


def check_shapes(
    tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], file: str
) -> None:
    """Raises UserError that lists all tensors that are missing, extra or of another shape."""
    problems = [f"missing: {name} {shape}" for name, shape in shapes.items() if name not in tensors]
    for name, tensor in tensors.items():
        if name not in shapes:
            problems.append(f"extra: {name} {tensor.shape}")
        elif tensor.shape != shapes[name]:
            problems.append(f"misshapen: {name} is {tensor.shape}, not {shapes[name]}")
    if problems:
        raise UserError(
            f"{file}: not the weights of this network, {len(problems)} of its tensors:\n  "
            + "\n  ".join(problems)
        )


_NORM = ("weight", "bias", "running_mean", "running_var")


def convolve(x_BHWC: jax.Array, weights: dict, stride: int = 1, same: bool = True) -> jax.Array:
    """A convolution and its bias.

    Args:
      stride: of both sides.
      same: padded with (k - 1) / 2 zeros at each edge, as PyTorch does ("SAME" would pad one edge
        only where the stride is 2); else not at all.
    """
    kernel = weights["kernel"]
    pads = [(n // 2, n // 2) if same else (0, 0) for n in kernel.shape[:2]]
    y = jax.lax.conv_general_dilated(
        x_BHWC, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y + weights["bias"]


def depthwise(x_BHWC: jax.Array, weights: dict, stride: int) -> jax.Array:
    """A 3x3 filter on each channel alone, padded, as nine shifted products: XLA has no fast one of
    its own on CPUs."""
    h, w = (-(-n // stride) for n in x_BHWC.shape[1:3])
    x = jnp.pad(x_BHWC, ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = weights["bias"]
    for i in range(3):
        for j in range(3):
            rows = slice(i, i + stride * (h - 1) + 1, stride)
            columns = slice(j, j + stride * (w - 1) + 1, stride)
            y = y + x[:, rows, columns] * weights["kernel"][i, j, 0]
    return y
