"""Normalisation over the last axis; statistics always in float32."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned scale, no mean, no bias (arXiv 1910.07467).

    ``offset`` is added to the scale: 1 in Gemma's weights.
    """

    dtype: jnp.dtype = jnp.float32
    eps: float = 1e-6
    scale_start: float = 1.0
    offset: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param(
            "scale",
            nn.with_logical_partitioning(nn.initializers.constant(self.scale_start), ("norm",)),
            (x.shape[-1],),
            jnp.float32,
        )
        x32 = x.astype(jnp.float32)
        inv = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        if self.offset:
            scale = scale.astype(jnp.float32) + self.offset
        return (x32 * inv * scale).astype(self.dtype)


class LayerNorm(nn.Module):
    """Layer norm with a learned scale, and a bias where one is asked for."""

    dtype: jnp.dtype = jnp.float32
    eps: float = 1e-6
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        param = lambda name, init: self.param(
            name, nn.with_logical_partitioning(init, ("norm",)), (x.shape[-1],), jnp.float32
        )
        x32 = x.astype(jnp.float32)
        centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        inv = jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + self.eps)
        y = centred * inv * param("scale", nn.initializers.ones)
        if self.use_bias:
            y = y + param("bias", nn.initializers.zeros)
        return y.astype(self.dtype)
