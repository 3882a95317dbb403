"""The Frechet distance between two sets of features (FID where they are Inception's).

|mu_a - mu_b|^2 + tr(A) + tr(B) - 2 tr((A B)^(1/2)), A and B the unbiased covariances. In float64
throughout: float32 is off by 0.2 where a covariance is singular. It falls with the number of images
about as 1/N at equal distributions, so it is only compared at one N, which its name tells.
N images, D features.
"""

import numpy as np

from mmx.eval.sets import Features, Moments, check_comparable


def frechet(a: Moments, b: Moments) -> float:
    """The distance from means and covariances; at least 0 but for rounding.

    tr((A B)^(1/2)) is the sum of the roots of the eigenvalues of S B S, S the root of A: symmetric,
    so real, where the product A B is not.

    Source: arXiv 1706.08500 eq. 6.
    Raises UserError for sets of different size or recipe.
    """
    check_comparable(a, b)
    cov_a, cov_b = a.covariance(), b.covariance()
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    product = root @ cov_b @ root
    cross = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(0)).sum()
    return float(_gap(a, b) + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def frechet_of_features(a: Features, b: Features) -> float:
    """The same from all rows, by the cheaper way: with fewer images than features, no covariance.

    For centred rows X [N, D] and Y, tr((A B)^(1/2)) is the sum of the singular values of X Y^T over
    N - 1: the eigenvalues of X^T X Y^T Y are those of (X Y^T)(X Y^T)^T.
    """
    check_comparable(a, b)
    x, y = a.moments(), b.moments()
    if a.n >= len(x.mean_D):
        return frechet(x, y)
    x_ND, y_ND = a.rows() - x.mean_D, b.rows() - y.mean_D
    traces = np.trace(x.covariance()) + np.trace(y.covariance())
    cross = np.linalg.svd(x_ND @ y_ND.T, compute_uv=False).sum() / (a.n - 1)
    return float(_gap(x, y) + traces - 2 * cross)


def _gap(a: Moments, b: Moments) -> float:
    return float(((a.mean_D - b.mean_D) ** 2).sum())
