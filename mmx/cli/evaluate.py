"""Score a run and draw what it has learned; everything is read from the run directory."""

import json

HELP = "score a run and draw a picture of it"
EXAMPLES = """\
examples:
  mmx evaluate runs/muse
  mmx evaluate runs/muse@500 --seed 1

A Muse run gets scores with 95 % intervals and a captioned grid; a tokenizer run its PSNR and codebook
use on each split. Both go to RUN/metrics.json and TensorBoard.
"""


def add_arguments(parser):
    parser.add_argument("run_dir", metavar="RUN[@STEP]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data_dir", help="where the data is now, if not where it was in training")


def run(args) -> int:
    from mmx.core.run_dir import parse_run

    run_dir, step = parse_run(args.run_dir)
    step = run_dir.steps()[-1] if step is None else step
    settings = {"step": step, "seed": args.seed}
    kept = json.loads(run_dir.metrics_file.read_text()) if run_dir.metrics_file.is_file() else {}
    if kept.get("settings") == settings:
        _finish(run_dir, kept)
        return 0

    from mmx.cli.backend import start_jax
    from mmx.cli.run import load_run
    from mmx.core.run_dir import write_atomic
    from mmx.train.metrics import Writer

    start_jax()
    opened = load_run(args.run_dir)
    score = {"muse": _text_to_image, "vqgan": _tokenizer}[opened.config.family]
    scores, picture = score(opened, args)
    record = {
        "settings": settings,
        "scores": {name: _plain(value) for name, value in scores.items()},
        "picture": picture,
    }
    writer = Writer(run_dir.path, step)
    writer.scalars(step, {f"scores/{n}": s["value"] for n, s in record["scores"].items()})
    writer.close()
    write_atomic(run_dir.metrics_file, json.dumps(record, indent=2) + "\n")
    _finish(run_dir, record)
    return 0


def _plain(value) -> dict:
    if isinstance(value, float | int):
        return {"value": float(value)}
    return {"value": value.value, "low": value.low, "high": value.high, "n": value.n}


def _text_to_image(opened, args) -> tuple[dict, str]:
    import jax
    import numpy as np

    from mmx.eval import text_to_image
    from mmx.eval.grid import draw_grid
    from mmx.eval.png import save_picture
    from mmx.train.sharding import jit_sharded, replicated

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
            out = fn(codec, jax.device_put(full, replicated(mesh)))
            parts.append(np.asarray(out)[: len(part)])
        return np.concatenate(parts)

    def reconstruct(image_u8):
        codes = in_batches(encode, image_u8)
        return in_batches(decode, codes), codes

    model = text_to_image.Model(
        draw=lambda captions, seed: opened.draw(captions, "", options, seed, batch_size=64),
        reconstruct=reconstruct,
        decode=lambda codes: in_batches(decode, codes),
        num_codes=task.codec.num_codes,
        grid=task.grid,
    )
    splits, attribution = _splits(opened, args.data_dir)
    scores, sections = text_to_image.report(model, splits, args.seed)
    recall = scores["training_caption_recall/r1"]
    picture = draw_grid(
        sections,
        title=f"mmx {opened.config.family}, {opened.step} steps",
        subtitle=f"training caption recall R@1 {recall}",
        attribution=f"Drawn by a model trained on {attribution}." if attribution else "",
    )
    path = opened.dir.samples / f"evaluate-step{opened.step}-seed{args.seed}.png"
    record = {
        "run": str(opened.dir.path),
        "step": opened.step,
        "seed": args.seed,
        "settings": vars(options),
        "prompts": [caption for section in sections for caption in section.captions],
        "attribution": attribution,
    }
    save_picture(path, picture, record)
    return scores, str(path)


def _tokenizer(opened, args) -> tuple[dict, str]:
    from mmx.models.vqgan.task import Reconstruction

    scores = {}
    for split in ("train", *opened.config.eval.splits):
        evaluator = Reconstruction(opened.task, opened.mesh, split, limit=None)
        scores |= evaluator.scores(opened.params, opened.extra)
    return scores, ""


def _splits(opened, data_dir) -> tuple[dict, str]:
    from mmx.data.image import fit
    from mmx.data.source import open_source

    data = opened.config.data
    where = data_dir or data.data_dir
    info = open_source(data.source, data.split, where).info
    splits = {}
    for split in info.splits:
        source = open_source(data.source, split, where)
        splits[split] = [
            example | {"image": fit(example["image"], data.image_size)}
            for example in (source[i] for i in range(len(source)))
        ]
    return splits, info.attribution


def _finish(run_dir, record) -> None:
    width = max(map(len, record["scores"]))
    for name, score in record["scores"].items():
        interval = f"  [{score['low']:.4g}, {score['high']:.4g}]" if "low" in score else ""
        print(f"{name.ljust(width)}  {score['value']:.4g}{interval}")
    print(f"scores:      {run_dir.metrics_file}")
    if record["picture"]:
        print(f"picture:     {record['picture']}")
    print(f"TensorBoard: tensorboard --logdir {run_dir.path}")
