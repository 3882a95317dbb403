"""Draw pictures from a trained run."""

from mmx.core.errors import UserError

HELP = "draw pictures from a run"
EXAMPLES = """\
examples:
  mmx sample runs/muse "red heart"
  mmx sample runs/muse "red heart" --negative "blue" --guidance 4 --steps 12 --seed 0 -n 16 --out x.png
  mmx sample runs/muse@500 --prompts prompts.txt --out pictures/
"""


def add_arguments(parser):
    parser.add_argument("run_dir", metavar="RUN[@STEP]")
    parser.add_argument("prompt", nargs="?", metavar="PROMPT")
    parser.add_argument("--prompts", metavar="FILE", help="one prompt a line; --out is a folder")
    parser.add_argument("--negative", default="", help="what to keep away from")
    parser.add_argument(
        "--guidance", type=float, help="t in (1+t) cond - t uncond, at the last step"
    )
    parser.add_argument("--steps", type=int, help="decoding steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-n", type=int, default=1, help="pictures a prompt (default 1)")
    parser.add_argument("--out", metavar="PATH", help="default: RUN/samples/")


def run(args) -> int:
    from pathlib import Path

    prompts = _prompts(args)
    if args.n < 1:
        raise UserError(f"-n={args.n}: give at least 1")
    from mmx.cli.backend import start_jax
    from mmx.cli.run import load_run
    from mmx.eval.grid import Section, draw_grid
    from mmx.eval.images import to_uint8
    from mmx.eval.png import save_image, save_picture

    start_jax()
    opened = load_run(args.run_dir)
    options = opened.options(guidance=args.guidance, steps=args.steps)
    texts = [text for text in prompts for _ in range(args.n)]
    images = to_uint8(opened.draw(texts, args.negative, options, args.seed)["image"])
    record = {
        "run": str(opened.dir.path),
        "step": opened.step,
        "negative": args.negative,
        "seed": args.seed,
        "settings": vars(options),
    }
    attribution = _attribution(opened)
    if args.prompts:
        folder = Path(args.out or opened.dir.samples)
        for i, (text, image) in enumerate(zip(texts, images)):
            path = save_image(folder / f"{i:05d}.png", image, record | {"prompt": text, "index": i})
        print(f"{len(images)} pictures in {path.parent}")
        return 0
    default = opened.dir.samples / f"step{opened.step}-seed{args.seed}.png"
    record |= {"prompt": texts[0], "attribution": attribution}
    out = Path(args.out) if args.out else default
    if len(images) == 1:
        path = save_image(out, images[0], record)
    else:
        picture = draw_grid([Section(images, texts)], attribution=attribution)
        path = save_picture(out, picture, record)
    print(path)
    return 0


def _prompts(args) -> list[str]:
    from pathlib import Path

    if (args.prompt is None) == (args.prompts is None):
        raise UserError('give a prompt, mmx sample RUN "red heart", or --prompts FILE')
    if args.prompt is not None:
        if not args.prompt.strip():
            raise UserError("the prompt is empty")
        return [args.prompt]
    file = Path(args.prompts)
    if not file.is_file():
        raise UserError(f"--prompts={file}: no such file")
    prompts = [line.strip() for line in file.read_text().splitlines() if line.strip()]
    if not prompts:
        raise UserError(f"--prompts={file}: no prompt in it")
    return prompts


def _attribution(opened) -> str:
    """Of the data that the run learned from, as recorded with the run."""
    file = opened.dir.attribution_file
    return file.read_text().strip() if file.is_file() else ""
