"""A frozen language model draws: the conditional tasks of SPAE and V2L from one run and one model.

    mmx prepare openmoji --config 32; mmx prepare lm
    mmx train --config spae/openmoji32 --workdir runs/spae
    python experiments/spae_generation/run.py runs/spae

Writes results.json, table.md and generation.png into ``--out`` or beside the words, in ten minutes
of one core or less. What was written is kept after every segment, a folder of ``--workdir`` for
each language model: the same command goes on where it stopped, and ``--images 8`` adds seven to the
first. A run of videos has tasks of its own.
``--tiny`` does one task alone with two examples.
"""

from mmx.cli.backend import before_jax, start_jax

before_jax()

import argparse  # noqa: E402
import dataclasses  # noqa: E402
import functools  # noqa: E402
import json  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import report  # noqa: E402
from study import Study, folder_of  # noqa: E402

from mmx.cli.arguments import add_lm, check_writable  # noqa: E402
from mmx.cli.run import load_run  # noqa: E402
from mmx.core.errors import UserError  # noqa: E402
from mmx.data.source import open_source  # noqa: E402
from mmx.eval.png import save_picture  # noqa: E402
from mmx.models import registry  # noqa: E402
from mmx.models.language_model import load_frozen_lm  # noqa: E402
from mmx.models.spae.in_context.conditions import TASKS, VIDEO_TASKS, tasks_of  # noqa: E402
from mmx.models.spae.in_context.noise import SCHEDULES, falling  # noqa: E402
from mmx.models.spae.in_context.prompts import Prompter  # noqa: E402
from mmx.models.spae.in_context.segments import Window  # noqa: E402
from mmx.pretrained.lm_packages import open_lm  # noqa: E402
from mmx.pretrained.lm_tokenizer import load_tokenizer  # noqa: E402
from mmx.pretrained.tensors import fingerprint  # noqa: E402

WINDOW = Window(upper=1, lookback=8)
KEPT_LAYERS = 3  # without noise: of images V2L's 21 global words, of videos 37


class Stored:
    """A `Picture` of a data set, read when it is looked at."""

    def __init__(self, caption: str, read: Callable[[], np.ndarray]):
        self.caption, self._read = caption, read

    @functools.cached_property
    def image(self) -> np.ndarray:
        return self._read()


def pictures(source, plain: Callable[[dict], np.ndarray], seed: int) -> list[Stored]:
    """All of a split, in an order of the seed."""
    captions = [example["text"] for example in source.outlines()]
    order = np.random.default_rng(seed).permutation(len(captions)).tolist()
    return [Stored(captions[i], lambda i=i: plain(source[i])) for i in order]


def open_study(args: argparse.Namespace) -> Study:
    """Opens run, language model and data. Raises UserError: not there, or of other words."""
    run = load_run(args.run)
    registry.check_words(run.config, args.run)
    task, data_dir = run.task, args.data_dir or run.config.data.data_dir
    repository = open_lm(args.lm, data_dir or None)
    tokenizer = load_tokenizer(repository)
    task.vocabulary.check_lm(tokenizer)
    data = run.config.data
    held_out, seen = (open_source(data.source, s, data_dir or None) for s in ("test", "train"))
    weights = run.params, run.extra, run.frozen
    return Study(
        lm=load_frozen_lm(repository, args.lm_dtype),
        prompter=Prompter(tokenizer, task.vocabulary, task.pyramid, WINDOW),
        to_words=lambda images: np.asarray(task.to_words(run.mesh)(*weights, images)),
        from_words=lambda words: np.asarray(task.from_words(run.mesh)(*weights, words)),
        pictures=pictures(held_out, task.plain, args.seed)[: args.images],
        pool=pictures(seen, task.plain, args.seed),
        settings={
            "run": run.dir.path.name, "step": run.step, "lm": args.lm, "seed": args.seed,
            "lm_weights": fingerprint(repository), "lm_dtype": args.lm_dtype,
            "vocabulary": task.vocabulary.hash, "words": len(task.vocabulary),
            "sides": list(task.pyramid.sides), "supports": args.supports,
            "block": args.block, "ratios": list(falling(SCHEDULES[args.noise], args.supports)),
            "kept_layers": KEPT_LAYERS, "mask_word": args.mask_word,
            "window": dataclasses.asdict(WINDOW), "attribution": held_out.info.attribution,
        },
    )  # fmt: skip


def do_all(study: Study, tasks: list[str] | None, workdir: Path, out: Path) -> dict:
    """What of the tasks (None: all) is not done, then all three files. Raises UserError: of
    :meth:`Study.do`, a task of videos of images or the other way, or a folder that cannot be
    written."""
    check_writable(f"--out={out}", out)
    every = list(tasks_of(study.pyramid))
    if other := [name for name in tasks or () if name not in every]:
        raise UserError(f"--tasks {other[0]}: those of this run are {', '.join(every)}")
    results = {"settings": {**study.settings, "every": every}, "tasks": {}}
    rows = []
    for name in tasks or every:
        results["tasks"][name], row = study.do(name, workdir)
        rows.append(row)
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "table.md").write_text(report.table(results))
    save_picture(out / "generation.png", report.figure(rows, results), results["settings"])
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", help="of the family spae: PATH[@STEP]")
    add_lm(parser)
    parser.add_argument("--workdir", default="runs/spae_generation", help="words as they come")
    parser.add_argument("--out", type=Path, help="of results (default: in the workdir)")
    parser.add_argument("--data_dir", default="", help="where data sets and models are")
    parser.add_argument("--tasks", nargs="*", choices=TASKS | VIDEO_TASKS, metavar="TASK")
    parser.add_argument("--images", type=int, default=1, help="of each task")
    parser.add_argument("--supports", type=int, default=5, help="examples in a prompt")
    parser.add_argument("--block", type=int, default=8, help="most words at a time")
    parser.add_argument("--noise", choices=SCHEDULES, default="v2l", help="of the examples")
    parser.add_argument("--mask_word", default="", help="noise is this word, not random ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="one task, in seconds")
    args = parser.parse_args()
    if args.tiny:
        args.tasks, args.images, args.supports = (args.tasks or ["class"])[:1], 1, 2
    start_jax()
    workdir = Path(args.workdir)
    out = args.out or folder_of(workdir, args.lm)
    try:
        results = do_all(open_study(args), args.tasks, workdir, out)
    except UserError as error:
        parser.error(str(error))
    print(report.table(results))


if __name__ == "__main__":
    main()
