"""Compile a config for devices that are not here: does it fit, and how fast can it be at most?"""

import contextlib
import signal
import sys
import threading
import time
from pathlib import Path

from mmx.cli import arguments
from mmx.core import config as configs
from mmx.core.errors import UserError

HELP = "compile a config for a TPU slice that is not here"
EXAMPLES = """\
examples:
  mmx preflight --config muse/base_3b --topology v5e:16x16
  mmx preflight --config muse/base_632m --topology v5e:4x4 --config.batch_size=256 --sample
  mmx preflight --config muse/base_3b --topology v5e:16x16 --search --budget 120
  mmx preflight --config muse/openmoji32:tiny --topology cpu:8 --json report.json

Needs no TPU, no data and no weights; for a TPU, the compiler: pip install 'mmx[preflight]'.
SHAPE is of one slice, v4, v5e, v5p or v6e; --config.mesh.slice=2 compiles for two of them.
Compute and MFU are bounds: collectives that overlap nothing come on top. --search compiles meshes,
remat policies and microbatches, what may be best first, and prints those that fit; what it found is
kept, so the same search again goes on.
Its order knows nothing of what moves between chips: compare that column too.
Exit codes: 0 it fits, 1 it does not (and what takes the memory), 2 bad input.
"""


def add_arguments(parser):
    parser.add_argument(
        "--config", required=True, metavar="FILE:ARGS", help="a file, or a name of `mmx configs`"
    )
    parser.add_argument(
        "--topology", required=True, metavar="KIND:SHAPE", help="v5e:16x16, v5p:4x4x4, cpu:8, gpu"
    )
    parser.add_argument("--sample", action="store_true", help="the sampler too")
    parser.add_argument(
        "--search", action="store_true", help="try meshes, remat policies and microbatches"
    )
    parser.add_argument(
        "--budget", type=arguments.scale, metavar="MINUTES", help="of --search (default 60)"
    )
    parser.add_argument("--json", metavar="FILE", help="the reports, - for stdout")


def run(args) -> int:
    from mmx.cli.train import resolve
    from mmx.models import registry
    from mmx.train import topology

    config = resolve(args.config, args.overrides)
    configs.check_numbers(config)
    registry.check_family(config)
    _check(args, config)
    where = topology.parse_topology(args.topology)
    topology.before_jax(where)

    from mmx.cli.backend import start_jax
    from mmx.train import preflight

    start_jax()
    task = registry.make_task(config, None, abstract=True)
    if args.search:
        from mmx.cli.preflight_search import search

        return search(args, config, task, where)
    programs = {"train step": preflight.preflight_step}
    if args.sample:
        task.options()  # a family that cannot sample says so before minutes of compiling
        programs["sampler"] = preflight.preflight_sampler
    reports = []
    for name, program in programs.items():
        with waiting(f"compiling the {name} of {args.config} for {args.topology}"):
            reports.append(program(task, config, where))
    if args.json != "-":
        for report in reports:
            print(preflight.to_text(report))
    if args.json:
        arguments.write_json("--json", args.json, [report.to_json() for report in reports])
    return 1 if any(report.fits is False for report in reports) else 0


def _check(args, config) -> None:
    """What is wrong, before minutes of compiling. Raises UserError."""
    if args.search and args.sample:
        raise UserError("--sample: --search compiles the train step alone")
    if args.budget is not None and not args.search:
        raise UserError("--budget: is of --search")
    if args.json not in (None, "-"):
        file = Path(args.json)
        if "://" in args.json or file.is_dir() or not file.parent.is_dir():
            raise UserError(f"--json={args.json}: name a file in a folder of this machine")
        arguments.check_writable(f"--json={args.json}", file.parent)
    if config.mesh.slice < 1:
        raise UserError(f"config.mesh.slice={config.mesh.slice}: name the number of slices")


@contextlib.contextmanager
def waiting(what: str):
    """Say what takes so long: seconds on a terminal, a line in a log. No compiler tells how far.

    Ctrl-C ends the process at once: Python would answer when the compiler is done.
    """
    with _at_once(), _ticking(what):
        yield


@contextlib.contextmanager
def _at_once():
    previous = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextlib.contextmanager
def _ticking(what: str):
    done = threading.Event()

    def tick():
        began = time.monotonic()
        while not done.wait(0.5):
            seconds = round(time.monotonic() - began)
            print(f"\r\033[K{what} {seconds // 60}:{seconds % 60:02d}", end="", file=sys.stderr)
            sys.stderr.flush()

    if not sys.stderr.isatty():
        print(what, file=sys.stderr, flush=True)
        yield
        return
    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        print("\r\033[K", end="", file=sys.stderr)
