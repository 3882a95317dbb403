"""Many small pictures as one, for TensorBoard."""

import numpy as np


def tile(images_RCHWC: np.ndarray, gap: int = 2) -> np.ndarray:
    """uint8 [R, C, H, W, 3] -> uint8 [R*(H+gap)-gap, C*(W+gap)-gap, 3], white between."""
    R, C, H, W, channels = images_RCHWC.shape
    padded = np.full((R, H + gap, C, W + gap, channels), 255, np.uint8)
    padded[:, :H, :, :W] = images_RCHWC.transpose(0, 2, 1, 3, 4)
    return padded.reshape(R * (H + gap), C * (W + gap), channels)[:-gap, :-gap]
