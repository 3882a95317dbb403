"""The arms: what is trained, on what, and the trained networks as functions of arrays.

    clip            CLIP on OpenMoji and scenes, three rows to one
    clip_openmoji   CLIP on OpenMoji alone: the data of the classifier
    classifier      the same image tower with a linear head, cross entropy over the concepts
    untrained       CLIP as it starts: what an answer is worth that learned nothing

All see the same number of OpenMoji rows; the scenes of `clip` come on top.
Axis letters: B batch, N images, C classes, M captions, P of a class, D width, E joint width, H W
pixels.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import attacks
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mmx.core import config as configs
from mmx.core import rng as rngs
from mmx.core.progress import Progress
from mmx.core.run_dir import RunDir, open_or_create
from mmx.data import pipeline
from mmx.data.source import Joined, open_source
from mmx.models.clip.task import ClipTask
from mmx.models.rows import to_float
from mmx.nn.linear import Dense
from mmx.train.checkpoint import Checkpoints
from mmx.train.plan import plan_training
from mmx.train.sharding import batch_sharding, make_mesh, place, replicated
from mmx.train.start import read_weights

ARMS = ("clip", "clip_openmoji", "classifier", "untrained")
SEEDS = (0, 1, 2)
# Ours, so that three seeds of an arm take minutes: of clip/openmoji64's recipe a smaller image
# tower, half the batch and more steps. Not tuned; the same for every arm.
BATCH, STEPS, LR = 64, 1500, 1.5e-3
TOWER = dict(width=128, depth=3, heads=4, mlp=512)
MARKS = 8  # ours: points of the curve of a training
_AT_ONCE = 128  # images or texts
# How often an untoned drawing, and one in a tone, while each scene of 50,000 comes once: 147,870
# rows of OpenMoji, three quarters. As in clip/openmoji64, four untoned ones for one toned.
_UNTONED, _TONED = 72, 18


class Classifier(nn.Module):
    """An image tower and a linear head on what CLIP's projection reads.

    Attributes:
      image: of :class:`mmx.models.clip.model.Clip`, without its projection.
      classes: C.
    """

    image: nn.Module
    classes: int

    def setup(self):
        self.head = Dense(self.classes, ("embed", "vocab"), use_bias=True)

    def __call__(self, image_BHWC: jax.Array) -> jax.Array:
        """float32 [B, H, W, 3] in [-1, 1] -> logits [B, C]."""
        return self.head(self.features(image_BHWC))

    def features(self, image_BHWC: jax.Array) -> jax.Array:
        """-> [B, D]."""
        return self.image(image_BHWC)


class ClassifierTask(ClipTask):
    """The control, as far as training needs it: images as CLIP's, labels in place of texts.

    Args:
      config, run: of CLIP.
      names: the concepts; their order gives the labels.
    """

    batch_coupled = False

    def __init__(self, config, run, names: list[str], abstract: bool = False):
        super().__init__(config, run, abstract)
        self.labels = {name: label for label, name in enumerate(names)}
        self.model = Classifier(self.model.image.clone(projects=False), len(names))

    def transform(self, example: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """example -> image uint8 [H, W, 3], label int32."""
        image = super().transform(example, rng)["image"]
        return {"image": image, "label": np.int32(self.labels[example["concept"]])}

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """(params, {})."""
        size = self.config.data.image_size
        variables = self.model.init(rngs.stream(key, "model"), jnp.zeros((1, size, size, 3)))
        return variables["params"], {}

    def loss(self, params, extra, frozen, batch, rng, step, train=True):
        """(cross entropy in nats, ({"accuracy"}, extra))."""
        del frozen, rng, step, train
        logits_BC = self.model.apply({"params": params}, to_float(batch["image"]))
        loss_B = optax.softmax_cross_entropy_with_integer_labels(logits_BC, batch["label"])
        right_B = logits_BC.argmax(1) == batch["label"]
        return loss_B.mean(), ({"accuracy": right_B.mean(dtype=jnp.float32)}, extra)


@dataclasses.dataclass(frozen=True)
class Net:
    """A network with its weights.

    Attributes:
      features: uint8 [N, H, W, 3] -> float32 [N, D], what the projection or the head reads.
      logits: uint8 [N, H, W, 3] -> float32 [N, C].
      margin: (weights, float32 images in 0..255 [B, H, W, 3], labels [B]) -> [B], by how much a
        wrong class leads; pure, for attacks.
      weights: what ``margin`` wants.
      images, texts: to the joint space, [N, E] of length 1; None where there is none.
    """

    features: Callable[[np.ndarray], np.ndarray]
    logits: Callable[[np.ndarray], np.ndarray]
    margin: Callable
    weights: Any
    images: Callable[[np.ndarray], np.ndarray] | None = None
    texts: Callable[[list[str]], np.ndarray] | None = None


def _in_batches(fn: Callable, rows: np.ndarray) -> np.ndarray:
    """``fn`` of all rows, a batch at a time, of one compiled shape."""
    parts = []
    for start in range(0, len(rows), _AT_ONCE):
        part = rows[start : start + _AT_ONCE]
        missing = min(len(rows), _AT_ONCE) - len(part)
        full = np.concatenate([part, np.repeat(part[-1:], missing, 0)])
        parts.append(np.asarray(fn(full))[: len(part)])
    return np.concatenate(parts)


class Nets:
    """Makes `Net` of one arm from parameters; what is compiled stays for the next ones.

    Args:
      task: of the arm.
      prompts: concept -> captions, the classes. CLIP's likeness to a class is that to the nearest
        of its captions: the mean of arXiv 2103.00020 sec. 3.1.4 is for prompts that mean the same,
        and these differ in gender and tone.
    """

    def __init__(self, task: ClipTask, prompts: Mapping[str, list[str]]):
        self.task = task
        self._texts = [text for texts in prompts.values() for text in texts]
        ends = np.cumsum([len(texts) for texts in prompts.values()])
        most = max(map(len, prompts.values()))
        # Places of each class's captions, the last one repeated to fill the row.
        self._places_CP = np.minimum(
            (ends - np.diff(ends, prepend=0))[:, None] + np.arange(most), ends[:, None] - 1
        )
        apply = lambda what, prepare: jax.jit(
            lambda params, rows: task.model.apply({"params": params}, prepare(rows), method=what)
        )
        self._features = apply("features", to_float)
        if isinstance(task, ClassifierTask):
            self._head = apply("__call__", to_float)
        else:
            self._image = apply("embed_image", to_float)
            self._text = apply("embed_text", lambda ids: ids)

    def net(self, params) -> Net:
        """The network of these parameters."""
        features = lambda x: _in_batches(partial(self._features, params), x)
        if isinstance(self.task, ClassifierTask):
            logits = lambda x: _in_batches(partial(self._head, params), x)
            return Net(features, logits, self.margin, params)
        images = lambda x: _in_batches(partial(self._image, params), x)
        texts = lambda x: _in_batches(partial(self._text, params), self.task.text_ids(x))
        caption_ME = texts(self._texts)
        logits = lambda x: self._nearest(images(x) @ caption_ME.T)
        return Net(features, logits, self.margin, (params, caption_ME), images, texts)

    def margin(self, weights, image_BHWC: jax.Array, label_B: jax.Array) -> jax.Array:
        """See :class:`Net`; of CLIP a difference of cosines, of the classifier one of logits."""
        x = image_BHWC / 127.5 - 1.0
        if isinstance(self.task, ClassifierTask):
            return attacks.margin(self.task.model.apply({"params": weights}, x), label_B)
        params, caption_ME = weights
        image_BE = self.task.model.apply({"params": params}, x, method="embed_image")
        return attacks.margin(self._nearest(image_BE @ caption_ME.T), label_B)

    def _nearest(self, likeness_BM):
        """Of captions to of classes: [B, M] -> [B, C]."""
        return likeness_BM[:, self._places_CP].max(-1)


def make_task(arm: str, seed: int, folder: Path, data_dir: str, names: list[str], tiny: bool):
    """The task of an arm, in a run directory of its own."""
    config = configs.load_config("clip/openmoji64" + (":tiny" if tiny else ""))
    with config.unlocked():
        config = config.copy_and_resolve_references()
    with config.unlocked():
        config.seed, config.data.data_dir = seed, data_dir
        config.data.source = "tfds:openmoji/64"
        if not tiny:
            config.batch_size, config.steps, config.optim.lr = BATCH, STEPS, LR
            config.model.image.update(TOWER)
        if arm == "clip":
            config.steps = config.steps * 4 // 3
        if arm == "classifier":
            config.family, config.optim.upper = "classifier", {}
    run = open_or_create(folder, config)
    if arm == "classifier":
        return ClassifierTask(config, run, names)
    return ClipTask(config, run)


def make_source(arm: str, data_dir: str) -> Joined:
    """What an arm learns from."""
    openmoji = partial(open_source, "tfds:openmoji/64", data_dir=data_dir)
    untoned, toned = openmoji("train"), openmoji("train_toned")
    if arm != "clip":
        return Joined("train*4+train_toned", [untoned] * 4 + [toned])
    scenes = open_source("tfds:scenes/64", "train", data_dir)
    return Joined("OpenMoji and scenes", [untoned] * _UNTONED + [toned] * _TONED + [scenes])


def train(task: ClipTask, source, run: RunDir) -> Iterator[tuple[int, Any]]:
    """Yields (step, params) of the start, of some steps between, and of the end.

    The step, the rows and their order are those of ``mmx train``; the loop is here because its rows
    are of two data sets. At the end the weights are saved in the run.

    Args:
      source: what it learns from; None stops at the start.
    """
    config = task.config
    mesh = make_mesh(config.mesh)
    plan = plan_training(task, config, mesh)
    key = place(rngs.base_key(config.seed), replicated(mesh))
    state = plan.init(key)
    yield 0, state.params
    if source is None:
        return
    # Early steps change most: marks a constant factor apart, the last one at the end.
    marks = {round(config.steps * 0.7 ** (MARKS - i)) for i in range(1, MARKS + 1)}
    stream = pipeline.Stream(source, task.transform, config.seed)
    progress = Progress(config.steps, run.path.name, every=max(1, config.steps // 10))
    with pipeline.batches(
        stream, config.batch_size, batch_sharding(mesh), num_threads=config.data.threads
    ) as batches:
        for step in range(1, config.steps + 1):
            state, vector = plan.step(state, {}, next(batches), key)
            values = dict(zip(plan.metrics, np.asarray(vector)))
            if values["bad_step"] >= 0:
                raise FloatingPointError(f"{run.path}: not finite at step {step}")
            progress.update(step, f"loss {values['loss/total']:.3f}")
            if step in marks:
                yield step, state.params
    progress.close()
    checkpoints = Checkpoints(run.checkpoints, keep=1)
    checkpoints.save(config.steps, state)
    checkpoints.close()


def trained(task: ClipTask, source, run: RunDir, look: Callable[[Any], list]) -> tuple[Any, dict]:
    """(params, record) of a run: trained now, or read if it was trained before.

    Args:
      source: see :func:`train`.
      look: params -> what the record's curve keeps of them.

    Returns:
      params, and {"cpu_seconds": of the training alone, "curve": [[step, *look(params)], ...]}.
    """
    file = run.path / "trained.json"
    if file.is_file():
        return read_weights(run)[0], json.loads(file.read_text())
    curve, seconds, began = [], 0.0, time.process_time()
    for step, params in train(task, source, run):
        seconds += time.process_time() - began
        curve.append([step, *look(params)])
        began = time.process_time()
    seconds += time.process_time() - began
    record = {"cpu_seconds": round(seconds, 1), "curve": curve}
    if source is not None:
        file.write_text(json.dumps(record) + "\n")
    return params, record
