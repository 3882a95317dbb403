"""Rows on their way to the networks: any number on any mesh; 8-bit images as floats."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmx.train.sharding import batch_sharding, place, replicated


def fill_rows(rows: Any, mesh) -> tuple[Any, int]:
    """Repeat the last row until the batch axes of the mesh divide the number of rows.

    Args:
      rows: tree of arrays [B, ...], B at least 1.
      mesh: of the computation to come.

    Returns:
      (the tree [B', ...] on the devices, B).
    """
    count = len(jax.tree.leaves(rows)[0])
    ways = batch_sharding(mesh).num_devices // mesh.shape["tensor"]
    missing = -count % ways
    if not missing and all(isinstance(x, jax.Array) for x in jax.tree.leaves(rows)):
        return rows, count  # laid out already, perhaps sharded
    if missing:
        rows = jax.tree.map(lambda x: np.concatenate([x, np.repeat(x[-1:], missing, 0)]), rows)
    return place(rows, replicated(mesh)), count


def to_float(image_u8: jax.Array) -> jax.Array:
    """uint8 0..255 -> float32 in [-1, 1]."""
    return image_u8.astype(jnp.float32) / 127.5 - 1.0
