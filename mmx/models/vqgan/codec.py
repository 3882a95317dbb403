"""The trained tokenizer as a codec: image <-> grid of codes, for other families."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmx.core import rng as rngs
from mmx.core.errors import UserError, choose
from mmx.models.vqgan import quantizer
from mmx.models.vqgan.model import Decoder, Encoder
from mmx.nn.conv import NORMS
from mmx.nn.dtypes import DTYPES


def make_networks(config) -> tuple[Encoder, Decoder]:
    """Encoder and decoder of a config. Raises UserError for an unknown dtype, norm or quantizer."""
    m = config.model
    dtype = choose("config.dtype", DTYPES, config.dtype)
    choose("config.model.norm", NORMS, m.norm)
    multipliers = tuple(m.multipliers)
    shared = dict(
        channels=m.channels,
        multipliers=multipliers,
        patch=m.patch,
        norm=m.norm,
        linear_path=m.linear_path,
    )
    _, code_dim = quantizer.sizes(config.quantizer)
    patterns = 3 * (m.patch * 2 ** (len(multipliers) - 1)) ** 2
    if m.linear_path and code_dim > patterns:
        raise UserError(
            f"config.quantizer.code_dim={code_dim}: a patch has {patterns} numbers, so with "
            f"config.model.linear_path at most {patterns}"
        )
    encoder = Encoder(
        **shared,
        blocks=m.encoder_blocks,
        mid_blocks=m.encoder_mid_blocks,
        code_dim=code_dim,
        dtype=dtype,
    )
    decoder = Decoder(
        **shared, blocks=m.decoder_blocks, mid_blocks=m.decoder_mid_blocks, dtype=dtype
    )
    return encoder, decoder


class VqganCodec:
    """A :class:`mmx.models.protocols.Codec` over the weights ``{"params", "extra"}`` of a run."""

    def __init__(self, config):
        self.config = config
        self.encoder, self.decoder = make_networks(config)
        self.num_codes, self.code_dim = quantizer.sizes(config.quantizer)
        self.scale = config.model.patch * 2 ** (len(config.model.multipliers) - 1)

    def grid(self, image_size: int) -> int:
        """Codes along one side of an image. Raises UserError when f does not divide the size."""
        if image_size % self.scale:
            raise UserError(
                f"config.data.image_size={image_size} is no multiple of the tokenizer's "
                f"f={self.scale}; use {image_size // self.scale * self.scale or self.scale}"
            )
        return image_size // self.scale

    def init(self, key: jax.Array) -> tuple[dict, dict]:
        """Fresh (params, extra) of the codec, every leaf logically named."""
        size = self.config.data.image_size
        grid = self.grid(size)
        stream = lambda name: rngs.stream(key, name)
        image, z = jnp.zeros((1, size, size, 3)), jnp.zeros((1, grid, grid, self.code_dim))
        params = {
            "encoder": self.encoder.init(stream("encoder"), image)["params"],
            "decoder": self.decoder.init(stream("decoder"), z)["params"],
        }
        extra = {}
        if state := quantizer.init_state(self.config.quantizer, stream("codebook")):
            names = {"count_E": ("codes",)}
            extra["vq"] = {
                k: nn.LogicallyPartitioned(v, names.get(k, ("codes", "code_dim")))
                for k, v in state.items()
            }
        return params, extra

    def abstract_weights(self) -> dict:
        """Shapes of the weights that :meth:`encode` and :meth:`decode` take."""
        params, extra = nn.unbox(jax.eval_shape(lambda: self.init(rngs.base_key(0))))
        return {"params": params, "extra": extra}

    def latents(self, weights: Any, image_BHWC: jax.Array) -> jax.Array:
        """float32 [B, H, W, 3] in [-1, 1] -> [B, h, w, Z], before they are quantized."""
        return self.encoder.apply({"params": weights["params"]["encoder"]}, image_BHWC)

    def encode(self, weights: Any, image_BHWC: jax.Array) -> jax.Array:
        """float32 [B, H, W, 3] in [-1, 1] -> codes int32 [B, h, w]."""
        z_BhwZ = self.latents(weights, image_BHWC)
        state = weights.get("extra", {}).get("vq", {})
        return quantizer.quantize_latents(self.config.quantizer, state, z_BhwZ).codes

    def decode(self, weights: Any, codes_Bhw: jax.Array) -> jax.Array:
        """codes int32 [B, h, w] -> float32 [B, H, W, 3], about [-1, 1], not clipped."""
        state = weights.get("extra", {}).get("vq", {})
        z_BhwZ = quantizer.decode_codes(self.config.quantizer, state, codes_Bhw)
        return self.decoder.apply({"params": weights["params"]["decoder"]}, z_BhwZ)
