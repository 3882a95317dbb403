"""Rows a second of the data pipeline, beside what a training step eats, in one run.

    python experiments/throughput/data.py --config muse/openmoji32 --config.codec.run=runs/vqgan \\
        [--config.data.data_dir=data]

Takes any config of `mmx train`. Pipeline and step are timed by turns, each alone on the machine.
The pipeline is to give at least twice what the step eats.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from mmx.cli.backend import before_jax, start_jax
from mmx.cli.train import resolve
from mmx.core.errors import UserError
from mmx.core.run_dir import open_or_create

before_jax()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--config", default="muse/openmoji32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=4096, help="of the pipeline, a round")
    parser.add_argument("--steps", type=int, default=5, help="of training, a round")
    args, overrides = parser.parse_known_args()
    try:
        config = resolve(args.config, overrides)
        start_jax()
        with tempfile.TemporaryDirectory() as folder:
            compare(config, open_or_create(Path(folder) / "run", config), args)
    except UserError as error:
        sys.exit(f"data.py: {error}")


def compare(config, run, args) -> None:
    import jax

    from mmx.core import rng
    from mmx.data import pipeline
    from mmx.data.source import open_source
    from mmx.models.registry import make_task
    from mmx.train import optim, sharding
    from mmx.train.state import make_init, make_update, state_shardings

    task, mesh = make_task(config, run), sharding.make_mesh(config.mesh)
    whole, rows = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    frozen, key = task.load_frozen(mesh), jax.device_put(rng.base_key(config.seed), whole)
    labels = task.param_labels(jax.eval_shape(task.init, key)[0])
    tx, schedules = optim.make_optimizer(config, labels)
    averages = optim.averages(config, labels)
    _, shardings, _ = state_shardings(task, tx, mesh, averages)
    init = make_init(task, tx, averages)
    state = sharding.jit_sharded(init, mesh, out_shardings=shardings)(key)
    update = sharding.jit_sharded(
        make_update(task, tx, config, labels, schedules),
        mesh,
        out_shardings=(shardings, whole),
        donate=(0,),
    )
    data = config.data
    source = open_source(data.source, data.split, data.data_dir)
    stream = pipeline.Stream(source, task.transform, config.seed)

    def read(start: int) -> float:
        """Rows a second, from the first batch that is asked for to the last."""
        count = max(1, args.rows // config.batch_size)
        began = time.perf_counter()
        with pipeline.batches(
            stream, config.batch_size, rows, start_step=start, num_threads=data.threads
        ) as batches:
            for _ in range(count):
                jax.block_until_ready(next(batches))
        return count * config.batch_size / (time.perf_counter() - began)

    with pipeline.batches(stream, config.batch_size, rows) as batches:
        batch = next(batches)

    def learn(state) -> tuple:
        began = time.perf_counter()
        for _ in range(args.steps):
            state, metrics = update(state, frozen, batch, key)
            float(metrics["loss/total"])
        return state, args.steps * config.batch_size / (time.perf_counter() - began)

    state, _ = learn(state)  # compiles
    given, eaten = [], []
    for turn in range(args.rounds):
        given.append(read(start=1000 * turn))
        state, rate = learn(state)
        eaten.append(rate)
    ratios = [a / b for a, b in zip(given, eaten)]
    for name, values in (("pipeline", given), ("step", eaten)):
        print(
            f"{name:9s}{statistics.median(values):9.0f} rows/s ({min(values):.0f}-"
            f"{max(values):.0f}, n={len(values)})"
        )
    print(
        f"pipeline / step = {statistics.median(ratios):.1f} ({min(ratios):.1f}-{max(ratios):.1f}); "
        f"load average {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    main()
