"""Resizing as three libraries do it, each as one matrix a side: a metric's value hangs on which.

`jax.image.resize` equals none of them for all sizes. B batch, H W pixels, C channels.
"""

import jax
import jax.numpy as jnp
import numpy as np


def bilinear_tensorflow(size: int, to: int) -> np.ndarray:
    """float64 [to, size]: TensorFlow 1's bilinear: pixel i lies at i * size / to, so the picture
    moves by up to half a pixel; nothing is averaged when it shrinks."""
    return _bilinear(np.arange(to) * (size / to), size)


def bilinear_pytorch(size: int, to: int) -> np.ndarray:
    """float64 [to, size]: PyTorch's bilinear without antialiasing: centres meet centres."""
    return _bilinear(((np.arange(to) + 0.5) * (size / to) - 0.5).clip(0), size)


def bicubic_pillow(size: int, to: int) -> np.ndarray:
    """float64 [to, size]: Pillow's bicubic (a = -0.5), which averages when it shrinks."""
    scale = size / to
    stretch = max(scale, 1.0)
    out = np.zeros((to, size))
    for i in range(to):
        centre = (i + 0.5) * scale
        first = max(int(centre - 2 * stretch + 0.5), 0)
        last = min(int(centre + 2 * stretch + 0.5), size)
        x = np.abs((np.arange(first, last) - centre + 0.5) / stretch)
        near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
        weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
        out[i, first:last] = weights / weights.sum()
    return out


def bicubic_pytorch(size: int, to: int) -> np.ndarray:
    """float64 [to, size]: PyTorch's bicubic (a = -0.75) without antialiasing: centres meet centres,
    and beyond the border the outermost pixel goes on."""
    at = (np.arange(to) + 0.5) * (size / to) - 0.5
    low, a, out = np.floor(at).astype(int), -0.75, np.zeros((to, size))
    for pixel in (-1, 0, 1, 2):
        x = np.abs(at - low - pixel)
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = ((x - 5) * x + 8) * x * a - 4 * a
        weights = np.where(x <= 1, near, far)
        np.add.at(out, (np.arange(to), (low + pixel).clip(0, size - 1)), weights)
    return out


RESIZERS = {
    "legacy_tensorflow": bilinear_tensorflow,
    "legacy_pytorch": bilinear_pytorch,
    "clean": bicubic_pillow,
}


def resize(image_BHWC: jax.Array, size: int, resizer: str) -> jax.Array:
    """float32, or float64 of float64, [B, size, size, C]: 0..255, clipped there and not rounded.

    Args:
      image_BHWC: [B, H, W, C] of 0..255, any type.
      resizer: of `RESIZERS`, by the names of arXiv 2104.11222.
    """
    H, W = image_BHWC.shape[1:3]
    dtype = jnp.result_type(image_BHWC, jnp.float32)
    rows, columns = (jnp.asarray(RESIZERS[resizer](n, size), dtype) for n in (H, W))
    x = image_BHWC.astype(dtype)
    x = jnp.einsum("ew,bhwc->bhec", columns, x, precision="highest")
    x = jnp.einsum("ah,bhec->baec", rows, x, precision="highest")
    return x.clip(0, 255)


def _bilinear(at: np.ndarray, size: int) -> np.ndarray:
    low = np.minimum(np.floor(at).astype(int), size - 1)
    high, part = np.minimum(low + 1, size - 1), at - low
    out = np.zeros((len(at), size))
    np.add.at(out, (np.arange(len(at)), low), 1 - part)
    np.add.at(out, (np.arange(len(at)), high), part)
    return out
