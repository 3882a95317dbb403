"""The trained tokenizer as a codec, for other families: image <-> grid of codes, or of vectors."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmx.core import rng as rngs
from mmx.core.errors import UserError
from mmx.models.vqgan import quantizer
from mmx.nn import autoencoder
from mmx.nn.autoencoder import Decoder, Encoder, latent_scale
from mmx.ops.latents import (
    Moments,
    denormalize,
    draw_posterior,
    init_moments,
    kl_to_normal,
    normalize,
    std,
    update_moments,
)

# Of the running moments of continuous latents: the last hundred batches or so, in which the rate
# of learning falls to 0. Ours.
MOMENTS_DECAY = 0.99


def make_networks(config) -> tuple[Encoder, Decoder]:
    """Encoder and decoder of a config. Raises UserError for an unknown dtype, norm or quantizer."""
    num_codes, code_dim = quantizer.sizes(config.quantizer)
    field = f"config.quantizer.{'code_dim' if num_codes else 'latent_dim'}"
    return autoencoder.make_networks(config, code_dim, field, posterior=num_codes is None)


def make_codec(config) -> "VqganCodec | KlCodec":
    """The codec of a config of this family."""
    return (KlCodec if config.quantizer.kind == "kl" else VqganCodec)(config)


class Coded(NamedTuple):
    """What training makes of a batch of images on their way to the decoder.

    z_BhwZ: for the decoder.
    loss: float32 scalar, with its weights.
    metrics: float32 scalars.
    extra: as the batch leaves it.
    """

    z_BhwZ: jax.Array
    loss: jax.Array
    metrics: dict[str, jax.Array]
    extra: dict


class _Networks:
    """What both codecs share: the networks, their sizes and their weights."""

    def __init__(self, config):
        self.config = config
        self.encoder, self.decoder = make_networks(config)
        self.scale = latent_scale(config.model)

    def grid(self, image_size: int) -> int:
        """Latents along one side of an image. Raises UserError when f does not divide the size."""
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
        image = jnp.zeros((1, size, size, 3))
        z = jnp.zeros((1, grid, grid, self.encoder.code_dim))
        params = {
            "encoder": self.encoder.init(stream("encoder"), image)["params"],
            "decoder": self.decoder.init(stream("decoder"), z)["params"],
        }
        return params, self.init_extra(stream("codebook"))

    def abstract_weights(self) -> dict:
        """Shapes of the weights that ``encode`` and ``decode`` take."""
        params, extra = nn.unbox(jax.eval_shape(lambda: self.init(rngs.base_key(0))))
        return {"params": params, "extra": extra}

    def apply_encoder(self, params: Any, image_BHWC: jax.Array) -> Any:
        """float32 [B, H, W, 3] in [-1, 1] -> what `Encoder` gives."""
        return self.encoder.apply({"params": params["encoder"]}, image_BHWC)

    def apply_decoder(self, params: Any, z_BhwZ: jax.Array) -> jax.Array:
        """[B, h, w, Z] -> float32 [B, H, W, 3], about [-1, 1], not clipped."""
        return self.decoder.apply({"params": params["decoder"]}, z_BhwZ)


class VqganCodec(_Networks):
    """A :class:`mmx.models.protocols.Codec` over the weights ``{"params", "extra"}`` of a run."""

    def __init__(self, config):
        super().__init__(config)
        self.num_codes, self.code_dim = quantizer.sizes(config.quantizer)

    def init_extra(self, key: jax.Array) -> dict:
        """The codebook, if this quantizer has one."""
        state = quantizer.init_state(self.config.quantizer, key)
        if not state:
            return {}
        names = {"count_E": ("codes",)}
        box = lambda k, v: nn.LogicallyPartitioned(v, names.get(k, ("codes", "code_dim")))
        return {"vq": {k: box(k, v) for k, v in state.items()}}

    def latents(self, weights: Any, image_BHWC: jax.Array) -> jax.Array:
        """float32 [B, H, W, 3] in [-1, 1] -> [B, h, w, Z], before they are quantized."""
        return self.apply_encoder(weights["params"], image_BHWC)

    def coded(self, params, extra, image_BHWC, position_B, rng, step, train) -> Coded:
        """Quantized latents, the quantizer's losses, the codebook after the batch."""
        del position_B  # nothing is drawn for a row alone
        config, extra = self.config.quantizer, dict(extra)
        z = self.apply_encoder(params, image_BHWC)
        key = rngs.stream(jax.random.fold_in(rng, step), "codebook")
        state = extra.get("vq", {})
        if train:
            state = quantizer.seed_state(config, state, z, key)
        quantized = quantizer.quantize_latents(config, state, z)
        metrics = {f"codebook/{name}": value for name, value in quantized.metrics.items()}
        if train and state:
            extra["vq"], more = quantizer.update_state(config, state, z, quantized.codes, key)
            metrics |= more
        return Coded(quantized.z_q, quantized.loss, metrics, extra)

    def encode(self, weights: Any, image_BHWC: jax.Array) -> jax.Array:
        """float32 [B, H, W, 3] in [-1, 1] -> codes int32 [B, h, w]."""
        z_BhwZ = self.latents(weights, image_BHWC)
        state = weights.get("extra", {}).get("vq", {})
        return quantizer.quantize_latents(self.config.quantizer, state, z_BhwZ).codes

    def decode(self, weights: Any, codes_Bhw: jax.Array) -> jax.Array:
        """codes int32 [B, h, w] -> float32 [B, H, W, 3], about [-1, 1], not clipped."""
        state = weights.get("extra", {}).get("vq", {})
        z_BhwZ = quantizer.decode_codes(self.config.quantizer, state, codes_Bhw)
        return self.apply_decoder(weights["params"], z_BhwZ)

    def rebuild(self, weights: Any, image_BHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Images there and back -> (images, their codes)."""
        codes = self.encode(weights, image_BHWC)
        return self.decode(weights, codes), codes


class KlCodec(_Networks):
    """A :class:`mmx.models.protocols.LatentCodec` over ``{"params", "extra"}`` of a run.

    The encoder gives each number of the latents a normal posterior. Outside of training all latents
    are normalised: by the moments, in ``extra``, of the posterior means that training saw last.

    Source: arXiv 2408.11039 app. A, after 2112.10752.
    """

    def __init__(self, config):
        super().__init__(config)
        _, self.latent_dim = quantizer.sizes(config.quantizer)

    def init_extra(self, key: jax.Array) -> dict:
        """Moments of no batch yet."""
        del key
        moments = init_moments(self.latent_dim)
        names = {"count": ()}
        box = lambda k, v: nn.LogicallyPartitioned(v, names.get(k, ("code_dim",)))
        return {"moments": {k: box(k, v) for k, v in moments._asdict().items()}}

    def coded(self, params, extra, image_BHWC, position_B, rng, step, train) -> Coded:
        """A draw of the posterior (its mean where not ``train``), the KL, the moments after it.

        The KL's weight is that of sums over an image, as in the public code of 2112.10752, and the
        other losses are means, so it is divided by the numbers of an image. (The paper gives the
        weight 1e-6 and no reduction.)
        """
        del step
        mean_BhwZ, log_var_BhwZ = self.apply_encoder(params, image_BHWC)
        moments, z_BhwZ = Moments(**extra["moments"]), mean_BhwZ
        if train:
            keys_B = rngs.row_keys(rng, "posterior", position_B)
            z_BhwZ = draw_posterior(mean_BhwZ, log_var_BhwZ, keys_B)
            moments = update_moments(moments, mean_BhwZ, MOMENTS_DECAY)
            extra = {**extra, "moments": moments._asdict()}
        kl_BhwZ = kl_to_normal(mean_BhwZ, log_var_BhwZ)
        loss = self.config.quantizer.kl * kl_BhwZ.sum((1, 2, 3)).mean() / image_BHWC[0].size
        noise = jnp.exp(0.5 * log_var_BhwZ).mean((0, 1, 2)) / std(moments)
        metrics = {
            "latent/kl": kl_BhwZ.mean(),
            "latent/std": std(moments).mean(),
            "latent/noise": noise.mean(),  # of a draw, in standard deviations of its channel
        }
        return Coded(z_BhwZ, loss, metrics, extra)

    def latents(self, weights: Any, image_BHWC: jax.Array) -> jax.Array:
        """float32 [B, H, W, 3] in [-1, 1] -> posterior means [B, h, w, Z], not normalised."""
        return self.apply_encoder(weights["params"], image_BHWC)[0]

    def encode(self, weights: Any, image_BHWC: jax.Array) -> jax.Array:
        """float32 [B, H, W, 3] in [-1, 1] -> posterior means float32 [B, h, w, Z], normalised."""
        return normalize(_moments(weights), self.latents(weights, image_BHWC))

    def decode(self, weights: Any, z_BhwZ: jax.Array) -> jax.Array:
        """normalised [B, h, w, Z] -> float32 [B, H, W, 3], about [-1, 1], not clipped."""
        z_BhwZ = denormalize(_moments(weights), z_BhwZ)
        return self.apply_decoder(weights["params"], z_BhwZ)

    def rebuild(self, weights: Any, image_BHWC: jax.Array) -> tuple[jax.Array, dict]:
        """Images there and back by their posterior means -> (images, {"z": normalised [B, h, w, Z],
        "kl": [B], nats a number})."""
        mean_BhwZ, log_var_BhwZ = self.apply_encoder(weights["params"], image_BHWC)
        z_BhwZ = normalize(_moments(weights), mean_BhwZ)
        kl_B = kl_to_normal(mean_BhwZ, log_var_BhwZ).mean((1, 2, 3))
        return self.decode(weights, z_BhwZ), {"z": z_BhwZ, "kl": kl_B}


def _moments(weights: Any) -> Moments:
    return Moments(**weights["extra"]["moments"])
