"""Eight pictures by heart: training, then sampling, must give them back from their captions."""

import jax
import numpy as np
import pytest

from mmx.core import rng as rngs


@pytest.mark.parametrize("patch", [1, 2])
def test_eight_pictures_are_learned_and_drawn(build, patch):
    task = build.muse(
        changes={
            "data.image_size": 16,
            "batch_size": 16,
            "steps": 300,
            "model.patch": patch,
            "model.width": 64,
            "model.heads": 4,
            "model.mlp": 128,
            "model.code_width": 32 if patch > 1 else 0,
            "optim.lr": 4e-3,
            "optim.warmup_steps": 20,
            "optim.weight_decay": 0.0,
        },
        codec_changes={"data.image_size": 16},
    )
    state, update = build.trainer(task)
    batch = build.rows(task, 8)
    codes = np.asarray(jax.jit(task.codes)(task._frozen_host(), batch["image"]))
    assert len({row.tobytes() for row in codes}) == 8
    twice = {k: np.concatenate([v, v]) for k, v in batch.items()}
    first = None
    for step in range(300):
        twice["position"] = np.arange(16 * step, 16 * step + 16, dtype=np.uint32)
        state, metrics = update(state, twice)
        first = first if first is not None else float(metrics["loss/total"])
    assert first > 2.0

    @jax.jit
    def accuracy(params, position):
        rows = {**batch, "position": position}
        key = rngs.base_key(9)
        return task.loss(params, {}, task._frozen_host(), rows, key, 0, train=False)[1][0]

    seen = [accuracy(state.params, np.arange(8 * i, 8 * i + 8, dtype=np.uint32)) for i in range(20)]
    assert np.mean([m["accuracy"] for m in seen]) > 0.99

    prompts = task.prompts(list(build.captions))
    options = task.options(steps=12)
    sample = jax.jit(lambda p, key: task.sample(p, {}, task._frozen_host(), prompts, key, options))
    out = sample(state.params, rngs.base_key(5))
    np.testing.assert_array_equal(out["codes"], codes)
    np.testing.assert_array_equal(out["trace"][:, -1], codes)
