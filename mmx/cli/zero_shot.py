"""``mmx evaluate RUN --zero-shot DATA``: classes told apart by their names alone."""

import json
from dataclasses import asdict

from mmx.cli import arguments
from mmx.core import storage
from mmx.core.errors import UserError
from mmx.core.run_dir import RunDir, parse_run
from mmx.models import registry

_MAX_CLASSES = 10_000  # ours


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

    templates = list(zero_shot.TEMPLATES)
    if args.templates:
        templates = _lines("--templates", args.templates)
        zero_shot.check_templates(templates, f"--templates={args.templates}")
    data_dir = args.data_dir or config.data.data_dir
    split = args.split or "test"
    if args.probe:
        _check_apart(args.probe, split)
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

    from mmx.cli.backend import start_jax
    from mmx.cli.run import load_run
    from mmx.train.metrics import Writer

    start_jax()
    opened = load_run(run_dir.path, step)
    embedder = opened.task.embedding(opened)
    class_CE = zero_shot.class_embeddings(embedder.texts, given, templates)
    image_NE, feature_ND = embedder.split(source, len(source))
    scores = zero_shot.accuracy(image_NE @ class_CE.T, labels(len(source)))
    scores = {f"zero_shot/{name}": score for name, score in scores.items()}
    if args.probe:
        learned = open_source(args.zero_shot, args.probe, data_dir)
        there, known = _labels(learned, args.zero_shot)
        if there != names:
            raise UserError(
                f"--probe={args.probe}: its classes are not those of {split} "
                f"({len(there)} and {len(names)})"
            )
        _, train_ND = embedder.split(learned, len(learned))
        classify = zero_shot.fit_probe(train_ND, known(len(learned)), len(names))
        found = zero_shot.accuracy(classify(feature_ND), labels(len(source)))
        scores |= {f"linear_probe/{name}": score for name, score in found.items()}
    record = {
        "step": step,
        "data": args.zero_shot,
        "split": split,
        "examples": len(source),
        "classes": len(names),
        "templates": templates,
        "scores": {n: s if isinstance(s, float) else asdict(s) for n, s in scores.items()},
    }
    file = _keep(run_dir, record)
    writer = Writer(run_dir.path)
    tag = f"{args.zero_shot.partition(':')[2]}/{split}"
    writer.scalars(step, {f"{tag}/{n}": getattr(s, "value", s) for n, s in scores.items()})
    writer.close()
    width = max(map(len, scores))
    for name, score in scores.items():
        print(f"{name.ljust(width)}  {score:.4g}")
    print(f"{len(source)} images of {args.zero_shot} {split}, {len(names)} classes; {file}")
    return 0


def _keep(run_dir: RunDir, record: dict):
    """Add a line to RUN/zero_shot.jsonl -> the file."""
    file = run_dir.path / "zero_shot.jsonl"
    before = storage.read_text(file) if file.is_file() else ""
    storage.write(file, before + json.dumps(record) + "\n")
    return file


def _check_apart(probe: str, split: str) -> None:
    """A classifier is not asked about what it learned from. Of one split, two slices may be named.

    Raises:
      UserError: an image may be in both.
    """
    from mmx.data.source import split_parts

    for learned, _ in split_parts(probe):
        for asked, _ in split_parts(split):
            same = learned.partition("[")[0] == asked.partition("[")[0]
            if same and (learned == asked or "[" not in learned or "[" not in asked):
                raise UserError(
                    f"--probe={probe}: the classifier would be scored on what it learned from "
                    f"(--split={split}); name another split, or slices apart: --probe "
                    f"'{learned.partition('[')[0]}[:80%]' --split '{asked.partition('[')[0]}[80%:]'"
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
