"""What `mmx compare` shows: columns of pictures and scores, as numbers and texts; no model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np

ABSENT = "(absent)"


@dataclass(frozen=True)
class Column:
    """One checkpoint.

    Attributes:
      run, step: which.
      scores: metric -> its line of the ledger.
      images: uint8 [n, H, W, 3], a row each; None for a family without pictures.
    """

    run: str
    step: int
    scores: Mapping[str, Mapping[str, Any]]
    images: np.ndarray | None = None


@dataclass(frozen=True)
class Comparison:
    """Checkpoints side by side.

    Attributes:
      family: of the runs, joined where there are several.
      columns: the checkpoints of a run stand together.
      rows: what each picture is of: prompts, or captions of the images that were rebuilt.
      rows_are: "prompts", "images": in words.
      what: how a picture came about, a participle for its description: "drawn", "rebuilt".
      seed: of all pictures and scores.
      differences: config field -> its value for each run.
      originals: uint8 [n, H, W, 3], what was rebuilt; None where nothing was.
      repeat: how to get a picture of these again, a sentence.
      credits: whose data it is.
    """

    family: str
    columns: Sequence[Column]
    rows: Sequence[str]
    rows_are: str
    what: str
    seed: int
    differences: Mapping[str, Mapping[str, str]]
    originals: np.ndarray | None = None
    repeat: str = ""
    credits: Sequence[str] = field(default=())

    def groups(self) -> list[tuple[str, list[Column]]]:
        """(run, its columns) in order."""
        return [(run, list(columns)) for run, columns in groupby(self.columns, lambda c: c.run)]

    @property
    def title(self) -> str:
        return f"mmx {self.family}: " + ", ".join(run for run, _ in self.groups())

    def score_rows(self) -> list[tuple[str, list[Mapping[str, Any] | None]]]:
        """(metric, the line of each column or None).

        Only what was made by one recipe, of as many items, stands in one row: where these differ
        (other data, another network, say), each has a row and its name says which.
        """
        made: dict[str, dict[tuple, None]] = {}
        for column in self.columns:
            for name, line in column.scores.items():
                made.setdefault(name, {})[_made(line)] = None
        rows = []
        for name, of in made.items():
            for recipe, n in of:
                lines = [column.scores.get(name) for column in self.columns]
                lines = [line if line and _made(line) == (recipe, n) else None for line in lines]
                which = f" on {recipe}" if len({r for r, _ in of}) > 1 else ""
                if len({m for r, m in of if r == recipe}) > 1:
                    which += f", n = {n}"
                rows.append((f"{name}{which}", lines))
        return rows

    def scores_of(self) -> list[dict[str, Mapping[str, Any]]]:
        """Of each column its lines by the names of :meth:`score_rows`: one chart of TensorBoard
        holds only what can be compared."""
        return [
            {name: lines[i] for name, lines in self.score_rows() if lines[i]}
            for i in range(len(self.columns))
        ]


def _made(line: Mapping[str, Any]) -> tuple:
    return line["recipe"], line.get("n")


def differences(
    settings: Mapping[str, Mapping[str, Any]],
) -> dict[str, dict[str, str]]:
    """Fields whose values are not the same everywhere, as text: field -> run -> value.

    Args:
      settings: run -> field -> value.
    """
    out = {}
    for name in sorted({name for fields in settings.values() for name in fields}):
        values = {
            run: _text(fields[name]) if name in fields else ABSENT
            for run, fields in settings.items()
        }
        if len(set(values.values())) > 1:
            out[name] = values
    return out


def _text(value: Any) -> str:
    return value if isinstance(value, str) and value else repr(value)
