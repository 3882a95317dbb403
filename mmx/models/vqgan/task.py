"""The image tokenizer as a task: networks, players, losses, scores."""

from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmx.core import rng as rngs
from mmx.core import tree
from mmx.core.errors import UserError, choose
from mmx.data import pipeline
from mmx.data.image import fit, shift_flip
from mmx.data.source import open_source
from mmx.eval import images as image_scores
from mmx.eval import stats
from mmx.eval.stats import Score
from mmx.eval.tile import tile
from mmx.models.rows import fill_rows
from mmx.models.vqgan import quantizer
from mmx.models.vqgan.codec import DTYPES, VqganCodec
from mmx.models.vqgan.loss import G_LOSS, adversarial_loss, reconstruction_loss
from mmx.models.vqgan.model import DISCRIMINATORS
from mmx.ops.losses import init_lecam
from mmx.pretrained.vgg import keep_vgg, load_vgg
from mmx.train.sharding import batch_sharding, jit_sharded, replicated


class VqganTask:
    """Contract 1 for the tokenizer. Frozen weights: the perceptual network's, if one is asked for.

    Args:
      config: of the family ``vqgan``.
      run: the run directory, where the perceptual network is kept; None leaves it where it is.

    Raises:
      UserError: an image size that f does not divide or that is too small for the discriminator or
        the perceptual network; an unknown choice; a perceptual network that cannot be read.
    """

    family = "vqgan"
    # Batch entropy, codebook statistics: rows see each other.
    batch_coupled = True

    def __init__(self, config, run=None):
        self.config = config
        self.codec = VqganCodec(config)
        self.codec.grid(config.data.image_size)
        self.discriminator = None
        if config.loss.adversarial:
            self.discriminator = self._make_discriminator()
        self._perceptual, self._pools = [], ()
        if config.loss.perceptual:
            path = config.loss.perceptual_weights
            if run is not None:
                path = keep_vgg(path, run.stage("perceptual") / "weights.safetensors")
            self._perceptual, self._pools = load_vgg(path)
            self._check_halvings("the perceptual network", sum(self._pools))

    def _make_discriminator(self):
        d = self.config.get("discriminator")
        if d is None:
            raise UserError(
                "config.loss.adversarial is not 0, but this config has no discriminator; start "
                "from one that has: vqgan/muse256, vqgan/muse512"
            )
        choose("config.loss.gan", G_LOSS, self.config.loss.gan)
        make = choose("config.discriminator.kind", DISCRIMINATORS, d.kind)
        self._check_halvings("config.discriminator.levels", d.levels)
        return make(d.channels, d.levels, DTYPES[self.config.dtype])

    def _check_halvings(self, what: str, count: int) -> None:
        size = self.config.data.image_size
        if size >> count < 1:
            raise UserError(
                f"config.data.image_size={size}: {what} halves it {count} times, which leaves "
                "nothing"
            )

    # Data

    def transform(self, example: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """example -> {"image": uint8 [H, W, 3]}, cropped to the config's size and augmented."""
        data = self.config.data
        image = fit(example["image"], data.image_size)
        return {"image": shift_flip(image, rng, data.shift, data.flip)}

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        B, size = self.config.batch_size, self.config.data.image_size
        return {
            "image": jax.ShapeDtypeStruct((B, size, size, 3), jnp.uint8),
            "position": jax.ShapeDtypeStruct((B,), jnp.uint32),
        }

    # Parameters

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """(params, extra), every leaf logically named."""
        size = self.config.data.image_size
        image = jnp.zeros((1, size, size, 3))
        stream = lambda name: rngs.stream(key, name)
        params = {"encoder": self.codec.encoder.init(stream("encoder"), image)["params"]}
        grid = self.codec.grid(size)
        z = jnp.zeros((1, grid, grid, self.codec.code_dim))
        params["decoder"] = self.codec.decoder.init(stream("decoder"), z)["params"]
        extra = {}
        if state := quantizer.init_state(self.config.quantizer, stream("codebook")):
            names = {"count_E": ("codes",)}
            extra["vq"] = {
                k: nn.LogicallyPartitioned(v, names.get(k, ("codes", "code_dim")))
                for k, v in state.items()
            }
        if self.discriminator:
            d = self.discriminator.init(stream("discriminator"), image)
            params["discriminator"] = d["params"]
            if self.config.loss.lecam:
                extra["lecam"] = init_lecam()._asdict()
        return params, extra

    def abstract_frozen(self) -> Any:
        return jax.eval_shape(lambda: self._frozen_host())

    def load_frozen(self, mesh) -> Any:
        return jax.device_put(self._frozen_host(), replicated(mesh))

    def _frozen_host(self) -> Any:
        return {"perceptual": self._perceptual}

    def param_labels(self, params: Any) -> Any:
        """ "disc" for the discriminator, "main" for the rest: one optimiser group a player."""
        return tree.map_with_path(
            lambda path, _: "disc" if path.startswith("discriminator/") else "main",
            params,
            is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned),
        )

    # Training

    def loss(self, params, extra, frozen, batch, rng, step, train=True):
        """(scalar, (metrics, extra)); both players' terms in one scalar."""
        config = self.config
        image = to_float(batch["image"])
        z = self.codec.encoder.apply({"params": params["encoder"]}, image)
        key = rngs.stream(jax.random.fold_in(rng, step), "codebook")
        extra = dict(extra)
        state = extra.get("vq", {})
        if train:
            state = quantizer.seed_state(config.quantizer, state, z, key, step)
        quantized = quantizer.quantize_latents(config.quantizer, state, z)
        recon = self.codec.decoder.apply({"params": params["decoder"]}, quantized.z_q)
        total, metrics = reconstruction_loss(
            config.loss, image, recon, (frozen["perceptual"], self._pools)
        )
        total += quantized.loss
        metrics |= {f"codebook/{name}": value for name, value in quantized.metrics.items()}
        error = jnp.square(jnp.clip(recon, -1, 1) - image).mean(axis=(1, 2, 3))
        metrics["psnr"] = (10 * jnp.log10(4 / jnp.maximum(error, 1e-10))).mean()
        if self.discriminator:
            apply_d = lambda p, x: self.discriminator.apply({"params": p}, x)
            adversarial, lecam, more = adversarial_loss(
                config.loss,
                apply_d,
                params["discriminator"],
                extra.get("lecam", {}),
                image,
                recon,
                step,
                train,
            )
            total += adversarial
            metrics |= more
            if lecam:
                extra["lecam"] = lecam
        if train and state:
            extra["vq"], more = quantizer.update_state(
                config.quantizer, state, z, quantized.codes, key, step
            )
            metrics |= more
        return total, (metrics, extra)

    def train_flops_per_row(self) -> float:
        """Three times the forward pass, as XLA counts it: there is no loop in it to miscount."""
        size = self.config.data.image_size

        def forward(params, image):
            z = self.codec.encoder.apply({"params": params["encoder"]}, image)
            return self.codec.decoder.apply({"params": params["decoder"]}, z)

        params = nn.unbox(jax.eval_shape(lambda: self.init(rngs.base_key(0))[0]))
        image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        return 3.0 * jax.jit(forward).lower(params, image).cost_analysis()["flops"]

    # Looking

    def reconstruct(self, mesh):
        """``(params, extra, image_u8 [B]) -> (recon float32, codes int32)``, compiled; any B."""

        def fn(params, extra, image_u8):
            weights = {"params": params, "extra": extra}
            codes = self.codec.encode(weights, to_float(image_u8))
            return self.codec.decode(weights, codes), codes

        compiled = jit_sharded(fn, mesh, out_shardings=replicated(mesh))

        def run(params, extra, image_u8):
            image_u8, count = fill_rows(image_u8, mesh)
            recon, codes = compiled(params, extra, image_u8)
            return recon[:count], codes[:count]

        return run

    def evaluators(self, mesh) -> list:
        evaluation = self.config.eval
        return [Reconstruction(self, mesh, s, evaluation.examples) for s in evaluation.splits]

    def preview(self, params, extra, frozen, mesh) -> dict[str, np.ndarray]:
        """Held-out images above their reconstructions, uint8."""
        del frozen
        data = self.config.data
        source = open_source(data.source, self.config.eval.splits[-1], data.data_dir)
        count = min(8, len(source))
        rng = np.random.default_rng(0)
        image_u8 = np.stack([self._plain(source[i], rng)["image"] for i in range(count)])
        if not hasattr(self, "_preview"):
            self._preview = self.reconstruct(mesh)
        recon, _ = self._preview(params, extra, image_u8)
        recon_u8 = image_scores.to_uint8(np.nan_to_num(np.asarray(recon)))
        return {"reconstruction": tile(np.stack([image_u8, recon_u8]))}

    def sample(self, params, extra, frozen, prompt_batch, rng, options):
        """A tokenizer draws nothing by itself.

        Raises:
          UserError: always; says what to sample from instead.
        """
        raise UserError(
            "this run is an image tokenizer and cannot sample; sample a run that was trained on it "
            "(family muse)"
        )

    def _plain(self, example, rng):
        del rng
        return {"image": fit(example["image"], self.config.data.image_size)}


class Reconstruction:
    """PSNR and codebook use on a split, without augmentation.

    Args:
      task, mesh: whose, where.
      split: of the config's data.
      limit: first examples only; None takes all.
    """

    def __init__(self, task: VqganTask, mesh, split: str, limit: int | None):
        self.task, self.mesh, self.split, self.limit = task, mesh, split, limit
        data = task.config.data
        self.source = open_source(data.source, split, data.data_dir)
        self._reconstruct = task.reconstruct(mesh)

    def run(self, params, extra, frozen) -> Iterator[tuple[str, float]]:
        """Yields ``<split>/psnr`` in dB, ``<split>/codebook_use``, ``.../codebook_perplexity``."""
        del frozen
        for name, score in self.scores(params, extra).items():
            yield name, score.value

    def scores(self, params, extra) -> dict[str, Score]:
        """The same with 95 % intervals."""
        psnr, codes = [], []
        with pipeline.eval_batches(
            self.source,
            self.task._plain,
            self.task.config.batch_size,
            batch_sharding(self.mesh),
            limit=self.limit,
        ) as batches:
            for batch in batches:
                recon, ids = self._reconstruct(params, extra, batch["image"])
                mask, image = (host(batch[k], self.mesh) for k in ("_mask", "image"))
                psnr.append(image_scores.psnr(image, np.asarray(recon))[mask])
                codes.append(np.asarray(ids)[mask])
        use, perplexity = image_scores.codebook_use(
            np.concatenate(codes), self.task.codec.num_codes
        )
        return {
            f"{self.split}/psnr": stats.mean(np.concatenate(psnr)),
            f"{self.split}/codebook_use": use,
            f"{self.split}/codebook_perplexity": perplexity,
        }


def host(x: jax.Array, mesh) -> np.ndarray:
    """The whole of a sharded array on every host."""
    return np.asarray(jax.device_put(x, replicated(mesh)))


def to_float(image_u8: jax.Array) -> jax.Array:
    """uint8 0..255 -> float32 in [-1, 1]."""
    return image_u8.astype(jnp.float32) / 127.5 - 1.0
