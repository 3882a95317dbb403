"""What is done of the study: records, a JSON file a run."""

import hashlib
import json
from pathlib import Path

from arms import ARMS, SEEDS, settings
from scoring import RECIPE

from mmx.core.errors import UserError

RECORD, SPENT = "record.json", "spent.json"
CPU_MINUTES = 30.0  # of an arm


def digest(arm: str, seed: int) -> str:
    """Of what a record is of: its arm, its config, and its scoring."""
    text = json.dumps([arm, settings(arm, seed), RECIPE], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def folder_of(out: Path, arm: str, seed: int) -> Path:
    """Of a run: its record, and in `run` what `mmx train` keeps."""
    return out / f"{arm}-{seed}"


def read_records(out: Path) -> list[dict]:
    """Of all finished runs in a folder, seed by seed.

    Raises:
      UserError: one is of other settings than the arm of its name has now.
    """
    records = []
    for seed, arm in [(seed, arm) for seed in SEEDS for arm in ARMS]:
        file = folder_of(out, arm, seed) / RECORD
        if file.is_file():
            records.append(json.loads(file.read_text()))
            if records[-1]["config"] != digest(arm, seed):
                raise UserError(f"{file}: a run of other settings; give another --out")
    return records


def missing(records: list[dict], arms: list[str]) -> list[tuple[str, int]]:
    """(arm, seed) of the runs that are not there: all arms of a seed before the next seed."""
    there = {(record["arm"], record["seed"]) for record in records}
    runs = [(arm, seed) for seed in SEEDS for arm in arms]
    return [run for run in runs if run not in there]


def write(file: Path, value) -> None:
    """JSON, whole or not at all."""
    unfinished = file.with_name(f".{file.name}")
    unfinished.write_text(json.dumps(value) + "\n")
    unfinished.rename(file)


def spent(out: Path, arm: str) -> float:
    """CPU-seconds of an arm, of unfinished runs too."""
    files = [folder_of(out, arm, seed) / SPENT for seed in SEEDS]
    return sum(json.loads(file.read_text()) for file in files if file.is_file())


def spend(folder: Path, seconds: float) -> None:
    """Add to what a run has cost."""
    file = folder / SPENT
    before = json.loads(file.read_text()) if file.is_file() else 0.0
    write(file, round(before + seconds, 1))
