"""Rotary position embedding (arXiv 2104.09864).

Axis letters: B batch, L length, N heads, K head size.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


def rotate(
    x_BLNK: jax.Array,
    theta: float = 10_000.0,
    scale: float = 1.0,
    position_BL: jax.Array | None = None,
) -> jax.Array:
    """Turn each pair of coordinates by an angle that grows with the position, in float32.

    The product of a rotated query and a rotated key depends on how far apart they are and not on
    where they are. Coordinate k pairs with k + K/2, as in most published weights (the paper's pairs
    are neighbours: the same up to the order of coordinates, and slower on a TPU).

    Args:
      x_BLNK: queries or keys; K is even.
      theta: pair k turns by theta^(-2k / K) a position (eq. 15).
      scale: of the result, in the same pass and before it is rounded.
      position_BL: int, of each; 0 .. L - 1 in every row where None.

    Returns:
      [B, L, N, K] in x's dtype.
    """
    if position_BL is None:
        position_BL = jnp.arange(x_BLNK.shape[1])[None]
    return _turn(theta, scale, x_BLNK, position_BL)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _turn(theta, scale, x_BLNK, position_BL):
    return _turned(x_BLNK, position_BL, _speeds(theta, x_BLNK), scale, 1.0)


class Rope(NamedTuple):
    """How fast pairs of coordinates turn in published weights; by the names of ``config.json``.

    Attributes:
      theta: the base.
      factor: by which a longer context slows the turning: of all pairs, or where ``original`` is
        given of those that turn slowly in it (Llama 3.1's rule, "llama3").
      low, high: ``low_freq_factor`` and ``high_freq_factor``: pairs of fewer than ``low`` turns in
        the original context are slowed, of more than ``high`` not, between them partly.
      original: ``original_max_position_embeddings``, or 0.
    """

    theta: float = 10_000.0
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original: int = 0

    def speeds(self, head_size: int) -> np.ndarray:
        """float32 [K / 2]: of each pair, radians a position."""
        half = head_size // 2
        speed_k = self.theta ** (-np.arange(half) / half)
        if not self.original:
            return (speed_k / self.factor).astype(np.float32)
        turns_k = self.original * speed_k / (2 * np.pi)
        kept_k = np.clip((turns_k - self.low) / (self.high - self.low), 0, 1)
        return (speed_k * (kept_k + (1 - kept_k) / self.factor)).astype(np.float32)


def rotate_by(
    x_BLNK: jax.Array, speed_k: jax.Array, scale: float, position_BL: jax.Array
) -> jax.Array:
    """:func:`rotate` with the speeds of :meth:`Rope.speeds`, which may differ from layer to layer.

    For weights that are not trained: there is no backward pass of its own.
    """
    return _turned(x_BLNK, position_BL, speed_k, scale, 1.0)


def _speeds(theta, x_BLNK):
    half = x_BLNK.shape[-1] // 2
    return theta ** (-jnp.arange(half, dtype=jnp.float32) / half)


def _turned(x_BLNK, position_BL, speed_k, scale, sense):
    half = x_BLNK.shape[-1] // 2
    angle_BLk = position_BL.astype(jnp.float32)[..., None] * speed_k
    angle_BLNK = jnp.tile(angle_BLk, 2)[:, :, None]
    # The partners come by a product, which is exact: a TPU's compiler cuts a rotation of lanes into
    # halves, which it writes to memory one by one.
    swap_KK = jnp.roll(jnp.eye(2 * half, dtype=x_BLNK.dtype), half, axis=1)
    swap_KK *= jnp.repeat(jnp.array([-sense, sense], x_BLNK.dtype), half)
    partner_BLNK = jnp.einsum(
        "blnk,kj->blnj",
        x_BLNK,
        swap_KK,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    turned_BLNK = x_BLNK.astype(jnp.float32) * (scale * jnp.cos(angle_BLNK))
    turned_BLNK += partner_BLNK * (scale * jnp.sin(angle_BLNK))
    return turned_BLNK.astype(x_BLNK.dtype)


def _forward(theta, scale, x_BLNK, position_BL):
    return _turn(theta, scale, x_BLNK, position_BL), position_BL


def _backward(theta, scale, position_BL, slope_BLNK):
    """Back by the same angle. Written out, as autodiff would round nothing and pass float32 on."""
    speed_k = _speeds(theta, slope_BLNK)
    return _turned(slope_BLNK, position_BL, speed_k, scale, -1.0), None


_turn.defvjp(_forward, _backward)
