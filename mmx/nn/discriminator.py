"""Discriminators of image tokenizers: a map of patches, or one logit an image.

Axis letters: B batch, H W pixels, h w grid of patches, C channels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmx.nn.conv import NORMS, Conv


class PatchDiscriminator(nn.Module):
    """A map of logits, each judging one patch (arXiv 1611.07004 sec. 3.2.2, 2012.09841)."""

    channels: int
    levels: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image_BHWC: jax.Array) -> jax.Array:
        """[B, H, W, 3] -> logits float32 [B, h, w]."""
        x = image_BHWC
        for level in range(self.levels):
            names = ("pixels" if level == 0 else "conv_in", "conv_out")
            width = self.channels * 2 ** min(level, 3)
            x = Conv(width, 3, level == 0, names, self.dtype, name=f"conv_{level}")(x)
            if level > 0:
                x = NORMS["group"](dtype=self.dtype, name=f"norm_{level}")(x)
            x = _blur_down(jax.nn.leaky_relu(x, 0.2))
        x = Conv(1, 3, True, ("conv_in", "pixels"), self.dtype, name="out")(x)
        return x[..., 0].astype(jnp.float32)


class StyleDiscriminator(nn.Module):
    """One logit an image: residual blocks, blurred down-sampling (arXiv 1912.04958, as MaskGIT)."""

    channels: int
    levels: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image_BHWC: jax.Array) -> jax.Array:
        """[B, H, W, 3] -> logits float32 [B]."""

        def conv(width, size, x, name, names=("conv_in", "conv_out"), bias=True):
            return Conv(width, size, bias, names, self.dtype, name=name)(x)

        act = lambda x: jax.nn.leaky_relu(x, 0.2)
        x = act(conv(self.channels, 3, image_BHWC, "stem", ("pixels", "conv_out")))
        for level in range(self.levels):
            width = self.channels * 2 ** min(level + 1, 3)
            h = act(conv(x.shape[-1], 3, x, f"level_{level}_conv_0"))
            h = act(conv(width, 3, _blur_down(h), f"level_{level}_conv_1"))
            shortcut = conv(width, 1, _blur_down(x), f"level_{level}_shortcut", bias=False)
            x = (shortcut + h) * 2**-0.5
        x = act(conv(x.shape[-1], 3, x, "last"))
        # Averaged over the grid, not flattened, so that any image size works: ours.
        logit = conv(1, 1, x.mean(axis=(1, 2), keepdims=True), "out", ("conv_in", "pixels"))
        return logit[:, 0, 0, 0].astype(jnp.float32)


DISCRIMINATORS = {"patch": PatchDiscriminator, "style": StyleDiscriminator}


def _blur_down(x_BHWC: jax.Array) -> jax.Array:
    """[1, 3, 3, 1] blur, then every second pixel (arXiv 1904.11486): D's gradient is smooth."""
    kernel = jnp.asarray([1.0, 3.0, 3.0, 1.0], x_BHWC.dtype) / 8.0
    C = x_BHWC.shape[-1]
    window = jnp.broadcast_to((kernel[:, None] * kernel)[:, :, None, None], (4, 4, 1, C))
    return jax.lax.conv_general_dilated(
        x_BHWC,
        window,
        (2, 2),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=C,
    )
