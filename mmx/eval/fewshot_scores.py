"""What the answers to few-shot episodes come to: accuracies with clustered intervals.

Queries of one class resemble each other, and so do those of one episode, which are shown the same
images. An interval, of a score as of a difference, is the wider of that clustered by class and that
by episode. It speaks of these two, not of training seeds.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mmx.eval import stats
from mmx.eval.episodes import COLUMNS, Column, Episode
from mmx.eval.fewshot import RULES, Answers, Setting

MEAN = "mean of seven"
NO_LM = "overlap"  # the rule of what is scored without a language model
_RULES = (*RULES, NO_LM)


def hits(scores_QC: np.ndarray, episode: Episode) -> np.ndarray:
    """float [queries]: 1 where the right candidate is the first; a tie earns its share."""
    right_Q = [episode.candidates.index(item.answer) for item in episode.queries]
    best_QC = scores_QC == scores_QC.max(axis=1, keepdims=True)
    return np.array([row[r] / row.sum() for row, r in zip(best_QC, right_Q, strict=True)])


def summary(
    answers: Answers,
    settings: Sequence[Setting],
    episodes: Sequence[Episode],
    overlap: Callable[[Setting, Episode], np.ndarray],
) -> dict[str, Any]:
    """Scores of each setting by each rule, their means over Frozen's columns, and differences.

    Args:
      overlap: scores [queries, candidates] of a setting without a language model.

    Returns:
      What JSON can hold: "chance", "episodes", "queries", and "scores" and "differences", lists of
      {"reading", "budget", "column", "rule", "value", "low", "high"}. A difference is of the
      reading "words" and another, on the same queries. "budgets" are such differences, too: of
      "budget" words less "fewer", of one reading.
    """
    classes = [item.answer for episode in episodes for item in episode.queries]
    numbers = [episode.number for episode in episodes for _ in episode.queries]
    hit: dict[tuple[str, int, Column | str, str], np.ndarray] = {}
    for setting in settings:
        for rule in _RULES:
            found = [
                overlap(setting, e) if rule == NO_LM else answers.scores(setting, e, rule)
                for e in episodes
            ]
            key = (setting.reading, setting.budget, setting.column, rule)
            hit[key] = np.concatenate([hits(s, e) for s, e in zip(found, episodes, strict=True)])
    wide = sorted({(s.reading, s.budget) for s in settings if s.column == COLUMNS[0]})
    for reading, budget in wide:
        for rule in _RULES:
            columns = [hit[reading, budget, column, rule] for column in COLUMNS]
            hit[reading, budget, MEAN, rule] = np.mean(columns, axis=0)
    scores, differences = [], []
    for (reading, budget, column, rule), values in hit.items():
        name = {"reading": reading, "budget": budget, "column": str(column), "rule": rule}
        scores.append(name | wider(stats.proportion, values, classes, numbers))
        if reading != "words" and ("words", budget, column, rule) in hit:
            more = hit["words", budget, column, rule] - values
            differences.append(name | wider(stats.mean, more, classes, numbers))
    budgets = []
    for one, other in itertools.combinations(sorted(hit, key=lambda key: key[1]), 2):
        reading, budget, column, rule = other
        if (reading, column, rule) == (one[0], one[2], one[3]):
            name = {"reading": reading, "budget": budget, "fewer": one[1], "column": str(column)}
            more = wider(stats.mean, hit[other] - hit[one], classes, numbers)
            budgets.append(name | {"rule": rule} | more)
    return {
        "chance": 1 / len(episodes[0].candidates),
        "episodes": len(episodes),
        "queries": len(classes),
        "classes": len(set(classes)),
        "scores": scores,
        "differences": differences,
        "budgets": budgets,
    }


def wider(of: Callable, values: np.ndarray, *clusters: Sequence) -> dict[str, float]:
    """A function of `mmx.eval.stats`, with the wider of the intervals by each kind of cluster."""
    scores = [of(values, cluster) for cluster in clusters]
    score = max(scores, key=lambda score: score.high - score.low)
    return {"value": score.value, "low": score.low, "high": score.high}


def table(found: dict[str, Any], words: int) -> list[str]:
    """Lines for a reader, a block for each reading.

    Args:
      found: of :func:`summary`.
      words: the budget at which all columns were asked.
    """
    scores = {(s["reading"], s["budget"], s["column"], s["rule"]): s for s in found["scores"]}
    lines = [
        f"{found['episodes']} episodes, {found['queries']} queries of {found['classes']} classes; "
        f"chance {found['chance']:.2f}; brackets: 95 % intervals, the wider of by class and by "
        "episode"
    ]
    asked = [(words, column) for column in (*map(str, COLUMNS), MEAN)]
    asked += sorted({(budget, column) for _, budget, column, _ in scores if budget != words})
    for reading in dict.fromkeys(reading for reading, *_ in scores):
        rows = [(reading, *map(_told, _RULES))]
        for budget, column in asked:
            cells = [spell(scores[reading, budget, column, rule]) for rule in _RULES]
            rows.append((f"{column}, {budget} word" + "s" * (budget > 1), *cells))
        lines += ["", *aligned(rows)]
    means = [d for d in found["differences"] if d["column"] == MEAN]
    lines += [""] * bool(means)
    for d in means:
        lines.append(f"words less {d['reading']}, {MEAN}, {_told(d['rule'])}: {spell(d, '+.3f')}")
    pairs = [d for d in found["budgets"] if d["reading"] == "words"]
    rows = {(d["budget"], d["fewer"], d["column"]): {} for d in pairs}
    for d in pairs:
        rows[d["budget"], d["fewer"], d["column"]][d["rule"]] = spell(d, "+.3f")
    lines += [""] * bool(rows)
    return lines + aligned(
        [(f"{more} words less {fewer}, {column}", *(f"{_told(r)}: {cells[r]}" for r in _RULES))
         for (more, fewer, column), cells in rows.items()]
    )  # fmt: skip


def _told(rule: str) -> str:
    return "no LM" if rule == NO_LM else f"by {rule}"


def spell(score: dict[str, Any], form: str = ".2f") -> str:
    """``0.83 [0.78, 0.87]``."""
    return f"{score['value']:{form}} [{score['low']:{form}}, {score['high']:{form}}]"


def aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Lines with the cells of a column below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths)).rstrip() for row in rows]
