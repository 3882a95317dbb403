"""The image tokenizer as a task: networks, players, losses, scores."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmx.core.errors import UserError
from mmx.data.image import fit, shift_flip
from mmx.data.source import open_source
from mmx.eval.images import to_uint8
from mmx.eval.metrics import check_config as check_metrics
from mmx.eval.report import taught_by
from mmx.eval.tile import tile
from mmx.models import rebuilding
from mmx.models.flops import train_flops_per_row
from mmx.models.image_loss import ImageLosses
from mmx.models.rows import fill_rows, to_float
from mmx.models.vqgan import report as reports
from mmx.models.vqgan.codec import make_codec
from mmx.ops.losses import psnr
from mmx.train.sharding import jit_sharded, place, replicated


class VqganTask:
    """Contract 1 for the tokenizer. Frozen weights: the perceptual network's, if one is asked for.

    Args:
      config: of the family ``vqgan``.
      run: the run directory, where the perceptual network is kept; None leaves it where it is.
      abstract: shapes only: the perceptual network is taken to be vgg16, and no file is read.

    Raises:
      UserError: an image size that f does not divide or that is too small for the discriminator or
        the perceptual network; an unknown choice; a perceptual network that cannot be read; an
        average of parameters beside continuous latents.
    """

    family = "vqgan"
    # Batch entropy, codebook statistics: rows see each other.
    batch_coupled = True

    def __init__(self, config, run=None, abstract: bool = False):
        self.config = config
        # A run of before there were metrics by name has none in its config.
        names, scorer = config.eval.get("metrics", ()), config.eval.get("scorer", "")
        check_metrics(names, scorer, taught_by(config))
        self._reconstructors = {}
        self.codec = make_codec(config)
        self.codec.grid(config.data.image_size)
        if config.quantizer.kind == "kl" and config.optim.ema:
            raise UserError(
                f"config.optim.ema={config.optim.ema}: the moments of continuous latents are "
                "measured with the weights as they are trained, not with their average; use 0"
            )
        self.losses = ImageLosses(config, run, abstract)

    # Data

    def transform(self, example: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """example -> {"image": uint8 [H, W, 3]}, cropped to the config's size and augmented."""
        data = self.config.data
        image = fit(example["image"], data.image_size)
        return {"image": shift_flip(image, rng, data.shift, data.flip)}

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Of the rows of :meth:`transform` and their positions in the stream, uint32 [B]."""
        B, size = self.config.batch_size, self.config.data.image_size
        return {
            "image": jax.ShapeDtypeStruct((B, size, size, 3), jnp.uint8),
            "position": jax.ShapeDtypeStruct((B,), jnp.uint32),
        }

    # Parameters

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """(params, extra), every leaf logically named."""
        params, extra = self.codec.init(key)
        more_params, more_extra = self.losses.init(key)
        return params | more_params, extra | more_extra

    def abstract_frozen(self) -> Any:
        """Shapes of :meth:`load_frozen`."""
        shape = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        return jax.tree.map(shape, self._frozen_host())

    def load_frozen(self, mesh) -> Any:
        """The perceptual network's weights, if there is one, on every device."""
        return place(self._frozen_host(), replicated(mesh))

    def _frozen_host(self) -> Any:
        return self.losses.frozen()

    def param_labels(self, params: Any) -> Any:
        """One optimiser group a player."""
        return self.losses.param_labels(params)

    # Training

    def loss(self, params, extra, frozen, batch, rng, step, train=True):
        """(scalar, (metrics, extra)); both players' terms in one scalar."""
        image = to_float(batch["image"])
        coded = self.codec.coded(params, extra, image, batch["position"], rng, step, train)
        recon = self.codec.apply_decoder(params, coded.z_BhwZ)
        total, metrics = self.losses.reconstruction(frozen, image, recon)
        players = self.losses.players(params, dict(coded.extra), image, recon, step, train)
        total += coded.loss + players.generator + players.discriminator
        metrics |= coded.metrics | players.metrics
        metrics["psnr"] = psnr(jnp.clip(recon, -1, 1), image).mean()
        return total, (metrics, players.extra)

    def train_flops_per_row(self) -> float:
        """:func:`mmx.models.flops.train_flops_per_row`."""
        return train_flops_per_row(self)

    # Looking

    def reconstruct(self, mesh):
        """``(params, extra, image_u8 [B]) -> (recon float32, codes int32)``, compiled; any B.

        Where latents are continuous: ``{"z": normalised, "kl": [B]}`` instead of codes.
        """
        if mesh in self._reconstructors:
            return self._reconstructors[mesh]

        def fn(params, extra, image_u8):
            return self.codec.rebuild({"params": params, "extra": extra}, to_float(image_u8))

        compiled = jit_sharded(fn, mesh, out_shardings=replicated(mesh))

        def run(params, extra, image_u8):
            image_u8, count = fill_rows(image_u8, mesh)
            recon, codes = compiled(params, extra, image_u8)
            return recon[:count], jax.tree.map(lambda x: x[:count], codes)

        self._reconstructors[mesh] = run
        return run

    def evaluators(self, mesh) -> list:
        """PSNR and codebook use, or KL and spread, of each split that the config names."""
        of = self.config.eval
        return [reports.Reconstruction(self, mesh, split, of.examples) for split in of.splits]

    def preview(self, params, extra, frozen, mesh) -> dict[str, np.ndarray]:
        """Held-out images above their reconstructions, uint8."""
        del frozen
        data = self.config.data
        source = open_source(data.source, self.config.eval.splits[-1], data.data_dir)
        count = min(8, len(source))
        image_u8 = np.stack([fit(source[i]["image"], data.image_size) for i in range(count)])
        recon, _ = self.reconstruct(mesh)(params, extra, image_u8)
        recon_u8 = to_uint8(np.nan_to_num(np.asarray(recon)))
        return {"reconstruction": tile(np.stack([image_u8, recon_u8]))}

    def report(self, run, seed: int):
        """:func:`mmx.models.vqgan.report.report`."""
        return reports.report(self, run, seed)

    def measured(self, run, seed: int):
        """:func:`mmx.models.rebuilding.measured`."""
        return rebuilding.measured(self, run, seed)

    def rebuild(self, run, image_u8: np.ndarray) -> np.ndarray:
        """uint8 [B, H, W, 3] -> float32 [B, H, W, 3], about [-1, 1]."""
        return np.asarray(self.reconstruct(run.mesh)(run.params, run.extra, image_u8)[0])

    def options(self, **changes):
        """A tokenizer draws nothing by itself.

        Raises:
          UserError: always; says what to sample from instead.
        """
        raise UserError(
            "this run is an image tokenizer and cannot sample; sample a run that was trained on it "
            "(family muse)"
        )
