"""A family of a few dozen lines that keeps the Task contract, to test the loop with.

A row is x [8] and its target; the model is two dense layers. Each row's noise comes from its
position. Config switches: a second player, values that change without gradients, a loss, gradient,
update or running value that is not finite at one step. Run as a program it is ``mmx`` with this
family alone (a process of its own, to be killed).

Legend: B batch, D input, F hidden.
"""

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmx.core import rng as rngs
from mmx.core import tree
from mmx.core.errors import UserError
from mmx.data import pipeline
from mmx.train.sharding import jit_sharded, place, replicated, whole

D, EXAMPLES = 8, 37


class ToySource:
    """37 examples of 8 numbers, and no file."""

    info = SimpleNamespace(
        attribution="toy numbers",
        directory="data/toy",
        splits={"train": EXAMPLES},
        fingerprint="of 37 examples",
    )

    def __len__(self):
        return EXAMPLES

    def __getitem__(self, index):
        x_D = np.random.default_rng(index).normal(size=D).astype(np.float32)
        return {"x": x_D, "y": np.float32(np.sin(x_D.sum()))}


def open_toy(spec, split, data_dir=None):
    del spec, split, data_dir
    return ToySource()


def box(value, *names):
    return nn.LogicallyPartitioned(value, names)


class ToyTask:
    """Contract 1."""

    family = "toy"

    def __init__(self, config, run=None, abstract=False):
        del run, abstract
        self.config = config
        self.batch_coupled = config.toy.coupled
        self.events = []

    def transform(self, example, rng):
        time.sleep(self.config.toy.delay)
        x_D = example["x"] + 0.1 * rng.normal(size=D).astype(np.float32)
        return {"x": x_D.astype(np.float32), "y": example["y"]}

    def init(self, key):
        F, toy = self.config.toy.width, self.config.toy
        draw = lambda name, *shape: 0.3 * jax.random.normal(rngs.stream(key, name), shape)
        params = {
            "first": {
                "kernel": box(draw("first", D, F), "embed", "mlp"),
                "bias": box(jnp.zeros(F), "mlp"),
            },
            "last": {"kernel": box(draw("last", F, D), "mlp", "embed")},
            "fixed": {"kernel": box(draw("fixed", D, F), "embed", "mlp")},
        }
        if toy.ballast:
            params["ballast"] = {"kernel": box(draw("b", toy.ballast, toy.ballast), None, None)}
        if toy.gan:
            params["disc"] = {"kernel": box(draw("disc", D, F), "embed", "mlp")}
        extra = {}
        if toy.running:
            extra = {"mean_D": box(jnp.zeros(D), None), "count": jnp.zeros((), jnp.int32)}
        return params, extra

    def load_frozen(self, mesh):
        return place({"scale": np.float32(1.5)}, replicated(mesh))

    def param_labels(self, params):
        groups = {"disc": "disc", "fixed": "fixed"}
        return tree.map_with_path(
            lambda path, _: groups.get(path.split("/")[0], "main"),
            params,
            is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned),
        )

    def loss(self, params, extra, frozen, batch, rng, step, train=True):
        toy = self.config.toy
        noise_BD = jax.vmap(lambda key: jax.random.normal(key, (D,)))(
            rngs.row_keys(rng, "noise", batch["position"])
        )
        x_BD = batch["x"] + 0.1 * noise_BD
        hidden_BF = jnp.tanh(x_BD @ params["first"]["kernel"] + params["first"]["bias"])
        hidden_BF += 0.1 * jnp.tanh(x_BD @ params["fixed"]["kernel"])
        out_BD = hidden_BF @ params["last"]["kernel"] * frozen["scale"]
        loss = jnp.square(out_BD.mean(1) - batch["y"]).mean()
        if toy.ballast:
            loss += 1e-3 * jnp.square(params["ballast"]["kernel"]).mean()
        metrics = {"loss/square": loss}
        if toy.gan:
            disc = params["disc"]["kernel"]
            still = jax.lax.stop_gradient
            fooled = -jnp.tanh(out_BD @ still(disc)).mean()
            spotted = jnp.tanh(still(out_BD) @ disc).mean() - jnp.tanh(x_BD @ disc).mean()
            loss += fooled + spotted
            metrics |= {"loss/disc": spotted}
        extra = dict(extra)
        if train and toy.running:
            extra["mean_D"] = 0.9 * extra["mean_D"] + 0.1 * x_BD.mean(0)
            extra["count"] = extra["count"] + 1
        if toy.poison:
            now = step + 1 == toy.poison_step
            # The square root's slope at 0 is infinite: a finite loss with a gradient that is not.
            slope = jax.lax.cond(
                now, lambda k: jnp.sqrt(jnp.sum(k * 0.0)), lambda k: 0.0, params["first"]["kernel"]
            )
            if toy.poison == "loss":
                loss += jnp.where(now, jnp.nan, 0.0)
            if toy.poison == "gradient":
                loss += slope
            if toy.poison == "extra":
                extra["mean_D"] = jnp.where(now, jnp.inf, extra["mean_D"])
        return loss, (metrics, extra)

    def train_flops_per_row(self):
        return 1000.0

    def evaluators(self, mesh):
        return [ToyEvaluator(self, mesh)]

    def preview(self, params, extra, frozen, mesh):
        del extra, frozen
        self.events.append("preview")
        picture = whole(params["first"]["kernel"], mesh) * 40 + 128
        return {"kernel": np.repeat(picture[..., None], 3, -1).clip(0, 255).astype(np.uint8)}


class ToyEvaluator:
    """Yields ``test/loss`` over the first examples."""

    def __init__(self, task, mesh):
        self.task = task
        rows = [ToySource()[i] for i in range(16)]
        batch = {k: np.stack([r[k] for r in rows]) for k in rows[0]}
        batch["position"] = np.arange(16, dtype=np.uint32)
        self.batch = place(batch, replicated(mesh))
        self.key = place(rngs.base_key(77), replicated(mesh))
        loss = lambda p, e, f, b, k: task.loss(p, e, f, b, k, jnp.int32(0), train=False)[0]
        self._loss = jit_sharded(loss, mesh, out_shardings=replicated(mesh))

    def run(self, params, extra, frozen):
        self.task.events.append("eval")
        if os.environ.get("TOY_BAD_EVAL") == os.environ.get("JAX_PROCESS_ID", "none"):
            raise RuntimeError("no score today")
        yield "test/loss", float(self._loss(params, extra, frozen, self.batch, self.key))


def no_data(spec, split, data_dir=None):
    raise UserError("data/toy: no such folder")


def record_rows(folder, index):
    """Write down what each process loads, and what then lies on its devices."""
    row, put = pipeline.Stream.row, pipeline.put_batch

    def note(kind, values):
        with open(folder / f"{kind}{index()}.jsonl", "a") as file:
            file.write(json.dumps(values) + "\n")

    def spied_row(self, position):
        note("loaded", position)
        return row(self, position)

    def spied_put(*args):
        batch = put(*args)
        shards = batch["position"].addressable_shards
        note("placed", [[s.index[0].indices(args[1])[0], s.data.tolist()] for s in shards])
        return batch

    pipeline.Stream.row, pipeline.put_batch = spied_row, spied_put


def main() -> int:
    """``mmx`` where the only family is the toy; what TOY_* in the environment ask for, besides."""
    from mmx.cli import main as cli
    from mmx.data import source
    from mmx.models import registry
    from mmx.train import distributed

    for name in ("JOIN_SECONDS", "LOST_SECONDS"):  # else a test takes as long
        setattr(distributed, name, int(os.environ.get(f"TOY_{name}", getattr(distributed, name))))
    source.open_source = open_toy
    if folder := os.environ.get("TOY_ROWS"):
        record_rows(Path(folder), distributed.index)
    if os.environ.get("TOY_NO_DATA") == os.environ.get("JAX_PROCESS_ID", "none"):
        source.open_source = no_data
    registry._TASKS = {"toy": (__name__, "ToyTask")}
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
