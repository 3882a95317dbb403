"""What a step of any task costs, counted from its loss."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmx.core import rng as rngs
from mmx.core.flops import matmul_flops
from mmx.models.protocols import Task


def train_flops_per_row(task: Task) -> float:
    """FLOPs of the products of a step, divided by its rows: of the loss and its gradient, so of
    what is trained and what is frozen (a discriminator, a teacher, a perceptual network), each as
    often as it is passed forward and back.
    """
    params, extra = nn.unbox(jax.eval_shape(task.init, rngs.base_key(0)))
    spec, step = task.batch_spec(), jax.ShapeDtypeStruct((), jnp.int32)
    key = jax.eval_shape(lambda: rngs.base_key(0))
    update = jax.value_and_grad(task.loss, has_aux=True)
    frozen = nn.unbox(task.abstract_frozen())
    total = matmul_flops(update, params, extra, frozen, spec, key, step)
    return total / task.config.batch_size
