"""One update: accumulated gradients, players, averages, what a bad step leaves behind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from mmx.core import rng as rngs
from mmx.core.errors import UserError
from mmx.train import optim
from mmx.train.state import make_init, make_update


def batch_of(rows=8):
    source = toy.ToySource()
    out = {k: np.stack([source[i][k] for i in range(rows)]) for k in ("x", "y")}
    return {**out, "position": np.arange(rows, dtype=np.uint32)}


def updated(config, steps=1, task=None, spoiled=0):
    """(the states, the metrics of each step), on one device; step ``spoiled`` reads a nan."""
    task = task or toy.ToyTask(config)
    key = rngs.base_key(config.seed)
    params, _ = jax.eval_shape(task.init, key)
    labels = task.param_labels(params)
    tx, schedules = optim.make_optimizer(config, labels)
    averages = optim.averages(config, labels)
    update = jax.jit(make_update(task, tx, config, labels, schedules))
    states, metrics = [jax.jit(make_init(task, tx, averages))(key)], []
    for step in range(1, steps + 1):
        batch = batch_of()
        batch["y"][0] = np.nan if step == spoiled else 0.5
        state, values = update(states[-1], {"scale": jnp.float32(1.5)}, batch, key)
        states.append(state)
        metrics.append(values)
    return states, metrics


def close(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


def test_accumulated_gradients_are_those_of_the_large_batch(toy_config):
    """In float64: Adam moves a parameter by its gradient over that gradient's own size, so where
    the rows' gradients nearly cancel, float32's order of summation moves it too."""
    fields = dict(toy__running=False, optim__warmup_steps=0, optim__b1=0.0, optim__clip_norm=0.1)
    with jax.enable_x64(True):
        whole, want = updated(toy_config(**fields), steps=3)
        for accum in (2, 8):
            parts, got = updated(toy_config(**fields, optim__accum=accum), steps=3)
            name = f"accum={accum}"
            close(parts[-1].params, whole[-1].params, rtol=1e-12, atol=1e-13, err_msg=name)
            for a, b in zip(got, want, strict=True):
                assert a.keys() == b.keys()
                close(a, b, rtol=1e-6, err_msg=name)  # the norms are float32


@pytest.mark.parametrize("fields", [{"toy__coupled": True, "toy__running": False}, {}])
def test_rows_that_see_each_other_are_not_accumulated(toy_config, fields):
    reason = "rows of 'toy' see each other" if fields else "changes values without gradients"
    with pytest.raises(UserError, match=rf"config\.optim\.accum=2: .*{reason}.*use accum=1"):
        updated(toy_config(**fields, optim__accum=2))


def test_each_player_is_moved_by_its_own_loss(toy_config):
    """One loss with stop-gradients: taking one player's part away leaves the other as it was."""
    both, metrics = updated(toy_config("gan", optim__warmup_steps=0), steps=2)
    assert not np.array_equal(both[0].params["disc"]["kernel"], both[2].params["disc"]["kernel"])
    assert {"grad_norm/main", "grad_norm/disc", "lr/main", "lr/disc", "update_norm/disc"} <= set(
        metrics[0]
    )
    assert float(metrics[0]["lr/disc"]) == 0.0 and float(metrics[0]["lr/main"]) > 0.0

    class Still(toy.ToyTask):
        """The generator gets no gradient."""

        def loss(self, params, *rest, **more):
            others = {k: jax.lax.stop_gradient(v) for k, v in params.items() if k != "disc"}
            return super().loss({**others, "disc": params["disc"]}, *rest, **more)

    config = toy_config("gan", optim__warmup_steps=0)
    alone, _ = updated(config, task=Still(config))
    close(alone[1].params["disc"], both[1].params["disc"], rtol=1e-6)
    with config.unlocked():
        config.optim_disc.lr = 0.0
    frozen, _ = updated(config)
    close(frozen[1].params["first"], both[1].params["first"], rtol=1e-6)
    close(frozen[1].params["disc"], both[0].params["disc"], rtol=0)


def test_what_is_fixed_and_what_is_averaged(toy_config):
    states, _ = updated(toy_config(optim__warmup_steps=0, optim__ema=0.9), steps=3)
    first = lambda tree: np.asarray(tree["first"]["kernel"], np.float64)
    average = first(states[0].params)
    for n, state in enumerate(states[1:]):
        assert int(state.step) == n + 1
        decay = min(0.9, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * first(state.params)
        np.testing.assert_allclose(first(state.ema), average, rtol=1e-5)
        assert state.averaged is state.ema
        close(state.params["fixed"], states[0].params["fixed"], rtol=0)
    assert int(states[3].extra["count"]) == 3
    plain, _ = updated(toy_config(optim__ema=0.0))
    assert plain[1].ema is None and plain[1].averaged is plain[1].params


def test_later_steps_change_nothing(toy_config):
    """Not even those that are finite again: what is saved stays what the message says."""
    states, metrics = updated(toy_config(), steps=4, spoiled=2)
    assert [int(s.step) for s in states] == [0, 1, 1, 1, 1]
    assert [int(s.bad_step) for s in states] == [-1, -1, 2, 2, 2]
    for late in states[2:]:
        assert all(
            np.array_equal(a, b)
            for a, b in zip(
                jax.tree.leaves(late.replace(bad_step=0)),
                jax.tree.leaves(states[1].replace(bad_step=0)),
            )
        )
    assert [np.isfinite(float(m["loss/total"])) for m in metrics] == [True, False, True, True]


def test_norms_are_those_before_clipping(toy_config):
    config = toy_config(optim__warmup_steps=0, toy__poison="", optim__clip_norm=1e-3)
    states, metrics = updated(config)
    task, key = toy.ToyTask(config), rngs.base_key(config.seed)
    batch = batch_of()
    batch["y"][0] = 0.5
    loss = lambda p: task.loss(p, states[0].extra, {"scale": 1.5}, batch, key, 0)[0]
    grads = jax.jit(jax.grad(loss))(states[0].params)
    grads.pop("fixed")
    norm = np.sqrt(sum(np.square(g).sum() for g in jax.tree.leaves(grads)))
    assert float(metrics[0]["grad_norm/main"]) == pytest.approx(norm, rel=1e-5)
    moved = jax.tree.map(lambda a, b: a - b, states[1].params, states[0].params)
    norm = np.sqrt(sum(np.square(g).sum() for g in jax.tree.leaves(moved)))
    assert float(metrics[0]["update_norm/main"]) == pytest.approx(norm, rel=1e-4)
