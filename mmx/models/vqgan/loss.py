"""One loss for both players: reconstruction, perceptual, adversarial, quantizer.

The generator's terms see the discriminator's parameters as constants, and the discriminator's terms
see the reconstruction as a constant, so one gradient of the sum is both players' gradients, and one
optimiser group a player makes a GAN of it with no second loop.
"""

from typing import Any

import jax
import jax.numpy as jnp

from mmx.ops import losses
from mmx.pretrained.vgg import perceptual_distance, vgg_features

G_LOSS = {"hinge": losses.hinge_g, "non_saturating": losses.non_saturating_g}
D_LOSS = {"hinge": losses.hinge_d, "non_saturating": losses.non_saturating_d}


def reconstruction_loss(config, image_BHWC, recon_BHWC, perceptual_layers) -> tuple[Any, dict]:
    """Weighted L1, L2 and perceptual distance; metrics hold each without its weight."""
    parts = {"l1": losses.l1(recon_BHWC, image_BHWC), "l2": losses.l2(recon_BHWC, image_BHWC)}
    total = config.l1 * parts["l1"] + config.l2 * parts["l2"]
    if config.perceptual:
        layers, pools = perceptual_layers
        real, fake = (vgg_features(layers, x, pools) for x in (image_BHWC, recon_BHWC))
        parts["perceptual"] = perceptual_distance(real, fake)
        total += config.perceptual * parts["perceptual"]
    return total, {f"loss/{name}": value for name, value in parts.items()}


def adversarial_loss(config, apply_d, d_params, lecam, image_BHWC, recon_BHWC, step, train):
    """Both players' adversarial terms.

    Args:
      config: ``config.loss``.
      apply_d: (params, images) -> logits.
      d_params: of the discriminator.
      lecam: running means of the logits, a dict, or {} without LeCam.
      image_BHWC, recon_BHWC: real images and reconstructions.
      step: int32; before ``config.gan_start`` neither player sees the other.
      train: whether LeCam's running means move.

    Returns:
      (scalar, new lecam, metrics).
    """
    frozen_d = jax.lax.stop_gradient(d_params)
    on = (step >= config.gan_start).astype(jnp.float32)
    g = G_LOSS[config.gan](apply_d(frozen_d, recon_BHWC))

    real = apply_d(d_params, image_BHWC)
    fake = apply_d(d_params, jax.lax.stop_gradient(recon_BHWC))
    d = D_LOSS[config.gan](real, fake)
    metrics = {
        "loss/g_adversarial": g,
        "loss/d_adversarial": d,
        "d/real_logit": real.mean(),
        "d/fake_logit": fake.mean(),
    }
    if config.r1:
        metrics["loss/d_r1"] = losses.r1_penalty(lambda x: apply_d(d_params, x), image_BHWC)
        # The public code of MaskGIT and MAGVIT: cost times E |g|^2, no gamma / 2.
        d += config.r1 * metrics["loss/d_r1"]
    if config.lecam:
        state = losses.LecamState(**lecam)
        metrics["loss/d_lecam"] = losses.lecam_penalty(state, real, fake)
        d += config.lecam * metrics["loss/d_lecam"]
        if train:
            moved = losses.update_lecam(state, real, fake)._asdict()
            lecam = jax.tree.map(lambda new, old: jnp.where(on > 0, new, old), moved, lecam)
    return on * (config.adversarial * g + d), lecam, metrics
