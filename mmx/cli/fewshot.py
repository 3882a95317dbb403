"""Ask a frozen language model what images show, of a few examples, by the words of a run."""

import dataclasses
import signal

from mmx.cli import arguments
from mmx.core import preemption, storage
from mmx.core.errors import UserError
from mmx.core.run_dir import parse_run
from mmx.models import registry

HELP = "ask a frozen language model what images show, by a run's words"
EXAMPLES = """\
examples:
  mmx fewshot runs/spae --source tfds:fashion_mnist
  mmx fewshot runs/a --source tfds:openmoji/32 --queries tfds:noto/64 --label group --key codepoints
  mmx fewshot runs/spae --source tfds:scenes/32 --ask count --ways 3
  mmx fewshot runs/spae --source tfds:openmoji/32 --captions --baseline runs/lqae
  mmx fewshot runs/spae --source tfds:openmoji/32 --captions --write 12
  mmx fewshot runs/spae --source tfds:fashion_mnist --ways 5 --lm HuggingFaceTB/SmolLM2-1.7B
  mmx fewshot runs/spae --source tfds:fashion_mnist --lm mine --lm_dtype bfloat16

Each episode shows images of a few classes, as words with their answers, and asks about one more of
each class. Seven columns as in the tables of Frozen and SPAE (with and without the list of answers
before, 1, 3 and 5 images of a class, and those shown again), their mean, and one column at other
numbers of words. Beside them: the words dealt anew among an episode's images, what the words tell
with no language model (which class shares more of them), and a second run.

Whether a run was trained on the images that are asked about is told; their captions are then not
asked for. Answers are chosen among the candidates, each scored whole; so chance is one in --ways.
With --write the model also writes them, one line after one example of each class and no list: how
often that is the truth, or an answer of the examples, and how much nearer to the truth than to the
other truths of its episode, as wordllama judges (mmx prepare sentences wordllama).

OUT holds episodes.json (which images, which answers, in which order), answers.jsonl (each score),
written.jsonl, results.json and episode.png. Stopped, the same command goes on.
"""
_UP_TO = 85  # ours: words of an image that are still a prompt of few examples


def add_arguments(parser):
    parser.add_argument("run_dir", metavar="RUN[@STEP]")
    arguments.add_lm(parser)
    of = parser.add_argument_group("images and answers")
    of.add_argument("--source", required=True, metavar="tfds:NAME", help="of what is shown")
    of.add_argument("--split", default="train", help="default train")
    of.add_argument("--queries", metavar="tfds:NAME", help="of what is asked (default: same)")
    of.add_argument("--query-split", default="test", help="default test")
    kind = of.add_mutually_exclusive_group()
    kind.add_argument("--label", metavar="FIELD", help="of the classes (default: the one label)")
    kind.add_argument("--captions", action="store_true", help="choose among captions")
    kind.add_argument("--ask", metavar="colour|kind|count|relation", help="of scenes")
    of.add_argument(
        "--key", metavar="FIELD", help="of both, by which one lends the other its --label"
    )
    how = parser.add_argument_group("how they are asked")
    how.add_argument("--ways", type=arguments.count, default=2, help="classes (default 2)")
    how.add_argument("--episodes", type=arguments.count, default=25, help="default 25")
    how.add_argument("--words", type=arguments.count, default=5, help="of an image (default 5)")
    how.add_argument(
        "--budgets",
        metavar="N,N",
        type=lambda text: [arguments.count(n) for n in text.split(",")],
        help=f"other numbers of words (default: all layers' up to {_UP_TO})",
    )
    how.add_argument(
        "--write",
        metavar="N",
        type=arguments.count,
        default=0,
        help="also have each answer written, up to N tokens of one line (default: none)",
    )
    how.add_argument("--baseline", metavar="RUN[@STEP]", help="whose words are asked about, too")
    how.add_argument("--seed", type=arguments.seed, default=0, help="default 0")
    parser.add_argument("--out", metavar="DIR", help="default: in RUN/fewshot/")
    parser.add_argument("--data_dir", help="where data sets and language models lie")


def run(args) -> int:
    run_dir, step = parse_run(args.run_dir)
    step = run_dir.steps()[-1] if step is None else step
    config = run_dir.config()
    registry.check_words(config, f"mmx fewshot: {run_dir.path}")
    registry.check_images(config, f"mmx fewshot: {run_dir.path}")
    data_dir = args.data_dir or config.data.data_dir or None
    out = storage.path(args.out) if args.out else run_dir.path / "fewshot" / _name(args, step)
    arguments.check_writable(f"--out={out}", out)
    if args.baseline:
        _check_baseline(args.baseline)

    from mmx.cli.backend import start_jax
    from mmx.cli.run import load_run
    from mmx.eval import episodes as eps
    from mmx.eval import fewshot, fewshot_data, fewshot_report, fewshot_written, prompts
    from mmx.eval.word_meaning import JUDGE
    from mmx.models.language_model import load_frozen_lm
    from mmx.pretrained.lm_packages import open_lm
    from mmx.pretrained.lm_tokenizer import load_tokenizer
    from mmx.pretrained.sentences import load_sentences
    from mmx.pretrained.tensors import fingerprint

    start_jax()
    task = args.ask or ("captions" if args.captions else "classes")
    template = prompts.TEMPLATES["questions" if args.ask else task]
    repository = open_lm(args.lm, data_dir)
    tokenizer = load_tokenizer(repository)
    judge = load_sentences(JUDGE, data_dir) if args.write else None
    sides = fewshot_data.open_sides(
        args.source, args.split, args.queries or args.source, args.query_split, data_dir
    )
    recipe = {"task": task, "label": args.label, "key": args.key, "seed": args.seed,
              "ways": args.ways, "episodes": args.episodes, "shots": eps.SHOTS,
              **fewshot_data.facts(sides)}  # fmt: skip
    drawn = fewshot_data.draw(
        sides, task, args.label, args.key, args.seed, args.episodes, args.ways, data_dir
    )
    opened = {"words": load_run(run_dir.path, step)}
    if args.baseline:
        opened["baseline"] = load_run(args.baseline)
    trained = {}
    for name, one in opened.items():
        _check_lm(one, tokenizer)
        trained[name] = fewshot_data.trained_on(one.config.data, sides.of("asked"))
        if args.captions:
            _check_guidance(one, trained[name])
    pyramid = opened["words"].task.pyramid
    for one in opened.values():
        fewshot_data.check_cells(one.task.pyramid, pyramid)
    budgets = _budgets(args, pyramid)
    asked_by = recipe | {
        "run": _identity(opened["words"]),
        "template": dataclasses.asdict(template),
        "baseline": _identity(opened["baseline"]) if args.baseline else None,
        "trained_on": trained,
        "lm": args.lm,
        "lm_vocabulary": tokenizer.vocab_hash,
        "lm_weights": fingerprint(repository),
        "lm_dtype": args.lm_dtype,
    }
    answers = fewshot.Answers(out / "answers.jsonl", asked_by)
    if args.write:
        written = fewshot_written.Written(
            out / "written.jsonl", asked_by | {"write": args.write}, tokenizer, template.end,
            args.write,
        )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    episodes = eps.keep(out / "episodes.json", recipe, drawn)
    readings = ("words", "shuffled", *[*opened][1:])
    settings = fewshot.plan(budgets, args.words, readings)
    to_write = fewshot_written.plan(args.words, readings)
    with preemption.watch((signal.SIGTERM,)):
        try:
            words = {r: _words(r, o, pyramid, sides, episodes) for r, o in opened.items()}
            reading = fewshot_report.Reading(
                words, template, tokenizer, opened["words"].task.vocabulary, args.seed, task
            )
            lm = load_frozen_lm(repository, args.lm_dtype)
            if args.write:  # before anything is asked
                fewshot.check_room(written, to_write, episodes, reading.ask, lm.arch.context)
            fewshot.complete(answers, settings, episodes, reading.ask, lm, lm.arch.context)
            if args.write:
                fewshot.complete(written, to_write, episodes, reading.ask, lm, lm.arch.context)
        except preemption.Interrupted:
            raise preemption.Preempted(
                "stopped; what was answered is kept, and the same command goes on"
            ) from None
    attribution = [run_dir.attribution(), *(s.info.attribution for s in sides if s is not None)]
    found = None
    if args.write:
        found = fewshot_written.summary(written, to_write, episodes, JUDGE, judge.embed)
    lines = fewshot_report.write(
        out, asked_by, answers, settings, episodes, reading, sides, args.words,
        "; ".join(dict.fromkeys(filter(None, attribution))), found,
    )  # fmt: skip
    print("\n".join(lines))
    return 0


def _name(args, step: int) -> str:
    """Of a folder: what is asked, of which images, by whom."""
    parts = [args.source, args.queries or "", args.label or args.ask or ""]
    parts += ["captions"] if args.captions else []
    told = [part.removeprefix("tfds:") for part in parts if part]
    told += [f"{args.ways}way", args.lm, f"step{step}", f"seed{args.seed}"]
    return "-".join(told).replace("/", "_").strip(".")


def _check_baseline(spec: str) -> None:
    config = parse_run(spec)[0].config()
    registry.check_words(config, f"--baseline={spec}")
    registry.check_images(config, f"--baseline={spec}")


def _budgets(args, pyramid) -> list[int]:
    """All numbers of words. Raises UserError: one that ends within a layer."""
    given = [("--words", args.words), *(("--budgets", n) for n in args.budgets or ())]
    for flag, budget in given:
        try:
            pyramid.layers_of(budget)
        except UserError as error:
            raise UserError(f"{flag}: {error}; give one of these") from error
    others = args.budgets or (n for n in pyramid.ends if n <= _UP_TO)
    return sorted({args.words, *others})


def _check_guidance(opened, trained: list[str]) -> None:
    """Raises UserError: a run's words are those that a teacher chose for the very images that are
    asked about, by their captions or by what it learnt of them."""
    if trained and opened.config.guidance.weight:
        raise UserError(
            f"--captions: {' and '.join(trained)} guided the words of {opened.dir.path} "
            "(config.guidance); give a --query-split that it was not trained on"
        )


def _identity(opened) -> str:
    name = storage.absolute(opened.dir.path).name
    return f"{name}@{opened.step} ({opened.dir.identity(opened.step)})"


def _check_lm(opened, tokenizer) -> None:
    """Raises UserError: the run's words are of another language model's vocabulary."""
    try:
        opened.task.vocabulary.check_lm(tokenizer)
    except UserError as error:
        raise UserError(f"--lm: {opened.dir.path}: {error}") from error


def _words(reading: str, opened, pyramid, sides, episodes):
    """(role, image) -> ids of the language model, at the cells of the pyramid."""
    from mmx.eval import fewshot_data

    vocabulary = opened.task.vocabulary
    weights = opened.params, opened.extra, opened.frozen
    encode = opened.task.to_words(opened.mesh)

    def to_words(image_BHWC):
        words_BT = encode(*weights, image_BHWC)
        words_BT = fewshot_data.at_cells(words_BT, opened.task.pyramid, pyramid)
        return vocabulary.lm_ids(words_BT)

    size = opened.config.data.image_size
    images = fewshot_data.images_of(episodes)
    return fewshot_data.encode(sides, images, size, to_words, f"describe ({reading})")
