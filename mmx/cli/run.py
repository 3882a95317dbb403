"""A trained run, opened by its path alone: what ``mmx.load`` returns."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from mmx.cli.backend import quiet_logs
from mmx.core import preemption, tree
from mmx.core import rng as rngs
from mmx.core.errors import UserError
from mmx.core.run_dir import RunDir, parse_run
from mmx.models.registry import make_task
from mmx.train.optim import offline_ema
from mmx.train.sharding import infer_shardings, make_mesh, replicated
from mmx.train.start import read_weights


@dataclass(frozen=True)
class Run:
    """Weights and task of a run.

    Attributes:
      dir: the run directory.
      step: of the weights.
      config, task, mesh: as in training, on the devices that are here.
      params, extra, frozen: on the devices; params are the averaged ones where the run averages.
    """

    dir: RunDir
    step: int
    config: Any
    task: Any
    mesh: Any
    params: Any
    extra: Any
    frozen: Any

    def at(self, step: int) -> "Run":
        """Another checkpoint of the run; what was compiled stays. Raises UserError."""
        params, extra, _ = _read(self.dir, self.config, step)
        return replace(self, step=step, **_place_all(self.dir, self.task, self.mesh, params, extra))

    def options(self, **changes):
        """The run's sampling options with changes; None leaves the run's own. Raises UserError."""
        return self.task.options(**changes)

    def sample(
        self,
        prompts: list[str],
        negative: str = "",
        guidance: float | None = None,
        steps: int | None = None,
        seed: int = 0,
        first_index: int = 0,
    ) -> np.ndarray:
        """One picture a prompt.

        Args:
          prompts: n texts.
          negative: what to keep away from.
          guidance, steps: the run's own when None.
          seed: of all draws; sample i depends on (seed, first_index + i) and its prompt only.

        Returns:
          uint8 [n, H, W, 3].

        Raises:
          UserError: an empty or over-long prompt, options out of range, a run that cannot sample.
        """
        from mmx.eval.images import to_uint8

        if isinstance(prompts, str) or not prompts:
            raise UserError('sample takes a list of one or more prompts: sample(["red heart"])')
        out = self.draw(prompts, negative, self.options(guidance=guidance, steps=steps), seed,
                        first_index)  # fmt: skip
        return to_uint8(out["image"])

    def draw(self, prompts, negative, options, seed, first_index=0, batch_size=32) -> dict:
        """:meth:`sample` with all that the sampler gives, see `DrawingTask.sampler`.

        Returns:
          {"image": float32 [n, H, W, 3], and what else there is, [n, ...]}.
        """
        parts = list(self.draw_batches(prompts, negative, options, seed, first_index, batch_size))
        return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}

    def draw_batches(
        self, prompts, negative, options, seed, first_index=0, batch_size=32
    ) -> Iterator[dict]:
        """:meth:`draw` in batches of one compiled shape, each as soon as it is done.

        Raises:
          Interrupted: between two batches, where `mmx.core.preemption` watches.
        """
        batch = self.task.prompts(prompts, negative, first_index)
        yield from self._batches(batch, options, seed, batch_size)

    def generate(
        self,
        documents: list[list],
        draw: bool = False,
        seed: int = 0,
        first_index: int = 0,
        **options,
    ) -> list[list]:
        """Go on with documents of texts and images, by texts and images.

        Args:
          documents: parts of each, in order: texts, and images uint8 [H, W, 3] of any size (the
            middle square is taken, as in training).
          draw: each goes on with an image; else with what the model chooses.
          seed, first_index: as of :meth:`sample`.
          options: of the family's sampling options, the run's own where not given: ``images=0`` to
            write alone, ``images=3`` for up to three images and the texts between them.

        Returns:
          Of each document the parts that follow: texts, and images uint8 [H, W, 3].

        Raises:
          UserError: as :meth:`sample`; a run of a family that reads no images.
        """
        from mmx.models.registry import check_writes

        check_writes(self.config, f"{self.dir.path}")
        if not documents or any(isinstance(parts, str) for parts in documents):
            raise UserError(
                'generate takes a list of documents, each a list of parts: [["red heart"]]'
            )
        from mmx.eval.images import to_uint8

        batches = self.generate_batches(documents, draw, self.options(**options), seed, first_index)
        shown = lambda part: part if isinstance(part, str) else to_uint8(part)
        return [[shown(part) for part in parts] for batch in batches for parts in batch]

    def generate_batches(
        self, documents, draw, options, seed, first_index=0, batch_size=32
    ) -> Iterator[list[list]]:
        """:meth:`generate` in batches, each as soon as it is done, images as the codec gives them:
        float32 [H, W, 3]. Raises Interrupted, as above."""
        batch = self.task.prompt_rows(documents, draw, first_index)
        for out in self._batches(batch, options, seed, batch_size):
            rows = [{k: v[i] for k, v in out.items()} for i in range(len(out["tokens"]))]
            yield [self.task.parts(row) for row in rows]

    def _batches(self, batch: dict, options, seed: int, batch_size: int) -> Iterator[dict]:
        key = jax.device_put(rngs.base_key(seed), replicated(self.mesh))
        sampler = self.task.sampler(self.mesh, options)
        count = len(batch["index"])
        size = min(batch_size, count)
        for start in range(0, count, size):
            preemption.check()
            part = {k: v[start : start + size] for k, v in batch.items()}
            real = len(part["index"])
            part = {k: _pad(v, size) for k, v in part.items()}
            out = sampler(self.params, self.extra, self.frozen, part, key)
            yield jax.tree.map(lambda x, real=real: np.asarray(x)[:real], out)


def _pad(x: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([x, np.repeat(x[-1:], size - len(x), axis=0)])


def load_run(spec, step: int | None = None) -> Run:
    """Open ``PATH[@STEP]``.

    Args:
      spec: the run.
      step: instead of ``@STEP``; the newest when neither is given.

    Raises:
      UserError: no such run or step, a checkpoint that cannot be read or is of another model.
    """
    quiet_logs()
    run, named = parse_run(spec)
    step = named if step is None else step
    config = run.config()
    params, extra, step = _read(run, config, step)
    try:
        task = make_task(config, run)
    except (AttributeError, KeyError) as error:
        raise UserError(
            f"{run.config_file}: does not fit this version of mmx; use the one in environment.json "
            f"({' '.join(str(error).split())})"
        ) from error
    mesh = make_mesh(_mesh_here(config.mesh))
    weights = _place_all(run, task, mesh, params, extra)
    return Run(run, step, config, task, mesh, frozen=task.load_frozen(mesh), **weights)


def _read(run: RunDir, config, step: int | None) -> tuple[dict, dict, int]:
    """(averaged params, extra, step) on the host."""
    params, extra, step = read_weights(run, step)
    if config.get("offline_ema", 0.0):
        steps = [s for s in run.steps() if s <= step]
        params = offline_ema((read_weights(run, s)[0] for s in steps), config.offline_ema)
    return params, extra, step


def _place_all(run: RunDir, task, mesh, params, extra) -> dict:
    boxed_params, boxed_extra = jax.eval_shape(task.init, rngs.base_key(0))
    return {
        "params": _place(run, params, boxed_params, mesh),
        "extra": _place(run, extra, boxed_extra, mesh),
    }


def _mesh_here(mesh_config) -> dict:
    """The run's mesh if it fits the devices here, else all of them on the data axis."""
    sizes = dict(mesh_config)
    count, known = jax.device_count(), math.prod(s for s in sizes.values() if s != -1)
    fits = count % known == 0 if -1 in sizes.values() else count == known
    return sizes if fits else {"slice": 1, "data": -1, "fsdp": 1, "tensor": 1}


def _place(run: RunDir, weights, boxed, mesh):
    wanted = tree.flatten(boxed, is_leaf=lambda x: hasattr(x, "names"))
    saved = tree.flatten(weights)
    shape = lambda leaf: tuple(getattr(leaf, "value", leaf).shape)
    wrong = [p for p in wanted if p not in saved or saved[p].shape != shape(wanted[p])]
    wrong += [p for p in saved if p not in wanted]
    if wrong:
        raise UserError(
            f"{run.path}: its checkpoint is of another model than its config.json says "
            f"({len(wrong)} parameters differ, the first: {wrong[0]})"
        )
    shardings = tree.flatten(infer_shardings(boxed, mesh))
    return tree.unflatten({p: jax.device_put(saved[p], shardings[p]) for p in wanted})
