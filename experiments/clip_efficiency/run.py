"""Trains and scores the arms of the study, run by run; README.md says what is measured and how.

    mmx prepare scenes --config 32
    python experiments/clip_efficiency/run.py             # all arms, about an hour of one core
    python experiments/clip_efficiency/report.py          # table and picture of what is there

Each finished run is a JSON file in --out; the same command goes on with what is missing. An arm
that has used its 30 CPU-minutes is left as it is, and reported as unfinished.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from mmx.cli.backend import before_jax, quiet_logs

ARMS = ("contrastive", "captioning", "words")
MAIN = {"contrastive": "cosine", "captioning": "sum", "words": "bag"}  # of an arm's scores
RATES = (1e-3, 2e-3, 4e-3)  # tried first; the best at an edge is followed by factors of two
BUDGETS = (100, 200, 400, 800)  # steps, each with a warm-up and a cosine to 0 of its own
TUNED_AT = 200
SEEDS = (0, 1, 2)
IMAGES = 500  # of a split, that are scored
CPU_SECONDS = 30 * 60.0  # of an arm


def mean_accuracy(run: dict, split: str) -> float:
    """Over the factors."""
    values = run[split][MAIN[run["arm"]]].values()
    return sum(values) / len(values)


def rates(arm: str, runs: list[dict]) -> dict[float, float]:
    """Learning rate -> mean accuracy on the validation slice, of the runs that tune."""
    return {
        run["lr"]: mean_accuracy(run, "validation")
        for run in runs
        if (run["arm"], run["seed"], run["steps"]) == (arm, SEEDS[0], TUNED_AT)
    }


def next_run(arm: str, runs: list[dict]) -> tuple[float, int, int] | None:
    """(rate, seed, steps) of the first run that an arm lacks: rates first, the largest budget last.

    Args:
      arm: of ``ARMS``.
      runs: finished ones, of any arm.

    Returns:
      None when the arm is finished.
    """
    tuned = rates(arm, runs)
    for lr in RATES:
        if lr not in tuned:
            return lr, SEEDS[0], TUNED_AT
    best = max(tuned, key=tuned.get)
    if best in (min(tuned), max(tuned)):
        return best * (2 if best == max(tuned) else 0.5), SEEDS[0], TUNED_AT
    there = {(run["seed"], run["steps"]) for run in runs if (run["arm"], run["lr"]) == (arm, best)}
    wanted = [(seed, steps) for steps in BUDGETS for seed in SEEDS]
    missing = [pair for pair in wanted if pair not in there]
    return (best, *missing[0]) if missing else None


def read_runs(folder: Path) -> list[dict]:
    """Of the JSON files in a folder, by name."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]


def train_and_score(
    arm: str, lr: float, seed: int, steps: int, data_dir: str, tiny: bool = False
) -> dict:
    """One run: what its JSON file holds."""
    import choices
    from objectives import TASKS, make_config

    from mmx.core.run_dir import open_or_create
    from mmx.data.scene_grammar import Scene
    from mmx.data.source import open_source
    from mmx.train import loop
    from mmx.train.start import read_weights

    began = time.process_time()
    config = make_config(arm, lr, seed, steps, data_dir, tiny)
    with tempfile.TemporaryDirectory() as folder:
        run = open_or_create(Path(folder) / "run", config)
        task = TASKS[arm](config, run)
        loop.train(task, config, run)
        params, _, _ = read_weights(run)
    trained = time.process_time()
    result = {
        "arm": arm, "lr": lr, "seed": seed, "steps": steps,
        "examples": steps * config.batch_size,
        "flops": steps * task.step_flops(),
        "use_flops": task.use_flops(),
        "train_cpu_seconds": trained - began,
    }  # fmt: skip
    for name, split in (("validation", "train[48000:]"), ("test", "test")):
        source = open_source(config.data.source, split, data_dir)
        count = min(len(source), 20 if tiny else IMAGES)
        examples = [source[i] for i in range(count)]
        scenes = [Scene.from_json(example["factors"]) for example in examples]
        questions = choices.make_questions(scenes)
        images = [example["image"] for example in examples]
        result[name] = choices.score(arm, task, params, images, questions)
        result[f"{name}_chance"] = choices.chance(questions)
        result[f"{name}_questions"] = choices.count(questions)
    return result | {"cpu_seconds": time.process_time() - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("arms", nargs="*", default=ARMS, help=", ".join(ARMS))
    parser.add_argument("--data_dir", default="data", help="where `mmx prepare` put its data")
    parser.add_argument("--out", type=Path, default=Path("runs/clip_efficiency"))
    parser.add_argument("--at_most", type=int, default=10**9, help="runs, then stop")
    args = parser.parse_args()
    if unknown := set(args.arms) - set(ARMS):
        parser.error(f"{min(unknown)!r}: the arms are {', '.join(ARMS)}")
    before_jax()
    quiet_logs()
    args.out.mkdir(parents=True, exist_ok=True)
    left = args.at_most
    for arm in args.arms:
        while left and (wanted := next_run(arm, runs := read_runs(args.out))):
            if sum(run["cpu_seconds"] for run in runs if run["arm"] == arm) > CPU_SECONDS:
                print(f"{arm}: its {CPU_SECONDS / 60:.0f} CPU-minutes are over; left unfinished")
                break
            name = "{}-{:g}-{}-{}".format(arm, *wanted)
            print(f"{name}: training", flush=True)
            result = train_and_score(arm, *wanted, args.data_dir)
            unfinished = args.out / f".{name}.tmp"
            unfinished.write_text(json.dumps(result, indent=1) + "\n")
            unfinished.rename(args.out / f"{name}.json")
            print(f"{name}: {mean_accuracy(result, 'test'):.3f} of all factors", flush=True)
            left -= 1


if __name__ == "__main__":
    main()
