"""What the training loop costs besides the steps: a step, a save, a start.

    python experiments/overhead/run.py [step] [save] [start]

README.md says what is measured and how.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mmx.cli.backend import before_jax, quiet_logs

STEP = 0.05  # seconds


def measure_step(rounds: int, steps: int) -> None:
    """The loop beside the bare jitted step: the same program, in turns, in one process."""
    from task import Task, make_config, pictures_for

    from mmx.core.run_dir import open_or_create
    from mmx.train import loop

    for how in ("burn", "sleep", "empty"):
        task = Task(STEP, how)
        config = make_config(rounds * steps + steps + 1, log_every=50)
        turns = Turns(steps)
        real = loop.plan_training

        def plan(*args, real=real, turns=turns):
            made = real(*args)
            turns.step = made.step
            return dataclasses.replace(made, step=turns)

        with tempfile.TemporaryDirectory() as folder, pictures_for(loop):
            run = open_or_create(Path(folder) / "run", config)
            loop.plan_training = plan
            try:
                loop.train(task, config, run)
            finally:
                loop.plan_training = real
            waited = records(run.path)[-1]["seconds"]["data"] / config.steps
        # The first round warms up.
        pairs = list(zip(turns.in_loop, turns.bare))[1:]
        low, middle, high = statistics.quantiles(
            [100 * (in_loop - bare) / max(bare, STEP) for in_loop, bare in pairs], n=4
        )
        in_loop, bare = (1e3 * statistics.median(side) for side in zip(*pairs))
        print(
            f"step, {how:5s}: in the loop {in_loop:.2f} ms, bare {bare:.2f} ms, overhead "
            f"{middle:.2f} % of {max(bare, 1e3 * STEP):.0f} ms ({low:.2f} to {high:.2f}, "
            f"{len(pairs)} rounds of {steps} steps); waiting for data {1e3 * waited:.2f} ms"
        )


class Turns:
    """Stands for the jitted step in the loop: after every ``steps`` of the loop's calls, as many
    of its own, on a state of its own and one batch that lies on the device."""

    def __init__(self, steps: int):
        self.steps, self.calls, self.state = steps, 0, None
        self.in_loop, self.bare = [], []  # seconds a step, of each round

    def __call__(self, state, frozen, batch, key):
        import jax
        import jax.numpy as jnp

        if self.calls == 0:
            self.state = jax.tree.map(jnp.copy, state)
        elif self.calls == 1:
            jax.block_until_ready(self.vector)
            self.began = time.perf_counter()
        elif self.calls % self.steps == 1:
            jax.block_until_ready(self.vector)
            self.in_loop.append((time.perf_counter() - self.began) / self.steps)
            began = time.perf_counter()
            for _ in range(self.steps):
                self.state, vector = self.step(self.state, frozen, batch, key)
            jax.block_until_ready(vector)
            self.bare.append((time.perf_counter() - began) / self.steps)
            self.began = time.perf_counter()
        self.calls += 1
        state, self.vector = self.step(state, frozen, batch, key)
        return state, self.vector


def measure_save(megabytes: int) -> None:
    """How long a save keeps the loop waiting, against one step."""
    from task import Task, make_config, pictures_for

    from mmx.core.run_dir import open_or_create
    from mmx.train import loop

    task = Task(STEP, "sleep", megabytes)
    config = make_config(201, save_every=40)
    with tempfile.TemporaryDirectory() as folder, pictures_for(loop):
        run = open_or_create(Path(folder) / "run", config)
        loop.train(task, config, run)
        lines = records(run.path)
    step = lines[-1]["seconds"]["step"] / config.steps
    saves = [line["seconds"] for line in lines if line["event"] == "save"]
    saves, closing = saves[:-2], saves[-1]  # after the last save there is no step to delay
    shown = ", ".join(f"{1e3 * seconds:.0f}" for seconds in saves)
    print(
        f"save, {megabytes} MB: loop waits {shown} ms; a step takes {1e3 * step:.0f} ms; median "
        f"{statistics.median(saves) / step:.2f} steps; writing the last took {closing:.2f} s"
    )


def records(run: Path) -> list[dict]:
    (file,) = (run / "goodput").glob("*.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def measure_start(config: str, rounds: int, data_dir: str) -> None:
    """From `mmx train` to the first step, the compiled programs on disk, by phases."""
    rows: dict[str, list[float]] = {}
    for round in range(rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            command = [sys.executable, "-m", "mmx.cli.main", "train", "--config", config]
            command += ["--workdir", str(run), f"--config.data.data_dir={data_dir}"]
            command += ["--config.log_every=1"]
            process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
            began = time.time()
            for line in process.stderr:
                if line.startswith("train ") and " 1/" in line:
                    break
            else:
                sys.exit(f"{command}: ended before its first step")
            first = time.time() - began
            process.kill()
            process.wait()
            lines = {line["event"]: line for line in reversed(records(run))}
        if round:  # the first fills the cache
            phases = phases_of(lines, first)
            for name, seconds in phases.items():
                rows.setdefault(name, []).append(seconds)
    for name, seconds in rows.items():
        low, middle, high = min(seconds), statistics.median(seconds), max(seconds)
        print(f"start, {config}: {name:58s} {middle:5.2f} s ({low:.2f}-{high:.2f})")


def phases_of(lines: dict, first: float) -> dict[str, float]:
    """Seconds of each phase, in order; ``lines``: of the run's goodput, by event."""
    at = {event: line["at"] for event, line in lines.items()}
    before = {name: at[name] - lines[name]["seconds"] for name in ("restore", "compile")}
    ends = {
        "Python, config, the data set's record (tfds)": at["inputs checked"],
        "importing and starting jax": at["jax started"],
        "importing the loop, shapes and layouts": before["restore"],
        "looking for a checkpoint": at["restore"],
        "fresh parameters, frozen models, evaluators": at["start"],
        "table, events file, the first batch": before["compile"],
        "the step: tracing, reading the compiled program": at["compile"],
        "the first step": first,
    }
    began, seconds = 0.0, {}
    for name, end in ends.items():
        seconds[name], began = end - began, end
    return seconds | {"all": first}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", nargs="*", default=["step", "save", "start"])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=20, help="of a round")
    parser.add_argument("--megabytes", type=int, default=300, help="of the state that is saved")
    parser.add_argument("--config", default="vqgan/openmoji32", help="of the start")
    parser.add_argument("--data_dir", default="data", help="where `mmx prepare` put its data")
    args = parser.parse_args()
    before_jax()
    quiet_logs()
    for what in args.what:
        print(f"load average {os.getloadavg()[0]:.1f}")
        if what == "step":
            measure_step(args.rounds, args.steps)
        elif what == "save":
            measure_save(args.megabytes)
        elif what == "start":
            measure_start(args.config, 5, args.data_dir)
        else:
            parser.error(f"{what!r}: step, save or start")


if __name__ == "__main__":
    main()
