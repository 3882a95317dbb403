"""Randomness: one base key a run, named streams, and one key a row.

Nothing here is ever split and carried. A draw of a row is a pure function of (seed, stream name,
position of the row in the endless data stream), so it is the same on any batch shape and any number
of devices (contract 4 of the design).
"""

import zlib

import jax
import jax.numpy as jnp


def base_key(seed: int) -> jax.Array:
    """The one key of a run. Threefry, which is the same on every backend and partitionable."""
    return jax.random.key(seed, impl="threefry2x32")


def stream(key: jax.Array, name: str) -> jax.Array:
    """The named stream of a key: those of two names, "mask" and "drop", are independent."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def row_keys(key: jax.Array, name: str, position_B: jax.Array) -> jax.Array:
    """One key a row from the row's position.

    Args:
      key: the run's base key.
      name: of the stream.
      position_B: uint32 [B], the rows' positions in the data stream.

    Returns:
      keys [B].
    """
    base = stream(key, name)
    return jax.vmap(lambda p: jax.random.fold_in(base, p))(position_B.astype(jnp.uint32))
