"""Change an image as a sentence says, by a run that learned from such edits."""

import signal
from dataclasses import asdict

from mmx.cli import arguments, drawings
from mmx.core import preemption
from mmx.core.run_dir import parse_run
from mmx.models import registry

HELP = "change an image as a sentence says"
EXAMPLES = """\
examples:
  mmx edit runs/edits heart.png "make it blue"
  mmx edit runs/edits@500 hand.png "make the skin tone dark" -n 8 --seed 1 --out hands.png

The image may have any size; the largest square in its middle is read, as in training. Several
pictures make one grid, which begins with what was read.
"""


def add_arguments(parser):
    parser.add_argument("run_dir", metavar="RUN[@STEP]")
    parser.add_argument("image", metavar="IMAGE", help="PNG, JPEG or WebP")
    parser.add_argument("instruction", metavar="INSTRUCTION")
    drawings.add_arguments(parser)
    parser.add_argument("--out", metavar="FILE.png", help="default: in RUN/samples/")


def run(args) -> int:
    run_dir, step = parse_run(args.run_dir)
    step = run_dir.steps()[-1] if step is None else step
    config = run_dir.config()
    registry.check_writes(config, f"mmx edit: {run_dir.path}")
    arguments.check_prompts(run_dir, [args.instruction])
    image = arguments.read_image(args.image)
    default = run_dir.samples / f"edit-step{step}-seed{args.seed}.png"
    out = drawings.png_file(args.out, default)

    from mmx.cli.backend import start_jax
    from mmx.cli.run import load_run
    from mmx.core.progress import Progress
    from mmx.data.image import fit
    from mmx.eval.images import to_uint8

    start_jax()
    opened = load_run(run_dir.path, step)
    options = opened.options(guidance=args.guidance, steps=args.steps, images=1)
    documents = [[image, args.instruction]] * args.n
    progress = Progress(args.n, "draw")
    edited, stopped = [], False
    with preemption.watch((signal.SIGTERM,)):
        try:
            for batch in opened.generate_batches(documents, True, options, args.seed):
                edited += [to_uint8(parts[0]) for parts in batch]
                progress.update(len(edited))
        except preemption.Interrupted:
            stopped = True
    progress.close()
    if edited:
        record = {
            "run": str(run_dir.path),
            "step": step,
            "image": args.image,
            "seed": args.seed,
            "settings": asdict(options),
            "attribution": run_dir.attribution(),
        }
        shown, texts = edited, [args.instruction] * len(edited)
        if args.n > 1:
            shown = [fit(image, config.data.image_size), *edited]
            texts = ["before", *texts]
        print(drawings.save_grid(out, shown, texts, record | {"prompt": args.instruction}))
    if stopped:
        raise preemption.Preempted(
            f"stopped after {len(edited)} of {args.n} pictures, which are kept"
        )
    return 0
