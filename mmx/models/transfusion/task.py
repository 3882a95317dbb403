"""Transfusion as a task: documents in, next-token and diffusion loss, text and pictures out."""

from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmx.core import rng as rngs
from mmx.core import tree
from mmx.core.errors import UserError
from mmx.data.image import fit
from mmx.data.mixture import check_latents
from mmx.data.text import EOS_ID, PAD_ID
from mmx.eval.metrics import check_config as check_metrics
from mmx.eval.report import taught_by
from mmx.models import stages
from mmx.models.registry import make_codec
from mmx.models.rows import fill_rows, to_float
from mmx.models.texts import own_tokenizer
from mmx.models.transfusion import loss as losses
from mmx.models.transfusion import report as reports
from mmx.models.transfusion import rows, validation
from mmx.models.transfusion.generate import (
    IMAGE,
    TEXT,
    GenerateOptions,
    Generator,
    Row,
    finish,
    start,
)
from mmx.models.transfusion.model import make_model, patch_places, train_flops
from mmx.nn.decoder import Layout
from mmx.ops.spans import bounds_of, check_spans
from mmx.ops.token_loss import chunked_cross_entropy
from mmx.train.sharding import jit_sharded, place, replicated


class TransfusionTask:
    """Contract 1 for Transfusion. Frozen weights: ``{"codec": ...}`` of the pinned tokenizer run.

    Args:
      config: of the family ``transfusion``.
      run: the run directory; the codec's run is pinned and the tokenizer copied there.
      abstract: shapes only, for preflight: the codec is that of ``config.codec.config`` (of
        ``config.codec.run`` where that is named), the vocabulary ``config.text.vocab_size``.

    Raises:
      UserError: no codec named or one of codes, sizes that do not fit, an unknown choice.
    """

    family = "transfusion"
    # The mean over a batch's tokens and images: rows hold different numbers of both.
    batch_coupled = True

    def __init__(self, config, run, abstract: bool = False):
        self.config, self.run = config, run
        m = config.model
        self.process = losses.make_process(config.diffusion)
        if abstract:
            codec = stages.planned_config(config.codec)
        else:
            self._codec_folder = stages.pin(
                run,
                "codec",
                config.codec.run,
                drop=stages.CODEC_DROP,
                accept=lambda codec: make_codec(codec, "latents").grid(config.data.image_size),
            )
            codec = stages.load_config(self._codec_folder)
        self.codec = make_codec(codec, "latents")
        self.grid = self.codec.grid(config.data.image_size)
        self.patches = (self.grid // m.patch) ** 2
        self.tokenizer = None if abstract else own_tokenizer(config, run)
        vocab_size = config.text.vocab_size if abstract else self.tokenizer.vocab_size
        self.markers = rows.Markers.after(vocab_size, EOS_ID)
        self.model = make_model(config, self.markers.count, self.grid, self.codec.latent_dim)
        of = config.loss
        rows.check_config(config, self.patches)
        # A run of texts alone has a slot too, always blank: no shape is empty.
        self.slots = max(config.data.max_images, 1)
        stored = config.data.get("latents", False)
        self.rules = rows.RowRules(
            markers=self.markers,
            encode=self._encode,
            fit=lambda image: fit(image, config.data.image_size),
            length=config.data.row_len,
            max_images=self.slots,
            patches=self.patches,
            image_size=config.data.image_size,
            image_first=of.image_first,
            noise_limit=of.noise_limit,
            drop=of.drop,
            clean_copies=of.get("clean_copies", False),
            latents=(self.grid, self.grid, self.codec.latent_dim) if stored else None,
        )
        # Of a run that has saved, `mmx.core.run_dir.check_data` knows the data again.
        if stored and not abstract and not run.has_saved():
            check_latents(config, stages.identity(self._codec_folder))
        self.options()
        self._samplers: dict = {}
        check_metrics(config.eval.metrics, config.eval.scorer, taught_by(codec), writes=True)
        if not abstract and config.preview_prompts:
            self.prompts(list(config.preview_prompts))  # mistakes now, not at the first preview

    # Data

    def _encode(self, text: str) -> list[int]:
        """Ids of a text, at most ``config.text.max_len``, without an end."""
        ids, mask = self.tokenizer.encode([text], self.config.text.max_len + 1)
        return ids[0][mask[0]][:-1].tolist()

    def _encode_prompt(self, text: str) -> list[int]:
        """The same of a prompt. Raises UserError for an empty or over-long one."""
        ids, mask = self.tokenizer.encode([text], self.config.text.max_len + 1, strict=True)
        return ids[0][mask[0]][:-1].tolist()

    def document_tokens(self, example: dict) -> tuple[int, int]:
        """(tokens, images) of an example, for the plan of the rows."""
        return self.rules.count(example)

    def transform(self, examples: list[dict], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Documents of one row -> :func:`mmx.models.transfusion.rows.pack`."""
        row = rows.pack(examples, self.rules, rng)
        check_spans(row["document"][None], row["image"][None], self.patches)
        return row

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Of the rows of :meth:`transform` and their positions in the stream, uint32 [B]."""
        return self.rules.spec(self.config.batch_size)

    # Parameters

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """(params, {}), every leaf logically named."""
        # Parameters do not depend on the length: no more than one image and its markers.
        L = -(-(self.patches + 4) // 128) * 128
        ids = jnp.zeros((1, L), jnp.int32)
        first = jnp.ones((1, 1), jnp.int32)
        z = jnp.zeros((1, 1, self.grid, self.grid, self.codec.latent_dim))
        layout = self.layout(ids, ids - 1, first)
        args = ids, ids - 1, first, z, jnp.zeros((1, 1)), layout
        model = self.model.init(rngs.stream(key, "model"), *args, method="whole")["params"]
        return model, {}

    def layout(self, document_BL, image_BL, first_BM) -> Layout:
        """Of packed rows."""
        bounds = bounds_of(document_BL, image_BL)
        position_BL = jnp.arange(document_BL.shape[1]) - bounds.start_BL
        return Layout(position_BL, bounds, patch_places(first_BM, self.patches))

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

    def latents(self, frozen, images: jax.Array) -> jax.Array:
        """uint8 [..., H, W, 3] -> normalised latents float32 [..., h, w, Z]; stored ones, float16
        [..., h, w, Z], are those.

        Places of a row without an image are blank ones and cost as much: shapes are fixed.
        """
        if images.dtype == jnp.float16:
            return images.astype(jnp.float32)
        flat = images.reshape(-1, *images.shape[-3:])
        z = jax.lax.stop_gradient(self.codec.encode(frozen["codec"], to_float(flat)))
        return z.astype(jnp.float32).reshape(*images.shape[:-3], *z.shape[1:])

    def loss(self, params, extra, frozen, batch, rng, step, train=True):
        """(scalar, (metrics, extra)). Every draw of a row comes from (seed, its position)."""
        del step, train
        x_BMhwZ = self.latents(frozen, batch["images"])
        noised = losses.noise_images(
            rng, batch["position"], x_BMhwZ, batch["noise_limit"], self.process
        )
        text, diffusion, counts = self.losses(params, batch, x_BMhwZ, noised)
        metrics = {
            "loss/text": text,
            "loss/diffusion": diffusion,
            "rows/padding": (batch["document"] < 0).mean(),
            **{f"rows/{name}": count for name, count in counts.items()},
        }
        return text + self.config.loss.diffusion * diffusion, (metrics, extra)

    def losses(self, params, batch, x_BMhwZ, noised) -> tuple[jax.Array, jax.Array, dict]:
        """(next-token loss in nats a token, diffusion loss, how many learned tokens and images)."""
        hidden_BLD, out_BMhwZ = self.apply(params, batch, noised)
        weights_BL, tokens = losses.text_weights(batch["labels"])
        text = chunked_cross_entropy(
            hidden_BLD,
            params["head"]["kernel"],
            jnp.maximum(batch["labels"], PAD_ID),
            weights_BL,
            self.markers.count,
            self.config.loss.chunk,
        )
        diffusion, images = losses.diffusion_loss(
            out_BMhwZ, x_BMhwZ, noised, batch["noise_limit"], self.process
        )
        return text, diffusion, {"tokens": tokens, "images": images}

    def apply(self, params, batch, noised) -> tuple[jax.Array, jax.Array]:
        """(what the head reads [B, L, D], what the patches predict [B, M, h, w, Z]) of rows."""
        rows = batch["tokens"], batch["image"], batch["first"]
        layout = self.layout(batch["document"], batch["image"], batch["first"])
        read = losses.as_read(noised.z, noised.t, self.process)
        return self.model.apply({"params": params}, *rows, read, noised.t, layout)

    def train_flops_per_row(self, images: float | None = None) -> float:
        """See :func:`mmx.models.transfusion.model.train_flops`; by default of as many as fit."""
        params = nn.unbox(jax.eval_shape(self.init, rngs.base_key(0))[0])
        images = self.config.data.max_images if images is None else images
        shape = (images, self.grid, self.grid, self.codec.latent_dim)
        return train_flops(self.model, params, self.config.data.row_len, shape)

    # Sampling

    def options(self, **changes) -> GenerateOptions:
        """Those of ``config.sample``, with the changes that are not None. Raises UserError."""
        return GenerateOptions.of(self.config, **changes)

    def generator(self, params, options: GenerateOptions) -> Generator:
        """With these parameters."""
        return Generator(self.model, params, self.process, self.markers, self.grid, options)

    def generate(self, params, frozen, prompts, rng, options: GenerateOptions) -> Row:
        """Go on with prompts; pure, for jit.

        Args:
          prompts: rows of :func:`mmx.models.transfusion.rows.prompt`, and ``draw`` bool [B]: begins
            with an image whatever it would write; ``index`` uint32 [B], which sample each is: what
            it draws depends on (rng, index) and its prompt alone.
        """
        g, row = self.read(params, frozen, prompts, options)
        return finish(g, row, rngs.row_keys(rng, "sample", prompts["index"]))

    def read(self, params, frozen, prompts, options) -> tuple[Generator, Row]:
        """What writes, and its state after the prompts of :meth:`generate`."""
        g = self.generator(params, options)
        row = start(
            g,
            *(prompts[name] for name in ("tokens", "image", "first")),
            self.latents(frozen, prompts["images"]),
            prompts["length"],
            g.places(prompts["tokens"].shape[1]),
            jnp.where(prompts["draw"], IMAGE, TEXT),
        )
        return g, row

    def sample(self, params, extra, frozen, prompt_batch, rng, options: GenerateOptions):
        """:meth:`generate`, and the images as pixels.

        Returns:
          {"tokens": int32 [B, L]; "start", "length": int32 [B], where what follows the prompt lies
          in them; "drew": int32 [B], how many images; and where any may be drawn "images": float32
          [B, options.images, H, W, 3], and "image" the first of them}.
        """
        del extra
        row = self.generate(params, frozen, prompt_batch, rng, options)
        out = {
            "tokens": row.tokens,
            "start": prompt_batch["length"],
            "length": row.cache.length_B,
            "drew": row.drew,
        }
        if options.images:
            x_IhwZ = row.x.reshape(-1, *row.x.shape[2:])
            images = self.codec.decode(frozen["codec"], x_IhwZ)
            out["images"] = images.reshape(*row.x.shape[:2], *images.shape[1:])
            out["image"] = out["images"][:, 0]
        return out

    def prompt_spec(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Of what :meth:`prompts` gives for ``count`` texts."""
        size, L, M = self.config.data.image_size, self._prompt_length(0), 1
        spec = lambda dtype, *shape: jax.ShapeDtypeStruct((count, *shape), dtype)
        return {
            "tokens": spec(jnp.int32, L),
            "image": spec(jnp.int32, L),
            "first": spec(jnp.int32, M),
            "images": spec(jnp.uint8, M, size, size, 3),
            "length": spec(jnp.int32),
            "draw": spec(jnp.bool_),
            "index": spec(jnp.uint32),
        }

    def prompts(self, texts: list[str], negative: str = "", first_index: int = 0) -> dict:
        """Texts to draw. Raises UserError for an empty or over-long one, or a negative one."""
        if negative:
            raise UserError(
                "--negative: a Transfusion run keeps away from nothing but the image without its "
                "text; leave it out"
            )
        return self.prompt_rows([[text] for text in texts], draw=True, first_index=first_index)

    def prompt_rows(self, documents: list[list], draw: bool, first_index: int = 0) -> dict:
        """Documents to go on with, all of one compiled length.

        Args:
          documents: parts of each, see :func:`mmx.models.transfusion.rows.prompt`.
          draw: each goes on with an image.
          first_index: which sample the first is.

        Raises:
          UserError: see there; a text that is too long; an image of a run that learned of none.
        """
        images = max(sum(not isinstance(part, str) for part in parts) for parts in documents)
        if (draw or images) and not self.config.data.max_images:
            raise UserError(
                "config.data.max_images=0: this run learned from texts alone and has no images"
            )
        rules = replace(self.rules, encode=self._encode_prompt)
        each = [rows.prompt(parts, rules, self._prompt_length(images)) for parts in documents]
        stacked = {name: np.stack([row[name] for row in each]) for name in each[0]}
        # Slots that no prompt fills would be encoded all the same.
        for name in ("first", "images"):
            stacked[name] = stacked[name][:, : max(images, 1)]
        index = np.arange(first_index, first_index + len(each), dtype=np.uint32)
        return stacked | {"draw": np.full(len(each), draw), "index": index}

    def _prompt_length(self, images: int) -> int:
        """A text and so many images with a text each: few lengths, so that few are compiled."""
        return 1 + self.config.text.max_len * (images + 1) + images * (self.patches + 2)

    def sampler(self, mesh, options: GenerateOptions):
        """:meth:`sample` compiled, one function for each set of options; any number of rows.

        Raises UserError when called for an image that the options do not allow.
        """
        if options not in self._samplers:
            fn = lambda p, e, f, batch, key: self.sample(p, e, f, batch, key, options)
            self._samplers[options] = jit_sharded(fn, mesh, out_shardings=replicated(mesh))
        compiled = self._samplers[options]

        def run(params, extra, frozen, batch, key):
            if not options.images and np.any(batch["draw"]):
                raise UserError("images=0: an image is asked for; give images=1 or more")
            batch, count = fill_rows(batch, mesh)
            out = compiled(params, extra, frozen, batch, key)
            return jax.tree.map(lambda x: x[:count], out)

        return run

    def parts(self, row: dict[str, np.ndarray]) -> list:
        """What follows a prompt, of one row of :meth:`sampler`'s: texts and images in [-1, 1]."""
        found, drew, at, end = [], 0, int(row["start"]), int(row["length"])
        while at < end:
            markers = np.flatnonzero(row["tokens"][at:end] == self.markers.boi)
            until = at + int(markers[0]) if len(markers) else end
            if text := self.written(row["tokens"], at, until):
                found.append(text)
            at = until
            if until < end:
                found.append(row["images"][drew])
                drew, at = drew + 1, at + self.patches + 2
        return found

    def written(self, tokens_L, start: int, end: int) -> str:
        """The text between two places of a sample's tokens, without markers."""
        ids = [int(i) for i in tokens_L[start:end] if i < self.markers.bos and i != EOS_ID]
        return self.tokenizer.decode(ids)

    # Looking

    def evaluators(self, mesh) -> list:
        """:class:`mmx.models.transfusion.validation.Validation` of each split of the config,
        and of the texts beside it that are held out."""
        return validation.evaluators(self, mesh)

    def preview(self, params, extra, frozen, mesh) -> dict[str, np.ndarray]:
        """:func:`mmx.models.transfusion.validation.preview`."""
        return validation.preview(self, params, extra, frozen, mesh)

    def report(self, run, seed: int):
        """:func:`mmx.models.transfusion.report.report`."""
        return reports.report(self, run, seed)

    def measured(self, run, seed: int):
        """:func:`mmx.models.transfusion.report.measured`."""
        return reports.measured(self, run, seed)
