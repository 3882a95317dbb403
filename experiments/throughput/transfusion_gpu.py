"""The whole train step of ``transfusion/b1400`` on one GPU, beside a text model of its shape.

    python experiments/throughput/transfusion_gpu.py --json transfusion_gpu.json

Rows of 4096 tokens, half of them patches of 8 images; latents are given, the autoencoder is left
out. One step is forward, backward, norms, guard and AdamW in float32. MFU: of 989 TFLOP/s, bf16
dense, of an H100 or H200; model FLOPs are 6 a token and weight and what the mask lets be read.
Each run is "MODEL IMPL ROWS REMAT"; ``--runs`` gives others. What does not fit into the memory or
into ``--seconds`` is listed as left out. On a CPU: the config's ``:tiny``.
Flags of XLA are taken from XLA_FLAGS, as always.
Axis letters: B batch, L length, M images of a row, h w latent grid, Z latent channels.
"""

import argparse
import dataclasses
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")

import jax
import jax.numpy as jnp
import numpy as np
from attention_gpu import CANDIDATES
from jax.ad_checkpoint import checkpoint_name
from trainer import Trainer

from mmx.cli.backend import start_jax
from mmx.core import config as configs
from mmx.models.transfusion import rows
from mmx.models.transfusion.loss import text_weights
from mmx.models.transfusion.task import TransfusionTask
from mmx.nn import spans
from mmx.nn.decoder import LanguageModel
from mmx.nn.dtypes import DTYPES
from mmx.ops.spans import bounds_of
from mmx.ops.token_loss import chunked_cross_entropy

STARTED = time.perf_counter()
PEAK = 989e12
# By arithmetic 8 rows with "dots" take 62 GiB, with "attention_mlp" 51; 4 with "none" 73.
RUNS = (
    "mixed flash 8 dots",
    "text cudnn 8 dots",
    "text flash 8 dots",
    "mixed cudnn 8 dots",
    "mixed tokamax 8 dots",
    "mixed flash 8 attention_mlp",
    "mixed flash 4 none",
)
CAPTION, TEXTS = 30, 16  # tokens of a caption, the least of a row's two texts; ours


class Mixed(TransfusionTask):
    """The task of the config, less its autoencoder: the batch's images are their latents."""

    def latents(self, frozen, image):
        return image

    def rows(self, count: int) -> dict[str, np.ndarray]:
        """Rows whose images are half of the tokens: pairs, and texts that fill the row."""
        data, rng = self.config.data, np.random.default_rng(0)
        images, caption = data.max_images, self.config.text.max_len
        encode = lambda text: rng.integers(4, self.markers.bos, int(text)).tolist()
        rules = dataclasses.replace(self.rules, encode=encode, fit=lambda image: image, drop=0.0)
        blank = np.zeros((data.image_size, data.image_size, 3), np.uint8)
        pairs = [{"text": str(caption), "image": blank}] * images
        left = data.row_len - images * (self.patches + caption + 4)
        texts = [{"text": str(part)} for part in (left // 2 - 2, left - left // 2 - 2)]
        made = []
        for _ in range(count):
            documents = [*pairs, *texts]
            rng.shuffle(documents)
            made.append(rows.pack(documents, rules, rng))
        batch = {name: np.stack([row[name] for row in made]) for name in made[0]}
        shape = (count, data.max_images, self.grid, self.grid, self.codec.latent_dim)
        batch["images"] = rng.normal(size=shape).astype(np.float32)
        return batch | {"position": np.arange(count, dtype=np.uint32)}


class Text:
    """A decoder of the same shape on rows of one text, with plain causal attention."""

    batch_coupled = False

    def __init__(self, config):
        m = config.model
        self.config, self.vocab = config, config.text.vocab_size
        self.net = LanguageModel(
            self.vocab, m.width, m.depth, m.heads, m.mlp, m.attention, m.remat,
            DTYPES[config.dtype],
        )  # fmt: skip

    def init(self, key):
        return self.net.init(key, jnp.zeros((1, 128), jnp.int32))["params"], {}

    def loss(self, params, extra, frozen, batch, rng, step, train=True):
        del frozen, rng, step, train
        weights_BL, _ = text_weights(batch["labels"])
        loss = chunked_cross_entropy(
            self.net.apply({"params": params}, batch["tokens"], method="hidden"),
            params["head"]["kernel"],
            batch["labels"],
            weights_BL,
            self.vocab,
            self.config.loss.chunk,
        )
        return loss, ({"loss/text": loss}, extra)

    def rows(self, count: int) -> dict[str, np.ndarray]:
        shape = (count, self.config.data.row_len)
        draw = np.random.default_rng(0).integers
        return {name: draw(0, self.vocab, shape, np.int32) for name in ("tokens", "labels")}


def model_flops(task, batch, weights: int) -> float:
    """Of a step: 6 a token and weight in a product, and attention of what is read, 12 a pair and
    width."""
    B, L = batch["tokens"].shape
    pairs = B * L * (L + 1) / 2
    if "document" in batch:
        bounds = bounds_of(jnp.asarray(batch["document"]), jnp.asarray(batch["image"]))
        pairs = float((bounds.end_BL - bounds.start_BL).astype(jnp.float32).sum())
    m = task.config.model
    return 6.0 * weights * B * L + 12.0 * m.depth * m.width * pairs


def run_config(name: str, impl: str, count: int, remat: str, chunk: int):
    """The config with the choices of a run."""
    config = configs.load_config(name).copy_and_resolve_references()
    codec = configs.load_config(config.codec.config)
    side = config.data.image_size // 2 ** (len(codec.model.multipliers) - 1) // config.model.patch
    L, patches = config.data.row_len, side**2
    config.text.max_len = min(CAPTION, patches)
    pair = patches + config.text.max_len + 4  # with the four markers
    config.data.max_images = min(L // (2 * patches), (L - TEXTS) // pair)
    config.model.attention, config.model.remat = impl, remat
    config.batch_size = count
    config.loss.chunk = chunk or config.loss.chunk
    return config


def measure(args, run: str) -> dict:
    """Seconds of a step, and what they are worth."""
    kind, impl, count, remat = run.split()
    config = run_config(args.config, impl, int(count), remat, args.chunk)
    task = Mixed(config, None, abstract=True) if kind == "mixed" else Text(config)
    batch = task.rows(config.batch_size)
    trainer = Trainer(task, batch)
    # Of all weights but the table of embeddings, which is looked up.
    weights = trainer.count - trainer.state.params["tokens"]["embedding"].size
    flops = model_flops(task, batch, weights)
    at = time.perf_counter()
    loss = trainer.step()
    compiled = time.perf_counter() - at
    trainer.step()
    times = []
    for _ in range(args.repeats):
        at = time.perf_counter()
        for _ in range(args.steps):
            trainer.state, metrics = trainer.update(trainer.state, {}, trainer.batch, trainer.key)
        jax.block_until_ready(metrics)
        times.append((time.perf_counter() - at) / args.steps)
    seconds = statistics.median(times)
    tokens = batch["tokens"].size
    row = {
        "parameters": trainer.count,
        "step_s": round(seconds, 4),
        "range_s": [round(min(times), 4), round(max(times), 4)],
        "tokens_per_s": round(tokens / seconds),
        "model_tflop": round(flops / 1e12, 2),
        "mfu": round(flops / PEAK / seconds, 4),
        "loss": [round(loss, 3), round(float(metrics["loss/total"]), 3)],
        "first_step_s": round(compiled, 1),
    }
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:  # of the process so far
        row["peak_gib"] = round(stats["peak_bytes_in_use"] / 2**30, 1)
    if args.profile and kind == "mixed" and not args.profile.is_file():
        args.profile.write_text(profile(trainer, seconds))
    return row


def profile(trainer, seconds: float, steps: int = 2) -> str:
    """Where the device's time of a step goes: milliseconds by kernel, the longest first."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                trainer.step()
        data = jax.profiler.ProfileData.from_file(str(next(Path(folder).rglob("*.xplane.pb"))))
    spent: Counter = Counter()
    planes = list(data.planes)
    on_gpu = [plane for plane in planes if plane.name.startswith("/device:GPU")]
    for plane in on_gpu or planes:
        for line in plane.lines:
            if not on_gpu or line.name.startswith("Stream"):
                for event in line.events:
                    spent[event.name] += event.duration_ns / 1e6 / steps
    total = sum(spent.values())
    lines = [f"{seconds * 1e3:.1f} ms a step without the profiler; traced {total:.1f} ms:"]
    lines += [f"{ms:9.2f} ms {ms / max(total, 1e-9):6.1%}  {name[:100]}" for name, ms in
              spent.most_common(40)]  # fmt: skip
    return "\n".join(lines) + "\n"


def named(attend):
    """Its result under the name by which remat keeps it."""
    return lambda *args: checkpoint_name(attend(*args), "attention_out")


def main(argv=None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", help="b1400; its :tiny on a CPU")
    parser.add_argument("--runs", nargs="*", help="of MODEL IMPL ROWS REMAT, each in quotes")
    parser.add_argument("--chunk", type=int, default=0, help="of the loss, if not the config's")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=110.0, help="no run begins after")
    parser.add_argument("--json", type=Path, help="where to write what is printed")
    parser.add_argument("--profile", type=Path, help="where to write where the time goes")
    args = parser.parse_args(argv)
    start_jax()  # a second try on the same machine finds the first one's programs
    on_gpu = jax.default_backend() == "gpu"
    args.config = args.config or ("transfusion/b1400" if on_gpu else "transfusion/b1400:tiny")
    runs = args.runs or (RUNS if on_gpu else ("mixed dense 2 none", "text dense 2 none"))
    for name, attend in CANDIDATES.items():
        spans.IMPLS.setdefault(name, named(attend))
    about = {"device": jax.devices()[0].device_kind, "jax": jax.__version__,
             "xla_flags": os.environ.get("XLA_FLAGS", ""), "config": args.config}  # fmt: skip
    print(json.dumps(about), flush=True)
    results = []
    for run in runs:
        if time.perf_counter() - STARTED > args.seconds:
            row = {"left_out": "no time"}
        elif run.split()[1] not in spans.IMPLS:
            row = {"left_out": "not installed"}
        else:
            try:
                row = measure(args, run)
            except Exception as error:  # one that does not fit must not hide the others
                row = {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
                if not on_gpu:
                    raise
        gc.collect()
        jax.clear_caches()
        results.append({"run": run, **row})
        print(json.dumps(results[-1]), flush=True)
        if args.json:
            args.json.write_text(json.dumps({**about, "runs": results}, indent=1) + "\n")
    print(f"{time.perf_counter() - STARTED:.0f} s", file=sys.stderr)
    return results


if __name__ == "__main__":
    main()
