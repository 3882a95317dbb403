"""Continuous latents: a normal posterior for each number, its draw, its KL, and their moments.

Legend: B batch, h w latent grid, Z latent width; `...` any shape.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

_LEAST_VAR = 1e-12  # of a channel that says nothing: its latents stay finite


def kl_to_normal(mean: jax.Array, log_var: jax.Array) -> jax.Array:
    """KL of N(mean, exp(log_var)) from N(0, 1) in nats, [...], one for each number; 0 at (0, 0).

    Source: arXiv 1312.6114 app. B.
    """
    return 0.5 * (jnp.square(mean) + jnp.expm1(log_var) - log_var)


def draw_posterior(mean_BhwZ: jax.Array, log_var_BhwZ: jax.Array, keys_B: jax.Array) -> jax.Array:
    """mean + std * noise, float32 [B, h, w, Z]; the noise of a row is of its key alone.

    Source: arXiv 1312.6114 sec. 2.4.
    """
    noise = jax.vmap(lambda key: jax.random.normal(key, mean_BhwZ.shape[1:]))(keys_B)
    return mean_BhwZ + jnp.exp(0.5 * log_var_BhwZ) * noise


class Moments(NamedTuple):
    """Mean and variance of each channel over many batches, the later ones weighing more.

    mean_Z, var_Z: float32.
    count: float32 scalar, batches so far; before the first one the moments are 0 and 1.
    """

    mean_Z: jax.Array
    var_Z: jax.Array
    count: jax.Array


def init_moments(width: int) -> Moments:
    """Moments before any batch: those with which nothing is changed."""
    return Moments(jnp.zeros(width), jnp.ones(width), jnp.zeros(()))


def update_moments(moments: Moments, z: jax.Array, decay: float) -> Moments:
    """The moments after one more batch of latents [..., Z]; no gradient passes.

    They are those of all latents of all batches, where the batch of k updates ago has the weight
    ``decay ** k``: also right after the first, and of the spread between batches too.
    """
    z_NZ = jax.lax.stop_gradient(z).reshape(-1, z.shape[-1]).astype(jnp.float32)
    mean_Z, var_Z = z_NZ.mean(0), z_NZ.var(0)
    count = moments.count + 1
    share = (1 - decay) / -jnp.expm1(count * math.log(decay))  # exactly 1 at first, as 1 - decay**n
    shift_Z = mean_Z - moments.mean_Z
    return Moments(
        moments.mean_Z + share * shift_Z,
        (1 - share) * (moments.var_Z + share * jnp.square(shift_Z)) + share * var_Z,
        count,
    )


def normalize(moments: Moments, z: jax.Array) -> jax.Array:
    """Latents [..., Z] -> mean 0 and standard deviation 1 a channel."""
    return (z - moments.mean_Z) / std(moments)


def denormalize(moments: Moments, z: jax.Array) -> jax.Array:
    """The inverse of :func:`normalize`."""
    return z * std(moments) + moments.mean_Z


def std(moments: Moments) -> jax.Array:
    """float32 [Z], above 0."""
    return jnp.sqrt(jnp.maximum(moments.var_Z, _LEAST_VAR))
