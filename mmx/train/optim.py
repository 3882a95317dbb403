"""Optimisers: one settings group a player, warm-up and cosine, decay on kernels or as named.

A task labels each parameter: "main" reads ``config.optim``, "disc" reads ``config.optim_disc``, and
"fixed" is never touched.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mmx.core import tree
from mmx.core.errors import UserError


def group_config(config, label: str):
    """The settings of a group. Raises UserError when the config has none."""
    name = "optim" if label == "main" else f"optim_{label}"
    if name not in config:
        raise UserError(f"config.{name} is missing: the parameters labelled {label!r} need it")
    return config[name]


def lr_schedule(optim, steps: int) -> optax.Schedule:
    """Linear warm-up from 0, then cosine to ``lr_end``, 0 where it is not named, at ``steps``."""
    warmup, end = min(optim.warmup_steps, steps), optim.get("lr_end", 0.0)
    return optax.warmup_cosine_decay_schedule(0.0, optim.lr, warmup, max(steps, warmup + 1), end)


def _factored_decay(step: jax.Array, b2: float) -> jax.Array:
    """b2 with Adam's bias correction folded in (arXiv 1804.04235 sec. 7.1): 0 on the first step."""
    t = jnp.asarray(step + 1, jnp.float32)
    return b2 * (1.0 - b2 ** (t - 1.0)) / (1.0 - b2**t)


def _rule(optim) -> optax.GradientTransformation:
    if optim.name == "adamw":
        return optax.scale_by_adam(b1=optim.b1, b2=optim.b2, eps=optim.get("eps", 1e-8))
    if optim.name == "adafactor":
        # Muse's tables give (b1, b2) = (0.9, 0.96), which optax.adafactor's defaults cannot say:
        # factored second moment with a constant b2, update clipping 1.0 (arXiv 1804.04235), then
        # momentum. No scaling by the parameter's norm: ours, as the paper's rate is absolute.
        return optax.chain(
            optax.scale_by_factored_rms(decay_rate=optim.b2, decay_rate_fn=_factored_decay),
            optax.clip_by_block_rms(1.0),
            optax.ema(optim.b1, debias=False),
        )
    raise UserError(f"config.optim.name={optim.name!r}: use 'adamw' or 'adafactor'")


def decay_mask(params: Any, names: tuple[str, ...] = ("kernel",)) -> Any:
    """True where weight decay applies: leaves of these names. Norms and biases are never named."""
    return tree.map_with_path(lambda path, _: _last(path) in names, params)


def _last(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def make_optimizer(config, labels: Any) -> tuple[optax.GradientTransformation, dict]:
    """The optimiser of all groups, and the learning-rate schedule of each.

    Args:
      config: the run's config.
      labels: group of each parameter, same tree as the parameters.

    Returns:
      (tx, {label: schedule}). Decay is decoupled and multiplied by the learning rate (AdamW).

    Raises:
      UserError: an unknown optimiser, a group without settings, a bound or a decay of no parameter.
    """
    rules, schedules = {}, {}
    leaves = {_last(path) for path in tree.flatten(labels)}
    for label in sorted(set(jax.tree.leaves(labels))):
        if label == "fixed":
            rules[label] = optax.set_to_zero()
            continue
        optim = group_config(config, label)
        schedules[label] = lr_schedule(optim, config.steps)
        decays = tuple(optim.get("decays", ("kernel",)))
        if unknown := set(decays) - leaves - {"kernel"}:
            raise UserError(f"config.optim.decays: no parameter is named {min(unknown)!r}")
        rules[label] = optax.chain(
            optax.clip_by_global_norm(optim.clip_norm),
            _rule(optim),
            optax.add_decayed_weights(optim.weight_decay, mask=partial(decay_mask, names=decays)),
            optax.scale_by_learning_rate(schedules[label]),
        )
    tx = optax.multi_transform(rules, labels)
    if upper := dict(config.optim.get("upper", {})):
        if unknown := upper.keys() - tree.flatten(labels).keys():
            raise UserError(f"config.optim.upper.{min(unknown)}: no parameter has that path")
        tx = optax.chain(tx, _stay_below(upper))
    return tx, schedules


def _stay_below(upper: dict[str, float]) -> optax.GradientTransformation:
    """Updates such that parameters, by path, end each step at their bounds at most.

    After the step, not in the forward pass: there a clip has no gradient beyond the bound.
    """

    def one(path, update, param):
        if path not in upper:
            return update
        return jnp.minimum(update, upper[path] - param)

    return optax.stateless(lambda updates, params: tree.map_with_path(one, updates, params))


def averages(config, labels: Any) -> bool:
    """Does any group of the config keep an average of its parameters?"""
    groups = set(jax.tree.leaves(labels)) - {"fixed"}
    return any(group_config(config, label).ema > 0.0 for label in groups)


def update_ema(config, labels: Any, ema: Any, params: Any, step: jax.Array) -> Any:
    """Polyak average by group; young averages follow faster: min(decay, (1 + n) / (10 + n))."""
    if ema is None:
        return None
    n = step.astype(jnp.float32)

    def one(label, average, param):
        decay = 0.0 if label == "fixed" else group_config(config, label).ema
        if decay == 0.0:
            return param
        decay = jnp.minimum(decay, (1.0 + n) / (10.0 + n))
        return average + (1.0 - decay) * (param - average)

    return jax.tree.map(one, labels, ema, params)


def offline_ema(checkpoints, decay: float) -> Any:
    """Average of saved parameters in step order: e <- decay * e + (1 - decay) * c.

    Muse averages the checkpoints of every 5,000 steps with decay 0.7 (arXiv 2301.00704 sec. 2.8)
    and keeps no average while training.

    Args:
      checkpoints: iterable of parameter trees, oldest first; read one at a time.
      decay: weight of the past.

    Raises:
      ValueError: no checkpoint.
    """
    average = None
    for params in checkpoints:
        if average is None:
            average = params
        else:
            average = jax.tree.map(lambda e, c: decay * e + (1.0 - decay) * c, average, params)
    if average is None:
        raise ValueError("offline_ema needs at least one checkpoint")
    return average
