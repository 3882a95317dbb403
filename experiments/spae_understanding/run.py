"""What a frozen language model understands of pictures by a run's words: `mmx fewshot`, nine times.

    mmx prepare openmoji --config 32; mmx prepare noto; mmx prepare fashion_mnist
    mmx prepare scenes --config 32; mmx prepare lm; mmx prepare sentences minilm
    mmx train --config spae/openmoji32 --workdir runs/spae
    mmx train --config spae/openmoji32 --workdir runs/single \\
        --config.pyramid.sides="(8,)" --config.guidance.weight=0
    python experiments/spae_understanding/run.py runs/spae --baseline runs/single

Stopped, the same command goes on. Writes results.json and table.md beside this file, with the
studies that are not done named; README.md says what is measured.
"""

import argparse
import json
import sys
from pathlib import Path

from report import table

from mmx.cli.main import main as mmx

HERE = Path(__file__).resolve().parent
_NOTO = "--source tfds:openmoji/32 --queries tfds:noto/64 --label group --key codepoints"
_CAPTIONS = "--source tfds:openmoji/32 --captions"
_SCENES = "--source tfds:scenes/32 --words 21 --budgets 21 --ways 2 --episodes 10 --ask"
# Name -> (what is asked, flags of `mmx fewshot`); as many episodes as an hour of two cores reads.
# Scenes are asked without a baseline, which saves a third.
STUDIES = {
    "fashion2": ("Fashion-MNIST, 2 ways", "--source tfds:fashion_mnist --ways 2 --episodes 25"),
    "fashion5": ("Fashion-MNIST, 5 ways", "--source tfds:fashion_mnist --ways 5 --episodes 10"),
    "noto2": ("OpenMoji shown, Noto asked: group, 2 ways", f"{_NOTO} --ways 2 --episodes 25"),
    "noto5": ("OpenMoji shown, Noto asked: group, 5 ways", f"{_NOTO} --ways 5 --episodes 10"),
    "captions2": ("OpenMoji: caption, 2 ways", f"{_CAPTIONS} --ways 2 --episodes 10"),
    **{f"{ask}2": (f"Scenes: {ask}, 2 ways", f"{_SCENES} {ask}")
       for ask in ("colour", "kind", "count", "relation")},
}  # fmt: skip


def command(name: str, args: argparse.Namespace) -> list[str]:
    """A study as arguments of ``mmx``."""
    flags = STUDIES[name][1].split()
    flags += ["--lm", args.lm, "--out", str(args.out / name)]
    if args.data_dir:
        flags += ["--data_dir", args.data_dir]
    if _SCENES not in STUDIES[name][1]:
        flags += ["--baseline", args.baseline]
    return ["fewshot", args.run, *flags]


def gather(out: Path) -> dict:
    """Study -> its title and what `mmx fewshot` found, or None where it is not done."""
    found = {}
    for name, (title, _) in STUDIES.items():
        file = out / name / "results.json"
        results = json.loads(file.read_text()) if file.is_file() else None
        found[name] = {"title": title, "results": results}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", help="of the family spae: PATH[@STEP]")
    parser.add_argument("--baseline", required=True, help="a run of one layer")
    parser.add_argument("--studies", nargs="*", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--lm", default="smollm2-135m-instruct")
    parser.add_argument("--data_dir", default="", help="where data sets and models are")
    parser.add_argument("--out", type=Path, default=Path("runs/spae_understanding"))
    args = parser.parse_args()
    for name in args.studies:
        print(f"== {STUDIES[name][0]}", flush=True)
        if code := mmx(command(name, args)):
            return code
    found = gather(args.out)
    (HERE / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    (HERE / "table.md").write_text(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
