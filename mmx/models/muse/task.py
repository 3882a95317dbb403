"""Muse's base model as a task: text and codes in, masked prediction, pictures out."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmx.core import rng as rngs
from mmx.core import tree
from mmx.core.errors import UserError, choose
from mmx.core.flops import matmul_flops
from mmx.data.build import VOCAB_SIZE
from mmx.data.captions import flip_keeps_caption
from mmx.data.image import fit, shift_flip
from mmx.eval.images import to_uint8
from mmx.eval.metrics import check_config as check_metrics
from mmx.eval.report import taught_by
from mmx.eval.tile import tile
from mmx.models import stages
from mmx.models.muse import loss as losses
from mmx.models.muse import report as reports
from mmx.models.muse.model import MuseTransformer
from mmx.models.muse.sample import SampleOptions, sample_codes
from mmx.models.registry import make_codec
from mmx.models.rows import fill_rows, to_float
from mmx.models.texts import own_tokenizer
from mmx.nn.dtypes import DTYPES
from mmx.nn.remat import REMAT
from mmx.nn.text import TextEncoder
from mmx.nn.transformer import ACTIVATIONS
from mmx.train.sharding import jit_sharded, place, replicated


class MuseTask:
    """Contract 1 for Muse. Frozen weights: ``{"codec": ...}`` of the pinned tokenizer run.

    Args:
      config: of the family ``muse``.
      run: the run directory; the codec's run is pinned and the dataset's tokenizer copied there.
      abstract: shapes only, for preflight: the codec is that of ``config.codec.config`` (of
        ``config.codec.run`` where that is named), the vocabulary the largest that we train.

    Raises:
      UserError: no codec named, sizes that do not fit, or a dataset without a tokenizer.
    """

    family = "muse"
    batch_coupled = False

    def __init__(self, config, run, abstract: bool = False):
        self.config, self.run = config, run
        self._check_sizes()
        # Now, not at the first preview after minutes of training.
        losses.check_config(config.loss)
        # A run of before there were metrics by name has none in its config.
        metrics = config.eval.get("metrics", ()), config.eval.get("scorer", "")
        check_metrics(*metrics)
        self.options()
        if abstract:
            codec = stages.planned_config(config.codec)
        else:
            self._codec_folder = stages.pin(
                run,
                "codec",
                config.codec.run,
                drop=stages.CODEC_DROP,
                accept=lambda codec: make_codec(codec, "codes").grid(config.data.image_size),
            )
            codec = stages.load_config(self._codec_folder)
        self.codec = make_codec(codec, "codes")
        check_metrics(*metrics, taught_by(codec))
        self.grid = self.codec.grid(config.data.image_size)
        self.mask_id = self.codec.num_codes
        m = config.model
        if self.grid % m.patch:
            raise UserError(
                f"config.model.patch={m.patch} does not divide the tokenizer's grid of {self.grid}"
            )
        self.tokenizer = None if abstract else own_tokenizer(config, run)
        dtype = choose("config.dtype", DTYPES, config.dtype)
        self.model = MuseTransformer(
            num_codes=self.codec.num_codes,
            grid=self.grid,
            depth=m.depth,
            width=m.width,
            heads=m.heads,
            mlp=m.mlp,
            patch=m.patch,
            code_width=m.code_width,
            logit_scale=m.logit_scale,
            activation=m.activation,
            remat=m.remat,
            dtype=dtype,
        )
        text = config.text
        self.text_encoder = TextEncoder(
            VOCAB_SIZE if abstract else self.tokenizer.vocab_size,
            text.width,
            text.depth,
            text.heads,
            m.activation,
            dtype,
        )
        self._samplers: dict = {}
        if not abstract:
            self.prompts(list(config.preview_prompts))  # mistakes now, not at the first preview

    def _check_sizes(self) -> None:
        m = self.config.model
        choose("config.model.activation", ACTIVATIONS, m.activation)
        choose("config.model.remat", REMAT, m.remat)
        if m.patch > 1 and m.code_width < 1:
            raise UserError(
                f"config.model.code_width={m.code_width}: must be at least 1 where "
                f"config.model.patch={m.patch} puts several codes in one position"
            )
        for name, part in (("model", m), ("text", self.config.text)):
            if part.width % part.heads:
                raise UserError(
                    f"config.{name}.heads={part.heads} does not divide "
                    f"config.{name}.width={part.width}"
                )

    # Data

    def transform(self, example: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """example -> image uint8 [H, W, 3], text_ids int32 [T], text_mask bool [T]."""
        data = self.config.data
        image = fit(example["image"], data.image_size)
        flip = data.flip and flip_keeps_caption(example["text"])
        image = shift_flip(image, rng, data.shift, flip)
        text_ids, text_mask = self.tokenizer.encode([example["text"]], self.config.text.max_len)
        return {"image": image, "text_ids": text_ids[0], "text_mask": text_mask[0]}

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Of the rows of :meth:`transform` and their positions in the stream, uint32 [B]."""
        B, size, T = self.config.batch_size, self.config.data.image_size, self.config.text.max_len
        return {
            "image": jax.ShapeDtypeStruct((B, size, size, 3), jnp.uint8),
            "text_ids": jax.ShapeDtypeStruct((B, T), jnp.int32),
            "text_mask": jax.ShapeDtypeStruct((B, T), jnp.bool_),
            "position": jax.ShapeDtypeStruct((B,), jnp.uint32),
        }

    # Parameters

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """(params, {}), every leaf logically named."""
        T = self.config.text.max_len
        text_ids = jnp.zeros((1, T), jnp.int32)
        text_mask = jnp.ones((1, T), bool)
        text = self.text_encoder.init(rngs.stream(key, "text"), text_ids, text_mask)["params"]
        text_emb = jnp.zeros((1, T, self.config.text.width))
        ids = jnp.zeros((1, self.grid**2), jnp.int32)
        model = self.model.init(rngs.stream(key, "model"), ids, text_emb, text_mask)["params"]
        return {"text": text, "model": model}, {}

    def abstract_frozen(self) -> Any:
        """Shapes of :meth:`load_frozen`."""
        return {"codec": self.codec.abstract_weights()}

    def load_frozen(self, mesh) -> Any:
        """The codec's weights on every device. Raises UserError when they are damaged."""
        return place(self._frozen_host(), replicated(mesh))

    def _frozen_host(self) -> Any:
        return {"codec": stages.load_weights(self._codec_folder)}

    def param_labels(self, params: Any) -> Any:
        """One player."""
        return tree.map_with_path(
            lambda path, _: "main", params, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned)
        )

    # Training

    def codes(self, frozen, image_u8: jax.Array) -> jax.Array:
        """uint8 [B, H, W, 3] -> codes int32 [B, S]."""
        codes = self.codec.encode(frozen["codec"], to_float(image_u8))
        return jax.lax.stop_gradient(codes).reshape(image_u8.shape[0], -1)

    def logits(self, params, ids_BS, text, text_mask_BT) -> jax.Array:
        """[B, S, E] float32, from visible codes and a text as ``losses.text_of`` gives it."""
        text_emb = self.text_emb(params, text, text_mask_BT)
        return self.model.apply({"params": params["model"]}, ids_BS, text_emb, text_mask_BT)

    def text_emb(self, params, text, text_mask_BT) -> jax.Array:
        """Ids int [B, T] through the learned encoder; embeddings float [B, T, D] as they are."""
        if jnp.issubdtype(text.dtype, jnp.floating):
            return text
        return self.text_encoder.apply({"params": params["text"]}, text, text_mask_BT)

    def loss(self, params, extra, frozen, batch, rng, step, train=True):
        """(scalar, (metrics, extra)). Every draw of a row comes from (seed, its position)."""
        del step
        config = self.config.loss
        position_B = batch["position"]
        codes_BS = self.codes(frozen, batch["image"])
        ids_BS, is_masked_BS = losses.hide(rng, position_B, codes_BS, self.mask_id)
        text_mask_BT = batch["text_mask"]
        if train:
            text_mask_BT = losses.drop_text(rng, position_B, text_mask_BT, config.text_drop)
        loss, metrics = losses.masked_loss(
            lambda ids, mask: self.logits(params, ids, losses.text_of(batch), mask),
            codes_BS,
            ids_BS,
            is_masked_BS,
            text_mask_BT,
            config.label_smoothing,
            config.weighting,
        )
        return loss, (metrics, extra)

    def train_flops_per_row(self) -> float:
        """Three times the forward pass of transformer and text encoder; the codec is frozen."""
        spec, T = jax.ShapeDtypeStruct, self.config.text.max_len
        params = nn.unbox(jax.eval_shape(self.init, rngs.base_key(0))[0])
        row = (spec((1, self.grid**2), jnp.int32), spec((1, T), jnp.int32), spec((1, T), jnp.bool_))
        return 3.0 * matmul_flops(self.logits, params, *row)

    # Sampling

    def options(self, **changes) -> SampleOptions:
        """Those of ``config.sample``, with the changes that are not None.

        Raises:
          UserError: a value out of range.
        """
        return SampleOptions.of(self.config, **changes)

    def sample(self, params, extra, frozen, prompt_batch, rng, options: SampleOptions):
        """Draw pictures for prompts; pure, for jit.

        Args:
          prompt_batch: text_ids (or text_emb), text_mask [B, T]; negative_ids (or negative_emb),
            negative_mask [B, T] (an all-False mask for none); ids [B, S], ``mask_id`` where to
            draw; index [B], which sample each is: its noise depends on (rng, index) alone.

        Returns:
          {"image": float32 [B, H, W, 3], "codes": int32 [B, S], "trace": int32 [B, R, S]}.
        """
        del extra
        batch = prompt_batch
        codes_BS, trace_RBS = sample_codes(
            lambda ids, emb, mask: self.model.apply({"params": params["model"]}, ids, emb, mask),
            self.text_emb(params, losses.text_of(batch), batch["text_mask"]),
            batch["text_mask"],
            self.text_emb(params, losses.text_of(batch, "negative"), batch["negative_mask"]),
            batch["negative_mask"],
            batch["ids"],
            rngs.row_keys(rng, "sample", batch["index"]),
            mask_id=self.mask_id,
            options=options,
        )
        image = self.decode(frozen, codes_BS)
        return {"image": image, "codes": codes_BS, "trace": trace_RBS.swapaxes(0, 1)}

    def decode(self, frozen, codes_BS) -> jax.Array:
        """codes [B, S] -> float32 [B, H, W, 3]."""
        codes_Bhw = codes_BS.reshape(-1, self.grid, self.grid)
        return self.codec.decode(frozen["codec"], codes_Bhw)

    def prompt_spec(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Of what :meth:`prompts` gives for ``count`` texts."""
        T, S = self.config.text.max_len, self.grid**2
        spec = lambda dtype, *shape: jax.ShapeDtypeStruct((count, *shape), dtype)
        return {
            "text_ids": spec(jnp.int32, T),
            "text_mask": spec(jnp.bool_, T),
            "negative_ids": spec(jnp.int32, T),
            "negative_mask": spec(jnp.bool_, T),
            "ids": spec(jnp.int32, S),
            "index": spec(jnp.uint32),
        }

    def prompts(self, texts: list[str], negative: str = "", first_index: int = 0) -> dict:
        """A prompt batch for :meth:`sample`. Raises UserError for an empty or over-long prompt."""
        T = self.config.text.max_len
        text_ids, text_mask = self.tokenizer.encode(texts, T, strict=True)
        negative_ids, negative_mask = np.zeros_like(text_ids), np.zeros_like(text_mask)
        if negative:
            one_ids, one_mask = self.tokenizer.encode([negative], T, strict=True)
            negative_ids, negative_mask = negative_ids + one_ids, negative_mask | one_mask
        return {
            "text_ids": text_ids,
            "text_mask": text_mask,
            "negative_ids": negative_ids,
            "negative_mask": negative_mask,
            "ids": np.full((len(texts), self.grid**2), self.mask_id, np.int32),
            "index": np.arange(first_index, first_index + len(texts), dtype=np.uint32),
        }

    def sampler(self, mesh, options: SampleOptions):
        """:meth:`sample` compiled, one function for each set of options; any number of rows."""
        if options not in self._samplers:
            fn = lambda p, e, f, batch, key: self.sample(p, e, f, batch, key, options)
            self._samplers[options] = jit_sharded(fn, mesh, out_shardings=replicated(mesh))
        compiled = self._samplers[options]

        def run(params, extra, frozen, batch, key):
            batch, count = fill_rows(batch, mesh)
            out = compiled(params, extra, frozen, batch, key)
            return {name: x[:count] for name, x in out.items()}

        return run

    # Looking

    def evaluators(self, mesh) -> list:
        """The validation loss of each split that the config names."""
        return [reports.ValidationLoss(self, mesh, split) for split in self.config.eval.splits]

    def preview(self, params, extra, frozen, mesh) -> dict[str, np.ndarray]:
        """Samples of fixed prompts and seed, uint8."""
        prompts = list(self.config.preview_prompts)
        if not prompts:
            return {}
        batch = self.prompts(prompts)
        key = place(rngs.base_key(0), replicated(mesh))
        run = self.sampler(mesh, self.options())
        image = np.asarray(run(params, extra, frozen, batch, key)["image"])
        image_u8 = to_uint8(np.nan_to_num(image))
        columns = min(8, len(prompts))
        rows = image_u8[: len(prompts) // columns * columns]
        return {"samples": tile(rows.reshape(-1, columns, *image_u8.shape[1:]))}

    def report(self, run, seed: int):
        """:func:`mmx.models.muse.report.report`."""
        return reports.report(self, run, seed)

    def measured(self, run, seed: int):
        """:func:`mmx.models.muse.report.measured`."""
        return reports.measured(self, run, seed)
