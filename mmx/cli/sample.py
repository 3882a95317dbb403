"""Draw pictures from a trained run."""

import signal
from dataclasses import asdict
from typing import TYPE_CHECKING

from mmx.cli import arguments
from mmx.core import preemption, storage
from mmx.core.errors import UserError
from mmx.core.run_dir import RunDir, parse_run

if TYPE_CHECKING:
    from etils.epath import Path

HELP = "draw pictures from a run"
EXAMPLES = """\
examples:
  mmx sample runs/muse "red heart"
  mmx sample runs/muse "red heart" -n 16 --seed 1 --out hearts.png
  mmx sample runs/muse "red heart" --negative "blue" --guidance 4 --steps 12
  mmx sample runs/muse@500 --prompts prompts.txt --out pictures/

Picture i of a seed is the same whatever -n: more pictures go on where fewer stop. With --prompts,
picture i is of prompt i; with -n 2 the second round of all prompts follows the first. Each file
holds its run, step, prompt, seed and settings (PNG text chunk "mmx").
"""


def add_arguments(parser):
    parser.add_argument("run_dir", metavar="RUN[@STEP]")
    parser.add_argument("prompt", nargs="?", metavar="PROMPT")
    parser.add_argument("--prompts", metavar="FILE", help="one prompt a line; --out is a folder")
    parser.add_argument("--negative", default="", help="what to keep away from")
    parser.add_argument(
        "--guidance",
        type=arguments.scale,
        help="t in (1+t) cond - t uncond, at the last step (default: the run's own)",
    )
    parser.add_argument(
        "--steps", type=arguments.count, help="decoding steps (default: the run's own)"
    )
    parser.add_argument("--seed", type=arguments.seed, default=0, help="default 0")
    parser.add_argument(
        "-n", type=arguments.count, default=1, help="pictures of each prompt (default 1)"
    )
    parser.add_argument(
        "--out", metavar="PATH", help="a .png, or with --prompts a folder (default: RUN/samples/)"
    )


def run(args) -> int:
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
                        files.append(_save(out / f"{i:05d}.png", image, info))
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
        print(_save_grid(out, images, texts[:drawn], record))
    if stopped:
        raise preemption.Preempted(
            f"stopped after {drawn} of {len(texts)} pictures, which are kept"
        )
    return 0


def _save(path: "Path", image, record: dict) -> "Path":
    from mmx.eval.png import save_image

    try:
        return save_image(path, image, record)
    except OSError as error:
        raise UserError(f"{path}: not written ({error.strerror})") from error


def _save_grid(path: "Path", images, texts, record: dict) -> "Path":
    """One picture as it is; several as a captioned grid."""
    import numpy as np

    from mmx.eval.grid import Section, draw_grid

    record |= {"prompt": texts[0], "count": len(texts)}
    image = images[0]
    if len(images) > 1:
        grid = draw_grid([Section(np.stack(images), texts)], attribution=record["attribution"])
        image = np.asarray(grid)
    return _save(path, image, record)


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
    out = run_dir.samples / f"step{step}-seed{args.seed}.png"
    if args.out:
        out = storage.path(args.out)
        if out.suffix.lower() != ".png":
            raise UserError(f"--out={out}: pictures are PNG, so the name has to end in .png")
        if out.is_dir():
            raise UserError(f"--out={out}: a folder is there; name a file")
    arguments.check_writable(f"--out={out}", out.parent)
    return out
