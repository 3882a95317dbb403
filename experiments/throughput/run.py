"""Speed of mmx beside a PyTorch peer, in one run.

    python experiments/throughput/run.py --subject muse     # training and sampling
    python experiments/throughput/run.py --subject clip     # training, embedding, features
    python experiments/throughput/run.py --subject transfusion  # training, text, images
        [--device gpu --dtype bfloat16] [--torch_python PATH] [--json FILE]

One worker process a side; calls alternate A B C A B C, so that what else the machine does meets
all sides alike. Printed: medians of wall and CPU seconds, and the median of the ratios of
neighbouring calls with their range. README.md says what is compared.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
WHAT = {  # of a subject, and the module that says whether its peer is installed
    "muse": (("train", "sample"), "einops"),
    "clip": (("train", "embed", "features"), "open_clip"),
    "transfusion": (("train", "train_even", "decode", "sample"), "transfusion_pytorch"),
}


class Worker:
    """A side in a process of its own, asleep between commands."""

    def __init__(self, side: str, args):
        python = sys.executable if side == "mmx" else args.torch_python
        command = [python, str(HERE / "worker.py"), f"--side={side}", f"--dtype={args.dtype}"]
        command += [f"--subject={args.subject}"]
        command += [f"--device={args.device}", f"--activation={args.activation}"]
        command += ["--tiny"] * args.tiny
        env = dict(os.environ)
        if side == "mmx":
            env["PYTHONPATH"] = f"{HERE.parents[1]}{os.pathsep}{env.get('PYTHONPATH', '')}"
            env["JAX_PLATFORMS"] = "cuda" if args.device == "gpu" else "cpu"
        pipe = subprocess.PIPE
        self.side = side
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=env)

    def ask(self, *words) -> dict:
        print(*words, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.side}: the worker ended (exit {self.process.wait()}); see above")
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def compare(workers: list[Worker], what: str, rounds: int, calls: int) -> list[dict]:
    """Warm each side up, then alternate; prints a table, and returns its lines."""
    times: dict[str, list[dict]] = {worker.side: [] for worker in workers}
    for worker in workers:
        began = time.monotonic()
        worker.ask("time", what, 2)
        print(f"  {what}: {worker.side} warm after {time.monotonic() - began:.0f} s", flush=True)
    for _ in range(rounds):
        for worker in workers:
            times[worker.side].append(worker.ask("time", what, calls))
    loads = [row["load"] for rows in times.values() for row in rows]
    results = []
    for side, rows in times.items():
        for unit in ("wall", "cpu"):
            values = sorted(row[unit] for row in rows)
            result = {"what": what, "side": side, "unit": unit, "seconds": spread(values)}
            line = f"{what:10s} {side:8s} {unit:4s} {statistics.median(values):8.3f} s"
            line += f"  ({values[0]:.3f}-{values[-1]:.3f}, n={len(values)})"
            if side != "mmx" and "mmx" in times:
                ratios = [a[unit] / b[unit] for a, b in zip(rows, times["mmx"])]
                low, high = min(ratios), max(ratios)
                line += f"  mmx is {statistics.median(ratios):.2f}x as fast ({low:.2f}-{high:.2f})"
                result["mmx_is_times_as_fast"] = spread(ratios)
            results.append(result | {"calls": len(rows), "load": [min(loads), max(loads)]})
            print(line)
    print(f"{what:10s} load average {min(loads):.1f}-{max(loads):.1f}", flush=True)
    return results


def spread(values: list[float]) -> dict[str, float]:
    """Median and range."""
    rounded = lambda value: round(value, 4)
    return {"median": rounded(statistics.median(values)), "least": rounded(min(values)),
            "most": rounded(max(values))}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--activation", default="gelu", help="of mmx's Muse; gelu or relu2")
    parser.add_argument("--sides", default="mmx,eager,compile")
    parser.add_argument("--subject", choices=tuple(WHAT), required=True)
    parser.add_argument("--what", help="some of what is measured of the subject")
    parser.add_argument("--tiny", action="store_true", help="a small model: does it all run?")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--torch_python", default=sys.executable, help="a Python that has torch")
    parser.add_argument("--json", type=Path, help="where to write what is printed")
    args = parser.parse_args()

    sides, (whats, package) = args.sides.split(","), WHAT[args.subject]
    if set(sides) != {"mmx"}:
        look = "from importlib.util import find_spec as f; import sys; "
        look += "sys.exit(not all(map(f, sys.argv[1:])))"
        if subprocess.run([args.torch_python, "-c", look, "torch", package]).returncode:
            sys.exit(
                f"{args.torch_python} has no torch or no {package}: install this folder's "
                "requirements.txt as README.md says and name that Python by --torch_python, or "
                "measure mmx alone by --sides mmx"
            )
    workers = [Worker(side, args) for side in sides]
    about, results = {}, []
    for worker in workers:
        about[worker.side] = worker.ask("about")
        print(worker.side, about[worker.side], flush=True)
    for what in args.what.split(",") if args.what else whats:
        calls = 1 if args.device == "cpu" else (2 if what == "sample" else 20)
        rounds = max(3, args.rounds // 2) if what == "sample" else args.rounds
        results += compare(workers, what, rounds, calls)
        if args.json:
            args.json.write_text(json.dumps({"about": about, "results": results}, indent=1) + "\n")
    for worker in workers:
        worker.close()


if __name__ == "__main__":
    main()
