"""Means over scenes and seeds with bootstrap intervals, of one arm or of several compared.

Axis letters: S seeds, n scenes, D draws.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from mmx.eval.stats import DRAWS, Score


@dataclasses.dataclass(frozen=True)
class Table:
    """A score of each seed and scene as a ratio: what is summed over what.

    Attributes:
      over, under: float [S, n].
    """

    over: np.ndarray
    under: np.ndarray

    @classmethod
    def of_marks(cls, seeds: list[str]) -> "Table":
        """Of :func:`scenes.marks`, a text a seed: what is right of what there is."""
        letters = np.array([list(text) for text in seeds])
        return cls((letters == "1").astype(float), (letters != "-").astype(float))

    @classmethod
    def mean_of(cls, tables: list["Table"]) -> "Table":
        """Of several scores, each counting alike whatever it is over: their mean, scene by scene.

        Each is divided by its share of scenes, so that sums over all scenes give that mean; of
        drawn scenes they nearly do.
        """
        parts = [table.over / table.under.mean() for table in tables]
        return cls(np.mean(parts, axis=0), np.ones_like(parts[0]))


def estimate(
    statistic: Callable[..., np.ndarray], *tables: Table, seed: int = 0, draws: int = DRAWS
) -> Score:
    """A function of the tables' ratios, with a percentile bootstrap interval.

    Scenes are drawn, the same for all tables, and seeds, for each table its own: the interval
    speaks of other scenes and other trainings. Of one seed it speaks of scenes alone.

    Args:
      statistic: ratios, an array a table -> values of their shape.
      tables: all over the same scenes.
      seed, draws: of the bootstrap.
    """
    rng = np.random.default_rng(seed)
    n = tables[0].over.shape[1]
    times_Dn = rng.multinomial(n, np.full(n, 1 / n), size=draws)

    def ratio(table):
        S = len(table.over)
        times_DS = rng.multinomial(S, np.full(S, 1 / S), size=draws)
        sums = [((times_DS @ x) * times_Dn).sum(1) for x in (table.over, table.under)]
        return sums[0] / sums[1]

    value = statistic(*(table.over.sum() / table.under.sum() for table in tables))
    low, high = np.quantile(statistic(*map(ratio, tables)), (0.025, 0.975))
    return Score(float(value), float(low), float(high), n)
