"""An image autoencoder's networks, as the tokenizers have them. Convolutions only.

Muse (arXiv 2301.00704 sec. 2.2, table 5) fixes: no attention, base width 128, two residual blocks a
resolution, 8192 codes, f = 16 at 256 pixels and 8 at 512. What it leaves open follows MaskGIT
(arXiv 2202.04200, its public code): multipliers (1, 1, 2, 2, 4), average-pool down, nearest up.
The same networks read and draw videos [B, T, H, W, 3], with windows of three frames, halving time
where they halve space (arXiv 2212.05199 sec. 3.1); `mmx.nn.conv.inflate` makes their parameters
from an image's.

Axis letters: B batch, H W pixels, h w latent grid (of a video T H W, t h w), C channels, Z code
width.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmx.core.errors import UserError, choose
from mmx.nn.conv import (
    NORMS,
    Conv,
    ResBlock,
    depth_to_space,
    downsample,
    fewer_frames,
    more_frames,
    space_to_depth,
    upsample,
)
from mmx.nn.dtypes import DTYPES
from mmx.nn.linear import Dense

LOG_VAR_START = -6.0  # ours
LOG_VAR_RANGE = (-30.0, 20.0)  # the public code of arXiv 2112.10752


def patch_basis(scale: int, code_dim: int) -> np.ndarray:
    """The ``code_dim`` smoothest orthonormal patterns of a scale x scale colour patch.

    Cosines (DCT-II) over both axes times luminance and two colour differences, low frequencies and
    luminance first: what a principal component analysis of pictures comes close to, without data.

    Returns:
      float32 [scale * scale * 3, code_dim], columns of unit length.
    """
    x = np.arange(scale) + 0.5
    cosine_xu = np.cos(np.pi / scale * x[:, None] * np.arange(scale)) * (2 / scale) ** 0.5
    cosine_xu[:, 0] /= 2**0.5
    colour_ck = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]).T / np.sqrt([3, 2, 6])
    basis = np.einsum("yu,xv,ck->yxcuvk", cosine_xu, cosine_xu, colour_ck)
    basis = basis.reshape(scale * scale * 3, -1)
    u, v, k = np.meshgrid(np.arange(scale), np.arange(scale), np.arange(3), indexing="ij")
    order = np.argsort((np.hypot(u, v) + 1.5 * (k > 0)).ravel(), kind="stable")
    return basis[:, order[:code_dim]].astype(np.float32)


class Encoder(nn.Module):
    """image [B, H, W, 3] -> latents [B, H/f, W/f, Z], f = patch * 2 ** (levels - 1).

    Attributes:
      channels: base width.
      multipliers: of the width, one a resolution.
      blocks: residual blocks a resolution.
      mid_blocks: residual blocks at the lowest resolution after the last level.
      patch: side of the pixel patch that the stem folds into channels (ours; 1 is the paper's).
      norm: "group" (the ancestors') or "rms" (ours: keeps absolute colour on flat images).
      code_dim: Z.
      linear_path: start as patch quantization (ours): a linear map of each f x f patch to its
        smoothest patterns, and convolutions that begin at zero on top of it.
      posterior: give (mean, log-variance), each of the latents' shape, instead of latents.
      time: of a video, by how many frames become one after each level, one number a multiplier;
        () for images. (The paper's networks have no such step after their last level; ours may.)
    """

    channels: int
    multipliers: tuple[int, ...]
    blocks: int
    mid_blocks: int
    patch: int
    norm: str
    code_dim: int
    linear_path: bool = False
    posterior: bool = False
    time: tuple[int, ...] = ()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image_BHWC: jax.Array) -> jax.Array | tuple[jax.Array, jax.Array]:
        x = space_to_depth(image_BHWC, self.patch)
        size = 3 if self.patch == 1 else 1
        x = Conv(self.channels, size, names=("pixels", "conv_out"), dtype=self.dtype, name="stem")(
            x
        )
        for level, multiplier in enumerate(self.multipliers):
            for block in range(self.blocks):
                name = f"level_{level}_block_{block}"
                x = ResBlock(self.channels * multiplier, self.norm, self.dtype, name=name)(x)
            if level < len(self.multipliers) - 1:
                x = downsample(x)
            if self.time:
                x = fewer_frames(x, self.time[level])
        for block in range(self.mid_blocks):
            x = ResBlock(x.shape[-1], self.norm, self.dtype, name=f"mid_{block}")(x)
        x = jax.nn.silu(NORMS[self.norm](dtype=self.dtype, name="norm")(x))
        names, init = ("conv_in", "code_dim"), nn.initializers.lecun_normal()
        if self.linear_path:
            init = nn.initializers.zeros
        z = Conv(self.code_dim, 1, names=names, dtype=self.dtype, kernel_init=init, name="out")(x)
        if self.linear_path:
            scale = self.patch * 2 ** (len(self.multipliers) - 1)
            basis = patch_basis(scale, self.code_dim)
            patches = space_to_depth(image_BHWC, scale)
            if self.time:
                patches = fewer_frames(patches, math.prod(self.time))
            z += Dense(
                self.code_dim,
                ("pixels", "code_dim"),
                dtype=self.dtype,
                kernel_init=lambda *_: jnp.asarray(basis),
                name="linear_path",
            )(patches)
        z = z.astype(jnp.float32)
        if not self.posterior:
            return z
        head = Conv(self.code_dim, 1, names=names, dtype=self.dtype, name="log_var")
        # Ours: training begins with draws that are close to their means.
        log_var = head(x).astype(jnp.float32) + LOG_VAR_START
        return z, jnp.clip(log_var, *LOG_VAR_RANGE)


class Decoder(nn.Module):
    """latents [B, h, w, Z] -> image [B, h*f, w*f, 3], not squashed. Attributes: as Encoder."""

    channels: int
    multipliers: tuple[int, ...]
    blocks: int
    mid_blocks: int
    patch: int
    norm: str
    linear_path: bool = False
    time: tuple[int, ...] = ()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, z_BhwZ: jax.Array) -> jax.Array:
        width = self.channels * self.multipliers[-1]
        x = Conv(width, 3, names=("code_dim", "conv_out"), dtype=self.dtype, name="stem")(z_BhwZ)
        for block in range(self.mid_blocks):
            x = ResBlock(width, self.norm, self.dtype, name=f"mid_{block}")(x)
        if self.time:
            x = more_frames(x, self.time[-1])
        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            for block in range(self.blocks):
                name = f"level_{level}_block_{block}"
                x = ResBlock(self.channels * multiplier, self.norm, self.dtype, name=name)(x)
            if level > 0:
                x = upsample(x)
                if self.time:
                    x = more_frames(x, self.time[level - 1])
                x = Conv(x.shape[-1], 3, dtype=self.dtype, name=f"up_{level}")(x)
        x = jax.nn.silu(NORMS[self.norm](dtype=self.dtype, name="norm")(x))
        names, init = ("conv_in", "pixels"), nn.initializers.lecun_normal()
        if self.linear_path:
            init = nn.initializers.zeros
        out = Conv(3 * self.patch**2, 3, True, names, self.dtype, kernel_init=init, name="out")(x)
        image = depth_to_space(out, self.patch)
        if self.linear_path:
            scale = self.patch * 2 ** (len(self.multipliers) - 1)
            basis = patch_basis(scale, z_BhwZ.shape[-1])
            patches = Dense(
                3 * scale**2,
                ("code_dim", "pixels"),
                dtype=self.dtype,
                kernel_init=lambda *_: jnp.asarray(basis.T),
                name="linear_path",
            )(z_BhwZ)
            if self.time:
                patches = more_frames(patches, math.prod(self.time))
            image += depth_to_space(patches, scale)
        return image.astype(jnp.float32)


def make_networks(
    config, code_dim: int, field: str, posterior: bool = False
) -> tuple[Encoder, Decoder]:
    """Encoder and decoder by ``config.model`` and ``config.dtype``.

    Args:
      code_dim: Z.
      field: of the config, that says Z.
      posterior: see :class:`Encoder`.

    Raises:
      UserError: an unknown dtype or norm; a linear path to more numbers than a patch has; not one
        number of ``config.model.time`` a level.
    """
    m = config.model
    time = tuple(m.get("time", ()))
    if time and (len(time) != len(m.multipliers) or min(time) < 1):
        raise UserError(
            f"config.model.time={time}: frames that become one after each of the "
            f"{len(m.multipliers)} levels of config.model.multipliers, 1 and more"
        )
    patterns = 3 * latent_scale(m) ** 2
    if m.linear_path and code_dim > patterns:
        raise UserError(
            f"{field}={code_dim}: a patch has {patterns} numbers, so with config.model.linear_path "
            f"at most {patterns}"
        )
    dtype = choose("config.dtype", DTYPES, config.dtype)
    choose("config.model.norm", NORMS, m.norm)
    shared = dict(
        channels=m.channels,
        multipliers=tuple(m.multipliers),
        patch=m.patch,
        norm=m.norm,
        linear_path=m.linear_path,
        time=time,
        dtype=dtype,
    )
    encoder = Encoder(
        **shared,
        blocks=m.encoder_blocks,
        mid_blocks=m.encoder_mid_blocks,
        code_dim=code_dim,
        posterior=posterior,
    )
    decoder = Decoder(**shared, blocks=m.decoder_blocks, mid_blocks=m.decoder_mid_blocks)
    return encoder, decoder


def latent_scale(model) -> int:
    """f of ``config.model``: pixels a latent along one side."""
    return model.patch * 2 ** (len(model.multipliers) - 1)
