"""What is kept of a set of images: their features, or only the mean and covariance of these.

N images, D features. Sets are compared by `frechet`, `kernels` and `manifold`, which refuse sets of
another recipe or of another size.
"""

from typing import NamedTuple

import numpy as np

from mmx.core.errors import UserError


class Moments(NamedTuple):
    """Mean and scatter of feature rows, all that a Frechet distance needs of a large set.

    Attributes:
      recipe: of the features: network, size, resizing.
      n: rows.
      mean_D: float64.
      scatter_DD: float64, the sum of (x - mean)(x - mean)^T.
    """

    recipe: str
    n: int
    mean_D: np.ndarray
    scatter_DD: np.ndarray

    def add(self, rows_ND: np.ndarray) -> "Moments":
        """With more rows; sums of a batch are centred on its own mean, in float64."""
        rows_ND = np.asarray(rows_ND, np.float64)
        if not len(rows_ND):
            return self
        mean_D = rows_ND.mean(0)
        centred_ND = rows_ND - mean_D
        more = Moments(self.recipe, len(rows_ND), mean_D, centred_ND.T @ centred_ND)
        return self.merge(more)

    def merge(self, other: "Moments") -> "Moments":
        """Of both sets. Source: Chan, Golub, LeVeque 1979, eq. 2.1, for vectors."""
        check_recipe(self, other)
        n = self.n + other.n
        if not self.n or not other.n:
            return other if other.n else self
        delta_D = other.mean_D - self.mean_D
        shift_DD = np.outer(delta_D, delta_D) * (self.n * other.n / n)
        return Moments(
            self.recipe,
            n,
            self.mean_D + delta_D * (other.n / n),
            self.scatter_DD + other.scatter_DD + shift_DD,
        )

    def covariance(self) -> np.ndarray:
        """Unbiased, [D, D], as the Frechet distance of all papers has it (ddof = 1)."""
        if self.n < 2:
            raise UserError(f"{self.recipe}: {self.n} images have no covariance; give 2 or more")
        return self.scatter_DD / (self.n - 1)


class Features(NamedTuple):
    """All rows, for what compares images with images.

    Attributes:
      recipe: of the features: network, size, resizing.
      parts: float32 arrays [n, D], in order.
    """

    recipe: str
    parts: tuple[np.ndarray, ...] = ()

    @property
    def n(self) -> int:
        return sum(map(len, self.parts))

    def add(self, rows_ND: np.ndarray) -> "Features":
        rows_ND = np.asarray(rows_ND)
        return Features(self.recipe, (*self.parts, rows_ND)) if len(rows_ND) else self

    def merge(self, other: "Features") -> "Features":
        check_recipe(self, other)
        return Features(self.recipe, self.parts + other.parts)

    def rows(self) -> np.ndarray:
        """float64 [N, D]."""
        if not self.parts:
            raise UserError(f"{self.recipe}: no image to measure")
        return np.concatenate(self.parts).astype(np.float64)

    def moments(self) -> Moments:
        return no_moments(self.recipe).add(self.rows())


def no_moments(recipe: str) -> Moments:
    """Of no rows, whatever D will be."""
    return Moments(recipe, 0, np.zeros(0), np.zeros((0, 0)))


def check_recipe(a, b) -> None:
    """Raises UserError where two sets' features were made in different ways."""
    if a.recipe != b.recipe:
        raise UserError(
            f"features {a.recipe!r} and {b.recipe!r} cannot be compared: use one recipe for both"
        )


def check_comparable(a, b) -> None:
    """Raises UserError for two sets of other recipes, or of other sizes: these metrics are biased
    by the number of images, each by its own amount."""
    check_recipe(a, b)
    if a.n != b.n:
        raise UserError(
            f"{a.recipe}: a set of {a.n} and one of {b.n} images cannot be compared: the value "
            "depends on the number; take as many of both"
        )
