"""Image latents to vectors of the transformer and back (arXiv 2408.11039 sec. 3.2).

Axis letters: I images, h w latent grid, Z latent channels, S patches, P numbers of a patch,
D width, C channels of the U-Net.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmx.nn.conv import Conv, depth_to_space, downsample, space_to_depth, upsample
from mmx.nn.linear import Dense
from mmx.nn.norm import LayerNorm

_FEATURES = 256  # of the time: ours, as in the code of arXiv 2212.09748
_SLOWEST = 10_000.0  # their longest period, in steps of 1/1000
# Of what is predicted, whatever the computation is in: where there is almost no image left, a clean
# one is the small difference of large numbers, and a bfloat16 carries 8 bits.
_HEAD = jnp.float32


def time_features(t_I: jax.Array) -> jax.Array:
    """Cosines and sines of the diffusion time at many speeds (arXiv 2006.11239): [I, 256]."""
    speed_k = _SLOWEST ** (-jnp.arange(_FEATURES // 2) / (_FEATURES // 2))
    angle_Ik = 1000.0 * t_I.astype(jnp.float32)[:, None] * speed_k
    return jnp.concatenate([jnp.cos(angle_Ik), jnp.sin(angle_Ik)], axis=-1)


class LinearPatches(nn.Module):
    """A linear map in, one out. The time is added to every patch before the map (footnote 4).

    Attributes:
      patch: k, latent pixels a side of a patch.
      width: D.
      grid: h = w.
      latent_dim: Z.
      positions: adds a learned vector a place (ours: the paper has RoPE along the sequence alone).
      dtype: of the computation.
    """

    patch: int
    width: int
    grid: int
    latent_dim: int
    positions: bool = False
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        numbers = self.patch**2 * self.latent_dim
        self.time = Dense(numbers, (None, "pixels"), dtype=self.dtype)
        self.into = Dense(self.width, ("pixels", "embed"), dtype=self.dtype)
        # The first guess is zero: the first loss is the target's variance.
        self.out = Dense(
            numbers, ("embed", "pixels"), dtype=_HEAD, kernel_init=nn.initializers.zeros
        )
        if self.positions:
            self.place = _Places(self.grid // self.patch, self.width, self.dtype)

    def encode(self, z_IhwZ: jax.Array, t_I: jax.Array) -> tuple[jax.Array, tuple]:
        """Noised latents, their times -> (patches in raster order [I, S, D], what decode needs)."""
        patches = space_to_depth(z_IhwZ, self.patch)
        patches_ISP = patches.reshape(patches.shape[0], -1, patches.shape[-1]).astype(self.dtype)
        patches_ISP += self.time(time_features(t_I))[:, None]
        x_ISD = self.into(patches_ISP)
        return (x_ISD + self.place() if self.positions else x_ISD), ()

    def decode(self, h_ISD: jax.Array, kept: tuple) -> jax.Array:
        """[I, S, D] -> what the model predicts, float32 [I, h, w, Z]."""
        del kept
        side = self.grid // self.patch
        out = self.out(h_ISD).reshape(-1, side, side, self.patch**2 * self.latent_dim)
        return depth_to_space(out, self.patch)


class UNetPatches(nn.Module):
    """The down half of a U-Net in, the up half out, with its shortcuts around the transformer.

    Each halving doubles a patch's side. Norms are plain layer norms (footnote 5); the time is added
    inside each block. How many channels and blocks the paper's 0.27B parameters are is not stated.

    Attributes:
      patch: k, a power of two.
      channels: C of the first level; doubled at each level, at most 4 C.
      blocks: residual blocks a level in the down half; the up half has one more.
      width, grid, latent_dim, dtype: as of :class:`LinearPatches`.
    """

    patch: int
    width: int
    grid: int
    latent_dim: int
    channels: int
    blocks: int
    positions: bool = False
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        sizes = [self.channels * min(2**i, 4) for i in range(self.patch.bit_length())]
        block = lambda size: _TimedBlock(size, self.dtype)
        self.stem = Conv(sizes[0], names=("pixels", "conv_out"), dtype=self.dtype)
        self.down = [[block(size) for _ in range(self.blocks)] for size in sizes]
        self.into = Dense(self.width, (None, "embed"), dtype=self.dtype)
        self.back = Dense(sizes[-1], ("embed", None), dtype=self.dtype)
        self.up = [[block(size) for _ in range(self.blocks + 1)] for size in sizes]
        self.norm = LayerNorm(self.dtype)
        self.out = Conv(
            self.latent_dim,
            names=("conv_in", "pixels"),
            use_bias=True,
            dtype=_HEAD,
            kernel_init=nn.initializers.zeros,
        )
        if self.positions:
            self.place = _Places(self.grid // self.patch, self.width, self.dtype)

    def encode(self, z_IhwZ: jax.Array, t_I: jax.Array) -> tuple[jax.Array, tuple]:
        """Noised latents, their times -> (patches in raster order [I, S, D], what decode needs)."""
        time_I = time_features(t_I)
        x, kept = self.stem(z_IhwZ), []
        for level, blocks in enumerate(self.down):
            x = downsample(x) if level else x
            for block in blocks:
                x = block(x, time_I)
                kept.append(x)
        x_ISD = self.into(x.reshape(x.shape[0], -1, x.shape[-1]))
        return (x_ISD + self.place() if self.positions else x_ISD), (*kept, time_I)

    def decode(self, h_ISD: jax.Array, kept: tuple) -> jax.Array:
        """[I, S, D] -> what the model predicts, float32 [I, h, w, Z]."""
        *kept, time_I = kept
        side = self.grid // self.patch
        x = self.back(h_ISD)
        x = x.reshape(-1, side, side, x.shape[-1])
        for level, blocks in reversed(list(enumerate(self.up))):
            for i, block in enumerate(blocks):
                if i:  # the first comes from the level below
                    x = jnp.concatenate([x, kept.pop()], axis=-1)
                x = block(x, time_I)
            x = upsample(x) if level else x
        return self.out(jax.nn.silu(self.norm(x)))


class _TimedBlock(nn.Module):
    """norm, swish, conv, twice, with the time added between, around a shortcut."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_IHWC: jax.Array, time_IF: jax.Array) -> jax.Array:
        h = Conv(self.features, dtype=self.dtype, name="conv_0")(
            jax.nn.silu(LayerNorm(self.dtype, name="norm_0")(x_IHWC))
        )
        h += Dense(self.features, (None, "conv_out"), dtype=self.dtype, name="time")(time_IF)[
            :, None, None
        ]
        h = Conv(self.features, dtype=self.dtype, name="conv_1")(
            jax.nn.silu(LayerNorm(self.dtype, name="norm_1")(h))
        )
        if x_IHWC.shape[-1] != self.features:
            x_IHWC = Conv(self.features, size=1, dtype=self.dtype, name="shortcut")(x_IHWC)
        return x_IHWC + h


class _Places(nn.Module):
    """A learned vector for each row plus one for each column of patches: [S, D]."""

    side: int
    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self) -> jax.Array:
        init = nn.with_logical_partitioning(nn.initializers.normal(0.5), ("position", "embed"))
        row_hD, column_wD = (
            self.param(name, init, (self.side, self.width), jnp.float32)
            for name in ("row", "column")
        )
        places = row_hD[:, None] + column_wD[None]
        return places.reshape(self.side**2, self.width).astype(self.dtype)


PATCHES = {"linear": LinearPatches, "unet": UNetPatches}
