"""Convolutional layers of the image tokenizer: no attention, so any image size works.

All take videos too, with a time axis before the rows: a window of a video is as long as it is high.
Axis letters: B batch, H W pixels or features (of a video T H W), C channels.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmx.core.partition import compiled_for, constrain
from mmx.nn.norm import RMSNorm


class Conv(nn.Module):
    """Same-padded convolution over images or videos. The window stays whole on every device.

    A video is padded in time as in space (arXiv 2212.05199's public code; not causal).

    Attributes:
      features: channels out.
      size: of the window along every axis.
      use_bias: adds a bias.
      names: logical axes of (in, out); image channels (3) are named "pixels" and never sharded.
      kernel_init: of the kernel.
      stride: of the window, whose odd size is then padded by half of it on every side, as PyTorch
        does (JAX's "SAME" pads right and below alone).

    Raises:
      ValueError: a stride of another window than an odd one from 3 on, or over a video. (Of the
        published towers only the ResNet's first convolution strides, by 2 and 3x3.)
    """

    features: int
    size: int = 3
    use_bias: bool = False
    names: tuple[str, str] = ("conv_in", "conv_out")
    dtype: jnp.dtype = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    stride: int = 1

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        if self.stride > 1 and (self.size == 1 or self.size % 2 == 0):
            raise ValueError(f"stride {self.stride} needs an odd window from 3 on, not {self.size}")
        axes = x_BHWC.ndim - 2
        if self.stride > 1 and axes == 3:
            raise ValueError(f"stride {self.stride}: of images alone, not of videos")
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(self.kernel_init, (*[None] * axes, *self.names)),
            (*[self.size] * axes, x_BHWC.shape[-1], self.features),
            jnp.float32,
        ).astype(self.dtype)
        x_BHWC = x_BHWC.astype(self.dtype)
        if self.size == 1:
            flat = x_BHWC.reshape(-1, x_BHWC.shape[-1]) @ kernel.reshape(kernel.shape[-2:])
            y_BHWC = flat.reshape(*x_BHWC.shape[:-1], self.features)
        elif axes == 3 and compiled_for() == "cpu":
            y_BHWC = convolve_frames(x_BHWC, kernel)
        elif axes == 3:
            y_BHWC = convolve_volume(x_BHWC, kernel)
        else:
            half = (self.size // 2, self.size // 2)
            y_BHWC = jax.lax.conv_general_dilated(
                x_BHWC,
                kernel,
                (self.stride, self.stride),
                "SAME" if self.stride == 1 else [half, half],
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        if self.use_bias:
            bias = self.param(
                "bias",
                nn.with_logical_partitioning(nn.initializers.zeros, self.names[1:]),
                (self.features,),
                jnp.float32,
            )
            y_BHWC = y_BHWC + bias.astype(self.dtype)
        time = ["act_t"] * (axes - 2)
        return constrain(y_BHWC, "act_batch", *time, "act_h", "act_w", "act_channels")


def convolve_volume(x_BTHWC: jax.Array, kernel: jax.Array) -> jax.Array:
    """A same-padded convolution: [B, T, H, W, C] by [size, size, size, C, features] -> [B, T, H, W,
    features]."""
    layout = ("NDHWC", "DHWIO", "NDHWC")
    return jax.lax.conv_general_dilated(
        x_BTHWC, kernel, (1, 1, 1), "SAME", dimension_numbers=layout
    )


def convolve_frames(x_BTHWC: jax.Array, kernel: jax.Array) -> jax.Array:
    """:func:`convolve_volume` as a convolution over images that have a window's frames side by side
    as channels: what XLA does faster on a CPU (experiments/throughput/README.md)."""
    B, T, H, W, C = x_BTHWC.shape
    size = kernel.shape[0]
    before = (size - 1) // 2
    padded = jnp.pad(x_BTHWC, ((0, 0), (before, size - 1 - before), *[(0, 0)] * 3))
    side_by_side = jnp.concatenate([padded[:, t : t + T] for t in range(size)], axis=-1)
    y = jax.lax.conv_general_dilated(
        side_by_side.reshape(B * T, H, W, size * C),
        jnp.moveaxis(kernel, 0, 2).reshape(size, size, size * C, -1),
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y.reshape(B, T, H, W, -1)


class GroupNorm(nn.Module):
    """Group norm over 32 groups (MaskGIT's choice), or the most below that divide the channels.

    Each frame of a video by itself (ours), so that an inflated network draws it as an image.
    """

    groups: int = 32
    dtype: jnp.dtype = jnp.float32
    eps: float = 1e-6

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        channels = x_BHWC.shape[-1]
        groups = math.gcd(self.groups, channels)
        param = lambda name, init: self.param(
            name, nn.with_logical_partitioning(init, ("norm",)), (channels,), jnp.float32
        )
        x32 = x_BHWC.astype(jnp.float32)
        grouped = x32.reshape(*x32.shape[:-1], groups, channels // groups)
        mean = grouped.mean(axis=(-4, -3, -1), keepdims=True)
        var = jnp.square(grouped - mean).mean(axis=(-4, -3, -1), keepdims=True)
        y = ((grouped - mean) * jax.lax.rsqrt(var + self.eps)).reshape(x32.shape)
        scale, bias = param("scale", nn.initializers.ones), param("bias", nn.initializers.zeros)
        return (y * scale + bias).astype(self.dtype)


NORMS = {"group": GroupNorm, "rms": RMSNorm}


class ResBlock(nn.Module):
    """norm, swish, conv 3x3, twice, around a shortcut.

    The shortcut is 1x1 on the block's input where the channels change. (MaskGIT's code applies it
    to the processed branch, which leaves no identity path; ours does not.)
    """

    features: int
    norm: str = "group"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        h_BHWC = x_BHWC
        for i in range(2):
            h_BHWC = NORMS[self.norm](dtype=self.dtype, name=f"norm_{i}")(h_BHWC)
            h_BHWC = Conv(self.features, dtype=self.dtype, name=f"conv_{i}")(jax.nn.silu(h_BHWC))
        if x_BHWC.shape[-1] != self.features:
            x_BHWC = Conv(self.features, size=1, dtype=self.dtype, name="shortcut")(x_BHWC)
        return x_BHWC + h_BHWC


def space_to_depth(x_BHWC: jax.Array, patch: int) -> jax.Array:
    """[B, H, W, C] -> [B, H/p, W/p, p*p*C], each frame of a video by itself."""
    *lead, H, W, C = x_BHWC.shape
    x = x_BHWC.reshape(*lead, H // patch, patch, W // patch, patch, C)
    return x.swapaxes(-4, -3).reshape(*lead, H // patch, W // patch, patch * patch * C)


def depth_to_space(x_BhwC: jax.Array, patch: int) -> jax.Array:
    """[B, h, w, p*p*C] -> [B, h*p, w*p, C]: the inverse of :func:`space_to_depth`."""
    *lead, h, w, C = x_BhwC.shape
    x = x_BhwC.reshape(*lead, h, w, patch, patch, C // patch**2)
    return x.swapaxes(-4, -3).reshape(*lead, h * patch, w * patch, C // patch**2)


def downsample(x_BHWC: jax.Array) -> jax.Array:
    """2x2 average pooling, each frame of a video by itself."""
    *lead, H, W, C = x_BHWC.shape
    return x_BHWC.reshape(*lead, H // 2, 2, W // 2, 2, C).mean(axis=(-4, -2))


def upsample(x_BHWC: jax.Array) -> jax.Array:
    """Nearest neighbour, twice the size."""
    return x_BHWC.repeat(2, axis=-3).repeat(2, axis=-2)


def fewer_frames(x_BTHWC: jax.Array, times: int) -> jax.Array:
    """[B, T, ...] -> [B, T/times, ...]: means of neighbours in time."""
    B, T, *rest = x_BTHWC.shape
    return x_BTHWC.reshape(B, T // times, times, *rest).mean(axis=2)


def more_frames(x_BTHWC: jax.Array, times: int) -> jax.Array:
    """[B, T, ...] -> [B, T*times, ...]: each frame several times."""
    return x_BTHWC.repeat(times, axis=1)


def inflate(kernel: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """An image network's array as a video network's: a kernel in the middle of the new time axis,
    zeros before and after it ("central inflation"), so that each frame is seen as an image.

    Args:
      kernel: [size, size, in, out], or any array.
      shape: of the video network's array.

    Returns:
      Of that shape, or None where neither it is the same nor a kernel with a time axis.

    Source: arXiv 2212.05199 sec. 3.1.
    """
    if kernel.shape == shape:
        return kernel
    if kernel.ndim != 4 or shape[1:] != kernel.shape or shape[0] != kernel.shape[0]:
        return None
    inflated = np.zeros(shape, kernel.dtype)
    inflated[shape[0] // 2] = kernel
    return inflated
