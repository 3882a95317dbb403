"""CLIP as a task: pairs in, contrastive loss, embeddings and rankings out."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmx.core import rng as rngs
from mmx.core import tree
from mmx.core.errors import UserError, choose
from mmx.core.flops import matmul_flops
from mmx.data.captions import flip_keeps_caption
from mmx.data.image import fit, random_fit, resize_crop, shift_flip, stretch
from mmx.data.text import EOS_ID
from mmx.models.clip import loss as losses
from mmx.models.clip import report as reports
from mmx.models.clip.model import make_model, misfit
from mmx.models.rows import fill_rows, to_float
from mmx.models.texts import TOKENIZERS
from mmx.nn.dtypes import DTYPES
from mmx.nn.remat import REMAT
from mmx.nn.transformer import ACTIVATIONS
from mmx.train.sharding import jit_sharded, replicated

# How an image is made square where nothing is drawn; "random" draws a place in training. The last
# two are how published weights see theirs.
CROPS = {"centre": fit, "random": fit, "short_side": resize_crop, "stretch": stretch}


class ClipTask:
    """Contract 1 for CLIP and SigLIP. Nothing is frozen; a ResNet's running statistics are extra.

    Args:
      config: of the family ``clip``.
      run: the run directory, where the tokenizer is kept.
      abstract: shapes only, for preflight: no tokenizer is read.

    Raises:
      UserError: sizes that do not fit, an unknown choice, a tokenizer with more ids than
        ``config.text.vocab_size``.
    """

    family = "clip"
    batch_coupled = True  # every row is a negative of every other

    def __init__(self, config, run, abstract: bool = False):
        self.config = config
        m, text, size = config.model, config.text, config.data.image_size
        losses.check_config(config)
        choose("config.model.activation", ACTIVATIONS, m.activation)
        choose("config.model.remat", REMAT, m.remat)
        choose("config.data.crop", CROPS, config.data.crop)
        if problem := misfit(m, size):
            raise UserError(f"config.model.{problem[0]}: {problem[1]}")
        open_tokenizer = choose("config.text.tokenizer", TOKENIZERS, text.tokenizer)
        self.tokenizer = None if abstract else open_tokenizer(config, run)
        if not abstract and self.tokenizer.vocab_size > text.vocab_size:
            raise UserError(
                f"config.text.vocab_size={text.vocab_size}: the tokenizer has "
                f"{self.tokenizer.vocab_size} ids"
            )
        self.model = make_model(
            m,
            image_size=size,
            vocab_size=text.vocab_size,
            # CLIP's end of text is its largest id, by which published towers find it.
            eot_id=None if text.tokenizer == "clip" else EOS_ID,
            dtype=choose("config.dtype", DTYPES, config.dtype),
        )
        self._embedders: dict = {}

    # Data

    def transform(self, example: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """example -> image uint8 [H, W, 3], text_ids int32 [T]; the tail of a long text is cut."""
        data = self.config.data
        if data.crop == "random":
            image = random_fit(example["image"], rng, data.image_size)
        else:
            image = CROPS[data.crop](example["image"], data.image_size)
        flip = data.flip and flip_keeps_caption(example["text"])
        image = shift_flip(image, rng, data.shift, flip)
        return {"image": image, "text_ids": self.text_ids([example["text"]])[0]}

    def plain(self, example: dict, rng=None) -> dict[str, np.ndarray]:
        """:meth:`transform` without augmentation."""
        del rng
        image = self.fit(example["image"])
        return {"image": image, "text_ids": self.text_ids([example["text"]])[0]}

    def fit(self, image: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] of any size -> uint8 [size, size, 3], as the config crops."""
        data = self.config.data
        return CROPS[data.crop](image, data.image_size)

    def text_ids(self, texts: list[str], strict: bool = False) -> np.ndarray:
        """n texts -> int32 [n, T].

        Raises:
          UserError: ``strict`` and a text is empty or longer than the context.
        """
        return self.tokenizer.encode(texts, self.config.text.max_len, strict)[0]

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Of the rows of :meth:`transform` and their positions in the stream, uint32 [B]."""
        B, size, T = self.config.batch_size, self.config.data.image_size, self.config.text.max_len
        return {
            "image": jax.ShapeDtypeStruct((B, size, size, 3), jnp.uint8),
            "text_ids": jax.ShapeDtypeStruct((B, T), jnp.int32),
            "position": jax.ShapeDtypeStruct((B,), jnp.uint32),
        }

    # Parameters

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """(params, extra), every leaf logically named."""
        size, T = self.config.data.image_size, self.config.text.max_len
        image, text_ids = jnp.zeros((1, size, size, 3)), jnp.zeros((1, T), jnp.int32)
        extra = dict(self.model.init(rngs.stream(key, "model"), image, text_ids))
        return extra.pop("params"), extra

    def abstract_frozen(self) -> Any:
        """Nothing."""
        return {}

    def load_frozen(self, mesh) -> Any:
        """Nothing."""
        del mesh
        return {}

    def param_labels(self, params: Any) -> Any:
        """One player."""
        return tree.map_with_path(
            lambda path, _: "main", params, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned)
        )

    # Training

    def loss(self, params, extra, frozen, batch, rng, step, train=True):
        """(scalar, (metrics, extra)), of all pairs of the global batch."""
        del frozen, rng, step
        rows = {name: batch[name] for name in ("image", "text_ids")}
        changes = {}

        def embed(rows):
            args = to_float(rows["image"]), rows["text_ids"], train
            out, new = self.model.apply({"params": params, **extra}, *args, mutable=[*extra])
            changes.update(new)  # of a ResNet, which is never embedded in parts
            return out[:2]

        image_BE, text_BE = losses.embed_cached(embed, rows, self.config.loss.cached)
        log_scale, bias = params["logit_scale"], params.get("logit_bias", jnp.zeros(()))
        loss, metrics = losses.pair_loss(self.config.loss, image_BE, text_BE, log_scale, bias)
        return loss, (metrics, {**extra, **changes})

    def train_flops_per_row(self) -> float:
        """Three times the forward pass of both towers; the products of pairs are not in it."""
        spec, size, T = jax.ShapeDtypeStruct, self.config.data.image_size, self.config.text.max_len
        params, extra = nn.unbox(jax.eval_shape(self.init, rngs.base_key(0)))
        row = spec((1, size, size, 3), jnp.float32), spec((1, T), jnp.int32)
        return 3.0 * matmul_flops(self.model.apply, {"params": params, **extra}, *row)

    # Use

    def embedder(self, mesh, what: str):
        """Compiled; any number of rows.

        Args:
          what: "embed_image", "embed_text" or "features", a method of the model.

        Returns:
          ``(params, extra, uint8 images [n, H, W, 3] or ids [n, T]) -> float32 [n, E or D]``.
        """
        if (mesh, what) in self._embedders:
            return self._embedders[mesh, what]

        def fn(params, extra, rows):
            rows = rows if what == "embed_text" else to_float(rows)
            return self.model.apply({"params": params, **extra}, rows, method=what)

        compiled = jit_sharded(fn, mesh, out_shardings=replicated(mesh))

        def run(params, extra, rows):
            rows, count = fill_rows(rows, mesh)
            return np.asarray(compiled(params, extra, rows))[:count]

        self._embedders[mesh, what] = run
        return run

    def embed_images(self, weights, image_BHWC: jax.Array) -> jax.Array:
        """float32 [B, H, W, 3] in [-1, 1], of any size -> [B, E] of length 1, float32; pure."""
        B, _, _, C = image_BHWC.shape
        size = self.config.data.image_size
        image_BHWC = jax.image.resize(image_BHWC, (B, size, size, C), "bicubic")
        variables = {"params": weights["params"], **weights["extra"]}
        return self.model.apply(variables, image_BHWC, method="embed_image")

    def image_weights(self, weights) -> dict:
        """What :meth:`embed_images` reads of a run's weights: all but the text tower."""
        params = {name: leaf for name, leaf in weights["params"].items() if name != "text"}
        return {"params": params, "extra": weights.get("extra", {})}

    def embedding(self, run) -> reports.ClipEmbedder:
        """The run as functions of arrays on the host."""
        return reports.ClipEmbedder(self, run)

    def evaluators(self, mesh) -> list:
        """Retrieval both ways on each split that the config names."""
        of = self.config.eval
        return [reports.Retrieval(self, mesh, split, of.examples) for split in of.splits]

    def preview(self, params, extra, frozen, mesh) -> dict[str, np.ndarray]:
        """Held-out images, each beside those nearest to its caption, uint8."""
        del frozen
        return reports.preview(self, params, extra, mesh)

    def report(self, run, seed: int):
        """:func:`mmx.models.clip.report.report`."""
        return reports.report(self, run, seed)

    def options(self, **changes):
        """CLIP draws nothing.

        Raises:
          UserError: always.
        """
        raise UserError(
            "this run compares images with texts and cannot sample; sample a run that draws "
            "(family muse)"
        )
