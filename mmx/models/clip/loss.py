"""The contrastive loss of a batch, and the gradient cache that fits a batch into less memory.

Axis letters: B batch, n parts of a batch.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mmx.core.errors import UserError, choose
from mmx.ops.contrastive import FORMS, WHOLE, contrastive_loss


def check_config(config) -> None:
    """Refuse a ``config.loss`` that cannot be followed.

    Raises:
      UserError: names the field.
    """
    loss = config.loss
    choose("config.loss.kind", WHOLE, loss.kind)
    choose("config.loss.form", dict.fromkeys(FORMS), loss.form)
    if (loss.kind == "sigmoid") != ("bias_start" in config.model):
        raise UserError(
            f"config.loss.kind={loss.kind!r}: sigmoid needs config.model.bias_start, softmax does "
            "not see a bias; start from a config of the other kind"
        )
    if loss.cached < 1 or config.batch_size % loss.cached:
        raise UserError(
            f"config.loss.cached={loss.cached}: give a number of parts that divides "
            f"config.batch_size={config.batch_size}"
        )
    if loss.cached > 1 and config.model.image.kind == "resnet":
        raise UserError(
            f"config.loss.cached={loss.cached}: a ResNet's batch norm sees all rows at once; use 1"
        )


def embed_cached(embed: Callable, rows, parts: int):
    """``embed(rows)`` part by part, and its backward pass part by part as well.

    Gradient caching (arXiv 2101.06983 sec. 3): embeddings of all parts are kept, what leads to them
    is not; the loss is of the whole batch; then each part is embedded again and the gradient of its
    embeddings led back. Here: a loop whose turns are rematerialised, whose derivative is just that.

    Args:
      embed: tree of rows [b, ...] -> tree of rows [b, ...]; rows do not see each other.
      rows: tree of rows [B, ...].
      parts: n, must divide B; 1 is ``embed(rows)``.
    """
    if parts == 1:
        return embed(rows)
    # Interleaved, so that each part is spread over all devices as the batch is.
    split = lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)
    join = lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:])
    return jax.tree.map(join, jax.lax.map(jax.checkpoint(embed), jax.tree.map(split, rows)))


def pair_loss(config, image_BE, text_BE, log_scale, bias) -> tuple[jax.Array, dict]:
    """The loss of ``config.loss`` -> (scalar in nats, metrics)."""
    loss = contrastive_loss(config.kind, config.form, image_BE, text_BE, log_scale, bias)
    cosine = (image_BE * text_BE).sum(-1).mean()
    metrics = {"logits/scale": jnp.exp(log_scale), "pairs/cosine": cosine}
    return loss, metrics | ({"logits/bias": bias} if config.kind == "sigmoid" else {})
