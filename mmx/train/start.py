"""Starting from another run's weights: ``--init_from RUN[@STEP]``."""

import sys

import jax

from mmx.core import tree
from mmx.core.errors import UserError
from mmx.core.run_dir import RunDir
from mmx.nn.conv import inflate
from mmx.train.checkpoint import Checkpoints
from mmx.train.sharding import place
from mmx.train.state import TrainState


def init_from_run(state: TrainState, run: RunDir, step: int | None) -> TrainState:
    """Take over parameters (and extra: a codebook) whose path and shape agree; list the others.

    A video network takes an image network's kernels in the middle of its own
    (:func:`mmx.nn.conv.inflate`). The optimiser starts fresh. Parameters averaged in training are
    taken where that run has them; an average over checkpoints (``offline_ema``) is not made.

    Raises:
      UserError: nothing fits.
    """
    weights, extra, step = read_weights(run, step)
    saved = tree.flatten({"params": weights, "extra": extra})
    taken, kept = set(), {}

    def one(path, leaf):
        there = saved.get(path)
        fitting = None if there is None else inflate(there, leaf.shape)
        if fitting is None:
            reason = "absent there" if there is None else f"shape {there.shape} there"
            kept[path] = f"  fresh: {path} {leaf.shape} ({reason})"
            return leaf
        taken.add(path)
        return place(fitting.astype(leaf.dtype), leaf.sharding)

    new = tree.map_with_path(one, {"params": state.params, "extra": state.extra})
    unused = [f"  unused: {p} {saved[p].shape}" for p in saved if p not in taken and p not in kept]
    if not any(path.startswith("params/") for path in taken):
        raise UserError(f"--init_from={run.path}: no parameter has the path and shape of one here")
    if jax.process_index() == 0:
        print(
            f"init_from {run.path}@{step}: took {len(taken)} of {len(taken) + len(kept)} arrays",
            *kept.values(),
            *unused,
            sep="\n",
            file=sys.stderr,
        )
    ema = None if state.ema is None else jax.tree.map(lambda p: p.copy(), new["params"])
    return state.replace(**new, ema=ema)


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
