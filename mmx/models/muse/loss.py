"""Masked-code prediction (arXiv 2301.00704 sec. 2.3, 2.6): hide codes, predict the hidden ones.

Axis letters: B batch, S image codes, T text tokens.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mmx.core import rng as rngs
from mmx.core.errors import UserError, choose
from mmx.ops import masking

WEIGHTINGS = ("row", "code")


def check_config(config) -> None:
    """Refuse a ``config.loss`` that :func:`drop_text` and :func:`masked_loss` cannot follow.

    Raises:
      UserError: names the field.
    """
    choose("config.loss.weighting", dict.fromkeys(WEIGHTINGS), config.weighting)
    if not 0 <= config.text_drop <= 1:
        raise UserError(f"config.loss.text_drop={config.text_drop}: give a share from 0 to 1")
    if not 0 <= config.label_smoothing < 1:
        raise UserError(
            f"config.loss.label_smoothing={config.label_smoothing}: give 0 or more, below 1"
        )


def hide(key: jax.Array, position_B: jax.Array, codes_BS: jax.Array, mask_id: int):
    """Hide a share of each row's codes, drawn from Muse's law.

    Returns:
      (ids_BS with ``mask_id`` where hidden, is_masked_BS).
    """
    rate_B = masking.sample_mask_rate(rngs.row_keys(key, "mask_rate", position_B))
    return hide_at(key, position_B, codes_BS, mask_id, rate_B)


def hide_at(key, position_B, codes_BS, mask_id: int, rate_B: jax.Array):
    """As :func:`hide`, at given rates [B]."""
    keys_B = rngs.row_keys(key, "mask", position_B)
    is_masked_BS = masking.exact_mask(keys_B, rate_B, codes_BS.shape[1])
    return jnp.where(is_masked_BS, mask_id, codes_BS), is_masked_BS


def text_of(batch: dict, name: str = "text") -> jax.Array:
    """A batch's text for :meth:`mmx.models.muse.task.MuseTask.logits`.

    ``<name>_emb`` float [B, T, ``config.text.width``] where the batch has it: what a frozen encoder
    gave, cached with the data. Else ``<name>_ids`` int [B, T], for the learned encoder.
    """
    return batch[f"{name}_emb"] if f"{name}_emb" in batch else batch[f"{name}_ids"]


def drop_text(key, position_B, text_mask_BT: jax.Array, rate: float) -> jax.Array:
    """The text masks with whole rows dropped at ``rate``: then only the null slot is attended."""
    keep_B = masking.keep_text(rngs.row_keys(key, "text_drop", position_B), rate)
    return text_mask_BT & keep_B[:, None]


def masked_loss(
    apply: Callable,
    codes_BS,
    ids_BS,
    is_masked_BS,
    text_mask_BT,
    label_smoothing: float,
    weighting: str,
) -> tuple[jax.Array, dict]:
    """Mean over rows of the cross entropy at each row's hidden codes.

    Args:
      apply: (ids_BS, text_mask_BT) -> logits_BSV.
      weighting: "row": each row counts once, whatever its mask rate (MaskGIT's code). "code": each
        hidden code counts once, so rows weigh by their mask rate over its mean 2/pi; the same in
        expectation as averaging over all hidden codes of the batch, with no row seeing another.
        The paper does not say which.

    Returns:
      (scalar in nats, metrics).
    """
    logits_BSV = apply(ids_BS, text_mask_BT)
    loss_B, accuracy_B = masking.masked_cross_entropy(
        logits_BSV, codes_BS, is_masked_BS, label_smoothing
    )
    if weighting == "code":
        loss_B = loss_B * is_masked_BS.mean(axis=1) * (jnp.pi / 2)
    return loss_B.mean(), {"accuracy": accuracy_B.mean()}
