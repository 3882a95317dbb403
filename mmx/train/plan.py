"""A run's training as it follows from task, config and mesh alone: nothing is computed here.

The loop runs what a plan holds, preflight compiles the same for devices that are not here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mmx.core import rng
from mmx.core.errors import UserError
from mmx.train import optim
from mmx.train.sharding import batch_sharding, jit_sharded, replicated
from mmx.train.state import TrainState, make_init, make_update, state_shardings


@dataclass(frozen=True)
class Plan:
    """See :func:`plan_training`.

    Attributes:
      mesh: where it runs.
      abstract, shardings: of the training state.
      table: parameter, shape, spec and bytes on each device, to be printed.
      init: key -> fresh state.
      step: (state, frozen, batch, key) -> (state, float32 vector of metrics); donates the state.
      metrics: the names of that vector, known once ``step`` was traced.
    """

    mesh: Mesh
    abstract: TrainState
    shardings: TrainState
    table: str
    init: Callable
    step: Callable
    metrics: list[str] = field(default_factory=list)


def plan_training(task, config, mesh: Mesh) -> Plan:
    """Shapes, layouts and compiled functions of a run.

    Raises:
      UserError: the batch, or a part of it (``config.loss.cached``), does not divide over the
        mesh; a setting of the optimiser is unknown.
      ShardingError: a parameter that no rule fits.
    """
    ways = batch_sharding(mesh).num_devices // mesh.shape["tensor"]
    accum = config.optim.accum
    if config.batch_size % (ways * accum):
        raise UserError(
            f"config.batch_size={config.batch_size} does not divide over {ways} devices with "
            f"config.optim.accum={accum}: take a multiple of {ways * accum}"
        )
    parts = config.get("loss", {}).get("cached", 1)  # each lies over all devices, as the batch does
    if config.batch_size % (ways * parts):
        raise UserError(
            f"config.loss.cached={parts}: config.batch_size={config.batch_size} in {parts} parts "
            f"does not divide over {ways} devices: take a batch that is a multiple of "
            f"{ways * parts}, or fewer parts"
        )
    key = jax.eval_shape(lambda: rng.base_key(config.seed))
    labels = task.param_labels(jax.eval_shape(task.init, key)[0])
    averages = optim.averages(config, labels)
    tx, schedules = optim.make_optimizer(config, labels)
    abstract, shardings, table = state_shardings(task, tx, mesh, averages)
    update = make_update(task, tx, config, labels, schedules)
    names: list[str] = []

    def step(state, frozen, batch, key):
        state, metrics = update(state, frozen, batch, key)
        names[:] = sorted(metrics)  # one vector: one transfer a step
        return state, jnp.stack([metrics[n].astype(jnp.float32) for n in names])

    return Plan(
        mesh,
        abstract,
        shardings,
        table,
        # Not under the mesh: the one row that a layer sees here need not divide over the devices.
        init=jax.jit(make_init(task, tx, averages), out_shardings=shardings),
        step=jit_sharded(step, mesh, out_shardings=(shardings, replicated(mesh)), donate=(0,)),
        metrics=names,
    )
