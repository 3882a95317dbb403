"""Order pictures by how well a CLIP finds that they fit their prompt."""

from mmx.cli import arguments
from mmx.core import storage
from mmx.core.errors import UserError
from mmx.core.run_dir import parse_run
from mmx.models import registry

HELP = "order pictures of any run by CLIP score"
EXAMPLES = """\
examples:
  mmx sample runs/muse --prompts prompts.txt -n 16 --out drawn/
  mmx rerank runs/clip drawn/
  mmx rerank runs/clip drawn/ --best 4 --out best.png
  mmx rerank runs/clip a.png b.png --prompt "red heart" --json -

A picture's prompt is what `mmx sample` wrote into its file; --prompt is for all of them. Prints,
prompt by prompt, the cosine of picture and prompt, the best first. That is no score of what was
chosen: a CLIP that chose pictures likes them. `mmx evaluate --scorer` takes another one.
"""
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def add_arguments(parser):
    parser.add_argument("run_dir", metavar="CLIP_RUN[@STEP]")
    parser.add_argument("samples", metavar="SAMPLES", nargs="+", help="pictures, folders of them")
    parser.add_argument("--prompt", help="of all pictures (default: each file's own)")
    parser.add_argument("--best", type=arguments.count, help="of each prompt only the first ones")
    parser.add_argument("--out", metavar="FILE.png", help="a sheet, a row a prompt, the best first")
    parser.add_argument("--json", metavar="FILE", help="the same as JSON, - for stdout")


def run(args) -> int:
    run_dir, step = parse_run(args.run_dir)
    step = run_dir.steps()[-1] if step is None else step
    registry.check_embeds(run_dir.config(), f"mmx rerank: {run_dir.path}")
    out = None
    if args.out:
        out = storage.path(args.out)
        if out.suffix.lower() != ".png":
            raise UserError(f"--out={out}: a sheet is PNG, so the name has to end in .png")
        arguments.check_writable(f"--out={out}", out.parent)
    by_prompt: dict[str, list] = {}
    for file in _files(args.samples):
        by_prompt.setdefault(args.prompt or _prompt_of(file), []).append(file)

    from mmx.cli.backend import start_jax
    from mmx.cli.run import load_run
    from mmx.core.progress import Progress
    from mmx.eval.ranking import rerank

    start_jax()
    opened = load_run(run_dir.path, step)
    embedder = opened.task.embedding(opened)
    prompts = list(by_prompt)
    text_PE = embedder.texts(prompts)  # a prompt that does not fit is said before any picture
    progress = Progress(len(prompts), "rerank", every=max(1, len(prompts) // 5))
    ranked = []
    for number, prompt in enumerate(prompts):
        files = by_prompt[prompt]
        order, cosine = rerank(
            embedder.images([arguments.read_image(f) for f in files]), text_PE[number]
        )
        best = [(files[i], float(c)) for i, c in zip(order, cosine)][: args.best]
        ranked.append({"prompt": prompt, "pictures": best})
        progress.update(number + 1)
    progress.close()
    if out is not None:
        _save_sheet(out, ranked, f"{run_dir.path}@{step}")
    if args.json:
        plain = [
            {"prompt": one["prompt"],
             "pictures": [{"file": str(f), "cosine": c} for f, c in one["pictures"]]}
            for one in ranked
        ]  # fmt: skip
        arguments.write_json("--json", args.json, plain)
    if args.json != "-":
        for one in ranked:
            print(one["prompt"])
            for file, cosine in one["pictures"]:
                print(f"  {cosine:+.4f}  {file}")
    return 0


def _files(samples: list[str]) -> list:
    """The pictures that are named, and those of the folders that are; each once, in order."""
    found = []
    for name in samples:
        path = storage.path(name)
        if path.is_dir():
            inside = sorted(f for f in path.iterdir() if f.suffix.lower() in _SUFFIXES)
            if not inside:
                raise UserError(f"{path}: no pictures in this folder")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"{path}: no such picture or folder")
    return list(dict.fromkeys(found))


def _prompt_of(file) -> str:
    from mmx.eval.png import read_metadata

    try:
        info = read_metadata(file)
    except UserError as error:
        raise UserError(f"{error} (or say what it is to show: --prompt)") from None
    if info.get("count", 1) != 1:
        raise UserError(
            f"{file}: a sheet of {info['count']} pictures; for single ones: "
            "mmx sample RUN --prompts FILE -n N --out FOLDER"
        )
    if not info.get("prompt"):
        raise UserError(f"{file}: its metadata name no prompt; say it: --prompt")
    return info["prompt"]


def _save_sheet(out, ranked: list[dict], run: str) -> None:
    import numpy as np

    from mmx.data.image import fit
    from mmx.eval.grid import Section, draw_grid
    from mmx.eval.png import save_picture

    sections = []
    size = min(len(arguments.read_image(ranked[0]["pictures"][0][0])), 256)
    for one in ranked:
        images = np.stack([fit(arguments.read_image(file), size) for file, _ in one["pictures"]])
        sections.append(Section(images, [f"{c:.3f}" for _, c in one["pictures"]], one["prompt"]))
    picture = draw_grid(sections, title="the best first", subtitle=f"cosine by {run}")
    save_picture(out, picture, {"run": run, "prompts": [one["prompt"] for one in ranked]})
