"""Draw pictures from a trained run."""

import signal
from dataclasses import asdict
from typing import TYPE_CHECKING

from mmx.cli import arguments, drawings
from mmx.core import preemption, storage
from mmx.core.errors import UserError
from mmx.core.run_dir import RunDir, parse_run
from mmx.models import registry

if TYPE_CHECKING:
    from etils.epath import Path

HELP = "draw pictures from a run"
EXAMPLES = """\
examples:
  mmx sample runs/muse "red heart"
  mmx sample runs/muse "red heart" -n 16 --seed 1 --out hearts.png
  mmx sample runs/muse "red heart" --negative "blue" --guidance 4 --steps 12
  mmx sample runs/muse@500 --prompts prompts.txt --out pictures/
  mmx sample runs/spae --words heart.txt    # as mmx describe RUN IMAGE --words FILE writes them

Picture i of a seed is the same whatever -n: more pictures go on where fewer stop. With --prompts,
picture i is of prompt i; with -n 2 the second round of all prompts follows the first. Each file
holds its run, step, prompt, seed and settings (PNG text chunk "mmx").
"""


def add_arguments(parser):
    parser.add_argument("run_dir", metavar="RUN[@STEP]")
    parser.add_argument("prompt", nargs="?", metavar="PROMPT")
    parser.add_argument("--prompts", metavar="FILE", help="one prompt a line; --out is a folder")
    parser.add_argument(
        "--words", metavar="FILE", help="of a SPAE run: words of the first layers, a line a layer"
    )
    parser.add_argument("--negative", default="", help="what to keep away from")
    drawings.add_arguments(parser)
    parser.add_argument(
        "--out", metavar="PATH", help="a .png, or with --prompts a folder (default: RUN/samples/)"
    )


def run(args) -> int:
    if args.words is not None:
        return _draw_words(args)
    prompts = _prompts(args)
    run_dir, step = parse_run(args.run_dir)
    step = run_dir.steps()[-1] if step is None else step
    out = _out(args, run_dir, step)
    arguments.check_prompts(run_dir, prompts, args.negative)

    from mmx.cli.backend import start_jax
    from mmx.cli.run import load_run
    from mmx.core.progress import Progress
    from mmx.eval.images import to_uint8

    start_jax()
    opened = load_run(run_dir.path, step)
    options = opened.options(guidance=args.guidance, steps=args.steps)
    texts = prompts * args.n
    record = {
        "run": str(run_dir.path),
        "step": step,
        "negative": args.negative,
        "seed": args.seed,
        "settings": asdict(options),
        "attribution": run_dir.attribution(),
    }
    progress = Progress(len(texts), "draw")
    images, files = [], []
    stopped = False
    with preemption.watch((signal.SIGTERM,)):
        try:
            for part in opened.draw_batches(texts, args.negative, options, args.seed):
                for image in to_uint8(part["image"]):
                    if args.prompts:
                        i = len(files)
                        info = record | {"prompt": texts[i], "index": i}
                        files.append(drawings.save(out / f"{i:05d}.png", image, info))
                    else:
                        images.append(image)
                progress.update(len(images) + len(files))
        except preemption.Interrupted:
            stopped = True
    progress.close()
    drawn = len(images) + len(files)
    if args.prompts:
        print(f"{len(files)} pictures in {out}")
    elif images:
        print(drawings.save_grid(out, images, texts[:drawn], record))
    if stopped:
        raise preemption.Preempted(
            f"stopped after {drawn} of {len(texts)} pictures, which are kept"
        )
    return 0


def _draw_words(args) -> int:
    """The words of a file as one picture."""
    drawn = {"-n": args.n != 1, "--seed": args.seed, "--negative": args.negative}
    drawn |= {"--guidance": args.guidance is not None, "--steps": args.steps is not None}
    if any(drawn.values()):
        flags = ", ".join(flag for flag, given in drawn.items() if given)
        raise UserError(f"--words={args.words}: words are drawn in one way; leave out {flags}")
    if args.prompt is not None or args.prompts is not None:
        raise UserError(f"--words={args.words}: words are drawn as they are; leave out the prompt")
    run_dir, step = parse_run(args.run_dir)
    step = run_dir.steps()[-1] if step is None else step
    config = run_dir.config()
    registry.check_words(config, f"mmx sample --words: {run_dir.path}")
    out = drawings.png_file(args.out, run_dir.samples / f"step{step}-words.png")

    from mmx.data import word_text
    from mmx.models.words import load_vocabulary

    text = arguments.read_text("--words", args.words)
    sides, frames = tuple(config.pyramid.sides), tuple(config.pyramid.get("frames", ()))
    where = f"--words={args.words}"
    words_T = word_text.parse(load_vocabulary(run_dir), text, sides, where, frames)

    import numpy as np

    from mmx.cli.backend import start_jax
    from mmx.cli.run import load_run
    from mmx.data.image import join_frames
    from mmx.eval.images import to_uint8

    start_jax()
    opened = load_run(run_dir.path, step)
    draw = opened.task.from_words(opened.mesh)
    image_u8 = to_uint8(
        np.asarray(draw(opened.params, opened.extra, opened.frozen, words_T[None]))
    )[0]
    record = {"run": str(run_dir.path), "step": step, "words": text}
    print(drawings.save(out, join_frames(image_u8) if frames else image_u8, record))
    return 0


def _prompts(args) -> list[str]:
    if (args.prompt is None) == (args.prompts is None):
        raise UserError('give a prompt, mmx sample RUN "red heart", or --prompts FILE')
    if args.prompt is not None:
        return [args.prompt]
    return arguments.prompts(args.prompts)


def _out(args, run_dir: RunDir, step: int) -> "Path":
    """Where the pictures go; it can be written."""
    if args.prompts:
        out = storage.path(args.out) if args.out else run_dir.samples
        arguments.check_writable(f"--out={out}", out)
        return out
    return drawings.png_file(args.out, run_dir.samples / f"step{step}-seed{args.seed}.png")
