"""The row of a table that is nearest to a vector, and back: by pieces, and with rows over devices.

A table of a million words lies over the mesh axis of its logical name, "vocab": every device seeks
in its own rows, and what goes between devices is one distance and one id a vector.
Legend: N all leading axes as one, V rows of the table, v of one device, e of one piece, Z width;
`...` any shape.
"""

import hashlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from mmx.core.partition import spec_for

TABLE_AXES = ("vocab", None)  # logical names of a table of words
_CHUNK = 1024  # rows compared at once: 65,536 vectors then need 256 MB, not 2 GB for 8192 rows


def nearest_words(z: jax.Array, table_VZ: jax.Array, num_words: int | None = None) -> jax.Array:
    """Rows with the least Euclidean distance, the lowest id among equals.

    On the mesh that is set, with the table over its axis of :data:`TABLE_AXES`: the best row of
    each device, then the best of those. No gradient passes.

    Args:
      z: float [..., Z].
      table_VZ: float [V, Z].
      num_words: rows from here on only fill the table up, so that it divides over devices, and are
        never found. None: all are words.

    Returns:
      int32 [...] in [0, num_words).

    Raises:
      ShardingError: V does not divide over the mesh axis.
    """
    z, table_VZ = jax.lax.stop_gradient((z, table_VZ))
    num_rows, width = table_VZ.shape
    num_words = num_rows if num_words is None else num_words

    def local(z_NZ, table_vZ, first, axis):
        distance_N, row_N = search(z_NZ, table_vZ, num_words - first)
        id_N = first + row_N
        if axis is None:
            return id_N
        is_best_N = distance_N == jax.lax.pmin(distance_N, axis)
        return jax.lax.pmin(jnp.where(is_best_N, id_N, num_rows), axis)

    return _over_rows(local, z.reshape(-1, width), table_VZ).reshape(z.shape[:-1])


def embed_words(ids: jax.Array, table_VZ: jax.Array) -> jax.Array:
    """[..., Z] in the table's dtype: the rows of int ids [...] in [0, V), from whichever device."""

    def local(ids, table_vZ, first, axis):
        table_vZ = jnp.asarray(table_vZ)  # of the host too: ids may be traced
        if axis is None:
            return table_vZ[ids]
        row = ids - first
        is_here = (row >= 0) & (row < table_vZ.shape[0])
        return jax.lax.psum(jnp.where(is_here[..., None], table_vZ[row * is_here], 0), axis)

    return _over_rows(local, ids, table_VZ)


def _over_rows(local: Callable, x: jax.Array, table_VZ: jax.Array) -> jax.Array:
    """``local(x, own rows, id of the first, mesh axis or None)`` on each device of the axis.

    Only the table's axis is taken by hand: how x lies over the others is the compiler's to keep.
    """
    mesh = jax.sharding.get_abstract_mesh()
    spec = spec_for("table of words", table_VZ.shape, TABLE_AXES, dict(mesh.shape))
    axis = spec[0]
    if axis is None:
        return local(x, table_VZ, 0, None)

    def on_device(x, table_vZ):
        return local(x, table_vZ, jax.lax.axis_index(axis) * table_vZ.shape[0], axis)

    specs = dict(in_specs=(PartitionSpec(), spec), out_specs=PartitionSpec())
    # No check of what varies over devices: the search starts from constants, which do not.
    sharded = jax.shard_map(on_device, axis_names={axis}, check_vma=False, **specs)
    return sharded(x, table_VZ)


def search(
    z_NZ: jax.Array, table_VZ: jax.Array, num_words: int | jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The nearest row, in float32, over pieces of the table: no [N, V] array and no copy of it.

    Args:
      z_NZ: float [N, Z].
      table_VZ: float [V, Z], whole on the device.
      num_words: rows from here on are infinitely far; may be traced, and below 1.

    Returns:
      distance_N: float32, ``|e|^2 - 2 z.e``: the squared distance less |z|^2, which all rows share.
      row_N: int32 in [0, V), the lowest among equals.
    """
    num_rows = table_VZ.shape[0]
    pieces = -(-num_rows // _CHUNK)
    size = -(-num_rows // pieces)
    z_NZ = z_NZ.astype(jnp.float32)

    def one_piece(best, first):
        best_distance_N, best_row_N = best
        # The last piece may see some rows again: equal distances, so none is closer.
        start = jnp.minimum(first, num_rows - size)
        row_e = start + jnp.arange(size, dtype=jnp.int32)
        piece_eZ = jax.lax.dynamic_slice_in_dim(table_VZ, start, size).astype(jnp.float32)
        norm_e = jnp.where(row_e < num_words, jnp.square(piece_eZ).sum(-1), jnp.inf)
        distance_Ne = norm_e - 2 * jnp.dot(z_NZ, piece_eZ.T, precision="highest")
        distance_N = distance_Ne.min(-1)
        # The lowest row at the minimum. jnp.argmin says the same; XLA's CPU code for it does not
        # vectorise.
        at_minimum_Ne = distance_Ne == distance_N[:, None]
        row_N = jnp.where(at_minimum_Ne, row_e, num_rows - 1).min(-1)
        closer_N = distance_N < best_distance_N
        best_distance_N = jnp.where(closer_N, distance_N, best_distance_N)
        return (best_distance_N, jnp.where(closer_N, row_N, best_row_N)), None

    count = len(z_NZ)
    start = (jnp.full(count, jnp.inf, jnp.float32), jnp.zeros(count, jnp.int32))
    firsts = jnp.arange(pieces, dtype=jnp.int32) * size
    return jax.lax.scan(one_piece, start, firsts)[0]


def distinct_rows(table_VZ: np.ndarray) -> np.ndarray:
    """int64, rising: the rows of a table on the host that can be words of a codebook.

    Left out: a row that is 0 or not finite (a place that a vocabulary keeps free), and a row equal
    to an earlier one, which no search would ever find.
    """
    seen, kept = set(), []
    for i, row_Z in enumerate(table_VZ):
        # Of +0 and -0 one; a digest, as the keys of a whole table would be as large as itself.
        digest = hashlib.blake2b((row_Z + 0).tobytes(), digest_size=16).digest()
        if digest not in seen and row_Z.any() and np.isfinite(row_Z).all():
            seen.add(digest)
            kept.append(i)
    return np.asarray(kept, np.int64)
