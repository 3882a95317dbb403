"""The mmx command's own training step on one batch that stays on the device."""

import flax.linen as nn
import jax

from mmx.core import rng as rngs
from mmx.core import tree
from mmx.train.optim import make_optimizer
from mmx.train.sharding import batch_sharding, jit_sharded, make_mesh, replicated
from mmx.train.state import make_init, make_update, state_shardings


class Trainer:
    """State on the device and one compiled update, of a task that has nothing frozen."""

    def __init__(self, task, batch):
        config = task.config
        self.mesh = make_mesh(config.mesh)
        shape = jax.eval_shape(task.init, jax.random.key(0))[0]
        labels = jax.tree.map(lambda _: "main", nn.unbox(shape))
        tx, schedules = make_optimizer(config, labels)
        abstract, shardings, _ = state_shardings(task, tx, self.mesh, averages=False)
        init = make_init(task, tx, False)
        self.key = jax.device_put(rngs.base_key(0), replicated(self.mesh))
        self.state = jit_sharded(init, self.mesh, out_shardings=shardings)(self.key)
        self.update = jit_sharded(
            make_update(task, tx, config, labels, schedules),
            self.mesh,
            out_shardings=(shardings, replicated(self.mesh)),
            donate=(0,),
        )
        self.batch = jax.device_put(batch, batch_sharding(self.mesh))
        self.count = tree.num_params(tree.flatten(abstract.params))

    def step(self) -> float:
        self.state, metrics = self.update(self.state, {}, self.batch, self.key)
        return float(metrics["loss/total"])

    def about(self, gflop: float) -> dict:
        """``gflop``: matrix products and convolutions of a step."""
        return {
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
            "parameters": self.count,
            "gflop": round(gflop, 1),
        }
