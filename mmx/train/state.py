"""The training state, how it starts and how one step changes it."""

from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from mmx.core import rng, tree
from mmx.core.errors import UserError
from mmx.train import optim, sharding


@flax.struct.dataclass
class TrainState:
    """All that a checkpoint holds.

    Attributes:
      step: int32, updates done.
      params, extra: of the task; ``extra`` changes without gradients.
      opt_state: of optax.
      ema: averaged params, or None when no group of the config averages.
      bad_step: int32, the step whose loss or gradient was not finite; -1 while all is well. Once
        set, no later step changes anything, so what is saved is the last finite state.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any
    extra: Any
    bad_step: jax.Array

    @property
    def averaged(self) -> Any:
        """What is evaluated and sampled from: the average where there is one."""
        return self.params if self.ema is None else self.ema


def make_init(task, tx: optax.GradientTransformation, averages: bool):
    """``init(key) -> TrainState`` with the logical names taken off, for jit."""

    def init(key):
        params, extra = nn.unbox(task.init(rng.stream(key, "init")))
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=tx.init(params),
            ema=jax.tree.map(jnp.copy, params) if averages else None,
            extra=extra,
            bad_step=jnp.full((), -1, jnp.int32),
        )

    return init


def state_shardings(task, tx, mesh, averages: bool) -> tuple[TrainState, TrainState, str]:
    """(abstract state, its shardings, the table to print): nothing is computed.

    Raises:
      ShardingError: a parameter that no rule fits.
    """
    key = jax.eval_shape(lambda: rng.base_key(0))
    boxed_params, boxed_extra = jax.eval_shape(task.init, key)
    params = sharding.infer_shardings(boxed_params, mesh)
    extra = sharding.infer_shardings(boxed_extra, mesh)
    abstract = jax.eval_shape(make_init(task, tx, averages), key)
    whole = sharding.replicated(mesh)
    shardings = TrainState(
        step=whole,
        params=params,
        opt_state=sharding.infer_optimizer_shardings(abstract.opt_state, abstract.params, params),
        ema=params if averages else None,
        extra=extra,
        bad_step=whole,
    )
    return abstract, shardings, sharding.report_shardings(boxed_params, params)


def make_update(task, tx, config, labels, schedules):
    """One training step ``(state, frozen, batch, key) -> (state, metrics)``; pure, for jit."""
    accum = config.optim.accum
    if accum > 1 and task.batch_coupled:
        raise UserError(
            f"config.optim.accum={accum}: the rows of {config.family!r} see each other, so "
            "accumulated gradients would not be those of the whole batch; use accum=1"
        )

    def update(state: TrainState, frozen, batch, key):
        def loss_fn(params, extra, rows):
            return task.loss(params, extra, frozen, rows, key, state.step, train=True)

        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

        def one(carry, rows):
            (loss, (metrics, _)), grads = grad_fn(state.params, state.extra, rows)
            return jax.tree.map(jnp.add, carry, (loss, metrics, grads)), None

        if accum == 1:
            (loss, (metrics, extra)), grads = grad_fn(state.params, state.extra, batch)
        else:
            if jax.tree.leaves(state.extra):
                raise UserError(
                    f"config.optim.accum={accum}: {config.family!r} changes values without "
                    "gradients, which accumulation would lose; use accum=1"
                )
            # Interleaved, so that each part is spread over all devices as the batch is.
            parts = jax.tree.map(lambda x: x.reshape(-1, accum, *x.shape[1:]).swapaxes(0, 1), batch)
            first = jax.tree.map(lambda x: x[0], parts)
            (loss, (metrics, _)), grads = jax.eval_shape(grad_fn, state.params, state.extra, first)
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (loss, metrics, grads))
            sums, _ = jax.lax.scan(one, zeros, parts)
            loss, metrics, grads = jax.tree.map(lambda x: x / accum, sums)
            extra = state.extra

        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        step = state.step + 1
        # Updates and extra too: what they spoil would be saved before a later loss shows it.
        norms = _group_norms("grad_norm", grads, labels)
        norms |= _group_norms("update_norm", updates, labels)
        floats = [x for x in jax.tree.leaves(extra) if jnp.issubdtype(x.dtype, jnp.floating)]
        if floats:
            norms["extra_norm"] = _norm(floats)
        finite = jnp.isfinite(loss)
        for norm in norms.values():
            finite &= jnp.isfinite(norm)
        new = TrainState(
            step=step,
            params=params,
            opt_state=opt_state,
            ema=optim.update_ema(config, labels, state.ema, params, state.step),
            extra=extra,
            bad_step=state.bad_step,
        )
        keep = finite & (state.bad_step < 0)
        old = state.replace(
            bad_step=jnp.where(state.bad_step < 0, step, state.bad_step).astype(jnp.int32)
        )
        new = jax.tree.map(lambda a, b: jnp.where(keep, a, b), new, old)
        lrs = {f"lr/{name}": fn(state.step) for name, fn in schedules.items()}
        metrics = {"loss/total": loss, **metrics, **norms, **lrs, "bad_step": new.bad_step}
        return new, metrics

    return update


def _group_norms(name: str, leaves_by_path, labels) -> dict[str, jax.Array]:
    """``<name>/<group>``; of gradients, before clipping."""
    groups: dict[str, list] = {}
    flat_labels = tree.flatten(labels)
    for path, leaf in tree.flatten(leaves_by_path).items():
        if flat_labels[path] != "fixed":
            groups.setdefault(flat_labels[path], []).append(leaf)
    return {f"{name}/{label}": _norm(leaves) for label, leaves in groups.items()}


def _norm(leaves) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(jnp.square(x.astype(jnp.float32))) for x in leaves))
