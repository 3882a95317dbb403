"""CLIP's modified ResNet: three-convolution stem, blurred strides, attention pooling.

arXiv 2103.00020 sec. 2.4 and the authors' code: a stride is an average pooling after the 3x3
convolution (and before the shortcut's), which does not alias; the last pooling is one attention
over all positions whose query is their mean.

Axis letters: B batch, H W pixels or features, C channels, L positions.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmx.nn.conv import Conv, downsample
from mmx.nn.encoder import MultiHeadAttention
from mmx.nn.remat import REMAT

EXPANSION = 4  # channels out of a block over those inside
MOMENTUM = 0.9  # of the running statistics; PyTorch's default, which counts from the other end
EPS = 1e-5


class BatchNorm(nn.Module):
    """Batch norm over all rows of the global batch; its running statistics lie in ``batch_stats``.

    On a mesh the means are over every device's rows: the program is of the global batch.

    Attributes:
      scale_start: 0 makes a residual branch start as nothing.
      dtype: of the result; statistics are float32.
    """

    scale_start: float = 1.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, train: bool) -> jax.Array:
        shape = x_BHWC.shape[-1:]
        named = lambda init: nn.with_logical_partitioning(init, ("norm",))
        start = nn.initializers.constant(self.scale_start)
        scale = self.param("scale", named(start), shape, jnp.float32)
        bias = self.param("bias", named(nn.initializers.zeros), shape, jnp.float32)
        stat = lambda name, init: self.variable(
            "batch_stats", name, lambda: named(init)(None, shape, jnp.float32)
        )
        mean, var = stat("mean", nn.initializers.zeros), stat("var", nn.initializers.ones)
        x32 = x_BHWC.astype(jnp.float32)
        use_mean, use_var = mean.value, var.value
        if train:
            use_mean = x32.mean(axis=(0, 1, 2))
            use_var = jnp.square(x32 - use_mean).mean(axis=(0, 1, 2))
            if not self.is_initializing():
                count = x32.size // x32.shape[-1]
                unbiased = use_var * (count / max(count - 1, 1))  # as PyTorch keeps it
                mean.value = MOMENTUM * mean.value + (1 - MOMENTUM) * use_mean
                var.value = MOMENTUM * var.value + (1 - MOMENTUM) * unbiased
        y = (x32 - use_mean) * (jax.lax.rsqrt(use_var + EPS) * scale) + bias
        return y.astype(self.dtype)


class Bottleneck(nn.Module):
    """1x1, 3x3, pool by the stride, 1x1, around a shortcut that pools as well."""

    channels: int
    stride: int
    train: bool
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        conv = lambda features, size, name: Conv(features, size, dtype=self.dtype, name=name)

        def norm(name, x, start=1.0):
            return BatchNorm(start, self.dtype, name=name)(x, self.train)

        h = jax.nn.relu(norm("norm_1", conv(self.channels, 1, "conv_1")(x_BHWC)))
        h = jax.nn.relu(norm("norm_2", conv(self.channels, 3, "conv_2")(h)))
        h = downsample(h) if self.stride == 2 else h
        features = EXPANSION * self.channels
        h = norm("norm_3", conv(features, 1, "conv_3")(h), start=0.0)
        if self.stride == 2 or x_BHWC.shape[-1] != features:
            x_BHWC = downsample(x_BHWC) if self.stride == 2 else x_BHWC
            x_BHWC = norm("shortcut_norm", conv(features, 1, "shortcut")(x_BHWC))
        return jax.nn.relu(x_BHWC + h)


class ModifiedResNet(nn.Module):
    """An image to one vector.

    Attributes:
      blocks: bottlenecks of each of the four stages.
      width: channels of the first stage's inside; the last has 32 times as many outside.
      features: width of the result, the joint embedding's.
      remat: a key of :data:`mmx.nn.remat.REMAT`; of its names only attention's are met here, so
        all but "none" and "dots" compute each block again.
      dtype: of the computation.
    """

    blocks: tuple[int, ...]
    width: int
    features: int
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image_BHWC: jax.Array, train: bool = False) -> jax.Array:
        """float [B, H, W, 3], sides a multiple of 32 -> [B, features]."""
        x, w = image_BHWC.astype(self.dtype), self.width
        for i, features in enumerate((w // 2, w // 2, w), start=1):
            names = ("pixels" if i == 1 else "conv_in", "conv_out")
            stride = 2 if i == 1 else 1
            conv = Conv(features, 3, names=names, stride=stride, dtype=self.dtype, name=f"conv_{i}")
            x = jax.nn.relu(BatchNorm(dtype=self.dtype, name=f"norm_{i}")(conv(x), train))
        x = downsample(x)
        block = Bottleneck
        if self.remat != "none":
            block = nn.remat(Bottleneck, policy=REMAT[self.remat])
        for stage, count in enumerate(self.blocks, start=1):
            for i in range(count):
                stride = 2 if stage > 1 and i == 0 else 1
                name = f"stage_{stage}_block_{i}"
                x = block(w * 2 ** (stage - 1), stride, train, self.dtype, name=name)(x)
        return AttentionPool(w // 2, self.features, self.dtype, name="pool")(x)


class AttentionPool(nn.Module):
    """One attention over all positions and their mean, whose query is the mean."""

    heads: int
    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        """[B, h, w, C] -> [B, features]."""
        B, _, _, C = x_BHWC.shape
        x_BLC = x_BHWC.reshape(B, -1, C)
        x_BLC = jnp.concatenate([x_BLC.mean(axis=1, keepdims=True), x_BLC], axis=1)
        init = nn.with_logical_partitioning(nn.initializers.normal(C**-0.5), ("position", "embed"))
        positions = self.param("positions", init, x_BLC.shape[1:], jnp.float32)
        x_BLC += positions.astype(self.dtype)
        attention = MultiHeadAttention(
            self.heads, self.features, dtype=self.dtype, name="attention"
        )
        return attention(x_BLC[:, :1], x_BLC)[:, 0]
