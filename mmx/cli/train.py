"""Train a run, or go on with it: the same command again resumes where it was."""

import sys

from mmx.core import config as configs
from mmx.core.errors import UserError
from mmx.core.run_dir import RunDir, open_or_create

HELP = "train a run, or go on with it"
EXAMPLES = """\
examples:
  mmx train --config vqgan/openmoji32 --workdir runs/vqgan
  mmx train --config muse/openmoji32 --config.codec.run=runs/vqgan --workdir runs/muse
  mmx train --config configs/muse/openmoji32.py:tiny --config.optim.lr=1e-3 --print_config

Any field of the config is a flag: --config.FIELD.FIELD=VALUE. Exit code 75: asked to stop
(SIGTERM, Ctrl-C), saved; run the same command to go on.
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
        "--print_config", action="store_true", help="show the resolved config and stop"
    )


def run(args) -> int:
    config = resolve(args.config, args.overrides)
    if args.print_config:
        print(configs.to_text(config))
        return 0
    if not args.workdir:
        raise UserError("--workdir is missing: name the folder of the run")
    workdir = RunDir(_path(args.workdir))
    if workdir.config_file.is_file():
        configs.check_resumable(workdir.config(), config)
        done = workdir.steps()
        if done and done[-1] >= config.steps:
            print(f"{args.workdir}: all {config.steps} steps are done", file=sys.stderr)
            return 0
    from mmx.cli.backend import start_jax
    from mmx.models.registry import make_task
    from mmx.train import loop, preemption

    start_jax()
    workdir = open_or_create(args.workdir, config)
    task = make_task(config, workdir)
    try:
        loop.train(task, config, workdir, init_from=args.init_from)
    except preemption.Preempted as stopped:
        print(f"mmx: {stopped}; run the same command to go on", file=sys.stderr)
        return preemption.EXIT_PREEMPTED
    except loop.NonFinite as error:
        print(f"mmx: error: {error}", file=sys.stderr)
        return 1
    return 0


def _path(text: str):
    from pathlib import Path

    return Path(text)


def resolve(spec: str, overrides: list[str]):
    """The config of ``--config SPEC`` with ``--config.a.b=V`` flags applied, locked.

    Raises:
      UserError: an unknown file, field (names the nearest) or a value of the wrong type.
    """
    from absl import flags
    from ml_collections import config_flags

    path, arg = configs.find_config(spec)
    configs.load_config(spec)  # its own mistakes first, with their own messages
    for flag in overrides:
        if not flag.startswith("--config."):
            raise UserError(f"unknown argument {flag!r}; see `mmx train --help`")
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values)
    try:
        values(["mmx", f"--config={path}:{arg}", *overrides])
        return values[holder.name].value.lock()
    except (AttributeError, KeyError, TypeError, ValueError, flags.Error) as error:
        reason = " ".join(str(a) for a in error.args) or type(error).__name__
        raise UserError(f"{' '.join(overrides)}: {reason}") from error
