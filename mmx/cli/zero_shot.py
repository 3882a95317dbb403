"""``mmx evaluate RUN --zero-shot DATA``: classes told apart by their names alone.

The scores go to RUN/evals.jsonl, as the evaluator "zero_shot", and to TensorBoard in RUN/evals/.
"""

import hashlib
import json
import signal

from mmx.cli import arguments
from mmx.core import preemption, storage
from mmx.core.errors import UserError
from mmx.core.run_dir import RunDir, evaluate_alone, parse_run
from mmx.models import registry

_MAX_CLASSES = 10_000  # ours
_NAME, _SEED = "zero_shot", 0  # in the ledger; nothing is drawn


def add_arguments(parser) -> None:
    """The flags of ``mmx evaluate`` that are about this."""
    of = parser.add_argument_group("zero-shot classification, of a run of the family clip")
    of.add_argument(
        "--zero-shot",
        metavar="tfds:NAME",
        help="a data set with labels; without, its captions are the classes (as of a folder whose "
        "sub-folders name them)",
    )
    of.add_argument("--split", help="which is classified (default: test)")
    of.add_argument("--classes", metavar="FILE", help="names to use, one a line, by label")
    of.add_argument("--templates", metavar="FILE", help="prompts with {} for the name, one a line")
    of.add_argument(
        "--probe",
        metavar="SPLIT",
        help="also a linear classifier, learned from the features of this split's images; another "
        "than --split",
    )


def run(args) -> int:
    run_dir, step = parse_run(args.run_dir)
    step = run_dir.steps()[-1] if step is None else step
    config = run_dir.config()
    registry.check_embeds(config, f"--zero-shot: {run_dir.path}")
    arguments.check_writable(f"{run_dir.path}", run_dir.path)

    from mmx.data.source import open_source
    from mmx.eval import zero_shot
    from mmx.eval.ledger import Ledger, spell

    templates = list(zero_shot.TEMPLATES)
    if args.templates:
        templates = _lines("--templates", args.templates)
        zero_shot.check_templates(templates, f"--templates={args.templates}")
    data_dir = args.data_dir or config.data.data_dir
    split = args.split or "test"
    source = open_source(args.zero_shot, split, data_dir)
    names, labels = _labels(source, args.zero_shot)
    if args.classes:
        given = _lines("--classes", args.classes)
        if len(given) != len(names):
            raise UserError(
                f"--classes={args.classes}: {len(given)} names, but {args.zero_shot} has "
                f"{len(names)} classes: {', '.join(names[:5])}, ..."
            )
    else:
        given = [name.replace("_", " ") for name in names]

    learned = None
    if args.probe:
        learned = open_source(args.zero_shot, args.probe, data_dir)
        _check_apart(args.probe, split, source.info.splits)
        there, known = _labels(learned, args.zero_shot)
        if there != names:
            raise UserError(
                f"--probe={args.probe}: its classes are not those of {split} "
                f"({len(there)} and {len(names)})"
            )
    # What the scores depend on besides the checkpoint: with another choice they are other scores.
    prompts = hashlib.sha256(json.dumps([given, templates]).encode()).hexdigest()[:8]
    recipe = f"{args.zero_shot} {split} ({source.info.fingerprint[:8]}), prompts {prompts}"
    recipe += f", probe of {args.probe}" if args.probe else ""
    ledger = Ledger(run_dir.evals_file)
    if not ledger.has(step, _SEED, _NAME, recipe):

        def scores(opened):
            embedder = opened.task.embedding(opened)
            class_CE = zero_shot.class_embeddings(embedder.texts, given, templates)
            image_NE, feature_ND = embedder.split(source, len(source))
            truth_N = labels(len(source))
            found = {"zero_shot": zero_shot.accuracy(image_NE @ class_CE.T, truth_N)}
            if learned is not None:
                _, train_ND = embedder.split(learned, len(learned))
                classify = zero_shot.fit_probe(train_ND, known(len(learned)), len(names))
                found["linear_probe"] = zero_shot.accuracy(classify(feature_ND), truth_N)
            return {f"{of}/{name}": score for of in found for name, score in found[of].items()}

        _score(run_dir, step, ledger, recipe, scores, f"{source.info.name}/{split}")
    scores = ledger.scores(step, _SEED, {_NAME: recipe})
    width = max(map(len, scores))
    for name, line in scores.items():
        print(f"{name.ljust(width)}  {spell(line)}")
    print(
        f"{len(source)} images of {args.zero_shot} {split}, {len(names)} classes; "
        f"{run_dir.evals_file}"
    )
    return 0


def _score(run_dir: RunDir, step: int, ledger, recipe: str, scores, tag: str) -> None:
    """Compute scores and keep them, as `mmx.cli.scoring` does: nothing that training writes.

    Args:
      scores: an open run -> metric -> score.
      tag: before the metrics' names in TensorBoard.
    """
    from mmx.cli import tensorboard
    from mmx.cli.backend import start_jax
    from mmx.cli.run import load_run
    from mmx.train.metrics import Writer

    start_jax()
    with evaluate_alone(run_dir), preemption.watch((signal.SIGTERM,)):
        try:
            found = scores(load_run(run_dir.path, step))
        except preemption.Interrupted:
            raise preemption.Preempted("stopped before the scores were there") from None
        ledger.add(step, _SEED, _NAME, recipe, found)
        folder = run_dir.evals / _NAME
        folder.mkdir(parents=True, exist_ok=True)
        writer = Writer(folder)
        lines = ledger.scores(step, _SEED, {_NAME: recipe})
        tensorboard.write_scores(writer, step, {f"{tag}/{n}": line for n, line in lines.items()})
        writer.close()


def _check_apart(probe: str, split: str, sizes) -> None:
    """A classifier is not asked about what it learned from. Of one split, two slices may be named.

    Raises:
      UserError: an image may be in both.
    """
    from mmx.data.splits import share

    if share(probe, split, sizes):
        name = split.partition("[")[0].partition("+")[0].partition("*")[0]
        raise UserError(
            f"--probe={probe}: the classifier would be scored on what it learned from "
            f"(--split={split}); name another split, or slices apart: --probe '{name}[:80%]' "
            f"--split '{name}[80%:]'"
        )


def _labels(source, spec: str):
    """(names of the classes, ``count -> int [count]`` of the first examples).

    Raises:
      UserError: no labels, and captions that are no classes.
    """
    import numpy as np

    if source.label is not None:
        key, names = source.label
        return list(names), lambda count: np.array([source[i][key] for i in range(count)])
    captions = [source[i]["text"] for i in range(len(source))]
    names = sorted(set(captions))
    if len(names) > min(_MAX_CLASSES, len(captions) // 2):
        raise UserError(
            f"--zero-shot={spec}: it has no labels, and its {len(captions)} images have "
            f"{len(names)} different captions, which are no classes"
        )
    numbers = {name: number for number, name in enumerate(names)}
    return names, lambda count: np.array([numbers[text] for text in captions[:count]])


def _lines(flag: str, where: str) -> list[str]:
    try:
        lines = storage.read_text(storage.path(where)).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{flag}={where}: cannot be read ({error})") from error
    return [line.strip() for line in lines if line.strip()]
