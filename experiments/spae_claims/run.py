"""Trains and scores the arms of the study, run by run; README.md says what is measured and how.

    mmx prepare openmoji --config 32
    mmx prepare noto
    mmx prepare lm
    mmx prepare sentences minilm
    mmx prepare sentences wordllama
    python experiments/spae_claims/run.py       # all that is missing, one run after another
    python experiments/spae_claims/report.py    # table and picture of what is there

A run that was stopped (Ctrl-C, SIGTERM) is saved: the same command goes on with it. An arm that has
used its 30 CPU-minutes is left as it is, and reported as unfinished.
"""

import argparse
from pathlib import Path

from arms import ARMS

from mmx.cli.backend import before_jax, start_jax
from mmx.core.errors import UserError
from mmx.core.preemption import Preempted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--arm", choices=ARMS, help="this one alone")
    parser.add_argument("--data_dir", default="", help="where the data lies")
    parser.add_argument("--out", type=Path, default=Path("runs/spae_claims"))
    args = parser.parse_args()
    before_jax()
    from training import do_all

    start_jax()
    try:
        do_all(args.out, list(ARMS) if args.arm is None else [args.arm], args.data_dir)
    except Preempted as stopped:
        print(stopped)
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
