"""Trains and scores the arms of the study, run by run; README.md says what is measured and how.

    mmx prepare scenes --config 64
    mmx train --config vqgan/scenes64_kl --workdir runs/scenes-kl
    mmx train --config vqgan/scenes64 --workdir runs/scenes-vq
    python experiments/transfusion_claims/run.py       # all that is missing, one run after another
    python experiments/transfusion_claims/report.py    # table and pictures of what is there

``--size gpu`` is the larger study: half a minute of a GPU a run; a core's 30 minutes an arm do not
suffice. The state of a training is saved each minute: the same command goes on where it stopped.
``--arm base --seed 0`` does these runs alone (seed 0 comes first: it chooses the rate and how to
sample), ``--minutes 10`` stops after so long. One such model leaves most of a GPU idle: start
several arms at once, each with ``--sharing`` their number: each counts its part of the time.
"""

from mmx.cli.backend import before_jax, start_jax

before_jax()

import argparse  # noqa: E402
import json  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

import jax  # noqa: E402
import scoring  # noqa: E402
from arms import ARMS, make_task  # noqa: E402
from jobs import SEEDS, digest, next_job, of_arm, read_record, read_records, spent  # noqa: E402
from scenes import Data, prepare  # noqa: E402
from sizes import SIZES, Size  # noqa: E402
from training import Trainer, clock, read_weights, write_weights  # noqa: E402

from mmx.core.errors import UserError  # noqa: E402

CPU_MINUTES, GPU_MINUTES = 30.0, 10.0  # of an arm


class Study:
    """Does jobs.

    Args:
      data: of it.
      size: of it.
      out: where runs are.
      sharing: how many processes share the device.
    """

    def __init__(self, data: Data, size: Size, out: Path, sharing: int):
        self.data, self.size, self.out, self.sharing = data, size, out, sharing
        self.device = jax.devices()[0].device_kind
        base = make_task("base", size, size.rates[0], 0, data.tokenizer)
        self.budget = size.steps * base.step_flops()

    def do(self, arm: str, seed: int, job: tuple[str, float, float], deadline: float) -> bool:
        """One job; False where the deadline came first."""
        kind, lr, share = job
        folder = self.out / f"{arm}-{lr:g}-{seed}"
        folder.mkdir(exist_ok=True)
        task = make_task(arm, self.size, lr, seed, self.data.tokenizer)
        file = folder / "record.json"
        of = digest(arm, self.size, task.config)
        record = read_record(file, of)
        if record is None:
            record = dict(arm=arm, lr=lr, seed=seed, config=of, device=self.device,
                          step_flops=task.step_flops(), batch=task.config.batch_size,
                          train_seconds=0.0, score_seconds=0.0, marks={}, scores={})  # fmt: skip
        began = clock(self.sharing)
        weights = folder / f"weights-{share:g}.npz"
        if kind == "train":
            steps = max(1, round(share * self.budget / record["step_flops"]))
            trainer = Trainer(task, self.data.train, folder / "state.npz", of, self.sharing)
            if not trainer.go_on(steps, deadline):
                return False
            params = trainer.state.averaged
            write_weights(weights, params)
            loss = scoring.validation_loss(task, params, self.data.validation)
            flops = steps * record["step_flops"]
            record["marks"][str(share)] = dict(step=steps, flops=flops, validation_loss=loss)
            record["train_seconds"] = round(trainer.seconds, 1)
        else:
            if not weights.is_file():
                raise UserError(f"{weights}: not there; delete {folder} to train it again")
            params = read_weights(weights)
            record["sampling"] = self._sampling(arm, seed, lr, record, task, params)
            record["scores"][str(share)] = scoring.score(
                task, params, self.data, record["sampling"], seed, self.size.drawn
            )
            record["scored_on"] = self.device
            record["score_seconds"] += round(clock(self.sharing) - began, 1)
        unfinished = file.with_name(f".{file.name}")
        unfinished.write_text(json.dumps(record) + "\n")
        unfinished.rename(file)
        return True

    def _sampling(self, arm: str, seed: int, lr: float, record: dict, task, params) -> dict:
        if "sampling" in record:
            return record["sampling"]
        if seed == SEEDS[0]:
            return scoring.choose_sampling(task, params, self.data)
        return of_arm(arm, read_records(self.out))[lr, SEEDS[0]]["sampling"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="cpu", help="minutes of which (cpu)")
    parser.add_argument("--arm", choices=ARMS, help="this one alone")
    parser.add_argument("--seed", type=int, choices=SEEDS, help="this one alone")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="then stop")
    parser.add_argument("--sharing", type=int, default=1, help="processes on this device")
    parser.add_argument("--data_dir", default="data", help="where `mmx prepare` put its data")
    parser.add_argument("--latents", default="runs/scenes-kl", help="run of vqgan/scenes64_kl")
    parser.add_argument("--codes", default="runs/scenes-vq", help="run of vqgan/scenes64")
    parser.add_argument("--out", type=Path, help="runs/transfusion_claims_SIZE")
    args = parser.parse_args()
    try:
        do_all(args)
    except UserError as error:
        parser.error(str(error))


def do_all(args: argparse.Namespace) -> None:
    """What is missing, job by job. Raises UserError: a data set or tokenizer that is not there."""
    deadline = time.monotonic() + 60 * args.minutes
    start_jax()
    out, size = args.out or Path(f"runs/transfusion_claims_{args.size}"), SIZES[args.size]
    out.mkdir(parents=True, exist_ok=True)
    codecs = {"latents": args.latents, "codes": args.codes}
    study = Study(prepare(out, args.data_dir, codecs, size.every), size, out, args.sharing)
    limit = CPU_MINUTES if jax.default_backend() == "cpu" else GPU_MINUTES
    seeds = SEEDS if args.seed is None else (args.seed,)
    arms = list(ARMS) if args.arm is None else [args.arm]
    for seed, arm in [(seed, arm) for seed in seeds for arm in arms]:
        while job := next_job(arm, seed, records := read_records(out), size.rates):
            if spent(arm, records) > 60 * limit:
                print(f"{arm}: its {limit:g} minutes are over; left unfinished")
                break
            if time.monotonic() > deadline or not study.do(arm, seed, job, deadline):
                return print("the time is over; the same command goes on")
            print(f"{arm}, seed {seed}: {job[0]} {job[2]:g} of the budget: done", flush=True)


if __name__ == "__main__":
    main()
