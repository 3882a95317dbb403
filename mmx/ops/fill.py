"""What a decoder sees at cells of a grid that have nothing yet: a fill by name, never in silence.

Legend: B batch, h w grid (of a video t h w), S cells (S = h*w), P stages, Z width.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mmx.core.errors import choose


def _zeros(x_BhwZ, covered_Phw, stage, mask_Z):
    return jnp.where(_of(covered_Phw[..., None], stage), x_BhwZ, 0)


def _mask(x_BhwZ, covered_Phw, stage, mask_Z):
    if mask_Z is None:
        raise ValueError('fill="mask" needs mask_Z')
    return jnp.where(_of(covered_Phw[..., None], stage), x_BhwZ, mask_Z.astype(x_BhwZ.dtype))


def _nearest(x_BhwZ, covered_Phw, stage, mask_Z):
    batch, channels = x_BhwZ.shape[0], x_BhwZ.shape[-1]
    owner = _of(nearest_covered(covered_Phw)[..., None], stage)  # [S, 1], or [B, S, 1] by row
    x_BSZ = x_BhwZ.reshape(batch, -1, channels)
    owner_BS1 = jnp.broadcast_to(owner, (*x_BSZ.shape[:2], 1))
    return jnp.take_along_axis(x_BSZ, owner_BS1, axis=1).reshape(x_BhwZ.shape)


def _of(table_P: np.ndarray, stage: int | jax.Array) -> jax.Array:
    return jnp.asarray(table_P)[stage]


# 0; one vector for all; the nearest cell that has something.
FILLS: dict[str, Callable] = {"zeros": _zeros, "mask": _mask, "nearest": _nearest}


def fill_cells(
    x_BhwZ: jax.Array,
    covered_Phw: np.ndarray,
    stage: int | jax.Array,
    fill: str,
    mask_Z: jax.Array | None = None,
) -> jax.Array:
    """x with its uncovered cells filled in, and the others to the bit.

    The gradient of a filled cell goes to what fills it: to nothing, to `mask_Z`, to the cell that
    it is a copy of.

    Args:
      x_BhwZ: float [B, h, w, Z]; what it holds at uncovered cells does not matter, NaN included.
      covered_Phw: bool, known at compile time: which cells have something at each stage; at least
        one has.
      stage: in [0, P), one number or int [B], a row's own.
      fill: of `FILLS`.
      mask_Z: float [Z], what "mask" fills in.

    Raises:
      UserError: another fill; ValueError: "mask" without its vector.
    """
    return choose("fill", FILLS, fill)(x_BhwZ, covered_Phw, stage, mask_Z)


def nearest_covered(covered_Phw: np.ndarray) -> np.ndarray:
    """int32 [P, S]: the covered cell that is nearest to each cell, each counted frame by frame and
    row by row (row * w + column).

    A covered cell is its own; among equally near ones it is the first. A step in time is as long as
    one in space (ours).
    """
    place_nS = np.indices(covered_Phw.shape[1:]).reshape(covered_Phw.ndim - 1, -1)
    owners = []
    for covered_hw in covered_Phw:
        covered = np.flatnonzero(covered_hw)
        apart = sum((at_S[:, None] - at_S[covered]) ** 2 for at_S in place_nS)
        owners.append(covered[apart.argmin(-1)])
    return np.asarray(owners, np.int32)
