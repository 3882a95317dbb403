"""L = L_LM + lambda L_diffusion (arXiv 2408.11039 eq. 4) over packed rows.

Axis letters: B batch, L length, M images of a row, h w latent grid, Z latent channels.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmx.core import rng as rngs
from mmx.core.errors import choose
from mmx.models.transfusion.rows import NO_LABEL
from mmx.ops.diffusion.inputs import INPUTS, read
from mmx.ops.diffusion.predictions import check, q_sample, target
from mmx.ops.diffusion.schedules import SCHEDULES, Schedule
from mmx.ops.diffusion.times import TIMES
from mmx.ops.diffusion.weightings import WEIGHTINGS, loss_weight


class Process(NamedTuple):
    """The diffusion of the images: names of `mmx.ops.diffusion`, and the schedule itself."""

    schedule: Schedule
    prediction: str
    weighting: str
    times: str
    input: str = "z"


def make_process(of) -> Process:
    """Of ``config.diffusion``. Raises UserError for an unknown name."""
    schedule = choose("config.diffusion.schedule", SCHEDULES, of.schedule)
    check(schedule, of.prediction, "config.diffusion.prediction")
    process = Process(schedule, of.prediction, of.weighting, of.times, of.get("input", "z"))
    for name, table in (("weighting", WEIGHTINGS), ("times", TIMES), ("input", INPUTS)):
        choose(f"config.diffusion.{name}", table, getattr(process, name))
    return process


class Noised(NamedTuple):
    """Images at the times of a step.

    Attributes:
      z: latents at their times, float32 [B, M, h, w, Z].
      t: float32 [B, M]; 0 is clean.
      eps: the noise in them.
    """

    z: jax.Array
    t: jax.Array
    eps: jax.Array


def noise_images(
    key: jax.Array, position_B: jax.Array, x_BMhwZ: jax.Array, limit_BM: jax.Array, process: Process
) -> Noised:
    """Each image at a time of its own, up to its limit (sec. 3.3); a limit of 0 leaves it clean."""
    per_row = jax.vmap(lambda k: jax.random.uniform(k, limit_BM.shape[1:]))
    u_BM = per_row(rngs.row_keys(key, "time", position_B))
    u_BM = jnp.clip(u_BM, 1e-6, 1 - 1e-6)
    t_BM = limit_BM * TIMES[process.times](u_BM, process.schedule)
    normal = jax.vmap(lambda k: jax.random.normal(k, x_BMhwZ.shape[1:]))
    eps_BMhwZ = normal(rngs.row_keys(key, "noise", position_B))
    return Noised(add_noise(x_BMhwZ, eps_BMhwZ, t_BM, process), t_BM, eps_BMhwZ)


def add_noise(x_BMhwZ, eps_BMhwZ, t_BM, process: Process) -> jax.Array:
    """``alpha x + sigma eps``; at time 0 exactly x, as a clean image is at sampling."""
    z = q_sample(process.schedule, x_BMhwZ, eps_BMhwZ, t_BM)
    return jnp.where(t_BM[..., None, None, None] > 0, z, x_BMhwZ)


def as_read(z_BMhwZ: jax.Array, t_BM: jax.Array, process: Process) -> jax.Array:
    """What the network reads of latents at their times; a clean image is always read as it is."""
    scaled = read(process.input, process.schedule, z_BMhwZ, t_BM)
    return jnp.where(t_BM[..., None, None, None] > 0, scaled, z_BMhwZ)


def diffusion_loss(
    out_BMhwZ: jax.Array, x_BMhwZ: jax.Array, noised: Noised, limit_BM: jax.Array, process: Process
) -> tuple[jax.Array, jax.Array]:
    """Mean over the learned images of the mean over an image's numbers (the paper says no more).

    Returns:
      (scalar, 0 where no image is learned; how many are).
    """
    error_BM, learned_BM = image_errors(out_BMhwZ, x_BMhwZ, noised, limit_BM, process)
    count = learned_BM.sum()
    return error_BM.sum() / jnp.maximum(count, 1), count


def image_errors(
    out_BMhwZ: jax.Array, x_BMhwZ: jax.Array, noised: Noised, limit_BM: jax.Array, process: Process
) -> tuple[jax.Array, jax.Array]:
    """(the weighted error of each image [B, M], 0 where none is learned; which are, bool)."""
    learned_BM = limit_BM > 0
    # A place without an image has a time too, in range for every schedule.
    t_BM = jnp.where(learned_BM, noised.t, 0.5)
    wanted = target(process.prediction, process.schedule, x_BMhwZ, noised.eps, t_BM)
    error_BM = jnp.square(out_BMhwZ - wanted).mean(axis=(2, 3, 4))
    error_BM *= loss_weight(process.weighting, process.prediction, process.schedule, t_BM)
    return jnp.where(learned_BM, error_BM, 0.0), learned_BM


def text_weights(labels_BL: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(the weight of each position in the mean over learned ids, how many those are)."""
    learned_BL = labels_BL != NO_LABEL
    count = learned_BL.sum()
    return learned_BL / jnp.maximum(count, 1), count
