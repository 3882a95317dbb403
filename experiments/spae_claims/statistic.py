"""Means over images and seeds with bootstrap intervals, of one arm or of two compared.

Axis letters: S seeds, N images, G groups of images, D draws.
"""

import numpy as np

from mmx.eval.stats import DRAWS, Score


def estimate(values_SN: np.ndarray, groups_N: np.ndarray, seed: int = 0) -> Score:
    """The mean, with a 95 % percentile bootstrap interval.

    Seeds are drawn, and groups of images, the same for all seeds: the interval speaks of other
    images and other trainings; of one seed it speaks of images alone. Two arms are compared by the
    differences of their values, so that both their seeds and their images stay paired.

    Args:
      values_SN: of each seed and image.
      groups_N: labels; images of a group resemble one another and are drawn together.
      seed: of the draws.
    """
    values_SN = np.asarray(values_SN, np.float64)
    seeds, images = values_SN.shape
    _, group_N, size_G = np.unique(groups_N, return_inverse=True, return_counts=True)
    sums_SG = np.zeros((seeds, len(size_G)))
    np.add.at(sums_SG.T, group_N, values_SN.T)
    rng = np.random.default_rng(seed)
    count = len(size_G)
    times_DG = rng.multinomial(count, np.full(count, 1 / count), size=DRAWS)
    times_DS = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=DRAWS)
    total_D = np.einsum("ds,sg,dg->d", times_DS, sums_SG, times_DG, optimize=True)
    low, high = np.quantile(total_D / (times_DG @ size_G) / seeds, (0.025, 0.975))
    return Score(float(values_SN.mean()), float(low), float(high), images)
