"""Images -> features of a frozen network, in float32 on all devices of this process."""

import os
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mmx.eval.images import as_uint8
from mmx.eval.sets import Features
from mmx.pretrained import networks

_AT_ONCE = 32  # images a device: ours


class InBatches:
    """A network as a function of images on the host, compiled once for each size of image.

    Images are cut and filled up to batches of one size, so what is said of an image does not depend
    on how it comes, and the last batch compiles nothing new.

    Args:
      fn: (weights, images [B, H, W, C], ...) -> float32 [B, ...].
      weights: of `fn`.
    """

    def __init__(self, fn: Callable[..., jax.Array], weights: Any):
        devices = jax.local_devices()
        self._size = _AT_ONCE * len(devices)
        mesh = Mesh(np.array(devices), ("rows",), axis_types=(AxisType.Auto,))
        whole, self._rows = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("rows",)))
        self._weights = jax.device_put(weights, whole)

        def exact(weights, *images):
            # Else a TPU multiplies in bfloat16 and a GPU in tf32, which moves the metric.
            with jax.default_matmul_precision("highest"):
                return fn(weights, *images)

        self._fn = jax.jit(exact, out_shardings=self._rows)

    def __call__(self, *images: np.ndarray) -> np.ndarray:
        """Arrays [B, H, W, C] -> float32 [B, ...]; [0, 0] of no image."""
        parts = []
        for start in range(0, len(images[0]), self._size):
            part = [x[start : start + self._size] for x in images]
            count = len(part[0])
            full = [np.concatenate([x, np.zeros((self._size - count, *x.shape[1:]), x.dtype)])
                    for x in part]  # fmt: skip
            out = self._fn(self._weights, *jax.device_put(full, self._rows))
            parts.append(np.asarray(out)[:count])
        return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)


class Extractor:
    """Features by one of `networks.NETWORKS`, as `InBatches`.

    Args:
      network: how they are made.
      data_dir: where its weights lie.

    Raises:
      UserError: they are not there.
    """

    def __init__(self, network: networks.Network, data_dir: str | os.PathLike | None = None):
        self.recipe = network.recipe
        self._of = InBatches(network.forward, networks.load(network.file, data_dir))

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8, or float in [-1, 1] (rounded to 8 bits), [B, H, W, 3] -> float32 [B, D]."""
        return self._of(as_uint8(images))

    def of(self, batches: Iterable[np.ndarray]) -> Features:
        """The features of a stream of images."""
        features = Features(self.recipe)
        for images in batches:
            features = features.add(self(images))
        return features
