"""LPIPS: a perceptual distance of two images, VGG-16's features with weights fitted to judgements.

The linear heads come from the package ``lpips`` (version 0.1 of them, BSD licence), the
convolutions from a file of torchvision's vgg16 that the user names.

Source: arXiv 1801.03924 eq. 1. B batch, H W pixels, C channels.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from mmx.core.errors import UserError
from mmx.pretrained.convolutions import check_shapes
from mmx.pretrained.vgg import layers_of, vgg16_shapes, vgg_features

_CHANNELS = (64, 128, 256, 512, 512)  # of the layers that are compared


def convert(vgg: Mapping[str, np.ndarray], heads: Mapping[str, np.ndarray], file: str) -> dict:
    """{"vgg": torchvision's names -> tensors, "heads": {"0": [C], ...}}.

    Raises:
      UserError: not a plain vgg16 (lists what of it is missing, extra or of another shape), or no
        heads of LPIPS for it.
    """
    vgg = {name: tensor for name, tensor in vgg.items() if name.startswith("features.")}
    check_shapes(vgg, vgg16_shapes(), file)
    found = {}
    for i, channels in enumerate(_CHANNELS):
        head = heads.get(f"lin{i}.model.1.weight")
        if head is None or head.shape != (1, channels, 1, 1):
            raise UserError(f"no linear heads of LPIPS for VGG in the package: lin{i}")
        found[str(i)] = head.reshape(channels)
    return {"vgg": vgg, "heads": found}


def distance(weights: dict, a_BHWC: jax.Array, b_BHWC: jax.Array) -> jax.Array:
    """float32 [B], 0 for equal images.

    Args:
      weights: of :func:`convert`.
      a_BHWC, b_BHWC: float32 in [-1, 1].
    """
    layers, pools = layers_of(weights["vgg"], "lpips")
    heads = [weights["heads"][str(i)] for i in range(len(_CHANNELS))]
    taps = (vgg_features(layers, x, pools) for x in (a_BHWC, b_BHWC))
    total = jnp.zeros(len(a_BHWC))
    for a, b, head in zip(*taps, heads, strict=True):
        difference = jnp.square(_unit(a) - _unit(b)) @ head
        total += difference.mean((1, 2))
    return total


def _unit(x: jax.Array) -> jax.Array:
    return x / (jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True)) + 1e-10)
