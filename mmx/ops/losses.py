"""Losses of image tokenizers: reconstruction, both players of a GAN, and its two penalties.

All give float32 whatever comes in. Legend: B batch, H W pixels, C channels; `...` any shape.
A discriminator's logits may be one a row ([B]) or a map of patches ([B, h, w, 1]).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


def _f32(x):
    return x.astype(jnp.float32)


def l1(a: jax.Array, b: jax.Array) -> jax.Array:
    """float32 scalar: mean absolute difference of two arrays of one shape."""
    return jnp.abs(_f32(a) - _f32(b)).mean()


def l2(a: jax.Array, b: jax.Array) -> jax.Array:
    """float32 scalar: mean squared difference of two arrays of one shape."""
    return jnp.square(_f32(a) - _f32(b)).mean()


def psnr(a_BHWC: jax.Array, b_BHWC: jax.Array) -> jax.Array:
    """float32 [B]: peak signal-to-noise ratio in dB of images or videos in [-1, 1], at most 100.

    The peak is 2, the width of the range. Nothing is clipped or rounded to 8 bits here.
    """
    error_B = jnp.square(_f32(a_BHWC) - _f32(b_BHWC)).mean(tuple(range(1, a_BHWC.ndim)))
    return 10 * jnp.log10(4 / jnp.maximum(error_B, 4e-10))


def hinge_d(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Discriminator's hinge loss: mean relu(1 - real) + mean relu(1 + fake).

    Args:
      real, fake: logits [...] of real and of generated images, high = looks real.

    Source: arXiv 1802.05957 eq. 16.
    """
    return jax.nn.relu(1 - _f32(real)).mean() + jax.nn.relu(1 + _f32(fake)).mean()


def hinge_g(fake: jax.Array) -> jax.Array:
    """Generator's side of the hinge loss: -mean of the logits. Source: arXiv 1802.05957 eq. 17."""
    return -_f32(fake).mean()


def non_saturating_d(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Discriminator's logistic loss: mean softplus(-real) + mean softplus(fake).

    Source: arXiv 1406.2661 eq. 1, as a loss on logits.
    """
    return jax.nn.softplus(-_f32(real)).mean() + jax.nn.softplus(_f32(fake)).mean()


def non_saturating_g(fake: jax.Array) -> jax.Array:
    """Generator's side: mean softplus(-fake). Source: arXiv 1406.2661 sec. 3."""
    return jax.nn.softplus(-_f32(fake)).mean()


def r1_penalty(logits_fn: Callable[[jax.Array], jax.Array], real_BHWC: jax.Array) -> jax.Array:
    """Zero-centred gradient penalty: mean over rows of |d logit / d image|^2 at real images.

    A map of patches counts by its mean per row (ours), so a row's logit is one number. Multiply
    by gamma / 2 for the paper's form.

    Args:
      logits_fn: images [B, H, W, C] -> logits [B, ...], rows independent of each other.
      real_BHWC: real images.

    Returns:
      float32 scalar.

    Source: arXiv 1801.04406 eq. 9.
    """

    def sum_of_logits(image_BHWC):
        logits = _f32(logits_fn(image_BHWC))
        return logits.reshape(logits.shape[0], -1).mean(-1).sum()

    gradient_BHWC = jax.grad(sum_of_logits)(_f32(real_BHWC))
    return jnp.square(gradient_BHWC).sum((1, 2, 3)).mean()


class LecamState(NamedTuple):
    """Running means of the discriminator's logits, float32 scalars, 0 at the start."""

    real: jax.Array
    fake: jax.Array


def init_lecam() -> LecamState:
    """Running means before any batch."""
    return LecamState(jnp.zeros(()), jnp.zeros(()))


def update_lecam(
    state: LecamState, real: jax.Array, fake: jax.Array, decay: float = 0.999
) -> LecamState:
    """Running means after a batch of logits; no gradient passes. Decay 0.999: ours."""

    def move(mean, logits):
        return decay * mean + (1 - decay) * jax.lax.stop_gradient(_f32(logits)).mean()

    return LecamState(move(state.real, real), move(state.fake, fake))


def lecam_penalty(state: LecamState, real: jax.Array, fake: jax.Array) -> jax.Array:
    """Pulls real logits to the mean of the fake ones and back: mean (real - fake mean)^2 + ...

    Args:
      state: running means, as constants.
      real, fake: the discriminator's logits [...] of this batch.

    Returns:
      float32 scalar, for the discriminator's loss.

    Source: arXiv 2104.03310 sec. 3, the squared form.
    """
    state = jax.lax.stop_gradient(state)
    to_fake = jnp.square(_f32(real) - state.fake).mean()
    return to_fake + jnp.square(_f32(fake) - state.real).mean()
