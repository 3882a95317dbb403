"""Who says which words an image is like, while a codec of words is trained: a teacher by name.

"captions" compares an image's caption with the words, both in the same prompts, by a sentence
encoder; "clip" the image itself, by a CLIP run (one trained here, or published weights that
`mmx import` made a run of). What a teacher makes of the words is computed once and kept in the run.
Legend: B batch, V words, P prompts, E width of the teacher's space, H W pixels.
"""

import functools
import json
import math
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load, save

from mmx.core import rng as rngs
from mmx.core.errors import UserError, choose
from mmx.core.progress import Progress
from mmx.core.run_dir import RunDir
from mmx.data.mixture import open_training
from mmx.models import kept, registry, stages
from mmx.models.protocols import EmbeddingTask
from mmx.pretrained.sentences import load_sentences
from mmx.train.sharding import make_mesh, place, replicated

# Widths of the encoders that may guide. The one that judges words (wordllama) is none of them.
GUIDES = {"minilm": 384}
_AT_ONCE = 2048  # ours: texts embedded at once; as many or fewer in all show no progress
_LINES = 10  # ours: of a log, at most
_FEATURES, _CAPTIONS = "features.safetensors", "captions.json"


class Teacher(Protocol):
    """Similarities of images and words: products of rows of unit length.

    Attributes:
      width: E.
    """

    width: int

    def words(self) -> np.ndarray:
        """float32 [V, E], of the words of the run."""
        ...

    def frozen(self) -> Any:
        """Weights that :meth:`images` reads, on the host; a dict, empty without any."""
        ...

    def row(self, example: dict) -> dict[str, np.ndarray]:
        """What an example's row of a batch holds for :meth:`images` besides its image."""
        ...

    def row_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of :meth:`row`."""
        ...

    def images(self, frozen: Any, batch: dict, image_BHWC: jax.Array) -> jax.Array:
        """float32 [B, E] of a batch; pure. Images are in [-1, 1]."""
        ...


class CaptionTeacher:
    """A :class:`Teacher` that reads captions. Its pictures are as far apart as their captions.

    Args:
      config: of the run; ``config.guidance.sentences`` names the encoder.
      run: where the features of words and captions are kept; None for shapes alone.
      strings: the words; None for shapes alone.

    Raises:
      UserError: an unknown encoder, or one that is not prepared.
    """

    def __init__(self, config, run, strings: list[str] | None):
        guidance = config.guidance
        self.width = choose("config.guidance.sentences", GUIDES, guidance.sentences)
        if run is None:
            return
        folder = run.stage("teacher")
        if not kept.is_kept(folder):
            encoder = load_sentences(guidance.sentences, config.data.data_dir)
            texts = sorted({e["text"] for e in open_training(config.data).outlines()})
            features = {
                "words": word_features(encoder.embed, strings, guidance.prompts, "words"),
                "captions": word_features(encoder.embed, texts, guidance.prompts, "captions"),
            }
            captions = json.dumps(texts, ensure_ascii=False).encode()
            kept.keep(folder, {_FEATURES: save(features), _CAPTIONS: captions})
        files = kept.read(folder)
        features, texts = load(files[_FEATURES]), json.loads(files[_CAPTIONS])
        self._words_VE, self._captions_NE = features["words"], features["captions"]
        self.width = self._words_VE.shape[1]
        self._number = {text: i for i, text in enumerate(texts)}

    def words(self) -> np.ndarray:
        return self._words_VE

    def frozen(self) -> dict:
        return {}

    def row(self, example: dict) -> dict[str, np.ndarray]:
        """Raises UserError for a caption that the run's first start did not see."""
        if example["text"] not in self._number:
            raise UserError(
                f"the caption {example['text']!r} is new: the data changed since this run began; "
                "use a new --workdir"
            )
        return {"teacher": self._captions_NE[self._number[example["text"]]]}

    def row_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {"teacher": jax.ShapeDtypeStruct((self.width,), jnp.float32)}

    def images(self, frozen: Any, batch: dict, image_BHWC: jax.Array) -> jax.Array:
        del frozen, image_BHWC
        return batch["teacher"]


class _Opened(NamedTuple):
    """A `mmx.models.protocols.OpenRun` of a pinned run."""

    params: Any
    extra: Any
    frozen: Any
    mesh: Any


class ClipTeacher:
    """A :class:`Teacher` that looks at images: a run of CLIP, which this run pins.

    Args: as of :class:`CaptionTeacher`; ``config.guidance.run`` names the run, and for shapes alone
      ``config.guidance.config`` what it would be.

    Raises:
      UserError: no run named, or one that does not embed images.
    """

    def __init__(self, config, run, strings: list[str] | None):
        guidance = config.guidance
        self._weights = None
        if run is None:
            earlier = stages.planned_config(guidance)
            self.task: EmbeddingTask = registry.make_task(earlier, None, abstract=True)
            self.width = earlier.model.features
            return
        folder = stages.pin(
            run,
            "guidance",
            guidance.run,
            accept=lambda c: registry.check_embeds(c, "config.guidance.run"),
        )
        self.task = registry.make_task(stages.load_config(folder), RunDir(folder))
        # Of a run without running statistics, which the file leaves out, no extra.
        weights = {"extra": {}} | stages.load_weights(folder)
        file = run.stage("teacher")
        if not kept.is_kept(file):
            words_VE = word_features(self._embedder(weights), strings, guidance.prompts, "words")
            kept.keep(file, {_FEATURES: save({"words": words_VE})})
        self._words_VE = load(kept.read(file)[_FEATURES])["words"]
        self.width = self._words_VE.shape[1]
        self._weights = self.task.image_weights(weights)

    def _embedder(self, weights):
        """Texts -> float32 [n, E]; the tail of one that is too long is cut."""
        # Of this process alone: the others wait until the run is laid down.
        mesh = make_mesh(dict(slice=1, data=-1, fsdp=1, tensor=1), jax.local_devices())
        weights = place(weights, replicated(mesh))
        opened = _Opened(weights["params"], weights["extra"], {}, mesh)
        return functools.partial(self.task.embedding(opened).texts, strict=False)

    def words(self) -> np.ndarray:
        return self._words_VE

    def frozen(self) -> dict:
        if self._weights is not None:
            return self._weights
        params, extra = nn.unbox(jax.eval_shape(self.task.init, rngs.base_key(0)))
        return self.task.image_weights({"params": params, "extra": extra})

    def row(self, example: dict) -> dict:
        del example
        return {}

    def row_spec(self) -> dict:
        return {}

    def images(self, frozen: Any, batch: dict, image_BHWC: jax.Array) -> jax.Array:
        del batch
        return self.task.embed_images(frozen, image_BHWC)


TEACHERS = {"captions": CaptionTeacher, "clip": ClipTeacher}


def make_teacher(config, run, strings: list[str] | None) -> Teacher:
    """The teacher of ``config.guidance``, whose fields its class names. Raises UserError."""
    return choose("config.guidance.teacher", TEACHERS, config.guidance.teacher)(
        config, run, strings
    )


def word_features(embed, strings: list[str], prompts: tuple[str, ...], what: str) -> np.ndarray:
    """float32 [V, E] of unit length: of each word the mean over the prompts with it in.

    Args:
      embed: texts -> float32 [n, E] of unit length.
      strings: the words, or captions.
      prompts: each with ``{}`` for the word. Each text's features are of unit length before they
        are averaged, and the mean is after (arXiv 2103.00020's public code).
      what: they are, for the line of progress, which only long work has.

    Raises:
      UserError: a prompt without a place for the word, or none; no strings.
    """
    if not prompts or any("{}" not in prompt for prompt in prompts):
        raise UserError(f"config.guidance.prompts={tuple(prompts)}: each needs {{}} for the word")
    if not strings:
        raise UserError(
            f"config.guidance.teacher: it has no {what} to read; look at config.words and "
            "config.data.split"
        )
    total = len(strings) * len(prompts)
    every = _AT_ONCE * math.ceil(total / (_AT_ONCE * _LINES))
    long = total > _AT_ONCE and jax.process_index() == 0
    progress = Progress(total, f"embed {what} in prompts", every=every, enabled=long)
    parts, done = [], 0
    for first in range(0, len(strings), _AT_ONCE):
        part, sum_VE = strings[first : first + _AT_ONCE], 0
        for prompt in prompts:
            sum_VE = sum_VE + embed([prompt.replace("{}", s) for s in part])
            progress.update(done := done + len(part))
        parts.append(sum_VE / np.linalg.norm(sum_VE, axis=-1, keepdims=True))
    progress.close()
    return np.concatenate(parts)
