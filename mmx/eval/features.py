"""Images -> features of a frozen network, in float32 on all devices of this process."""

import os
from collections.abc import Iterable

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mmx.eval.images import to_uint8
from mmx.eval.sets import Features
from mmx.pretrained import networks

_AT_ONCE = 32  # images a device: ours


class Extractor:
    """Features by one of `networks.NETWORKS`; compiled once for each size of image.

    Images are cut and filled up to batches of one size, so the features of an image do not depend
    on how it comes, and the last batch compiles nothing new.

    Args:
      network: how they are made.
      data_dir: where its weights lie.

    Raises:
      UserError: they are not there.
    """

    def __init__(self, network: networks.Network, data_dir: str | os.PathLike | None = None):
        self.recipe = network.recipe
        devices = jax.local_devices()
        self._size = _AT_ONCE * len(devices)
        mesh = Mesh(np.array(devices), ("rows",), axis_types=(AxisType.Auto,))
        whole, rows = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("rows",)))
        self._weights = jax.device_put(networks.load(network.file, data_dir), whole)
        self._rows = rows

        def fn(weights, image_u8):
            # Else a TPU multiplies in bfloat16 and a GPU in tf32, which moves the metric.
            with jax.default_matmul_precision("highest"):
                return network.forward(weights, image_u8)

        self._fn = jax.jit(fn, in_shardings=(whole, rows), out_shardings=rows)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8, or float in [-1, 1] (rounded to 8 bits), [B, H, W, 3] -> float32 [B, D]."""
        image_u8 = as_uint8(images)
        parts = []
        for start in range(0, len(image_u8), self._size):
            part = image_u8[start : start + self._size]
            fill = np.zeros((self._size - len(part), *part.shape[1:]), np.uint8)
            full = jax.device_put(np.concatenate([part, fill]), self._rows)
            parts.append(np.asarray(self._fn(self._weights, full))[: len(part)])
        return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)

    def of(self, batches: Iterable[np.ndarray]) -> Features:
        """The features of a stream of images."""
        features = Features(self.recipe)
        for images in batches:
            features = features.add(self(images))
        return features


def as_uint8(images: np.ndarray) -> np.ndarray:
    images = np.asarray(images)
    return images if images.dtype == np.uint8 else to_uint8(images)
