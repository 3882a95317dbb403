"""Compare runs and checkpoints: the same prompts, seeds and scores, side by side."""

import contextlib
import json
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmx.cli import arguments, pictures, tensorboard
from mmx.core import commands, preemption, storage
from mmx.core import config as configs
from mmx.core.errors import UserError
from mmx.core.run_dir import RunDir, evaluate_alone, parse_run

if TYPE_CHECKING:
    from etils.epath import Path

    from mmx.cli.scoring import Scorer
    from mmx.eval.comparison import Column, Comparison

HELP = "set runs and checkpoints side by side"
EXAMPLES = """\
examples:
  mmx compare runs/muse
  mmx compare runs/muse runs/muse-lr4 --prompts prompts.txt --out comparison
  mmx compare runs/muse@900 runs/muse@2900 --seed 1

A run without @STEP stands for up to six of its checkpoints, those that the runs have in common and
its newest. Picture i is what `mmx sample RUN@STEP --prompts FILE` draws as its picture i; image
tokenizers rebuild the same held-out images; runs of videos show scores alone, PSNR among them.
Scores are those of `mmx evaluate`: what is missing is computed and kept; what was measured by other
networks, or on other or fewer images, is in a row of its own. Makes a page (index.html; nothing
else is needed to see it), a picture of it (sheet.png), prompts.txt, and a folder for TensorBoard.
"""
_STEPS = 6  # ours: checkpoints of a run that is named without a step
_IMAGES = 8  # ours: held-out images that a tokenizer rebuilds
_PAGE, _SHEET, _PROMPTS, _EVENTS = "index.html", "sheet.png", "prompts.txt", "tensorboard"


def add_arguments(parser):
    parser.add_argument("runs", metavar="RUN[@STEP]", nargs="+")
    parser.add_argument(
        "--prompts", metavar="FILE", help="one prompt a line (default: the first run's previews)"
    )
    parser.add_argument("--seed", type=arguments.seed, default=0, help="default 0")
    parser.add_argument(
        "--out", metavar="FOLDER", help="where it goes (default: RUN/comparison of the first run)"
    )
    arguments.add_metrics(parser)
    parser.add_argument("--data_dir", help="where the data is now, if not where it was in training")


@dataclass(frozen=True)
class _Named:
    """A run of the command line: its name in the comparison, and which of its steps."""

    name: str
    dir: RunDir
    config: Any
    steps: list[int]


def run(args) -> int:
    runs = _runs(args.runs)
    kind = _kind(runs)
    prompts = _prompts(args.prompts, runs, kind)
    out = storage.path(args.out) if args.out else runs[0].dir.path / "comparison"
    _check_out(out)

    from mmx.cli.scoring import Scorer

    named = (args.metrics, args.scorer)
    scorers = [Scorer(r.dir, args.seed, args.data_dir, *named) for r in runs]
    with preemption.watch((signal.SIGTERM,)):
        try:
            _score(runs, scorers)
            shown = _compare(runs, scorers, kind, prompts, args.seed)
        except preemption.Interrupted:
            raise preemption.Preempted(
                "stopped; the scores so far are kept; run the same command to go on"
            ) from None
    _write(out, shown)
    for run, columns in shown.groups():
        print(f"{run}: steps {', '.join(str(column.step) for column in columns)}")
    print(f"page:        {out / _PAGE}")
    print(f"picture:     {out / _SHEET}")
    print(f"TensorBoard: {commands.tensorboard(out / _EVENTS)}")
    return 0


# What is asked for


def _runs(specs: Sequence[str]) -> list[_Named]:
    """The runs in order, each once, with their steps. Raises UserError."""
    asked: dict[str, tuple[RunDir, set]] = {}
    for spec in specs:
        run_dir, step = parse_run(spec)
        key = str(storage.absolute(run_dir.path))
        asked.setdefault(key, (run_dir, set()))[1].add(step)
    whole = [run_dir.steps() for run_dir, steps in asked.values() if None in steps]
    common = sorted(set.intersection(*map(set, whole))) if whole else []
    # The same for all, so that they line up; the newest may come on top.
    spread = _spread(common, _STEPS - any(steps[-1] not in common for steps in whole))
    named = []
    for name, (run_dir, steps) in zip(_names(list(asked)), asked.values(), strict=True):
        if None in steps:
            steps = (steps - {None}) | {run_dir.steps()[-1], *spread}
        named.append(_Named(name, run_dir, run_dir.config(), sorted(steps)))
    return named


def _spread(steps: list[int], count: int) -> list[int]:
    """At most ``count`` of them, evenly, the first and the last included."""
    if len(steps) <= count:
        return steps
    return [steps[round(i * (len(steps) - 1) / (count - 1))] for i in range(count)]


def _names(paths: list[str]) -> list[str]:
    """The shortest ends of paths that tell them apart."""
    parts = [path.rstrip("/").split("/") for path in paths]
    size = 1
    while len({tuple(p[-size:]) for p in parts}) < len(parts):
        size += 1
    return ["/".join(p[-size:]).lstrip("/") for p in parts]


def _kind(runs: Sequence[_Named]) -> str:
    """What the runs can be compared by, see :mod:`mmx.cli.pictures`. Raises UserError."""
    kinds = {r.name: pictures.kind(r.config) for r in runs}
    families = {r.config.family for r in runs}
    if len(set(kinds.values())) > 1 or (len(families) > 1 and pictures.NONE in kinds.values()):
        what = lambda c: c.family + (" of videos" if c.data.get("frames", 0) else "")
        each = "; ".join(f"{r.name}: {what(r.config)}, {kinds[r.name]}" for r in runs)
        raise UserError(
            f"these runs show nothing that is the same ({each}); name runs that all draw from "
            "prompts, runs that all rebuild images, or runs of one family that have scores alone"
        )
    return kinds[runs[0].name]


def _prompts(file: str | None, runs: Sequence[_Named], kind: str) -> list[str]:
    """Prompts that all runs take; [] where none are drawn. Raises UserError."""
    if kind != pictures.DRAWS:
        if file is not None:
            family = runs[0].config.family
            raise UserError(f"--prompts={file}: a run of the family {family!r} draws from none")
        return []
    prompts = arguments.prompts(file) if file is not None else list(runs[0].config.preview_prompts)
    if not prompts:
        raise UserError(f"{runs[0].dir.path}: its config has no preview_prompts; give --prompts")
    for r in runs:
        try:
            arguments.check_prompts(r.dir, prompts)
        except UserError as error:
            raise UserError(f"{r.name}: {error}") from error
    return prompts


def _check_out(out: "Path") -> None:
    arguments.check_writable(f"--out={out}", out)
    known = {_PAGE, _SHEET, _PROMPTS, _EVENTS}
    there = {path.name for path in storage.children(out)}
    if there and (_PAGE not in there or there - known):
        raise UserError(f"--out={out}: the folder holds other things; name a new one")


# What is computed


def _score(runs: Sequence[_Named], scorers: Sequence["Scorer"]) -> None:
    from mmx.core.progress import Progress

    missing = [
        (scorer, step)
        for r, scorer in zip(runs, scorers, strict=True)
        for step in r.steps
        if not scorer.is_complete(step)
    ]
    progress = Progress(len(missing), "score", every=1)
    with contextlib.ExitStack() as stack:
        for done, (scorer, step) in enumerate(missing):
            if done == 0 or missing[done - 1][0] is not scorer:
                scorer.prepare()
                stack.enter_context(evaluate_alone(scorer.dir))
                stack.callback(scorer.close)
            progress.say(f"scoring step {step} of {scorer.dir.path}")
            scorer.score(step)
            progress.update(done + 1)
    progress.close()


def _compare(runs, scorers, kind: str, prompts: list[str], seed: int) -> "Comparison":
    from mmx.eval.comparison import Comparison, differences

    settings = {r.name: _settings(r) for r in runs}
    common = {
        "family": ", ".join(dict.fromkeys(r.config.family for r in runs)),
        "seed": seed,
        "differences": differences(settings),
        "credits": _credits(runs),
    }
    if kind == pictures.REBUILDS:
        captions, originals = _held_out(runs[0], scorers[0], seed)
        return Comparison(
            columns=_columns(runs, scorers, originals=originals), rows=captions,
            rows_are="images", what="rebuilt", originals=originals, repeat=_caution(runs), **common,
        )  # fmt: skip
    if kind == pictures.NONE:
        return Comparison(
            columns=_columns(runs, scorers), rows=[], rows_are="items", what="", **common
        )
    repeat = f"Any column again: mmx sample RUN@STEP --prompts {_PROMPTS} --seed {seed}"
    return Comparison(
        columns=_columns(runs, scorers, prompts=prompts, seed=seed), rows=prompts,
        rows_are="prompts", what="drawn", repeat=repeat, **common,
    )  # fmt: skip


def _settings(r: _Named) -> dict[str, Any]:
    """Everything that could make runs differ, by name."""
    out = configs.flat_items(r.config)
    for folder in storage.children(r.dir.path / "stages"):
        if (folder / "pin.json").is_file():
            pin = json.loads(storage.read_text(folder / "pin.json"))
            out[f"{folder.name} (weights)"] = f"step {pin['step']}, {pin['sha256'][:8]}"
        if (folder / "kept.json").is_file():  # words of a language model
            kept = json.loads(storage.read_text(folder / "kept.json"))
            out[folder.name] = ", ".join(digest[:8] for digest in kept["sha256"].values())
    return out | {"data (fingerprint)": (r.dir.data() or {}).get("fingerprint", "unknown")[:8]}


def _credits(runs) -> list[str]:
    of = dict.fromkeys(filter(None, (r.dir.attribution() for r in runs)))
    return [f"By models trained on {attribution}." for attribution in of]


def _columns(runs, scorers, originals=None, prompts=(), seed=0) -> list["Column"]:
    """Load each checkpoint once and let it draw or rebuild; neither needs no checkpoint."""
    from mmx.cli.backend import start_jax
    from mmx.cli.run import load_run
    from mmx.core.progress import Progress
    from mmx.eval.comparison import Column
    from mmx.eval.images import finite, to_uint8

    columns = []
    progress = Progress(sum(len(r.steps) for r in runs), "compare", every=1)
    for r, scorer in zip(runs, scorers, strict=True):
        opened = None
        for step in r.steps:
            preemption.check()
            image_u8 = None
            if prompts or originals is not None:
                if opened is None:
                    start_jax()
                opened = opened.at(step) if opened else load_run(r.dir.path, step)
            if prompts:
                drawn = opened.draw(prompts, "", opened.options(), seed)["image"]
                image_u8 = to_uint8(finite(drawn))  # a broken checkpoint is grey beside the others
            elif originals is not None:
                image_u8 = pictures.rebuilt(opened, originals)
            columns.append(Column(r.name, step, scorer.scores(step), image_u8))
            progress.update(len(columns))
    progress.close()
    return columns


def _held_out(r: _Named, scorer: "Scorer", seed: int):
    """(captions, uint8 [n, H, W, 3]) of images that the first run did not learn from."""
    import numpy as np

    from mmx.data.image import fit
    from mmx.data.source import open_source

    source = open_source(r.config.data.source, r.config.eval.splits[-1], scorer.data_dir)
    chosen = np.random.default_rng(seed).permutation(len(source))[:_IMAGES]
    examples = [source[int(i)] for i in chosen]
    size = r.config.data.image_size
    return [e["text"] for e in examples], np.stack([fit(e["image"], size) for e in examples])


def _caution(runs: Sequence[_Named]) -> str:
    """Which runs learned, or may have, from the images of :func:`_held_out`; "" for none."""
    from mmx.eval.report import trained_splits

    shown = runs[0].config.eval.splits[-1].partition("[")[0]
    data = {r.name: (r.config.data.source, _settings(r)["data (fingerprint)"]) for r in runs}
    other = [r.name for r in runs if data[r.name] != data[runs[0].name]]
    learned = [
        r.name
        for r in runs
        if r.name not in other
        and shown in (name.partition("[")[0] for name in trained_splits(r.config.data.split))
    ]
    said = f"Trained on the split of these images: {', '.join(learned)}." if learned else ""
    if other:
        said += f" Trained on other data, which may hold these images: {', '.join(other)}."
    return said.strip()


# What is written


def _write(out: "Path", shown: "Comparison") -> None:
    from mmx.eval.page import page
    from mmx.eval.png import save_picture
    from mmx.eval.sheet import draw_sheet

    try:
        out.mkdir(parents=True, exist_ok=True)
        # First the page: it says whose folder this is, should what follows fail.
        storage.write(out / _PAGE, page(shown))
        info = {"columns": [[c.run, c.step] for c in shown.columns], "prompts": list(shown.rows)}
        info |= {"seed": shown.seed, "attribution": " ".join(shown.credits)}
        save_picture(out / _SHEET, draw_sheet(shown), info)
        if shown.what == "drawn":
            storage.write(out / _PROMPTS, "".join(f"{prompt}\n" for prompt in shown.rows))
        (out / _EVENTS).rmtree(missing_ok=True)
        tensorboard.write_comparison(out / _EVENTS, shown)
    except OSError as error:
        raise UserError(f"--out={out}: not written ({error.strerror})") from error
