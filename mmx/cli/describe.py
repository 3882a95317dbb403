"""Say what images are in words of a language model, and show what the words keep of them."""

from mmx.cli import arguments, drawings
from mmx.core import storage
from mmx.core.errors import UserError
from mmx.core.run_dir import parse_run
from mmx.models import registry

HELP = "turn images into words of a language model"
EXAMPLES = """\
examples:
  mmx describe runs/spae heart.png
  mmx describe runs/spae@500 a.png b.jpg --out words.png
  mmx describe runs/spae heart.png --words heart.txt
  mmx sample runs/spae --words heart.txt --out again.png

Prints a line a layer: few words at first, more below; | parts the rows of a layer's grid. The
picture shows each image, and what is drawn of its words of the first 1, 2, ... layers.
To a run of videos an image is a strip, the frames beside each other from left to right.
"""


def add_arguments(parser):
    parser.add_argument("run_dir", metavar="RUN[@STEP]")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="PNG, JPEG or WebP")
    parser.add_argument(
        "--out", metavar="FILE.png", help="the picture (default: RUN/samples/describe.png)"
    )
    parser.add_argument(
        "--words", metavar="FILE", help="the words of the one image, for mmx sample --words"
    )


def run(args) -> int:
    run_dir, step = parse_run(args.run_dir)
    step = run_dir.steps()[-1] if step is None else step
    config = run_dir.config()
    registry.check_words(config, f"mmx describe: {run_dir.path}")
    if args.words and len(args.images) > 1:
        raise UserError(f"--words={args.words}: the words of one image, and {len(args.images)} are")
    if args.words:
        arguments.check_writable(f"--words={args.words}", storage.path(args.words).parent)
    out = drawings.png_file(args.out, run_dir.samples / "describe.png")
    images = [arguments.read_image(file) for file in args.images]

    import numpy as np

    from mmx.cli.backend import start_jax
    from mmx.cli.run import load_run
    from mmx.data import word_text
    from mmx.data.image import split_frames
    from mmx.eval.grid import draw_grid
    from mmx.ops.pyramid import unflatten

    start_jax()
    opened = load_run(run_dir.path, step)
    task, weights = opened.task, (opened.params, opened.extra, opened.frozen)
    if frames := config.data.get("frames", 0):
        images = [split_frames(image, frames) for image in images]
    image_u8 = np.stack([task.plain({"image": image}) for image in images])
    words_BT, recon_PBHWC = task.depths(opened.mesh, *weights, image_u8)
    sections = []
    for i, file in enumerate(args.images):
        lines = word_text.lines(task.vocabulary, unflatten(task.pyramid, words_BT[i]))
        print(f"{file}")
        for layer, line in enumerate(lines):
            print(f"  {layer + 1}: {line}")
        if args.words:
            storage.write(storage.path(args.words), "".join(f"{line}\n" for line in lines))
        section = task.pyramid_section(image_u8[i], words_BT[i], recon_PBHWC[:, i], str(file))
        sections.append(section)
    page = draw_grid(sections, columns=len(recon_PBHWC) + 1)
    record = {"run": str(run_dir.path), "step": step, "images": args.images}
    print(drawings.save(out, np.asarray(page), record))
    return 0
