"""What trains an image autoencoder: reconstruction, perceptual distance, a discriminator.

The generator's terms see the discriminator's parameters as constants, and the discriminator's terms
see the reconstruction as a constant, so one gradient of the sum is both players' gradients, and one
optimiser group a player makes a GAN of it with no second loop.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmx.core import rng as rngs
from mmx.core import tree
from mmx.core.errors import UserError, choose
from mmx.nn.discriminator import DISCRIMINATORS
from mmx.nn.dtypes import DTYPES
from mmx.ops import losses
from mmx.pretrained.vgg import (
    abstract_vgg16,
    keep_vgg,
    load_vgg,
    perceptual_distance,
    vgg_features,
)

G_LOSS = {"hinge": losses.hinge_g, "non_saturating": losses.non_saturating_g}
D_LOSS = {"hinge": losses.hinge_d, "non_saturating": losses.non_saturating_d}


class Players(NamedTuple):
    """The adversarial terms of a batch.

    generator, discriminator: float32 scalars, weighted; the sum's gradient moves each player alone.
    extra: as the batch leaves it.
    metrics: float32 scalars.
    """

    generator: jax.Array | float
    discriminator: jax.Array | float
    extra: dict
    metrics: dict[str, jax.Array]


class ImageLosses:
    """The losses of ``config.loss`` and the networks that they need.

    Args:
      config: of an autoencoder of images.
      run: the run directory, where the perceptual network is kept; None leaves it where it is.
      abstract: shapes only: the perceptual network is taken to be vgg16, and no file is read.

    Raises:
      UserError: images too small for the discriminator or the perceptual network; an unknown
        choice; a perceptual network that cannot be read.
    """

    def __init__(self, config, run=None, abstract: bool = False):
        self.config = config
        self.discriminator = self._make_discriminator() if config.loss.adversarial else None
        self._perceptual, self._pools = [], ()
        if config.loss.perceptual and abstract:
            self._perceptual, self._pools = abstract_vgg16()
        elif config.loss.perceptual:
            if "perceptual_weights" not in config.loss:
                raise UserError(
                    f"config.loss.perceptual={config.loss.perceptual}: this config names no "
                    "weights for it; start from one that does: vqgan/muse256, vqgan/muse512"
                )
            path = config.loss.perceptual_weights
            if run is not None:
                path = keep_vgg(path, run.stage("perceptual") / "weights.safetensors")
            self._perceptual, self._pools = load_vgg(path)
        self._check_halvings("the perceptual network", sum(self._pools))

    def _make_discriminator(self):
        d = self.config.get("discriminator")
        if d is None:
            raise UserError(
                "config.loss.adversarial is not 0, but this config has no discriminator; start "
                "from one that has: vqgan/muse256, vqgan/muse512"
            )
        choose("config.loss.gan", G_LOSS, self.config.loss.gan)
        make = choose("config.discriminator.kind", DISCRIMINATORS, d.kind)
        self._check_halvings("config.discriminator.levels", d.levels)
        return make(d.channels, d.levels, DTYPES[self.config.dtype])

    def _check_halvings(self, what: str, count: int) -> None:
        size = self.config.data.image_size
        if size >> count < 1:
            raise UserError(
                f"config.data.image_size={size}: {what} halves it {count} times, which leaves "
                "nothing"
            )

    def init(self, key: jax.Array) -> tuple[dict, dict]:
        """(params, extra) of the discriminator, every leaf logically named; empty without one."""
        if self.discriminator is None:
            return {}, {}
        size = self.config.data.image_size
        image = jnp.zeros((1, size, size, 3))
        params = self.discriminator.init(rngs.stream(key, "discriminator"), image)["params"]
        lecam = {"lecam": losses.init_lecam()._asdict()} if self.config.loss.lecam else {}
        return {"discriminator": params}, lecam

    def frozen(self) -> dict:
        """The perceptual network's weights on the host, an empty list without one."""
        return {"perceptual": self._perceptual}

    def param_labels(self, params: Any) -> Any:
        """ "disc" for the discriminator, "main" for the rest: one optimiser group a player."""
        return tree.map_with_path(
            lambda path, _: "disc" if path.startswith("discriminator/") else "main",
            params,
            is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned),
        )

    def reconstruction(self, frozen, image_BHWC, recon_BHWC) -> tuple[jax.Array, dict]:
        """:func:`reconstruction_loss` with the weights of :meth:`frozen`."""
        layers = frozen["perceptual"], self._pools
        return reconstruction_loss(self.config.loss, image_BHWC, recon_BHWC, layers)

    def players(self, params, extra: dict, image_BHWC, recon_BHWC, step, train: bool) -> Players:
        """:func:`adversarial_loss` by the discriminator, if there is one."""
        if self.discriminator is None:
            return Players(0.0, 0.0, extra, {})
        generator, discriminator, lecam, metrics = adversarial_loss(
            self.config.loss,
            lambda params, x: self.discriminator.apply({"params": params}, x),
            params["discriminator"],
            extra.get("lecam", {}),
            image_BHWC,
            recon_BHWC,
            step,
            train,
        )
        extra = extra | {"lecam": lecam} if lecam else extra
        return Players(generator, discriminator, extra, metrics)


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
      (the generator's weighted term, the discriminator's, new lecam, metrics).
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
    return on * config.adversarial * g, on * d, lecam, metrics
