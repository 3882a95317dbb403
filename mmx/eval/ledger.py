"""What was scored of a run, each (checkpoint, evaluator, seed) once: ``RUN/evals.jsonl``.

A line for each score::

    {"step": 300, "metric": "test/psnr", "value": 21.6, "low": 21.4, "high": 21.8, "n": 180,
     "evaluator": "report", "recipe": "tfds:openmoji/32 (1a2b3c4d)", "seed": 0}

An evaluator is the report of a run, or a metric by name (`mmx.eval.metrics`); the recipe of that
says its network, a hash of the weights, the images that it compares and their data. It gives one
score or many; they are written together, so a line of it says that all are there. Scores of one
metric can be compared where recipe and n are equal.

One writer at a time: the file is read, and written whole with what is new. Two writers lose nothing
one after the other; in the same moment the later one's file stands, without the other's lines. What
keeps them apart is `mmx.core.run_dir.evaluate_alone`, on one machine and not in a bucket.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from etils.epath import Path

from mmx.core import storage
from mmx.core.errors import UserError
from mmx.eval.stats import Score

_FIELDS = ("step", "metric", "value", "evaluator", "recipe", "seed")


class Ledger:
    """The lines of a file, which need not exist yet.

    Args:
      file: ``RUN/evals.jsonl``.

    Raises:
      UserError: a line that is none of ours.
    """

    def __init__(self, file: Path):
        self.file = file
        self.lines = self._read()

    def _read(self) -> list[dict[str, Any]]:
        if not self.file.is_file():
            return []
        lines = []
        for number, text in enumerate(storage.read_text(self.file).splitlines(), 1):
            try:
                line = json.loads(text)
                [line[field] for field in _FIELDS]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{self.file}, line {number}: not a score of `mmx evaluate`; delete the line "
                    "to have it scored again"
                ) from error
            lines.append(line)
        return lines

    def refresh(self) -> None:
        """Read again: another machine may have scored something meanwhile. Raises UserError."""
        self.lines = self._read()

    def scores(self, step: int, seed: int, recipes: Mapping[str, str]) -> dict[str, dict]:
        """Metric -> its line, of a step.

        Args:
          step, seed: of the evaluation.
          recipes: evaluator -> recipe, those that count.
        """
        return {
            line["metric"]: line
            for line in self.lines
            if (line["step"], line["seed"]) == (step, seed)
            and recipes.get(line["evaluator"]) == line["recipe"]
        }

    def has(self, step: int, seed: int, evaluator: str, recipe: str) -> bool:
        return bool(self.scores(step, seed, {evaluator: recipe}))

    def add(
        self,
        step: int,
        seed: int,
        evaluator: str,
        recipe: str,
        scores: Mapping[str, Score | float],
        n: int | None = None,
    ) -> None:
        """Keep what an evaluator gave, whole or not at all; takes the place of the same before."""
        key = {"evaluator": evaluator, "recipe": recipe, "seed": seed}
        new = as_lines(step, seed, evaluator, recipe, scores, n)
        self.refresh()
        same = lambda line: line["step"] == step and all(line[k] == v for k, v in key.items())
        self.lines = [line for line in self.lines if not same(line)] + new
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in self.lines)
        storage.write(self.file, text)


def as_lines(
    step: int,
    seed: int,
    evaluator: str,
    recipe: str,
    scores: Mapping[str, Score | float],
    n: int | None = None,
) -> list[dict[str, Any]]:
    """What :meth:`Ledger.add` keeps, a line a metric; ``n`` is of scores that do not say it."""
    key = {"evaluator": evaluator, "recipe": recipe, "seed": seed}
    counted = {} if n is None else {"n": n}
    return [{"step": step, "metric": m, **counted, **_plain(s), **key} for m, s in scores.items()]


def _plain(score: Score | float) -> dict[str, Any]:
    if isinstance(score, float | int):
        return {"value": _finite(score)}
    ends = {"low": _finite(score.low), "high": _finite(score.high)}
    return {"value": _finite(score.value), **ends, "n": int(score.n)}


def _finite(value: float) -> float | None:
    """JSON knows no infinity: null."""
    return float(value) if math.isfinite(value) else None


def spell(line: Mapping[str, Any]) -> str:
    """``"0.91 [0.87, 0.94]"``, or the value alone where there is no interval."""
    number = lambda value: "not finite" if value is None else f"{value:.4g}"
    if "low" not in line:
        return number(line["value"])
    return f"{number(line['value'])} [{number(line['low'])}, {number(line['high'])}]"
