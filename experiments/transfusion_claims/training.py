"""Trains an arm up to a step, from where it was."""

import os
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scenes import Scenes
from tasks import LatentsTask

from mmx.core import rng as rngs
from mmx.core import tree
from mmx.core.errors import UserError
from mmx.train.plan import plan_training
from mmx.train.sharding import batch_sharding, make_mesh, place, replicated

_SAVE_EVERY = 60.0  # seconds


def clock(sharing: int = 1) -> float:
    """Seconds from some moment on: of CPU time where CPUs are the device, else of the wall.

    Args:
      sharing: how many processes share a device that is no CPU: each counts its part.
    """
    if jax.default_backend() == "cpu":
        return time.process_time()
    return time.monotonic() / sharing


class Trainer:
    """The steps of ``mmx train`` on scenes that are encoded; its state is a file.

    Args:
      task: of an arm.
      scenes: to learn.
      file: of the state; read where it is there.
      of: of what run it is (:func:`jobs.digest`).
      sharing: see :func:`clock`.

    Raises:
      UserError: the state is of a run of other settings.
    """

    def __init__(self, task: LatentsTask, scenes: Scenes, file: Path, of: str, sharing: int = 1):
        self.task, self.scenes, self.file = task, scenes, file
        self.of, self.sharing = of, sharing
        self.mesh = make_mesh(task.config.mesh)
        self.plan = plan_training(task, task.config, self.mesh)
        self.key = place(rngs.base_key(task.config.seed), replicated(self.mesh))
        self.seconds = 0.0  # of all steps so far
        if file.is_file():
            self.state, self.seconds = _read(file, of, self.plan.abstract)
        else:
            self.state = self.plan.init(self.key)

    @property
    def step(self) -> int:
        """Steps so far."""
        return int(self.state.step)

    def go_on(self, until: int, deadline: float = float("inf")) -> bool:
        """Train up to a step; the state is saved each minute and at the end.

        Args:
          until: the step.
          deadline: of ``time.monotonic``, at which it stops where it is.

        Returns:
          Whether it got there.

        Raises:
          FloatingPointError: a step that is not finite.
        """
        began, saved, step = clock(self.sharing), time.monotonic(), self.step
        sharding = batch_sharding(self.mesh)
        while step < until and time.monotonic() < deadline:
            rows = self.task.batch(self.scenes, step * self.task.config.batch_size)
            batch = jax.tree.map(lambda x: place(x, sharding), rows)
            self.state, vector = self.plan.step(self.state, {}, batch, self.key)
            step += 1
            if time.monotonic() - saved > _SAVE_EVERY or step == until:
                saved = time.monotonic()
                values = dict(zip(self.plan.metrics, np.asarray(vector).tolist()))
                if values["bad_step"] >= 0:
                    raise FloatingPointError(f"{self.file}: not finite at {values['bad_step']:.0f}")
                now = clock(self.sharing)
                self.seconds, began = self.seconds + now - began, now
                self._save()
                losses = {k: round(v, 4) for k, v in values.items() if k.startswith("loss/")}
                print(f"{self.file.parent.name}: step {step} of {until}: {losses}", flush=True)
        return step >= until

    def _save(self) -> None:
        leaves = {path: np.asarray(leaf) for path, leaf in tree.flatten(self.state).items()}
        _write(self.file, leaves | {"seconds": self.seconds, "of": self.of})


def _read(file: Path, of: str, abstract: Any) -> tuple[Any, float]:
    """(state, seconds) of a file."""
    with np.load(file) as kept:
        if str(kept["of"]) != of:
            raise UserError(f"{file}: a run of other settings; give another --out")
        state = tree.map_with_path(lambda path, leaf: jnp.asarray(kept[path]), abstract)
        return state, float(kept["seconds"])


def write_weights(file: Path, params: Any) -> None:
    """Parameters, to be scored."""
    _write(file, {path: np.asarray(leaf) for path, leaf in tree.flatten(params).items()})


def read_weights(file: Path) -> Any:
    """Inverse of :func:`write_weights`."""
    with np.load(file) as kept:
        return tree.unflatten({path: jnp.asarray(kept[path]) for path in kept.files})


def _write(file: Path, arrays: dict) -> None:
    unfinished = file.with_name(f".{file.name}")
    np.savez(unfinished, **arrays)
    os.replace(unfinished, file)
