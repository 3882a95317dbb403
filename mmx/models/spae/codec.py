"""The autoencoder: image -> latents -> a pyramid of words -> image. One decoder for every depth.

Legend: B batch, H W pixels, h w latent grid, T words of an image, P layers, V words, W width of
their table, Z latent width. Of videos, frames come before H and before h.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmx.core import rng as rngs
from mmx.core.errors import UserError, choose
from mmx.nn import autoencoder
from mmx.ops import pyramid as pyramids
from mmx.ops.fill import FILLS
from mmx.ops.latents import Moments, init_moments, normalize, update_moments
from mmx.ops.pyramid import Pyramid, PyramidWords

MOMENTS_DECAY = 0.99  # ours


class Forward(NamedTuple):
    """What training makes of a batch.

    recon_BHWC: float32, of the words of as many layers as each row drew.
    words: of all layers.
    table_VZ: of the words.
    commitment: float32 scalar, without its weight.
    extra: as the batch leaves it.
    codebook: float32 scalar, what trains a projection; 0 without one.
    """

    recon_BHWC: jax.Array
    words: PyramidWords
    table_VZ: jax.Array
    commitment: jax.Array
    extra: dict
    codebook: jax.Array | float


class SpaeCodec:
    """Encoder, pyramid, decoder of a config. The table of words is passed in, and constant.

    Raises:
      UserError: a pyramid or fill that is unknown, or an image or video that the pyramid does not
        fit.

    Attributes:
      image_shape: (H, W, 3), of videos (frames, H, W, 3).
    """

    def __init__(self, config):
        self.config = config
        p = config.pyramid
        self.pyramid = Pyramid(tuple(p.sides), p.scheme, tuple(p.get("frames", ())))
        choose("config.pyramid.fill", FILLS, p.fill)
        size = self.pyramid.grid * autoencoder.latent_scale(config.model)
        if config.data.image_size != size:
            raise UserError(
                f"config.data.image_size={config.data.image_size}: a grid of {self.pyramid.grid} "
                f"(config.pyramid.sides={tuple(p.sides)}) at f="
                f"{autoencoder.latent_scale(config.model)} is {size} pixels"
            )
        frames = config.data.get("frames", 0)
        time = tuple(config.model.get("time", ()))
        fitting = max(self.pyramid.frames) * math.prod(time) if self.pyramid.frames else 0
        if frames != fitting or bool(time) != bool(frames):
            raise UserError(
                f"config.data.frames={frames}: layers of {self.pyramid.frames} frames "
                f"(config.pyramid.frames) at config.model.time={time} are videos of {fitting}; "
                "images have none of the three"
            )
        self.image_shape = (*((frames,) if frames else ()), size, size, 3)
        self.encoder, self.decoder = autoencoder.make_networks(
            config, config.words.code_dim, "config.words.code_dim"
        )
        self.projected = config.words.table == "linear"

    def init(self, key: jax.Array) -> tuple[dict, dict]:
        """Fresh (params, extra), every leaf logically named."""
        width = self.config.words.code_dim
        stream = lambda name: rngs.stream(key, name)
        image, z = jnp.zeros((1, *self.image_shape)), jnp.zeros((1, *self.pyramid.shape, width))
        params = {
            "encoder": self.encoder.init(stream("encoder"), image)["params"],
            "decoder": self.decoder.init(stream("decoder"), z)["params"],
        }
        box = nn.LogicallyPartitioned
        if self.config.pyramid.fill == "mask":
            params["mask"] = box(jnp.zeros(width), ("code_dim",))
        if self.projected:
            shape = (self.config.words.width, width)
            kernel = nn.initializers.orthogonal()(stream("projection"), shape)
            params["projection"] = box(kernel, (None, "code_dim"))
        if not self.config.pyramid.standardize:
            return params, {}
        names = {"count": ()}
        moments = init_moments(width)._asdict()
        boxed = {k: box(v, names.get(k, ("code_dim",))) for k, v in moments.items()}
        return params, {"moments": boxed}

    def table(self, params: Any, table_VW: jax.Array, num_words: int) -> jax.Array:
        """float32 [V, Z]: the codes; a trained projection of the rows where there is one (as
        arXiv 2506.18898), whose lengths start at about sqrt(Z)."""
        table_VW = jax.lax.stop_gradient(table_VW).astype(jnp.float32)
        if not self.projected:
            return table_VW
        # Rows from num_words on are 0.
        rms = jnp.sqrt(jnp.square(table_VW).sum() / (num_words * table_VW.shape[1]))
        return jnp.matmul(table_VW / rms, params["projection"], precision="highest")

    def encode(self, params: Any, extra: dict, image_BHWC: jax.Array) -> jax.Array:
        """float32 [B, H, W, 3] in [-1, 1] -> latents float32 [B, h, w, Z]."""
        z_BhwZ = self.encoder.apply({"params": params["encoder"]}, image_BHWC)
        if "moments" in extra:
            return normalize(Moments(**extra["moments"]), z_BhwZ)
        return z_BhwZ

    def encode_batch(self, params: Any, extra: dict, image_BHWC) -> tuple[jax.Array, dict]:
        """(:meth:`encode` by the moments of the batch itself, extra after it), for training.

        Ours: latents that have no spread are all nearest to the same two words, and the commitment
        keeps them there. With a spread of 1 in each channel they cannot be.
        """
        z_BhwZ = self.encoder.apply({"params": params["encoder"]}, image_BHWC)
        if "moments" not in extra:
            return z_BhwZ, extra
        moments = update_moments(Moments(**extra["moments"]), z_BhwZ, MOMENTS_DECAY)
        axes = tuple(range(z_BhwZ.ndim - 1))
        batch = Moments(z_BhwZ.mean(axes), z_BhwZ.var(axes), moments.count)
        return normalize(batch, z_BhwZ), {**extra, "moments": moments._asdict()}

    def forward(
        self,
        params: Any,
        extra: dict,
        table_VW: jax.Array,
        num_words: int,
        image_BHWC: jax.Array,
        keys_B: jax.Array | None = None,
    ) -> Forward:
        """Images through words and back.

        Args:
          extra: moves with the batch where there are keys.
          table_VW: rows of the words; those from ``num_words`` on only fill it up.
          image_BHWC: float32 in [-1, 1].
          keys_B: a row's own, by which it draws its number of layers in training; None: all layers.
        """
        of, layers = self.config.pyramid, self.pyramid.num_layers
        if keys_B is None:
            z_BhwZ = self.encode(params, extra, image_BHWC)
        else:
            z_BhwZ, extra = self.encode_batch(params, extra, image_BHWC)
            layers = pyramids.random_layers(keys_B, self.pyramid, of.short)
        table_VZ = self.table(params, table_VW, num_words)
        words = pyramids.quantize(self.pyramid, z_BhwZ, table_VZ, num_words)
        seen = pyramids.decoder_input(
            self.pyramid, z_BhwZ, words.stages_PBhwZ, layers, of.fill, params.get("mask")
        )
        codebook = 0.0
        if self.projected:
            # Words are what the encoder says, and the projection comes to meet it.
            mask_Z = jax.lax.stop_gradient(params.get("mask"))
            rows = pyramids.reconstruct(self.pyramid, words.words_BT, table_VZ, of.fill, mask_Z)
            codebook = jnp.square(jax.lax.stop_gradient(z_BhwZ) - rows).mean()
        return Forward(
            self._decode(params, seen),
            words,
            table_VZ,
            pyramids.commitment(self.pyramid, z_BhwZ, words.stages_PBhwZ),
            extra,
            codebook,
        )

    def to_words(self, params, extra, table_VW, num_words: int, image_BHWC) -> jax.Array:
        """float32 [B, H, W, 3] in [-1, 1] -> words int32 [B, T], layer by layer."""
        z_BhwZ = self.encode(params, extra, image_BHWC)
        table_VZ = self.table(params, table_VW, num_words)
        return pyramids.quantize(self.pyramid, z_BhwZ, table_VZ, num_words).words_BT

    def from_words(self, params: Any, table_VW, num_words: int, words_BT) -> jax.Array:
        """Words int32 [B, T] of the first layers -> float32 [B, H, W, 3], about [-1, 1], not
        clipped. Raises UserError: words that end inside a layer."""
        table_VZ = self.table(params, table_VW, num_words)
        fill, mask_Z = self.config.pyramid.fill, params.get("mask")
        seen = pyramids.reconstruct(self.pyramid, words_BT, table_VZ, fill, mask_Z)
        return self._decode(params, seen)

    def _decode(self, params, z_BhwZ):
        return self.decoder.apply({"params": params["decoder"]}, z_BhwZ)
