"""Does what is missing of the study: trains a run by mmx's own loop, scores it, keeps a record."""

import shutil
import time
from pathlib import Path

import numpy as np
from arms import make_config
from jobs import (
    CPU_MINUTES,
    RECORD,
    digest,
    folder_of,
    missing,
    read_records,
    spend,
    spent,
    write,
)
from scoring import JUDGE, Test, classes, open_test, score

from mmx.cli.run import load_run
from mmx.core.run_dir import open_or_create
from mmx.models.registry import make_task
from mmx.pretrained.sentences import load_sentences
from mmx.train import loop


def do_all(out: Path, arms: list[str], data_dir: str) -> None:
    """What is missing. Raises UserError: something is not prepared."""
    out.mkdir(parents=True, exist_ok=True)
    left = missing(read_records(out), arms)
    size = make_config("base", 0, data_dir).data.image_size
    test, judge = open_test(data_dir, size), load_sentences(JUDGE, data_dir)
    queries = {str(ways): classes(episodes) for ways, episodes in test.episodes.items()}
    write(out / "test.json", {"groups": test.groups, "classes": queries})
    for arm, seed in left:
        if spent(out, arm) > 60 * CPU_MINUTES:
            print(f"{arm}: its {CPU_MINUTES:g} CPU-minutes are over; left unfinished")
            continue
        do(out, arm, seed, data_dir, test, judge)
        print(f"{arm}, seed {seed}: done, {spent(out, arm) / 60:.1f} CPU-minutes", flush=True)


def train(out: Path, arm: str, seed: int, data_dir: str) -> Path:
    """A run of `mmx train`, from where it was; its folder."""
    config, path = make_config(arm, seed, data_dir), folder_of(out, arm, seed) / "run"
    run = open_or_create(path, config)
    take_stages(out, path)
    loop.train(make_task(config, run), config, run)
    return path


def take_stages(out: Path, path: Path) -> None:
    """The words and the teacher's features are the same in all runs: made by the first guided one,
    they are copied to the others."""
    made = next(out.glob("*/run/stages/teacher/kept.json"), None)
    if made is not None and not (path / "stages").exists():
        unfinished = path / ".stages"
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(made.parent.parent, unfinished)
        unfinished.rename(path / "stages")


def do(out: Path, arm: str, seed: int, data_dir: str, test: Test, judge) -> None:
    """One run and its record; what it costs is kept even where it is stopped."""
    folder, began = folder_of(out, arm, seed), time.process_time()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        run = load_run(train(out, arm, seed, data_dir))
        task = run.task
        weights = run.params, run.extra, run.frozen
        read, draw = task.to_words(run.mesh), task.from_words(run.mesh)
        scores = score(
            lambda image: read(*weights, image),
            lambda words: draw(*weights, words),
            task.vocabulary.words(np.arange(task.num_words)),
            task.pyramid.ends,
            judge,
            test,
        )
    finally:
        spend(folder, time.process_time() - began)
    about = {"arm": arm, "seed": seed, "config": digest(arm, seed), "steps": run.step,
             "batch": run.config.batch_size, "ends": task.pyramid.ends}  # fmt: skip
    write(folder / RECORD, about | scores)
