"""Say what images show, by a run that writes."""

from mmx.cli import arguments
from mmx.core.errors import UserError
from mmx.core.run_dir import parse_run
from mmx.models import registry

HELP = "say what images show"
EXAMPLES = """\
examples:
  mmx caption runs/transfusion heart.png
  mmx caption runs/transfusion@500 a.png b.jpg --json -
  mmx caption runs/transfusion heart.png --temperature 1 --seed 3

Prints a line an image: the file, a tab, the text. An image may have any size; the largest square in
its middle is read, as in training.
"""


def add_arguments(parser):
    parser.add_argument("run_dir", metavar="RUN[@STEP]")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="PNG, JPEG or WebP")
    parser.add_argument(
        "--temperature",
        type=arguments.scale,
        help="of the text; 0 writes the most likely token each time (default: the run's own)",
    )
    parser.add_argument("--seed", type=arguments.seed, default=0, help="default 0")
    parser.add_argument("--json", metavar="FILE", help="the same as JSON, - for stdout")


def run(args) -> int:
    run_dir, step = parse_run(args.run_dir)
    step = run_dir.steps()[-1] if step is None else step
    config = run_dir.config()
    registry.check_writes(config, f"mmx caption: {run_dir.path}")
    if not config.data.max_images:
        raise UserError(
            f"{run_dir.path}: config.data.max_images=0, so it learned from texts alone and reads "
            "no image"
        )
    images = [arguments.read_image(file) for file in args.images]

    from mmx.cli.backend import start_jax
    from mmx.cli.run import load_run

    start_jax()
    opened = load_run(run_dir.path, step)
    written = opened.generate(
        [[image] for image in images], seed=args.seed, images=0, temperature=args.temperature
    )
    # Nothing at all is a text, too; a line holds one.
    captions = [" ".join("".join(parts).split()) for parts in written]
    if args.json:
        plain = [{"file": f, "caption": c} for f, c in zip(args.images, captions)]
        arguments.write_json("--json", args.json, plain)
    if args.json != "-":
        for file, caption in zip(args.images, captions):
            print(f"{file}\t{caption}")
    return 0
