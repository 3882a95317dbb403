"""Guidance: one denoiser made of a conditional and an unconditional one.

Legend: B rows; `...` any shape.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Denoise = Callable[[jax.Array, jax.Array], jax.Array]
Both = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def guide(
    both: Both,
    scale: float | jax.Array,
    interval: tuple[float, float] = (0.0, 1.0),
    rescale: float = 0.0,
) -> Denoise:
    """``x0 = uncond + scale (cond - uncond)``.

    x0 is linear in eps, v and velocity at a given z and t: this is guidance in each of them.

    Args:
      both: (z [B, ...], t [B]) -> (x0 of the conditional branch, of the unconditional one).
      scale: w of arXiv 2207.12598 plus 1; 1 is the conditional branch exactly, 0 the other one. A
        number, or one a row [B].
      interval: the times, ends included, at which there is guidance (arXiv 2404.07724); elsewhere
        the conditional branch is taken as it is.
      rescale: in [0, 1], how far a row's standard deviation is brought back to that of its
        conditional branch (arXiv 2305.08891 sec. 3.4, there on the network's output).

    Returns:
      A denoiser (z, t) -> x0.
    """

    def denoise(z, t_B):
        cond, uncond = both(z, t_B)
        inside_B = (interval[0] <= t_B) & (t_B <= interval[1])
        scale_B = jnp.where(inside_B, scale, 1.0).reshape(-1, *[1] * (z.ndim - 1))
        # In this form 1 and 0 give a branch to the last bit.
        x0 = scale_B * cond + (1 - scale_B) * uncond
        if rescale:
            axes = tuple(range(1, z.ndim))
            spread = lambda x: jnp.maximum(x.std(axes, keepdims=True), 1e-12)
            x0 = x0 * (1 + rescale * (spread(cond) / spread(x0) - 1))
        return x0

    return denoise
