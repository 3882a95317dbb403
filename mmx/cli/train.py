"""Train a run, or go on with it: the same command again resumes where it was."""

import contextlib
import json
import signal
import sys

from mmx.core import config as configs
from mmx.core import preemption, storage
from mmx.core.errors import UserError
from mmx.core.run_dir import (
    RunDir,
    check_data,
    check_same,
    check_workdir,
    copy_tokenizer,
    keeps_stages,
    open_or_create,
    parse_run,
    train_alone,
)
from mmx.train import distributed

HELP = "train a run, or go on with it"
EXAMPLES = """\
examples:
  mmx train --config vqgan/openmoji32 --workdir runs/vqgan
  mmx train --config muse/openmoji32 --config.codec.run=runs/vqgan --workdir runs/muse
  mmx train --config configs/muse/openmoji32.py:tiny --config.optim.lr=1e-3 --print_config

Any field of the config is a flag: --config.FIELD.FIELD=VALUE; a tuple is "('a', 'b')"; true and
false are --config.data.flip and --noconfig.data.flip. The same command again goes on with the run
in the workdir.
Several processes train one run when the same command starts on each: on Cloud TPU, GKE, SLURM as it
is; elsewhere with JAX_COORDINATOR_ADDRESS=HOST:PORT (of process 0), JAX_NUM_PROCESSES=N and
JAX_PROCESS_ID=0 to N-1 set. The workdir is one that all of them share.
Exit codes: 0 done, 1 a loss or gradient is not finite, 2 bad input, 75 asked to stop (SIGTERM,
Ctrl-C) and saved, 76 another process of the run is lost, 70 a store does not answer or a fault: run
the same command to go on.
"""


def add_arguments(parser):
    parser.add_argument(
        "--config", required=True, metavar="FILE:ARGS", help="a file, or a name of `mmx configs`"
    )
    parser.add_argument("--workdir", metavar="RUN", help="the run directory, made when absent")
    parser.add_argument(
        "--init_from", metavar="RUN[@STEP]", help="start from the weights of another run"
    )
    parser.add_argument(
        "--profile", metavar="FIRST:LAST", help="trace these steps, for TensorBoard's XProf"
    )
    parser.add_argument(
        "--print_config", action="store_true", help="show the resolved config and stop"
    )


def run(args) -> int:
    config = resolve(args.config, args.overrides)
    if args.print_config:
        print(configs.to_text(config))
        return 0
    if not args.workdir:
        raise UserError("--workdir is missing: name the folder of the run")
    configs.check_numbers(config)
    workdir = RunDir(storage.normal(args.workdir))
    with distributed.together():
        if distributed.is_many():  # jax has SIGTERM then, and the loop looks
            return _run(args, config, workdir)
        with preemption.watch((signal.SIGTERM,)):
            try:
                return _run(args, config, workdir)
            except preemption.Interrupted:
                raise preemption.Preempted(
                    "stopped before the first step; nothing to save; run the same command to begin"
                ) from None


def _run(args, config, workdir: RunDir) -> int:
    is_host_0 = distributed.index() == 0
    if is_host_0:
        check_workdir(workdir, config)
    done = workdir.steps()
    ends = done and done[-1] >= config.steps and not distributed.is_many()
    if ends and _is_readable(workdir, done[-1]):
        print(f"{workdir.path}: all {config.steps} steps are done; `mmx evaluate` scores them")
        return 0
    from mmx.cli.arguments import profiled_steps
    from mmx.train.goodput import Goodput

    clock = Goodput(args.began)
    profile = profiled_steps(args.profile, config.steps) if args.profile else None
    data = _check_inputs(config, workdir, args.init_from)
    clock.note("inputs checked")
    preemption.check()

    from mmx.cli.backend import start_jax

    start_jax()
    preemption.check()
    distributed.barrier("nothing is missing")
    clock.note("jax started")
    with train_alone(workdir) if is_host_0 else contextlib.nullcontext():
        return _train(config, workdir, data, args.init_from, clock, profile)


def _train(config, workdir: RunDir, data: dict, init_from: str | None, clock, profile) -> int:
    from mmx.models.registry import make_task
    from mmx.train import loop

    is_host_0 = distributed.index() == 0
    with distributed.first_on_host_0("the workdir is made"):
        if is_host_0:
            open_or_create(workdir.path, config)
            storage.write(workdir.data_file, json.dumps(data, indent=2) + "\n")
        elif not workdir.config_file.is_file():
            raise UserError(
                f"--workdir={workdir.path}: what process 0 writes there is not seen here; name a "
                "folder that all processes share"
            )
        else:
            check_same(workdir, config, data)
        if is_host_0 and init_from:
            _take_tokenizer(workdir, config, init_from)
        task = make_task(config, workdir)
    try:
        loop.train(task, config, workdir, init_from, clock, profile)
    except preemption.Preempted as stopped:
        if is_host_0:
            print(f"mmx: {stopped}", file=sys.stderr)
        return preemption.EXIT_PREEMPTED
    except loop.NonFinite as error:
        if is_host_0:
            print(f"mmx: error: {error}", file=sys.stderr)
        return 1
    if is_host_0:
        print(f"{workdir.path}: trained to step {config.steps}")
    return 0


def _take_tokenizer(workdir: RunDir, config, init_from: str) -> None:
    """Weights that are taken over read the ids that they learned, whatever data comes now."""
    if workdir.tokenizer_file.is_file() or workdir.steps():
        return
    earlier, _ = parse_run(init_from)
    if earlier.config().family == config.family and earlier.tokenizer_file.is_file():
        copy_tokenizer(workdir, earlier.tokenizer_file)


def resolve(spec: str, overrides: list[str]):
    """The config of ``--config SPEC`` with ``--config.a.b=V`` flags applied, locked.

    Raises:
      UserError: an unknown file, field (names the nearest) or a value of the wrong type.
    """
    from mmx.cli.overrides import apply

    return apply(configs.load_config(spec), overrides)


def _is_readable(run: RunDir, step: int) -> bool:
    """The name of a checkpoint says nothing of its content: a disk or a copy may have failed."""
    from mmx.cli.backend import quiet_logs
    from mmx.train.checkpoint import Checkpoints

    quiet_logs()
    checkpoints = Checkpoints(run.checkpoints, read_only=True)
    try:
        return checkpoints.is_readable(step)
    finally:
        checkpoints.close()


def _check_inputs(config, workdir: RunDir, init_from: str | None) -> dict:
    """What the run reads has to be there: found out before jax starts and the workdir is made.

    Returns:
      What the run notes of its data, see :func:`mmx.core.run_dir.check_data`.
    """
    from mmx.cli.arguments import check_writable
    from mmx.data.mixture import open_training
    from mmx.data.source import open_source
    from mmx.models import registry

    registry.check_family(config)
    if not workdir.steps():
        if init_from:
            parse_run(init_from)
        if scorer := config.get("eval", {}).get("scorer"):
            registry.check_embeds(parse_run(scorer)[0].config(), f"config.eval.scorer={scorer}")
    pinned = keeps_stages(workdir, config) and (workdir.stage("codec") / "pin.json").is_file()
    if "codec" in config and not pinned:
        if not config.codec.run:
            raise UserError("config.codec.run is empty: name the tokenizer's run, "
                            "--config.codec.run=RUN[@STEP]")  # fmt: skip
        earlier, _ = parse_run(config.codec.run)
        registry.check_codec(earlier.config(), f"config.codec.run={config.codec.run}")
    check_writable(f"--workdir={workdir.path}", workdir.path)
    of = config.data
    for split in config.get("eval", {}).get("splits", ()):
        open_source(of.source, split, of.data_dir, needs_image="row_len" not in of)
    info = open_training(of).info
    data = {
        "directory": str(info.directory),
        "splits": dict(info.splits),
        "fingerprint": info.fingerprint,
    }
    check_data(workdir, data)
    return data
