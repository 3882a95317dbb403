"""What is done to pictures whose undoing, or whose value in between, a language model is asked for.

All are pure functions of uint8 images [H, W, 3] to such images; what hides cells takes videos
[T, H, W, 3] too.
Legend: h w latent grid; of a video t h w.
"""

import numpy as np

GREY = 128  # of a hidden cell


def rotate(image: np.ndarray) -> np.ndarray:
    """By 90 degrees against the clock."""
    return np.rot90(image).copy()


def shift(image: np.ndarray, pixels: int) -> np.ndarray:
    """Down and to the right; what leaves on one side comes in on the other, so nothing is lost."""
    return np.roll(image, (pixels, pixels), (0, 1))


def blur(image: np.ndarray, radius: int) -> np.ndarray:
    """The mean of the (2 radius + 1)^2 pixels around each, halves rounded up; beyond the border the
    outermost pixel goes on."""
    size = 2 * radius + 1
    padded = np.pad(image.astype(np.int64), ((radius, radius), (radius, radius), (0, 0)), "edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), (0, 1))
    return ((2 * windows.sum((-1, -2)) + size**2) // (2 * size**2)).astype(np.uint8)


def brighten(image: np.ndarray, percent: int) -> np.ndarray:
    """So many percent of each value, at most 255, halves rounded up."""
    return ((2 * image.astype(np.int64) * percent + 100) // 200).clip(0, 255).astype(np.uint8)


def blend(image: np.ndarray, other: np.ndarray, percent: int) -> np.ndarray:
    """So many percent of the other image, the rest of the first, halves rounded up."""
    total = image.astype(np.int64) * (100 - percent) + other.astype(np.int64) * percent
    return ((2 * total + 100) // 200).astype(np.uint8)


def hide(image: np.ndarray, is_hidden_hw: np.ndarray) -> np.ndarray:
    """Cells of the latent grid in grey; the grid divides the image."""
    is_hidden = is_hidden_hw
    for axis, cells in enumerate(is_hidden_hw.shape):
        is_hidden = np.repeat(is_hidden, image.shape[axis] // cells, axis)
    return np.where(is_hidden[..., None], np.uint8(GREY), image)


def centre(shape: tuple[int, int]) -> np.ndarray:
    """bool [h, w]: the middle half of the rows and columns, as V2L in-paints (arXiv 2403.07874)."""
    rows, columns = (np.abs(2 * np.arange(n) - n + 1) < n / 2 for n in shape)
    return rows[:, None] & columns


def later_half(shape: tuple[int, ...]) -> np.ndarray:
    """bool [h, w]: the lower half, as V2L out-paints; bool [t, h, w]: the later frames."""
    is_late = np.arange(shape[0]) >= shape[0] // 2
    return np.broadcast_to(is_late.reshape(-1, *[1] * (len(shape) - 1)), shape)
