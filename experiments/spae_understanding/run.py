"""What a frozen language model understands of pictures by a run's words: `mmx fewshot`, nine times.

    mmx prepare openmoji --config 32; mmx prepare noto; mmx prepare fashion_mnist
    mmx prepare scenes --config 32; mmx prepare lm
    mmx prepare sentences minilm; mmx prepare sentences wordllama
    mmx train --config spae/openmoji32 --workdir runs/spae
    mmx train --config spae/openmoji32 --workdir runs/single \\
        --config.pyramid.sides="(8,)" --config.guidance.weight=0
    python experiments/spae_understanding/run.py runs/spae --baseline runs/single

An hour of two cores besides the trainings. Stopped, the same command goes on. Writes results.json
and table.md into ``--out`` or the workdir, with the studies named that are not done; README.md says
what is measured.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple

from report import check_alike, table

from mmx.cli.arguments import add_lm
from mmx.cli.main import main as mmx
from mmx.core.errors import UserError


class Asked(NamedTuple):
    """A study.

    title: for a reader.
    flags: of `mmx fewshot`.
    baselined: by the words of the baseline, too.
    """

    title: str
    flags: str
    baselined: bool = True


_FASHION = "--source tfds:fashion_mnist"
_NOTO = "--source tfds:openmoji/32 --queries tfds:noto/64 --label group --key codepoints"
_CAPTIONS = "--source tfds:openmoji/32 --captions --ways 2 --episodes 6"
_SCENES = "--source tfds:scenes/32 --words 21 --budgets 21 --ways 2 --episodes 6"
WRITTEN = 12  # most tokens of an answer: ours
# As many episodes as an hour of two cores reads; scenes without the baseline, which saves a third.
STUDIES = {
    "fashion2": Asked("Fashion-MNIST, 2 ways", f"{_FASHION} --ways 2 --episodes 25"),
    "fashion5": Asked("Fashion-MNIST, 5 ways", f"{_FASHION} --ways 5 --episodes 6"),
    "noto2": Asked("OpenMoji shown, Noto asked: group, 2 ways", f"{_NOTO} --ways 2 --episodes 25"),
    "noto5": Asked("OpenMoji shown, Noto asked: group, 5 ways", f"{_NOTO} --ways 5 --episodes 6"),
    "captions2": Asked("OpenMoji: caption, 2 ways", _CAPTIONS),
    "colour2": Asked("Scenes: colour, 2 ways", f"{_SCENES} --ask colour", False),
    "kind2": Asked("Scenes: kind, 2 ways", f"{_SCENES} --ask kind", False),
    "count2": Asked("Scenes: count, 2 ways", f"{_SCENES} --ask count", False),
    "relation2": Asked("Scenes: relation, 2 ways", f"{_SCENES} --ask relation", False),
}


def command(name: str, args: argparse.Namespace) -> list[str]:
    """A study as arguments of ``mmx``."""
    flags = [*STUDIES[name].flags.split(), "--lm", args.lm, "--lm_dtype", args.lm_dtype]
    flags += ["--write", str(WRITTEN), "--out", str(args.workdir / name)]
    if args.data_dir:
        flags += ["--data_dir", args.data_dir]
    if STUDIES[name].baselined:
        flags += ["--baseline", args.baseline]
    return ["fewshot", args.run, *flags]


def gather(workdir: Path) -> dict:
    """Study -> its title and what `mmx fewshot` found, or None where it is not done."""
    found = {}
    for name, study in STUDIES.items():
        file = workdir / name / "results.json"
        results = json.loads(file.read_text()) if file.is_file() else None
        found[name] = {"title": study.title, "results": results}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", help="of the family spae: PATH[@STEP]")
    parser.add_argument("--baseline", help="a run of one layer: PATH[@STEP]")
    parser.add_argument("--studies", nargs="*", choices=STUDIES, default=list(STUDIES))
    add_lm(parser)
    parser.add_argument("--data_dir", default="", help="where data sets and models are")
    parser.add_argument("--workdir", type=Path, default=Path("runs/spae_understanding"))
    parser.add_argument("--out", type=Path, help="of results (default: the workdir)")
    args = parser.parse_args()
    if not args.baseline and (need := [n for n in args.studies if STUDIES[n].baselined]):
        parser.error(f"--baseline: {', '.join(need)} compare the run with one of a single layer")
    code = 0
    for name in args.studies:
        print(f"== {STUDIES[name].title}", flush=True)
        if code := mmx(command(name, args)):
            break
    out, found = args.out or args.workdir, gather(args.workdir)
    try:
        check_alike(found)
    except UserError as error:
        parser.error(str(error))
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    (out / "table.md").write_text(table(found))
    return code


if __name__ == "__main__":
    sys.exit(main())
