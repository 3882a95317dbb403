"""Rotary position embedding (arXiv 2104.09864).

Axis letters: B batch, L length, N heads, K head size.
"""

import jax
import jax.numpy as jnp


def rotate(x_BLNK: jax.Array, theta: float = 10_000.0) -> jax.Array:
    """Turn each pair of coordinates by an angle that grows with the position, in float32.

    The product of a rotated query and a rotated key depends on how far apart they are and not on
    where they are. Coordinate k pairs with k + K/2, as in most published weights (the paper's pairs
    are neighbours: the same up to the order of coordinates, and slower on a TPU).

    Args:
      x_BLNK: queries or keys of positions 0 .. L - 1; K is even.
      theta: pair k turns by theta^(-2k / K) a position (eq. 15).

    Returns:
      [B, L, N, K] in x's dtype.
    """
    length, half = x_BLNK.shape[1], x_BLNK.shape[-1] // 2
    speed_k = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle_Lk = jnp.arange(length, dtype=jnp.float32)[:, None] * speed_k
    angle_LK = jnp.tile(angle_Lk, 2)[None, :, None]
    sign_K = jnp.repeat(jnp.array([-1.0, 1.0]), half)
    # The partner comes by a rotation of all coordinates: halves of a vector are slow on a TPU.
    partner_BLNK = jnp.roll(x_BLNK, half, axis=-1).astype(jnp.float32)
    turned = x_BLNK.astype(jnp.float32) * jnp.cos(angle_LK)
    turned += partner_BLNK * (sign_K * jnp.sin(angle_LK))
    return turned.astype(x_BLNK.dtype)
