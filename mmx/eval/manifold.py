"""Precision and recall, density and coverage: do two sets of features fill the same space?

Each image has a ball whose radius reaches its k-th nearest neighbour in its own set (itself not
counted). In float64 and in blocks. N images, D features.
"""

import numpy as np

from mmx.core.errors import UserError
from mmx.eval.sets import Features, check_comparable, check_recipe
from mmx.eval.stats import Score, proportion

_BLOCK = 1024  # rows of one side at a time: ours


def precision_recall(
    generated: Features, real: Features, neighbours: int = 3
) -> tuple[Score, Score]:
    """(share of generated images inside the balls of real ones, share of real images inside the
    balls of generated ones).

    Intervals: Wilson's, with the other set taken as it is.

    Source: arXiv 1904.06991 eq. 1 and 2, k = 3 as there.
    Raises UserError for sets of different size or recipe, or of k images or fewer.
    """
    check_comparable(generated, real)
    x_ND, y_ND = generated.rows(), real.rows()
    inside = _counts(x_ND, y_ND, _radii(real, y_ND, neighbours))
    reached = _counts(y_ND, x_ND, _radii(generated, x_ND, neighbours))
    return proportion(inside > 0), proportion(reached > 0)


def density_coverage(
    generated: Features, real: Features, neighbours: int = 5
) -> tuple[float, Score]:
    """(mean number of real balls that a generated image lies in, over k; share of real images with
    a generated one in their ball).

    Both look at the real set's balls only, so an outlier among the generated changes little.
    Equal distributions have density 1 and coverage 1 - (N-1)...(N-k)/((2N-1)...(2N-k)), about
    1 - 2^-k.

    Source: arXiv 2002.09797 eq. 3, 4 and 9, k = 5 as there.
    Raises UserError for sets of different size or recipe, or of k images or fewer.
    """
    check_comparable(generated, real)
    x_ND, y_ND = generated.rows(), real.rows()
    radii_N = _radii(real, y_ND, neighbours)
    density = _counts(x_ND, y_ND, radii_N).mean() / neighbours
    nearest_N = _smallest(y_ND, x_ND, 1)[:, 0]
    return float(density), proportion(nearest_N <= radii_N)


def nearest(a: Features, b: Features) -> np.ndarray:
    """float64 [N]: distance of each image of `a` to the nearest of `b`, which may be larger.

    Raises UserError for sets of different recipe.
    """
    check_recipe(a, b)
    return np.sqrt(_smallest(a.rows(), b.rows(), 1)[:, 0])


def _radii(features: Features, x_ND: np.ndarray, neighbours: int) -> np.ndarray:
    """[N], squared: to the k-th neighbour. The distance 0 of each to itself is the first of all."""
    if len(x_ND) <= neighbours:
        raise UserError(
            f"{features.recipe}: {len(x_ND)} images have no {neighbours}-th neighbour; give more"
        )
    return _smallest(x_ND, x_ND, neighbours + 1)[:, neighbours]


def _counts(x_ND: np.ndarray, y_ND: np.ndarray, radii_N: np.ndarray) -> np.ndarray:
    """int [N]: in how many balls around y each x lies."""
    counts = []
    for i in range(0, len(x_ND), _BLOCK):
        counts.append((_squares(x_ND[i : i + _BLOCK], y_ND) <= radii_N).sum(1))
    return np.concatenate(counts)


def _smallest(x_ND: np.ndarray, y_ND: np.ndarray, k: int) -> np.ndarray:
    """[N, k]: the k smallest squared distances of each x to the y, ascending."""
    out = []
    for i in range(0, len(x_ND), _BLOCK):
        squares = _squares(x_ND[i : i + _BLOCK], y_ND)
        out.append(np.sort(np.partition(squares, min(k, squares.shape[1]) - 1)[:, :k]))
    return np.concatenate(out)


def _squares(x_ND: np.ndarray, y_ND: np.ndarray) -> np.ndarray:
    squares = (x_ND**2).sum(1)[:, None] + (y_ND**2).sum(1) - 2 * (x_ND @ y_ND.T)
    return squares.clip(0)
