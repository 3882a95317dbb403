"""What a network reads of ``z = alpha x0 + sigma eps``: z in a scale of its own at each time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mmx.ops.diffusion.schedules import Schedule


def _mean(schedule: Schedule, t: jax.Array) -> jax.Array:
    """``E[x0 | z] = alpha z / (alpha^2 + sigma^2)`` of a standard normal x0.

    Ours, for latents of unit variance: the scale of EDM's shortcut (arXiv 2206.00364 table 1,
    c_skip) put at the input. Near t = 1, where z is noise and the text alone decides an image, the
    network reads almost nothing of it.
    """
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return alpha / (jnp.square(alpha) + jnp.square(sigma))


# Name -> (schedule, t) -> the factor of z.
INPUTS: dict[str, Callable[[Schedule, jax.Array], jax.Array]] = {
    "z": lambda schedule, t: jnp.ones_like(t),
    "mean": _mean,
}


def read(name: str, schedule: Schedule, z: jax.Array, t: jax.Array) -> jax.Array:
    """The input of the network.

    Args:
      name: a key of ``INPUTS``.
      schedule: of the noise.
      z: noised latents.
      t: times, broadcast over the trailing axes of z.

    Returns:
      of the shape of z.
    """
    t = t.reshape(t.shape + (1,) * (z.ndim - t.ndim))
    return z * INPUTS[name](schedule, t)
