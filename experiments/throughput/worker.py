"""One side in a process of its own, which measures when it is told to and sleeps otherwise.

Commands, one a line: ``about``; ``time WHAT CALLS`` with WHAT a method of the side, whose calls
wait for the result. Each is answered by one line of JSON.
"""

import argparse
import json
import os
import sys
import time
from importlib import import_module

from shape import shrink


def load_side(args):
    """The class of a side, made with the arguments; its libraries are imported only here."""
    if args.side == "mmx":
        from mmx.cli.backend import before_jax

        before_jax()  # as the command does
        return import_module(f"{args.subject}_mmx").Mmx(args)
    return import_module(f"{args.subject}_torch").Peer(args)


def measure(side, what: str, calls: int) -> dict:
    """Mean wall and CPU seconds (all threads of this process) of some calls."""
    call = getattr(side, what)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
        value = call()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"wall": wall / calls, "cpu": cpu / calls, "value": value, "load": os.getloadavg()[0]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--subject", choices=("muse", "clip", "transfusion"), required=True)
    parser.add_argument("--side", choices=("mmx", "eager", "compile"), required=True)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), required=True)
    parser.add_argument("--device", choices=("cpu", "gpu"), required=True)
    parser.add_argument("--activation", required=True)
    parser.add_argument("--tiny", action="store_true")
    out, sys.stdout = sys.stdout, sys.stderr  # only answers on stdout
    args = parser.parse_args()
    if args.tiny:
        shrink(args.subject)
    side = load_side(args)
    for line in sys.stdin:
        command, *rest = line.split()
        answer = side.about() if command == "about" else measure(side, rest[0], int(rest[1]))
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()
