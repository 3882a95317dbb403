"""What there is to do, in order, and what of it is done: records, which are JSON files."""

import dataclasses
import hashlib
import json
from pathlib import Path

from ml_collections import ConfigDict
from sizes import Size

from mmx.core.errors import UserError

SEEDS = (0, 1, 2)
SHARES = (0.25, 0.5, 1.0)  # of the budget: the marks of a run
SECONDS = ("train_seconds", "score_seconds")  # of a record
CURVES = ("base", "discrete")  # scored at all marks, the others at the last one


def digest(arm: str, size: Size, config: ConfigDict) -> str:
    """Of what a run is of: its arm, the study's size and its config."""
    text = json.dumps([arm, dataclasses.asdict(size), config.to_dict()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_record(file: Path, of: str) -> dict | None:
    """The record of a run of this :func:`digest`; None where there is no file.

    Raises:
      UserError: it is a run of other settings.
    """
    if not file.is_file():
        return None
    record = json.loads(file.read_text())
    if record["config"] != of:
        raise UserError(f"{file}: a run of other settings; give another --out")
    return record


def read_records(out: Path) -> list[dict]:
    """Of all runs in a folder, by name."""
    return [json.loads(file.read_text()) for file in sorted(out.glob("*/record.json"))]


def of_arm(arm: str, records: list[dict]) -> dict[tuple[float, int], dict]:
    """(rate, seed) -> record."""
    return {(r["lr"], r["seed"]): r for r in records if r["arm"] == arm}


def best_rate(arm: str, records: list[dict], rates: tuple[float, ...]) -> float | None:
    """The rate of least validation loss at seed 0's first mark; None until all rates are there."""
    there, first = of_arm(arm, records), str(SHARES[0])
    tried = {
        lr: there[lr, SEEDS[0]]["marks"][first]["validation_loss"]
        for lr in rates
        if first in there.get((lr, SEEDS[0]), {"marks": {}})["marks"]
    }
    return min(tried, key=tried.get) if len(tried) == len(rates) else None


def next_job(
    arm: str, seed: int, records: list[dict], rates: tuple[float, ...]
) -> tuple[str, float, float] | None:
    """What a run lacks first: ("train" or "score", rate, share of the budget).

    Returns:
      None when nothing is left, or seed 0 has to choose first.
    """
    there, best = of_arm(arm, records), best_rate(arm, records, rates)
    record = lambda lr: there.get((lr, seed), {"marks": {}, "scores": {}})
    if best is None:
        left = [lr for lr in rates if not record(lr)["marks"]]
        return ("train", left[0], SHARES[0]) if seed == SEEDS[0] else None
    if left := [share for share in SHARES if str(share) not in record(best)["marks"]]:
        return "train", best, left[0]
    if seed != SEEDS[0] and not there.get((best, SEEDS[0]), {}).get("sampling"):
        return None
    shares = SHARES if arm in CURVES else SHARES[-1:]
    # The last one first: it chooses how to sample.
    left = [share for share in reversed(shares) if str(share) not in record(best)["scores"]]
    return ("score", best, left[0]) if left else None


def spent(arm: str, records: list[dict]) -> float:
    """Seconds of an arm, see :func:`training.clock`."""
    return sum(r[name] for r in of_arm(arm, records).values() for name in SECONDS)
