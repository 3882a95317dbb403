"""Contrastive losses of image-text pairs, on one device or over the rows of a mesh.

Pair i is row i of both embeddings; every other combination in the *global* batch is a negative.

- softmax: symmetric InfoNCE (arXiv 2103.00020 fig. 3), the mean of the two cross entropies.
- sigmoid: SigLIP (arXiv 2303.15343 eq. 1), each of the B^2 combinations a decision of its own;
  their sum over B, not over B^2.

On a mesh each device holds B/R rows, and the loss has two forms of one value and one gradient:

- gather: all rows of the other tower come to each device: logits of [B/R, B].
- ring: blocks of the texts travel round the devices: logits of [B/R, B/R], R times. Rows keep a
  running log-sum-exp; that of the columns travels with the texts.
  The backward pass computes each block's logits again, else the ring would save nothing.

MiB of temporaries on each of 8 devices, value and gradient, width 512, float32, as compiled by
`experiments/scale/contrastive_memory.py` ("global": the plain loss, spread by the compiler):

    loss     batch      global   gather     ring
    softmax    4096         32       73       14
    softmax   32768       2112     3272      449
    sigmoid    4096         24       32       13
    sigmoid   32768       1600     1600      272

Over 256 devices a row block of 32,768 is 16 MiB, and either form will do: configs take gather, one
exchange instead of R - 1 that wait for each other, and no logits computed again. Ring is for a few
devices and a large batch.

Axis letters: B rows of the global batch, b rows of a device, D width of the embeddings, R devices.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mmx.core.partition import RULES

FORMS = ("gather", "ring")


def unit(x_BD: jax.Array) -> jax.Array:
    """Rows of length 1, float32 (or wider); a row of zeros stays one."""
    x_BD = x_BD.astype(jnp.promote_types(x_BD.dtype, jnp.float32))
    return x_BD * jax.lax.rsqrt(jnp.maximum(jnp.square(x_BD).sum(-1, keepdims=True), 1e-24))


def logits(image_BD: jax.Array, text_CD: jax.Array, log_scale: jax.Array, bias=0.0) -> jax.Array:
    """``exp(log_scale) * image @ text.T + bias``, [B, C].

    In full precision: the scale reaches 100, so that what a product in bfloat16 loses would be
    0.4 of a logit; next to the towers it costs nothing.
    """
    product = jnp.matmul(image_BD, text_CD.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.exp(log_scale) * product + bias


def _own(image_bD, text_bD, log_scale, bias) -> jax.Array:
    """The logit of each pair itself, [b]."""
    return jnp.exp(log_scale) * (image_bD * text_bD).sum(-1) + bias


def _softmax_whole(image_BD, text_BD, log_scale, bias) -> jax.Array:
    logits_BB = logits(image_BD, text_BD, log_scale, bias)
    lse = jax.nn.logsumexp
    both_B = (lse(logits_BB, axis=1) + lse(logits_BB, axis=0)) / 2
    return (both_B - jnp.diagonal(logits_BB)).mean()


def _sigmoid_whole(image_BD, text_BD, log_scale, bias) -> jax.Array:
    logits_BB = logits(image_BD, text_BD, log_scale, bias)
    is_pair_BB = jnp.eye(len(logits_BB), dtype=bool)
    return -jax.nn.log_sigmoid(jnp.where(is_pair_BB, logits_BB, -logits_BB)).sum(1).mean()


def _softmax_gather(image_bD, text_bD, log_scale, bias, axes) -> jax.Array:
    image_BD, text_BD = (jax.lax.all_gather(x, axes, tiled=True) for x in (image_bD, text_bD))
    rows_b = jax.nn.logsumexp(logits(image_bD, text_BD, log_scale, bias), axis=1)
    columns_b = jax.nn.logsumexp(logits(text_bD, image_BD, log_scale, bias), axis=1)
    return ((rows_b + columns_b) / 2 - _own(image_bD, text_bD, log_scale, bias)).sum()


def _sigmoid_gather(image_bD, text_bD, log_scale, bias, axes) -> jax.Array:
    text_BD = jax.lax.all_gather(text_bD, axes, tiled=True)
    # All as negatives, then the pairs: softplus(-x) = softplus(x) - x. No matrix of labels.
    as_negatives = jax.nn.softplus(logits(image_bD, text_BD, log_scale, bias)).sum()
    return as_negatives - _own(image_bD, text_bD, log_scale, bias).sum()


def _softmax_ring(image_bD, text_bD, log_scale, bias, axes) -> jax.Array:
    @jax.checkpoint
    def block(text_bD):
        logits_bb = logits(image_bD, text_bD, log_scale, bias)
        return jax.nn.logsumexp(logits_bb, axis=1), jax.nn.logsumexp(logits_bb, axis=0)

    rows_b, columns_b = block(text_bD)

    def hop(carry, _):
        text_bD, columns_b, rows_b = carry
        text_bD, columns_b = _pass_on((text_bD, columns_b), axes)
        more_rows_b, more_columns_b = block(text_bD)
        columns_b = jnp.logaddexp(columns_b, more_columns_b)
        return (text_bD, columns_b, jnp.logaddexp(rows_b, more_rows_b)), None

    hops = jax.lax.axis_size(axes) - 1
    (_, columns_b, rows_b), _ = jax.lax.scan(hop, (text_bD, columns_b, rows_b), length=hops)
    # The columns ended one device away from where they began, which a sum does not mind.
    return ((rows_b + columns_b) / 2 - _own(image_bD, text_bD, log_scale, bias)).sum()


def _sigmoid_ring(image_bD, text_bD, log_scale, bias, axes) -> jax.Array:
    @jax.checkpoint
    def block(text_bD):
        return jax.nn.softplus(logits(image_bD, text_bD, log_scale, bias)).sum(1)

    def hop(carry, _):
        text_bD, sum_b = carry
        text_bD = _pass_on(text_bD, axes)
        return (text_bD, sum_b + block(text_bD)), None

    hops = jax.lax.axis_size(axes) - 1
    (_, sum_b), _ = jax.lax.scan(hop, (text_bD, block(text_bD)), length=hops)
    return (sum_b - _own(image_bD, text_bD, log_scale, bias)).sum()


def _pass_on(values, axes):
    """Each device's values to the next one of the ring."""
    size = jax.lax.axis_size(axes)
    to_next = [(i, (i + 1) % size) for i in range(size)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, axes, to_next), values)


# kind -> the loss of a batch that lies whole on a device
WHOLE: dict[str, Callable] = {"softmax": _softmax_whole, "sigmoid": _sigmoid_whole}
# (kind, form) -> the sum of a device's terms
_LOCAL: dict[tuple[str, str], Callable] = {
    ("softmax", "gather"): _softmax_gather,
    ("softmax", "ring"): _softmax_ring,
    ("sigmoid", "gather"): _sigmoid_gather,
    ("sigmoid", "ring"): _sigmoid_ring,
}


def contrastive_loss(
    kind: str,
    form: str,
    image_BD: jax.Array,
    text_BD: jax.Array,
    log_scale: jax.Array,
    bias: jax.Array | float = 0.0,
) -> jax.Array:
    """The loss of the global batch, on the mesh that is set, if there is one.

    Args:
      kind: a key of ``WHOLE``.
      form: one of ``FORMS``; where the rows lie on one device both are the plain loss.
      image_BD, text_BD: of length 1, :func:`unit`; pair i is row i.
      log_scale: log of what multiplies the products, a scalar. Not clipped here: a clip in the
        forward pass would take away the gradient that leads back below it.
      bias: added to each logit, a scalar; softmax does not see it.

    Returns:
      float scalar in nats.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in RULES["act_batch"] if mesh.shape.get(axis, 1) > 1)
    bias = jnp.asarray(bias, log_scale.dtype)
    if not axes:
        return WHOLE[kind](image_BD, text_BD, log_scale, bias)
    local, rows, whole = _LOCAL[kind, form], PartitionSpec(axes), PartitionSpec()

    def on_device(*args):
        return jax.lax.psum(local(*args, axes), axes)

    total = jax.shard_map(on_device, in_specs=(rows, rows, whole, whole), out_specs=whole)(
        image_BD, text_BD, log_scale, bias
    )
    return total / image_BD.shape[0]
