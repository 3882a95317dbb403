"""The three quantizers behind one call, chosen by ``config.quantizer.kind``.

The kind "kl" is none: its latents stay continuous, see `mmx.models.vqgan.codec.KlCodec`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from mmx.core.errors import UserError, choose
from mmx.ops import quantize, vq
from mmx.ops.quantize import Quantized

# Kind -> the fields of ``config.quantizer`` that it reads.
_FIELDS = {
    "vq": ("num_codes", "code_dim", "l2_normalize", "commitment", "ema", "restart_below",
           "entropy", "entropy_temperature"),
    "fsq": ("levels",),
    "lfq": ("bits", "commitment", "entropy", "entropy_temperature"),
    "kl": ("latent_dim", "kl"),
}  # fmt: skip
_SHIPPED = {"vq": "openmoji32", "fsq": "muse256:fsq", "lfq": "muse256:lfq", "kl": "openmoji32_kl"}


def sizes(config) -> tuple[int | None, int]:
    """(num_codes E, width Z) of a quantizer config; E is None where latents stay continuous.

    Raises:
      UserError: an unknown kind, or fields that this kind needs and the config has not.
    """
    fields = choose("config.quantizer.kind", _FIELDS, config.kind)
    if missing := [name for name in fields if name not in config]:
        raise UserError(
            f"config.quantizer.kind={config.kind!r} needs config.quantizer.{missing[0]}, which "
            f"this config has not; start from one that has, such as vqgan/{_SHIPPED[config.kind]}"
        )
    if config.kind == "kl":
        return None, config.latent_dim
    if config.kind == "vq":
        return config.num_codes, config.code_dim
    if config.kind == "fsq":
        num_codes = 1
        for level in config.levels:
            num_codes *= level
        return num_codes, len(config.levels)
    return 2**config.bits, config.bits


def init_state(config, key: jax.Array) -> dict[str, jax.Array]:
    """What the quantizer keeps besides parameters: codebook and running means, or nothing."""
    if config.kind != "vq":
        return {}
    return vq.init_vq(key, config.num_codes, config.code_dim)._asdict()


def quantize_latents(config, state: dict, z: jax.Array) -> Quantized:
    """Latents [..., Z] -> Quantized, as in training: with the auxiliary losses."""
    if config.kind == "vq":
        return vq.vq(
            z,
            state["codebook_EZ"],
            normalize=config.l2_normalize,
            commitment_weight=config.commitment,
            entropy_weight=config.entropy,
            entropy_temperature=config.entropy_temperature,
        )
    if config.kind == "fsq":
        return quantize.fsq(z, config.levels)
    return quantize.lfq(
        z,
        commitment_weight=config.commitment,
        entropy_weight=config.entropy,
        entropy_temperature=config.entropy_temperature,
    )


def update_state(config, state: dict, z, codes, key: jax.Array) -> tuple[dict, dict]:
    """The state after a batch, and metrics: how many codes were dead and started anew."""
    if config.kind != "vq":
        return state, {}
    even_use = codes.size / config.num_codes  # latents a code and batch
    moved = vq.ema_update(
        vq.VQState(**state), z, codes, decay=config.ema, normalize=config.l2_normalize
    )
    moved, restarted = vq.restart_dead(
        moved, z, key, threshold=config.restart_below * even_use, normalize=config.l2_normalize
    )
    metrics = {"codebook/restarted": restarted.astype(jnp.float32)}
    return moved._asdict(), metrics


def seed_state(config, state: dict, z, key: jax.Array) -> dict:
    """k-means over the latents of the first batch a codebook sees; later the state as it is."""
    if config.kind != "vq":
        return state

    def seeded():
        return vq.init_from_vectors(
            key, jax.lax.stop_gradient(z), config.num_codes, normalize=config.l2_normalize
        )._asdict()

    return jax.lax.cond((state["count_E"] == 0).all(), seeded, lambda: state)


def decode_codes(config, state: dict[str, Any], codes: jax.Array) -> jax.Array:
    """Codes int [...] -> vectors [..., Z]."""
    if config.kind == "vq":
        return vq.vq_decode(codes, state["codebook_EZ"], normalize=config.l2_normalize)
    if config.kind == "fsq":
        return quantize.fsq_decode(codes, config.levels)
    return quantize.lfq_decode(codes, config.bits)
