"""Score a run and draw what it has learned; everything is read from the run directory."""

import json
import os
import shlex
from dataclasses import asdict

from mmx.cli import arguments
from mmx.core.errors import UserError
from mmx.core.run_dir import parse_run, write_atomic

HELP = "score a run and draw a picture of it"
EXAMPLES = """\
examples:
  mmx evaluate runs/muse
  mmx evaluate runs/muse@500 --seed 1

A Muse run gets scores with 95 % intervals and a captioned grid; a tokenizer run its PSNR and
codebook use on each split, and images beside their reconstructions. The scores go to
RUN/metrics.json and TensorBoard. The same command again shows what is there; a new checkpoint is
scored anew.
"""
_MAX_EXAMPLES = 5000  # ours: of a split, held in memory; the first ones of a larger split


def add_arguments(parser):
    parser.add_argument("run_dir", metavar="RUN[@STEP]")
    parser.add_argument("--seed", type=arguments.seed, default=0, help="default 0")
    parser.add_argument("--data_dir", help="where the data is now, if not where it was in training")


def run(args) -> int:
    run_dir, step = parse_run(args.run_dir)
    step = run_dir.steps()[-1] if step is None else step
    config = run_dir.config()
    scorers = {"muse": _text_to_image, "vqgan": _tokenizer}
    if config.family not in scorers:
        raise UserError(f"{run_dir.path}: a run of the family {config.family!r} has no scores")
    settings = {"step": step, "seed": args.seed, "data_dir": args.data_dir or ""}
    if kept := _kept(run_dir, settings):
        _report(run_dir, kept)
        return 0
    from mmx.data.source import open_source

    where = args.data_dir or config.data.data_dir
    try:
        open_source(config.data.source, config.data.split, where)
    except UserError as error:
        raise UserError(f"{error} (or say where it is: --data_dir)") from error
    arguments.check_writable(f"{run_dir.path}", run_dir.path)

    from mmx.cli.backend import start_jax
    from mmx.cli.run import load_run
    from mmx.train.metrics import Writer

    start_jax()
    opened = load_run(run_dir.path, step)
    opened.config.data.data_dir = where
    scores, picture = scorers[config.family](opened, args.seed)
    record = {
        "settings": settings,
        "scores": {name: _plain(value) for name, value in scores.items()},
        "picture": picture,
    }
    writer = Writer(run_dir.path)
    writer.scalars(step, {f"scores/{n}": s["value"] for n, s in record["scores"].items()})
    writer.close()
    write_atomic(run_dir.metrics_file, json.dumps(record, indent=2) + "\n")
    _report(run_dir, record)
    return 0


def _kept(run_dir, settings: dict) -> dict | None:
    """The last evaluation, if it is the one asked for and its picture is still there."""
    try:
        kept = json.loads(run_dir.metrics_file.read_text())
        same = kept["settings"] == settings
        return kept if same and (run_dir.path / kept["picture"]).is_file() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # none, or written by another version


def _plain(value) -> dict:
    if isinstance(value, float | int):
        return {"value": float(value)}
    return {"value": value.value, "low": value.low, "high": value.high, "n": value.n}


def _text_to_image(opened, seed: int) -> tuple[dict, str]:
    import numpy as np

    from mmx.core.progress import Progress
    from mmx.eval import text_to_image
    from mmx.eval.grid import draw_grid
    from mmx.models.rows import fill_rows
    from mmx.train.sharding import jit_sharded

    task, mesh = opened.task, opened.mesh
    options = opened.options()
    codec = opened.frozen["codec"]
    encode = jit_sharded(lambda w, x: task.codes({"codec": w}, x), mesh)
    decode = jit_sharded(lambda w, c: task.decode({"codec": w}, c), mesh)

    def in_batches(fn, array, size=256):
        parts = []
        for start in range(0, len(array), size):
            part = array[start : start + size]
            full = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
            out = fn(codec, fill_rows(full, mesh)[0])
            parts.append(np.asarray(out)[: len(part)])
        return np.concatenate(parts)

    def reconstruct(image_u8):
        codes = in_batches(encode, image_u8)
        return in_batches(decode, codes), codes

    def draw(captions, seed):
        progress = Progress(len(captions), "draw")
        parts = []
        for part in opened.draw_batches(captions, "", options, seed, batch_size=64):
            parts.append(part)
            progress.update(sum(len(p["image"]) for p in parts))
        progress.close()
        return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}

    model = text_to_image.Model(
        draw=draw,
        reconstruct=reconstruct,
        decode=lambda codes: in_batches(decode, codes),
        num_codes=task.codec.num_codes,
        grid=task.grid,
    )
    splits, attribution = _splits(opened.config.data)
    scores, sections = text_to_image.report(model, splits, seed)
    picture = draw_grid(
        sections,
        title=f"mmx {opened.config.family}, {opened.step} steps",
        subtitle=f"training caption recall R@1 {scores['training_caption_recall/r1']}",
        attribution=f"Drawn by a model trained on {attribution}." if attribution else "",
    )
    prompts = [caption for section in sections for caption in section.captions]
    info = {"settings": asdict(options), "prompts": prompts, "attribution": attribution}
    return scores, _save(opened, picture, seed, info)


def _tokenizer(opened, seed: int) -> tuple[dict, str]:
    """PSNR and codebook use of each split, and held-out images beside what is left of them."""
    import numpy as np

    from mmx.data.image import fit
    from mmx.data.source import open_source
    from mmx.eval.grid import Section, draw_grid
    from mmx.models.vqgan.task import Reconstruction

    data = opened.config.data
    held_out = opened.config.eval.splits[-1]
    scores = {}
    for split in dict.fromkeys((*_trained(data.split), *opened.config.eval.splits)):
        evaluator = Reconstruction(opened.task, opened.mesh, split, limit=None)
        scores |= evaluator.scores(opened.params, opened.extra)
    source = open_source(data.source, held_out, data.data_dir)
    chosen = np.random.default_rng(seed).permutation(len(source))[:24]
    image_u8 = np.stack([fit(source[int(i)]["image"], data.image_size) for i in chosen])
    captions = [source[int(i)]["text"] for i in chosen]
    recon, _ = opened.task.reconstruct(opened.mesh)(opened.params, opened.extra, image_u8)
    sections = []
    for start in range(0, len(chosen), 8):
        row = slice(start, start + 8)
        sections.append(Section(image_u8[row], captions[row], "" if start else "Held-out images"))
        sections.append(Section(np.asarray(recon)[row], ["as rebuilt"] * len(captions[row])))
    attribution = source.info.attribution
    picture = draw_grid(
        sections,
        title=f"mmx {opened.config.family}, {opened.step} steps",
        subtitle=f"PSNR on {held_out} {scores[f'{held_out}/psnr']} dB",
        attribution=f"Images and their reconstructions: {attribution}." if attribution else "",
    )
    info = {"settings": {}, "prompts": captions, "attribution": attribution}
    return scores, _save(opened, picture, seed, info)


def _save(opened, picture, seed: int, info: dict) -> str:
    """Write the picture among the run's samples -> its path inside the run."""
    from mmx.eval.png import save_picture

    path = opened.dir.samples / f"evaluate-step{opened.step}-seed{seed}.png"
    info |= {"run": str(opened.dir.path), "step": opened.step, "seed": seed}
    try:
        save_picture(path, picture, info)
    except OSError as error:
        raise UserError(f"{path}: not written ({error.strerror})") from error
    return os.path.relpath(path, opened.dir.path)


def _splits(data) -> tuple[dict, str]:
    """(split -> examples at the run's image size, attribution); what was trained on is "train"."""
    from mmx.data.image import fit
    from mmx.data.source import open_source

    trained = _trained(data.split)
    wanted = {"train": "+".join(trained)}
    info = open_source(data.source, data.split, data.data_dir).info
    seen = {name.partition("[")[0] for name in trained}
    wanted |= {split: split for split in info.splits if split not in seen}
    splits = {}
    for name, split in wanted.items():
        source = open_source(data.source, split, data.data_dir)
        splits[name] = [
            example | {"image": fit(example["image"], data.image_size)}
            for example in (source[i] for i in range(min(len(source), _MAX_EXAMPLES)))
        ]
    return splits, info.attribution


def _trained(split: str) -> list[str]:
    """The splits that training joins, each once: ``"a*4+b"`` -> ["a", "b"]."""
    from mmx.data.source import split_parts

    return list(dict.fromkeys(name for name, _ in split_parts(split)))


def _report(run_dir, record) -> None:
    width = max(map(len, record["scores"]))
    for name, score in record["scores"].items():
        interval = f"  [{score['low']:.4g}, {score['high']:.4g}]" if "low" in score else ""
        print(f"{name.ljust(width)}  {score['value']:.4g}{interval}")
    print(f"scores:      {run_dir.metrics_file}")
    print(f"picture:     {run_dir.path / record['picture']}")
    print(f"TensorBoard: tensorboard --logdir {shlex.quote(str(run_dir.path))}")
