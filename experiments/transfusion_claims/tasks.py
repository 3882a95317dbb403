"""Transfusion on scenes that are encoded already, a document a row; and its causal variant.

Axis letters: n scenes, B rows, L places of a row, T positions of a piece, Q patches of a piece,
h w latent grid, Z latent channels, V vocabulary, D width.
"""

import functools
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from scenes import Scenes

from mmx.core import rng as rngs
from mmx.core.flops import matmul_flops
from mmx.data.text import Tokenizer
from mmx.models.transfusion import loss as losses
from mmx.models.transfusion import rows
from mmx.models.transfusion.generate import Generator
from mmx.models.transfusion.likelihood import token_nll
from mmx.models.transfusion.task import TransfusionTask
from mmx.nn.cache import Cache
from mmx.nn.decoder import Layout
from mmx.ops.spans import Bounds

AT_ONCE = 60  # scenes that are scored: ours
_BLANK = np.zeros((1, 1, 3), np.uint8)  # in the place of an image, which comes encoded
_RATED = 20240820  # seed of the noise and times that diffusion errors are measured at


class LatentsTask(TransfusionTask):
    """Transfusion whose batches hold latents.

    Args:
      config: of an arm.
      tokenizer: of captions.
    """

    gives = "latents"  # of a codec: what an image is here

    def __init__(self, config: ConfigDict, tokenizer: Tokenizer):
        with config.unlocked():
            config.text.vocab_size = tokenizer.vocab_size
        super().__init__(config, None, abstract=True)
        self.tokenizer = tokenizer
        self.rules = replace(self.rules, fit=lambda image: image, image_size=1)

    # Training

    def latents(self, frozen, image):
        """They are what a batch has in the place of images."""
        del frozen
        return image

    def image_spec(self) -> jax.ShapeDtypeStruct:
        """Of an image."""
        return jax.ShapeDtypeStruct((self.grid, self.grid, self.codec.latent_dim), jnp.float32)

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Of :meth:`batch`."""
        image = self.image_spec()
        shape = self.config.batch_size, 1, *image.shape
        return super().batch_spec() | {"images": jax.ShapeDtypeStruct(shape, image.dtype)}

    def batch(self, scenes: Scenes, position: int) -> dict[str, np.ndarray]:
        """Rows of the endless stream from a position on; each epoch has an order of its own."""
        n = len(scenes)
        places = np.arange(position, position + self.config.batch_size)
        order = {epoch: self._rng(0, epoch).permutation(n) for epoch in set(places // n)}
        index = [order[place // n][place % n] for place in places]
        draws = [self._rng(1, place) for place in places]
        return self._rows(scenes, index, draws, self.rules) | {"position": np.uint32(places)}

    def _rng(self, what: int, number: int) -> np.random.Generator:
        return np.random.default_rng((self.config.seed, what, int(number)))

    def _rows(self, scenes: Scenes, index, draws, rules: rows.RowRules) -> dict[str, np.ndarray]:
        """Packed rows of some scenes, a document each."""
        document = lambda i: {"text": scenes.captions[i], "image": _BLANK}
        packed = [rows.pack([document(i)], rules, rng) for i, rng in zip(index, draws, strict=True)]
        images = getattr(scenes, self.gives)[np.asarray(index)][:, None]
        return {name: np.stack([row[name] for row in packed]) for name in packed[0]} | {
            "images": images
        }

    def step_flops(self) -> float:
        """Of the products and convolutions of a training step, forward and backward."""
        key = rngs.base_key(0)
        params = nn.unbox(jax.eval_shape(self.init, key)[0])
        loss = lambda params, batch: self.loss(params, {}, {}, batch, key, 0)[0]
        return matmul_flops(jax.value_and_grad(loss), params, self.batch_spec())

    # Scoring

    def rate(self, params, scenes: Scenes, image_first: bool) -> dict[str, np.ndarray]:
        """How well scenes are foretold, on noise and times that depend on their number alone.

        Args:
          params: of the model.
          scenes: which.
          image_first: the image, clean, precedes the caption; else the other way round.

        Returns:
          "nll", float [n]: -ln p of a caption's tokens, together; "tokens", int [n]: how many;
          without ``image_first`` "image", float [n]: the loss of the image.
        """
        rules = replace(self.rules, image_first=float(image_first), noise_limit=0.0, drop=0.0)
        parts = []
        for index in groups(len(scenes)):
            batch = self._rows(scenes, index, [np.random.default_rng(0)] * len(index), rules)
            parts.append(self._rate(params, batch | {"position": np.uint32(index)}))
        nll, tokens, image = (joined(column, len(scenes)) for column in zip(*parts))
        return {"nll": nll, "tokens": tokens} | ({} if image_first else {"image": image})

    @functools.cached_property
    def _rate(self):
        return jax.jit(self.rate_rows)

    def rate_rows(self, params, batch) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(-ln p of the caption, its tokens, loss of the image) of each row."""
        limit_BM, key = batch["noise_limit"], rngs.base_key(_RATED)
        noised = losses.noise_images(
            key, batch["position"], batch["images"], limit_BM, self.process
        )
        hidden_BLD, out_BMhwZ = self.apply(params, batch, noised)
        logits_BLV = self.model.apply({"params": params}, hidden_BLD, method="logits")
        labels_BL = self.caption_labels(batch)
        error_BM, _ = losses.image_errors(
            out_BMhwZ, batch["images"], noised, limit_BM, self.process
        )
        nll_BL = token_nll(logits_BLV, labels_BL)
        return nll_BL.sum(1), (labels_BL != rows.NO_LABEL).sum(1), error_BM[:, 0]

    def caption_labels(self, batch) -> jax.Array:
        """Labels where those are words: markers and ends do not count."""
        labels_BL = batch["labels"]
        is_word_BL = (labels_BL != self.markers.eos) & (labels_BL < self.markers.bos)
        return jnp.where(is_word_BL, labels_BL, rows.NO_LABEL)

    def draw(self, params, captions: list[str], seed: int, guidance: float) -> np.ndarray:
        """Images of captions, as the codec decodes them: [n, h, w, Z]."""
        options = self.options(images=1, text=0, guidance=guidance)
        parts = []
        for index in groups(len(captions)):
            prompts = self._prompts([[captions[i]] for i in index], draw=True, index=index)
            row = self._generate(options)(params, prompts, rngs.base_key(seed))
            parts.append(row.x[:, 0])
        return joined(parts, len(captions))

    def describe(self, params, scenes: Scenes) -> list[str]:
        """The likeliest next tokens after each image, one by one: n captions."""
        options = self.options(images=0, text=self.config.text.max_len)
        texts = []
        for index in groups(len(scenes)):
            prompts = self._prompts([[_BLANK]] * len(index), draw=False, index=index)
            prompts["images"] = scenes.latents[index][:, None]
            row = self._generate(options)(params, prompts, rngs.base_key(0))
            ends = np.asarray(row.cache.length_B)
            for tokens, start, end in zip(np.asarray(row.tokens), prompts["length"], ends):
                texts.append(self.written(tokens, start, end))
        return texts[: len(scenes)]

    def _prompts(self, documents: list[list], draw: bool, index) -> dict[str, np.ndarray]:
        prompts = self.prompt_rows(documents, draw) | {"index": np.uint32(index)}
        image = self.image_spec()
        return prompts | {"images": np.zeros((len(index), 1, *image.shape), image.dtype)}

    def _generate(self, options):
        if options not in self._samplers:
            generate = lambda params, *rest: self.generate(params, {}, *rest, options)
            self._samplers[options] = jax.jit(generate)
        return self._samplers[options]


class CausalTask(LatentsTask):
    """The same, but a patch reads no later one."""

    def layout(self, document_BL, image_BL, first_BM) -> Layout:
        """Of packed rows."""
        layout = super().layout(document_BL, image_BL, first_BM)
        return layout._replace(bounds=causal(layout.bounds))

    def generator(self, params, options) -> Generator:
        """With these parameters."""
        return CausalGenerator(*super().generator(params, options))


class CausalGenerator(Generator):
    """Reads every piece so."""

    def piece(self, x_BTD, start_B, bounds: Bounds, cache: Cache | None, patch_BQ):
        """See :meth:`mmx.models.transfusion.generate.Generator.piece`."""
        return super().piece(x_BTD, start_B, causal(bounds), cache, patch_BQ)


def causal(bounds: Bounds) -> Bounds:
    """The bounds of whom nothing later is read; who reads nothing, still reads nothing."""
    position_L = jnp.arange(bounds.end_BL.shape[-1])
    return Bounds(bounds.start_BL, jnp.minimum(bounds.end_BL, position_L + 1))


def groups(count: int) -> list[np.ndarray]:
    """The numbers below ``count`` in groups of one size: the last is filled with the last one."""
    return [np.minimum(np.arange(AT_ONCE) + i, count - 1) for i in range(0, count, AT_ONCE)]


def joined(parts, count: int) -> np.ndarray:
    """What was made of :func:`groups`, without what fills."""
    return np.concatenate([np.asarray(part) for part in parts])[:count]
