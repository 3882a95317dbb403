"""Starting from another run's weights: ``--init_from RUN[@STEP]``."""

import sys

import jax

from mmx.core import tree
from mmx.core.errors import UserError
from mmx.core.run_dir import RunDir
from mmx.train.checkpoint import Checkpoints
from mmx.train.state import TrainState


def init_from_run(state: TrainState, run: RunDir, step: int | None) -> TrainState:
    """Take over every parameter whose path and shape agree; say which do not.

    The optimiser starts fresh. Averaged parameters are taken where that run has them.

    Raises:
      UserError: nothing fits.
    """
    weights, _, step = read_weights(run, step)
    saved = tree.flatten(weights)
    taken, kept = [], []

    def one(path, leaf):
        there = saved.get(path)
        if there is None or there.shape != leaf.shape:
            reason = "absent there" if there is None else f"shape {there.shape} there"
            kept.append(f"  fresh: {path} {leaf.shape} ({reason})")
            return leaf
        taken.append(path)
        return jax.device_put(there.astype(leaf.dtype), leaf.sharding)

    params = tree.map_with_path(one, state.params)
    unused = [f"  unused: {path} {saved[path].shape}" for path in saved if path not in taken]
    if not taken:
        raise UserError(f"--init_from={run.path}: no parameter has the path and shape of one here")
    print(
        f"init_from {run.path}@{step}: took {len(taken)} of {len(taken) + len(kept)} parameters",
        *kept,
        *[line for line in unused if line.split()[1] not in " ".join(kept)],
        sep="\n",
        file=sys.stderr,
    )
    ema = None if state.ema is None else jax.tree.map(lambda p: p.copy(), params)
    return state.replace(params=params, ema=ema)


def read_weights(run: RunDir, step: int | None = None) -> tuple[dict, dict, int]:
    """(averaged params, extra, step) of a run as host arrays, without building its model.

    Raises:
      UserError: the checkpoint cannot be read.
    """
    checkpoints = Checkpoints(run.checkpoints, read_only=True)
    try:
        step = run.steps()[-1] if step is None else step
        model = checkpoints.read_model(step)
    finally:
        checkpoints.close()
    return model.get("ema", model.get("params")), model.get("extra", {}), step
