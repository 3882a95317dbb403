"""Values with their 95 % intervals: Wilson for proportions, percentile bootstrap for the rest.

Every draw is seeded, so the same data always give the same interval. An interval speaks of the
sampling of the items (images, prompts) only: not of training seeds.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

LEVEL = 0.95
DRAWS = 2000  # ours: the ends of the interval then move by about 2 % of its width


@dataclass(frozen=True)
class Score:
    """A value, the ends of its 95 % interval and the number of items counted.

    `str(score)` is `0.83 [0.78, 0.87]`; `f"{score:.3f}"` chooses another number format.
    """

    value: float
    low: float
    high: float
    n: int

    def __format__(self, spec: str) -> str:
        spec = spec or ".2f"
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"

    def __str__(self) -> str:
        return format(self, "")


def wilson(successes: float, n: float) -> tuple[float, float]:
    """Wilson's score interval at 95 % for `successes` of `n`.

    Args:
      successes: 0..n; need not be whole (ties may count as a share of a success).
      n: number of independent trials, > 0; need not be whole (an effective sample size).
    Source: E. B. Wilson, JASA 22 (1927) 209-212.
    """
    if not n > 0 or not 0 <= successes <= n:
        raise ValueError(f"Wilson needs 0 <= successes <= n and n > 0, got {successes} of {n}")
    z = NormalDist().inv_cdf(0.5 + LEVEL / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    # The ends are 0 and 1 exactly where all trials agree; the formula leaves rounding there.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


def proportion(hits: np.ndarray, clusters: np.ndarray | None = None) -> Score:
    """The mean of `hits` with a Wilson interval.

    Args:
      hits: [n] bool, or float in [0, 1] where a tie counts as a share.
      clusters: [n] labels of any hashable kind; items of one cluster resemble each other (the tones
        of one concept, say), so n is divided by the design effect (never below 1) before Wilson.
        When all items agree no variance can be estimated and a cluster counts as one item.
    Source: the effective sample size of Kish, Survey Sampling (1965), put into Wilson's interval.
    """
    hits = _items(hits)
    if hits.min() < 0 or hits.max() > 1:
        raise ValueError("hits must lie in [0, 1]")
    n = len(hits)
    p = float(hits.mean())
    effective = float(n)
    if clusters is not None:
        group, num_groups = _groups(clusters, n)
        residual = np.bincount(group, hits - p)
        if p in (0.0, 1.0) or num_groups == 1:
            effective = float(num_groups)
        else:
            clustered = num_groups / (num_groups - 1) * float(residual @ residual) / n**2
            effective = n / max(1.0, clustered / (p * (1 - p) / n))
    low, high = wilson(p * effective, effective)
    return Score(p, low, high, n)


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray],
    values: np.ndarray,
    clusters: np.ndarray | None = None,
    seed: int = 0,
) -> Score:
    """`statistic` of the mean row of `values`, with a percentile bootstrap interval.

    Rows are drawn whole, so columns stay paired.

    Args:
      statistic: maps means [..., k] to values [...]; for instance a ratio of two columns.
      values: [n, k] float, finite.
      clusters: [n] labels; whole clusters are drawn instead of rows.
      seed: of the draws.
    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), ch. 13 and 8.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"bootstrap needs finite values [n, k] with n > 0, got {values.shape}")
    n = len(values)
    group, num_groups = (np.arange(n), n) if clusters is None else _groups(clusters, n)
    sums = np.zeros((num_groups, values.shape[1]))
    np.add.at(sums, group, values)
    sizes = np.bincount(group, minlength=num_groups)
    rng = np.random.default_rng(seed)
    # How often each cluster is drawn: all that a mean needs to know of a resample.
    times = rng.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=DRAWS)
    drawn = statistic(times @ sums / (times @ sizes)[:, None])
    tail = (1 - LEVEL) / 2
    # Outward order statistics, not interpolation: that makes nan of two infinite ratios.
    low = np.quantile(drawn, tail, method="lower")
    high = np.quantile(drawn, 1 - tail, method="higher")
    return Score(float(statistic(values.mean(0))), float(low), float(high), n)


def mean(values: np.ndarray, clusters: np.ndarray | None = None, seed: int = 0) -> Score:
    """The mean of values [n] with a bootstrap interval; paired differences are such values."""
    return bootstrap(lambda m: m[..., 0], _items(values)[:, None], clusters, seed)


def median(values: np.ndarray) -> Score:
    """The median of values [n] with the interval between two of them that holds the true median in
    at least 95 % of samples, whatever the distribution; with fewer than 6 the two ends.

    Source: Conover, Practical Nonparametric Statistics (1999), sec. 3.2.
    """
    values = np.sort(_items(values))
    n, below, tail = len(values), 0, 0.0
    # P(fewer than `below` values lie under the true median) <= (1 - LEVEL) / 2.
    while below < n // 2 and (tail := tail + math.comb(n, below) / 2**n) <= (1 - LEVEL) / 2:
        below += 1
    first = max(below - 1, 0)
    return Score(float(np.median(values)), float(values[first]), float(values[n - 1 - first]), n)


def ratio(
    numerator: np.ndarray,
    denominator: np.ndarray,
    clusters: np.ndarray | None = None,
    seed: int = 0,
) -> Score:
    """mean(numerator) / mean(denominator), both [n] >= 0 of the same items, drawn as pairs.

    A resample whose denominator is 0 counts as infinite (as 0 / 0 does: nothing is known there).
    """
    numerator, denominator = _items(numerator), _items(denominator)
    if len(numerator) != len(denominator):
        raise ValueError(f"paired values differ in number: {len(numerator)}, {len(denominator)}")
    if not denominator.sum() > 0:
        raise ValueError("the denominator of a ratio is 0 for every item")

    def divide(m):
        top, bottom = m[..., 0], m[..., 1]
        return np.where(bottom > 0, top / np.where(bottom > 0, bottom, 1), np.inf)

    return bootstrap(divide, np.stack([numerator, denominator], 1), clusters, seed)


def jackknife(value: float, without_one: np.ndarray, lowest: float, highest: float) -> Score:
    """`value` with a normal interval from delete-one values, cut at the range it can have.

    For counts of distinct things, where the bootstrap, which repeats items, is biased low.

    Args:
      value: the statistic of all n items.
      without_one: [n], the same statistic with item i left out; n >= 2.
    Source: Efron & Tibshirani (1993), eq. 11.5.
    """
    without_one = _items(without_one)
    n = len(without_one)
    if n < 2:
        raise ValueError("a jackknife needs two items or more")
    spread = ((n - 1) / n * ((without_one - without_one.mean()) ** 2).sum()) ** 0.5
    half = NormalDist().inv_cdf(0.5 + LEVEL / 2) * float(spread)
    return Score(float(value), max(lowest, value - half), min(highest, value + half), n)


def _items(values) -> np.ndarray:
    """values as float64 [n], n > 0, finite."""
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"a score needs finite values [n] with n > 0, got shape {values.shape}")
    return values


def _groups(clusters, n: int) -> tuple[np.ndarray, int]:
    """Labels [n] as numbers 0..groups-1, in order of appearance."""
    numbers: dict = {}
    group = np.array([numbers.setdefault(label, len(numbers)) for label in clusters], np.int64)
    if len(group) != n:
        raise ValueError(f"{len(group)} cluster labels for {n} items")
    return group, len(numbers)


def reach(points: list[tuple[float, float]], level: float) -> float:
    """Where a curve first reaches a level: straight lines between points over log x.

    Args:
      points: (x > 0, y), x rising.
      level: of y.

    Returns:
      x; 0.0 where the first point is there already, inf where none is.
    """
    for i, (x, y) in enumerate(points):
        if y >= level:
            if i == 0:
                return 0.0
            before_x, before_y = points[i - 1]
            share = (level - before_y) / (y - before_y)
            return math.exp(math.log(before_x) + share * math.log(x / before_x))
    return math.inf
