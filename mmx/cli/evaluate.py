"""Score a run and draw what it has learned; everything is read from the run directory."""

import json
import os
import shlex
import signal
import sys
from pathlib import Path

from mmx.cli import arguments
from mmx.core import preemption, storage
from mmx.core.errors import UserError
from mmx.core.run_dir import parse_run
from mmx.models import registry

HELP = "score a run and draw a picture of it"
EXAMPLES = """\
examples:
  mmx evaluate runs/muse
  mmx evaluate runs/muse@500 --seed 1

A Muse run gets scores with 95 % intervals and a captioned grid; a tokenizer run its PSNR and
codebook use on each split, and images beside their reconstructions; of a split, the first 5,000
examples. The scores go to RUN/metrics.json and TensorBoard. The same command again shows what is
there; a new checkpoint is scored anew.
"""


def add_arguments(parser):
    parser.add_argument("run_dir", metavar="RUN[@STEP]")
    parser.add_argument("--seed", type=arguments.seed, default=0, help="default 0")
    parser.add_argument("--data_dir", help="where the data is now, if not where it was in training")


def run(args) -> int:
    run_dir, step = parse_run(args.run_dir)
    step = run_dir.steps()[-1] if step is None else step
    config = run_dir.config()
    registry.check_family(config)
    settings = {"step": step, "seed": args.seed, "data_dir": args.data_dir or ""}
    if kept := _kept(run_dir, settings):
        _print(run_dir, kept)
        return 0
    from mmx.data.source import open_source

    where = args.data_dir or config.data.data_dir
    try:
        info = open_source(config.data.source, config.data.split, where).info
    except UserError as error:
        raise UserError(f"{error} (or say where it is: --data_dir)") from error
    learned_from = run_dir.data()
    if learned_from and learned_from["fingerprint"] != info.fingerprint:
        print(
            f"mmx: warning: {info.directory} was prepared anew since {run_dir.path} began: what it "
            "is scored on is not what it learned from (the old data: --data_dir)",
            file=sys.stderr,
        )
    arguments.check_writable(f"{run_dir.path}", run_dir.path)

    from mmx.cli.backend import start_jax
    from mmx.cli.run import load_run
    from mmx.train.metrics import Writer

    start_jax()
    opened = load_run(run_dir.path, step)
    opened.config.data.data_dir = where
    with preemption.watch((signal.SIGTERM,)):
        try:
            report = opened.task.report(opened, args.seed)
        except preemption.Interrupted:
            raise preemption.Preempted("stopped before the scores were there") from None
    record = {
        "settings": settings,
        "scores": {name: _plain(value) for name, value in report.scores.items()},
        "picture": _save_picture(opened, report, args.seed),
    }
    writer = Writer(run_dir.path)
    writer.scalars(step, {f"scores/{n}": s["value"] for n, s in record["scores"].items()})
    writer.close()
    storage.write(run_dir.metrics_file, json.dumps(record, indent=2) + "\n")
    _print(run_dir, record)
    return 0


def _kept(run_dir, settings: dict) -> dict | None:
    """The last evaluation, if it is the one asked for and its picture is still there."""
    try:
        kept = json.loads(storage.read_text(run_dir.metrics_file))
        same = kept["settings"] == settings
        return kept if same and (run_dir.path / kept["picture"]).is_file() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # none, or written by another version


def _plain(value) -> dict:
    if isinstance(value, float | int):
        return {"value": float(value)}
    return {"value": value.value, "low": value.low, "high": value.high, "n": value.n}


def _save_picture(opened, report, seed: int) -> str:
    """Draw the report's picture among the run's samples -> its path inside the run."""
    from mmx.eval.grid import draw_grid
    from mmx.eval.png import save_picture

    picture = draw_grid(
        report.sections,
        title=f"mmx {opened.config.family}, {opened.step} steps",
        subtitle=report.subtitle,
        attribution=report.credit,
    )
    path = opened.dir.samples / f"evaluate-step{opened.step}-seed{seed}.png"
    info = report.info | {"run": str(opened.dir.path), "step": opened.step, "seed": seed}
    try:
        save_picture(path, picture, info)
    except OSError as error:
        raise UserError(f"{path}: not written ({error.strerror})") from error
    return str(path.relative_to(opened.dir.path))


def _print(run_dir, record) -> None:
    width = max(map(len, record["scores"]))
    for name, score in record["scores"].items():
        interval = f"  [{score['low']:.4g}, {score['high']:.4g}]" if "low" in score else ""
        print(f"{name.ljust(width)}  {score['value']:.4g}{interval}")
    print(f"scores:      {run_dir.metrics_file}")
    print(f"picture:     {run_dir.path / record['picture']}")
    print(f"TensorBoard: {_tensorboard()} --logdir {shlex.quote(str(run_dir.path))}")


def _tensorboard() -> str:
    """The command as it can be typed here: an environment that is not activated is named."""
    script = Path(sys.executable).with_name("tensorboard")
    if not script.is_file():
        return "tensorboard"
    relative = os.path.relpath(script)
    if os.sep not in relative:
        relative = os.path.join(os.curdir, relative)  # else a shell would search for it
    return shlex.quote(min(relative, str(script), key=len))
