"""The ``mmx`` command: one thin file a verb. Heavy imports happen inside the verbs."""

import argparse
import os
import sys
import time
import traceback

from mmx.cli.backend import before_jax
from mmx.core import exits, preemption
from mmx.core.errors import EXIT_FAULT, UserError

_EXAMPLES = """\
examples:
  mmx prepare openmoji --config 32
  mmx preflight --config muse/base_3b --topology v5e:16x16
  mmx train --config vqgan/openmoji32 --workdir runs/vqgan
  mmx train --config muse/openmoji32 --config.codec.run=runs/vqgan --workdir runs/muse
  mmx sample runs/muse "red heart" -n 4 --out heart.png
  mmx caption runs/transfusion heart.png
  mmx edit runs/edits heart.png "make it blue"
  mmx describe runs/spae heart.png
  mmx evaluate runs/muse
  mmx compare runs/muse runs/muse2
  mmx configs

exit codes: 0 done; 1 training failed (a loss is not finite) or a preflight that does not fit;
  2 bad input, nothing was lost;
  70 a fault of mmx or of the machine, with a traceback, or a store that does not answer: the same
  command again may go better;
  75 asked to stop (SIGTERM; training Ctrl-C too), what is done is kept: training goes on by the
  same command;
  76 training on several hosts lost one of them: the same command on all goes on;
  130 interrupted, nothing saved. Results go to stdout, progress and errors to stderr.
"""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; flags are spelt out."""

    def __init__(self, **kwargs):
        kwargs |= {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}
        super().__init__(**kwargs)

    def error(self, message):
        raise UserError(f"{message}; see `{self.prog} --help`")


def _parser() -> argparse.ArgumentParser:
    from mmx.cli import (
        caption,
        compare,
        configs,
        describe,
        edit,
        evaluate,
        fewshot,
        import_,
        preflight,
        prepare,
        rerank,
        sample,
        train,
    )  # fmt: skip

    parser = _Parser(
        prog="mmx",
        description="Train generative models of images and text; see what they draw.",
        epilog=_EXAMPLES,
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    making = prepare, import_, preflight, train
    using = sample, edit, caption, describe, fewshot, rerank, evaluate, compare, configs
    for module in (*making, *using):
        name = module.__name__.rsplit(".", 1)[-1].rstrip("_")
        verb = verbs.add_parser(
            name,
            help=module.HELP,
            description=module.__doc__.partition("\n")[0],
            epilog=module.EXAMPLES,
        )
        module.add_arguments(verb)
        verb.set_defaults(run=module.run)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a verb; returns the exit code, as ``mmx --help`` lists them."""
    began = time.monotonic() - (_process_age() if argv is None else 0.0)
    try:
        args, rest = _parser().parse_known_args(sys.argv[1:] if argv is None else argv)
        if args.verb in ("train", "preflight", "import"):
            args.overrides = rest
        elif rest:
            raise UserError(f"unknown arguments: {' '.join(rest)}; see `mmx {args.verb} --help`")
        args.began = began
        before_jax()
        code = args.run(args) or 0
        sys.stdout.flush()
        return code
    except preemption.Preempted as stopped:
        print(f"mmx: {stopped}", file=sys.stderr)
        return preemption.EXIT_PREEMPTED
    except BrokenPipeError:
        # The reader of our output went away (`mmx configs | head`); nothing is wrong.
        _drop_output()
        return 0
    except Exception as error:
        if (told := exits.told(error)) is None:
            traceback.print_exc()  # not 1, which says that a loss is not finite
            return EXIT_FAULT
        if isinstance(error, OSError):
            _drop_output()
        code, message = told
        print(f"mmx: error: {message}", file=sys.stderr)
        return code
    except KeyboardInterrupt:
        print("mmx: interrupted", file=sys.stderr)
        return 130


def _process_age() -> float:
    """Seconds since this process began: Python starting; 0 where the system has no /proc."""
    try:
        with open("/proc/self/stat") as file:
            began = int(file.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    except OSError:
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began


def _drop_output() -> None:
    """What is still in the buffer has no reader: keep the interpreter's exit from complaining."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
