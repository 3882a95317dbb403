"""Tiny tasks built from the shipped configs, without data on disk and without a trained codec."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import flax.linen as nn
import jax
import numpy as np
import pytest
from safetensors.numpy import save, save_file

from mmx.core import config as configs
from mmx.core import rng as rngs
from mmx.core import tree
from mmx.core.run_dir import RunDir
from mmx.data.text import train_tokenizer
from mmx.data.vocabulary import Vocabulary
from mmx.models import kept
from mmx.models.registry import make_task
from mmx.models.stages import _digest
from mmx.train import optim
from mmx.train.state import make_init, make_update

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

CAPTIONS = (
    "red heart",
    "violin",
    "dog face",
    "red apple",
    "rocket",
    "flag of japan",
    "woman health worker",
    "blue square on a white wall",
)


def changed(spec: str, changes: dict | None = None):
    """A shipped config with changes by dotted name."""
    config = configs.load_config(spec).copy_and_resolve_references()
    with config.unlocked():
        for name, value in (changes or {}).items():
            *parents, last = name.split(".")
            node = config
            for parent in parents:
                node = node[parent]
            node[last] = value
    return config


def random_images(count: int, size: int, seed: int = 0) -> np.ndarray:
    """uint8 [count, size, size, 3]: blocks of colour with noise, all different."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (count, 4, 4, 3))
    image = blocks.repeat(-(-size // 4), 1).repeat(-(-size // 4), 2)[:, :size, :size]
    return np.clip(image + rng.integers(-8, 9, image.shape), 0, 255).astype(np.uint8)


def write_stage(folder, config, weights, step=7) -> None:
    """A pinned stage, as ``stages.pin`` leaves it."""
    folder.mkdir(parents=True)
    save_file({k: np.asarray(v) for k, v in tree.flatten(weights).items()},
              folder / "weights.safetensors")  # fmt: skip
    (folder / "config.json").write_text(configs.to_json(config))
    pin = {"spec": "elsewhere", "step": step, "sha256": _digest(folder / "weights.safetensors")}
    (folder / "pin.json").write_text(json.dumps(pin))


@pytest.fixture(scope="session")
def build(tmp_path_factory):
    """Makers of tiny tasks and of what trains them."""
    tokenizer = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    # As on whole data: common words are one token, so that the preview's prompts fit.
    prompts = configs.load_config("muse/openmoji32").preview_prompts
    train_tokenizer(2 * (*CAPTIONS, *prompts, "two cats", "a tree", "a house"), 800, tokenizer)

    def run_dir():
        path = tmp_path_factory.mktemp("run")
        (path / "tokenizer.json").write_text(tokenizer.read_text())
        return RunDir(path)

    def vqgan(spec="vqgan/openmoji32:tiny", changes=None, run=None):
        return make_task(changed(spec, changes), run)

    def staged(spec, changes, codec, codec_changes=None):
        """A task over a codec with random weights."""
        codec_task = vqgan(codec, codec_changes)
        params, extra = nn.unbox(jax.jit(codec_task.init)(rngs.base_key(3)))
        run = run_dir()
        weights = {"params": {k: params[k] for k in ("encoder", "decoder")}, "extra": extra}
        write_stage(run.stage("codec"), codec_task.config, weights)
        config = changed(spec, {"codec.run": "elsewhere", **(changes or {})})
        return make_task(config, run)

    def muse(spec="muse/openmoji32:tiny", changes=None, codec="vqgan/openmoji32:tiny",
             codec_changes=None):  # fmt: skip
        return staged(spec, changes, codec, codec_changes)

    def transfusion(spec="transfusion/openmoji32:tiny", changes=None,
                    codec="vqgan/openmoji32_kl:tiny"):  # fmt: skip
        return staged(spec, changes, codec)

    def clip(spec="clip/openmoji64:tiny", changes=None):
        """A CLIP task; what its tokenizer is, its config says."""
        config, run = changed(spec, changes), run_dir()
        if config.text.tokenizer == "clip":
            run.tokenizer_file.unlink()
        return make_task(config, run)

    def spae(spec="spae/openmoji32:tiny", changes=None, run=None):
        """A task over 48 words in random places, and a teacher that likes a few for each caption;
        of teacher "clip" the run is a tiny CLIP with random weights, where the changes name none.

        Rows of 16 numbers are the table itself where the config has them whitened.
        """
        small = {"words.size": 48, "words.width": 16, "words.code_dim": 16}
        if configs.load_config(spec).words.table == "whiten":
            small["words.table"] = "raw"
        config, run = changed(spec, small | (changes or {})), run or run_dir()
        clip_guides = config.guidance.teacher == "clip"
        if clip_guides and "guidance.run" not in (changes or {}):
            guide = clip(config.guidance.config)
            weights, extra = nn.unbox(jax.jit(guide.init)(rngs.base_key(4)))
            stage = run.stage("guidance")
            write_stage(stage, guide.config, {"params": weights, "extra": extra})
            config.guidance.run = "elsewhere"
        rng = np.random.default_rng(0)
        strings = tuple(f" {a}{b}" for a in ("red", "dog", "sun", "sea") for b in "abcdefghijkl")
        vocabulary = Vocabulary(np.arange(48) + 7, strings, "a hash")
        table = rng.normal(size=(48, config.words.width)).astype(np.float32)
        parts = {"vocabulary.json": vocabulary.to_json().encode(),
                 "table.safetensors": save({"table": table})}  # fmt: skip
        kept.keep(run.stage("words"), parts)
        if clip_guides:
            return make_task(config, run)
        unit = lambda x: (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)
        features = {
            "words": unit(rng.normal(size=(48, 384))),
            "captions": unit(rng.normal(size=(len(CAPTIONS), 384))),
        }
        parts = {
            "features.safetensors": save(features),
            "captions.json": json.dumps(CAPTIONS).encode(),
        }
        kept.keep(run.stage("teacher"), parts)
        return make_task(config, run)

    def params(task, seed=0):
        """(params, extra) as in training, unboxed."""
        key = rngs.base_key(seed)
        return jax.jit(lambda: nn.unbox(task.init(rngs.stream(key, "init"))))()

    def rows(task, count, first=0, size=None):
        """A batch of rows: random images and the captions in turn."""
        size = size or task.config.data.image_size
        if task.family == "transfusion":
            pairs = [
                {"text": CAPTIONS[i % len(CAPTIONS)], "image": image}
                for i, image in enumerate(random_images(count, size))
            ]
            rng = np.random.default_rng(first)
            packed = [task.transform([pair, {"text": CAPTIONS[0]}], rng) for pair in pairs]
            batch = {name: np.stack([row[name] for row in packed]) for name in packed[0]}
            return batch | {"position": np.arange(first, first + count, dtype=np.uint32)}
        frames = task.config.data.get("frames", 0)
        images = random_images(count * max(1, frames), size)
        batch = {
            "image": images.reshape(count, frames, *images.shape[1:]) if frames else images,
            "position": np.arange(first, first + count, dtype=np.uint32),
        }
        if task.family == "spae" and task.teacher is not None:
            examples = [{"text": CAPTIONS[i % len(CAPTIONS)]} for i in range(count)]
            rows = [task.teacher.row(example) for example in examples]
            batch |= {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        if task.family == "clip":
            texts = [f"{CAPTIONS[i % len(CAPTIONS)]} {i}" for i in range(count)]
            batch["text_ids"] = task.text_ids(texts)
        if task.family == "muse":
            texts = [CAPTIONS[i % len(CAPTIONS)] for i in range(count)]
            T = task.config.text.max_len
            batch["text_ids"], batch["text_mask"] = task.tokenizer.encode(texts, T)
        return batch

    def trainer(task):
        """(state, update): update(state, batch) -> (state, metrics) is compiled."""
        config, key = task.config, rngs.base_key(task.config.seed)
        abstract, _ = jax.eval_shape(task.init, key)
        labels = task.param_labels(abstract)
        tx, schedules = optim.make_optimizer(config, labels)
        state = jax.jit(make_init(task, tx, optim.averages(config, labels)))(key)
        update = make_update(task, tx, config, labels, schedules)
        frozen = {} if task.family == "clip" else task._frozen_host()
        step = jax.jit(lambda state, batch: update(state, frozen, batch, key))
        return state, step

    return SimpleNamespace(
        changed=changed,
        images=random_images,
        captions=CAPTIONS,
        run_dir=run_dir,
        vqgan=vqgan,
        muse=muse,
        transfusion=transfusion,
        clip=clip,
        spae=spae,
        params=params,
        rows=rows,
        trainer=trainer,
    )
