"""The one shape that every evaluator has: four pure functions, so sums over shards are exact.

    state = init(); state = update(state, batch) for each batch; merge(a, b) of two shards' states;
    result(state) -> {name: value}

A state is immutable, lives on the host and counts in float64. Batches may be cut in any way, and
shards merged in any order: the result is the same but for rounding. `mmx evaluate` is one process
and merges nothing; whoever cuts a large set over many takes every n-th batch in each, and `merged`.
B rows of a batch.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from mmx.core.errors import UserError
from mmx.eval.stats import LEVEL, Score

Batch = Mapping[str, Any]
Scores = dict[str, Score | float]


@dataclass(frozen=True)
class Evaluator:
    """A measurement of rows that come in batches.

    A batch maps names to B rows each. The names are those of this table; an evaluator reads those
    in `needs`, and `_mask`.

      image       what is scored: uint8, or float in [-1, 1], [B, H, W, 3]
      real        the true image of the same row
      reference   another real image, of no row's `real`: what the set of `image` is compared with
      text        B texts: what `image` was drawn from, or what should be written of it
      caption     B generated texts
      references  for each row the texts that a caption of it is compared with
      nll, tokens float [B] nats and int [B]: of a text, the sum over its tokens and their number
      _mask       bool [B], False for padding, which counts for nothing; may be missing: all count

    Attributes:
      name: for messages.
      needs: of the names above.
      init: the state before any row.
      update: (state, batch) -> state.
      merge: states of two disjoint shards -> that of both.
      result: state -> scores. Raises UserError where the rows do not allow one.
    """

    name: str
    needs: tuple[str, ...]
    init: Callable[[], Any]
    update: Callable[[Any, Batch], Any]
    merge: Callable[[Any, Any], Any]
    result: Callable[[Any], Scores]


def run(evaluators: Sequence[Evaluator], batches: Iterable[Batch]) -> Scores:
    """One pass of the batches through all evaluators -> what they say, in their order.

    Raises:
      UserError: a batch lacks what an evaluator needs, or has no row.
    """
    scores: Scores = {}
    for e, state in zip(evaluators, states_of(evaluators, batches)):
        scores |= e.result(state)
    return scores


def states_of(evaluators: Sequence[Evaluator], batches: Iterable[Batch]) -> list[Any]:
    """One pass of the batches -> the state of each evaluator.

    Raises:
      UserError: a batch lacks what an evaluator needs.
    """
    states = [e.init() for e in evaluators]
    for batch in batches:
        for e in evaluators:
            if missing := [name for name in e.needs if name not in batch]:
                raise UserError(f"{e.name} needs {', '.join(missing)}, which is not measured here")
        states = [e.update(state, batch) for e, state in zip(evaluators, states)]
    return states


def merged(evaluator: Evaluator, states: Sequence[Any]) -> Any:
    """One state of the states of disjoint shards."""
    return reduce(evaluator.merge, states, evaluator.init())


def rows(batch: Batch, name: str) -> np.ndarray | list:
    """The rows of a batch that count: an array, or of texts a list."""
    values, mask = batch[name], batch.get("_mask")
    if not hasattr(values, "shape"):
        return list(values) if mask is None else [v for v, m in zip(values, mask) if m]
    values = np.asarray(values)
    return values if mask is None else values[np.asarray(mask, bool)]


class Mean(NamedTuple):
    """Of numbers: how many, their mean, the sum of squared distances to it. float64."""

    n: int = 0
    mean: float = 0.0
    squares: float = 0.0


def mean_of(name: str, needs: tuple[str, ...], score: Callable[..., np.ndarray]) -> Evaluator:
    """The mean over rows of a number a row, with a normal 95 % interval.

    Args:
      name: of the score.
      needs: names of a batch; `score` gets their rows in this order.
      score: rows -> float [B].
    """

    def update(state: Mean, batch: Batch) -> Mean:
        taken = [rows(batch, key) for key in needs]
        if not len(taken[0]):
            return state
        values = np.asarray(score(*taken), np.float64)
        centre = float(values.mean())
        return merge(state, Mean(len(values), centre, float(((values - centre) ** 2).sum())))

    def merge(a: Mean, b: Mean) -> Mean:
        n = a.n + b.n
        if not n:
            return a
        delta = b.mean - a.mean
        squares = a.squares + b.squares + delta**2 * a.n * b.n / n
        return Mean(n, a.mean + delta * b.n / n, squares)

    def result(state: Mean) -> Scores:
        if not state.n:
            raise UserError(f"{name}: no row to measure")
        return {name: _normal(state)}

    return Evaluator(name, needs, Mean, update, merge, result)


def mean(values: np.ndarray) -> Score:
    """The mean of [N] numbers, one a row, with a normal 95 % interval."""
    centre = float(np.mean(values))
    return _normal(Mean(len(values), centre, float(((values - centre) ** 2).sum())))


def _normal(state: Mean) -> Score:
    half = 0.0
    if state.n > 1:
        half = _Z * (state.squares / (state.n - 1) / state.n) ** 0.5
    return Score(state.mean, state.mean - half, state.mean + half, state.n)


_Z = NormalDist().inv_cdf(0.5 + LEVEL / 2)
