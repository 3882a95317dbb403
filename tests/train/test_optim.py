"""Optimisers against their formulas, worked out here in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from mmx.core.errors import UserError
from mmx.train import optim


def config_of(steps=10, groups=("optim",), **fields):
    group = dict(name="adamw", lr=0.1, b1=0.9, b2=0.96, weight_decay=0.0, warmup_steps=0,
                 clip_norm=1e9, ema=0.0, accum=1) | fields  # fmt: skip
    return ConfigDict({"steps": steps, **{name: dict(group) for name in groups}})


def updates_of(config, params, gradients, labels=None):
    """The updates of each gradient in turn, at unchanged parameters."""
    labels = labels or jax.tree.map(lambda _: "main", params)
    tx, _ = optim.make_optimizer(config, labels)
    state, out = tx.init(params), []
    for grads in gradients:
        updates, state = tx.update(grads, state, params)
        out.append(updates)
    return out


def test_warm_up_and_cosine():
    schedule = optim.lr_schedule(config_of(lr=2.0, warmup_steps=4).optim, 12)
    got = schedule(jnp.arange(13))
    want = [0.0, 0.5, 1.0, 1.5] + [1 + np.cos(np.pi * n / 8) for n in range(9)]
    np.testing.assert_allclose(got, want, atol=1e-6)
    ends = optim.lr_schedule(config_of(lr=2.0, lr_end=0.5, warmup_steps=4).optim, 12)
    want[4:] = [1.25 + 0.75 * np.cos(np.pi * n / 8) for n in range(9)]
    np.testing.assert_allclose(ends(jnp.arange(13)), want, atol=1e-6)
    # Without warm-up it starts at the top; longer than the run, it never gets there.
    assert float(optim.lr_schedule(config_of(lr=2.0).optim, 12)(0)) == 2.0
    short = optim.lr_schedule(config_of(lr=2.0, warmup_steps=50).optim, 10)
    np.testing.assert_allclose(short(jnp.arange(11)), np.arange(11) * 0.2, rtol=1e-6)


def test_adamw_by_hand():
    lr, b1, b2, decay, eps = 0.1, 0.9, 0.96, 0.05, 1e-8
    params = {"kernel": jnp.asarray([[0.5, -2.0]]), "bias": jnp.asarray([3.0])}
    gradients = [{"kernel": jnp.asarray([[0.1, -0.4]]), "bias": jnp.asarray([1e-3])},
                 {"kernel": jnp.asarray([[-0.3, 0.2]]), "bias": jnp.asarray([5.0])}]  # fmt: skip
    got = updates_of(config_of(steps=1000, weight_decay=decay), params, gradients)
    for name in params:
        m = v = 0.0
        for n, (grads, updates) in enumerate(zip(gradients, got), 1):
            g = np.asarray(grads[name], np.float64)
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            step = (m / (1 - b1**n)) / (np.sqrt(v / (1 - b2**n)) + eps)
            step += (decay if name == "kernel" else 0.0) * np.asarray(params[name])
            rate = lr * 0.5 * (1 + np.cos(np.pi * (n - 1) / 1000))
            np.testing.assert_allclose(updates[name], -rate * step, rtol=1e-5)
    ready = optax.adamw(optim.lr_schedule(config_of().optim, 1000), b1, b2, weight_decay=decay)
    want, _ = ready.update({"k": gradients[0]["kernel"]}, ready.init({"k": params["kernel"]}),
                           {"k": params["kernel"]})  # fmt: skip
    np.testing.assert_allclose(got[0]["kernel"], want["k"], rtol=1e-6)


def _clipped(u):
    return u / max(1.0, np.sqrt(np.mean(u**2)))


def test_adafactor_unfactored_by_hand():
    """arXiv 1804.04235: section 7.1's bias correction of a constant b2, section 6's clipping."""
    b1, b2 = 0.9, 0.96
    params = {"kernel": jnp.zeros((2, 3))}
    gradients = [np.array([[0.1, -0.4, 2.0], [0.0, 3.0, -1.0]]),
                 np.array([[1.0, 0.2, -0.1], [0.5, -6.0, 0.3]])]  # fmt: skip
    config = config_of(steps=10**9, name="adafactor", b1=b1, b2=b2)
    got = updates_of(config, params, [{"kernel": jnp.asarray(g)} for g in gradients])
    v = m = 0.0
    for n, g in enumerate(gradients, 1):
        v = b2 * v + (1 - b2) * g**2
        u = _clipped(g / np.sqrt(v / (1 - b2**n) + 1e-30))
        m = b1 * m + (1 - b1) * u
        np.testing.assert_allclose(got[n - 1]["kernel"], -0.1 * m, rtol=1e-5)


def test_adafactor_factored_by_hand():
    """From 128 rows and columns on, one mean a row and one a column: R C / mean(R)."""
    b1, b2, shape = 0.8, 0.9, (128, 130)
    draw = np.random.default_rng(0)
    gradients = [draw.normal(size=shape) * draw.uniform(0.1, 9, size=shape) for _ in range(2)]
    config = config_of(steps=10**9, name="adafactor", b1=b1, b2=b2)
    params = {"kernel": jnp.zeros(shape)}
    got = updates_of(config, params, [{"kernel": jnp.asarray(g)} for g in gradients])
    row = column = m = 0.0
    for n, g in enumerate(gradients, 1):
        row = b2 * row + (1 - b2) * np.mean(g**2, 1)
        column = b2 * column + (1 - b2) * np.mean(g**2, 0)
        v = np.outer(row, column) / row.mean() / (1 - b2**n)
        m = b1 * m + (1 - b1) * _clipped(g / np.sqrt(v))
        np.testing.assert_allclose(got[n - 1]["kernel"], -0.1 * m, rtol=2e-4, atol=1e-7)


def test_adafactor_keeps_one_number_a_row_and_column():
    params = {"kernel": jnp.zeros((256, 512))}
    tx, _ = optim.make_optimizer(config_of(name="adafactor"), {"kernel": "main"})
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(tx.init(params)))
    assert sizes[-3:] == [256, 512, 256 * 512]  # the last is the momentum that b1 asks for


def test_a_constant_gradient_moves_by_the_learning_rate():
    """The correction makes the second moment exact from the first step on, at any b2."""
    for b2 in (0.5, 0.999):
        config = config_of(steps=10**9, name="adafactor", b1=0.0, b2=b2)
        for updates in updates_of(
            config, {"kernel": jnp.zeros(4)}, [{"kernel": jnp.full(4, 7.0)}] * 5
        ):
            np.testing.assert_allclose(updates["kernel"], -0.1, rtol=1e-5)


def test_each_group_is_clipped_by_itself():
    """Plain steps would show it too, but Adam forgets scale: so the second of two gradients."""
    labels = {"a": "main", "b": "main", "c": "disc", "f": "fixed"}
    params = jax.tree.map(lambda _: jnp.zeros(2), labels)
    config = config_of(groups=("optim", "optim_disc"), clip_norm=1.0)
    big, small = jnp.full(2, 30.0), jnp.full(2, 0.1)

    def moments(grads):
        tx, _ = optim.make_optimizer(config, labels)
        _, state = tx.update(grads, tx.init(params), params)
        mu = lambda label: state.inner_states[label].inner_state[1].mu
        return mu("main")["a"], mu("main")["b"], mu("disc")["c"]

    a, b, c = moments({"a": big, "b": small, "c": small, "f": big * 100})
    norm = np.sqrt(2 * 30.0**2 + 2 * 0.1**2)
    np.testing.assert_allclose(a, 0.1 * 30 / norm, rtol=1e-5)
    np.testing.assert_allclose(b, 0.1 * 0.1 / norm, rtol=1e-5)  # one norm for the whole group
    np.testing.assert_allclose(c, 0.1 * 0.1, rtol=1e-5)  # untouched by the others' size


def test_fixed_parameters_do_not_move():
    labels = {"kernel": "main", "fixed": "fixed"}
    params = {"kernel": jnp.ones(2), "fixed": jnp.ones(2)}
    config = config_of(weight_decay=0.5)
    (updates,) = updates_of(config, params, [jax.tree.map(jnp.ones_like, params)], labels)
    assert not updates["fixed"].any() and updates["kernel"].all()


def test_decay_is_for_kernels():
    names = ("kernel", "bias", "scale", "embedding", "position", "codebook")
    mask = optim.decay_mask({"layer": {name: jnp.ones(1) for name in names}})
    assert [n for n in names if mask["layer"][n]] == ["kernel"]


def test_decay_is_for_what_is_named():
    """A step without a gradient takes lr * decay of it, and nothing of the rest."""
    params = {"a": {name: jnp.full(2, 3.0) for name in ("kernel", "embedding", "scale")}}
    config = config_of(steps=10**9, weight_decay=0.5, decays=("kernel", "embedding"))
    (updates,) = updates_of(config, params, [jax.tree.map(jnp.zeros_like, params)])
    for name, moved in (("kernel", -0.15), ("embedding", -0.15), ("scale", 0.0)):
        np.testing.assert_allclose(updates["a"][name], moved, rtol=1e-6)
    with pytest.raises(UserError, match=r"config.optim.decays: no parameter is named 'embeding'"):
        optim.make_optimizer(config_of(decays=("embeding",)), {"kernel": "main"})


def test_every_group_has_its_settings():
    labels = {"a": "main", "b": "disc"}
    with pytest.raises(UserError, match=r"config.optim_disc is missing: .*'disc' need it"):
        optim.make_optimizer(config_of(), labels)
    config = config_of(groups=("optim", "optim_disc"))
    config.optim_disc.lr = 7.0
    _, schedules = optim.make_optimizer(config, labels)
    assert {k: float(s(0)) for k, s in schedules.items()} == pytest.approx({"main": 0.1, "disc": 7})
    with pytest.raises(UserError, match=r"config\.optim\.name='sgd': use 'adamw' or 'adafactor'"):
        optim.make_optimizer(config_of(name="sgd"), {"a": "main"})


def test_online_average():
    """e += (1 - d) (p - e), d = min(decay, (1 + n) / (10 + n)); groups without one follow."""
    labels = {"a": "main", "b": "disc", "f": "fixed"}
    config = config_of(groups=("optim", "optim_disc"), ema=0.5)
    config.optim_disc.ema = 0.0
    want, ema = 1.0, {k: jnp.asarray(1.0) for k in labels}
    for n in range(12):
        params = {k: jnp.asarray(float(n * n)) for k in labels}
        ema = optim.update_ema(config, labels, ema, params, jnp.int32(n))
        decay = min(0.5, (1 + n) / (10 + n))
        want = decay * want + (1 - decay) * n * n
        assert float(ema["a"]) == pytest.approx(want, rel=1e-6)
        assert float(ema["b"]) == float(ema["f"]) == n * n
    assert optim.averages(config, labels) and not optim.averages(config_of(), {"a": "main"})
    assert optim.update_ema(config, labels, None, params, jnp.int32(0)) is None


def test_offline_average():
    """Invariant 15 of the spec: e = .7 (.7 c0 + .3 c1) + .3 c2; read one at a time."""
    alive = []

    def checkpoints():
        for value in (2.0, -5.0, 11.0):
            alive.append(value)
            yield {"x": np.float64(value)}

    e = optim.offline_ema(checkpoints(), 0.7)["x"]
    assert e == pytest.approx(0.7 * (0.7 * 2.0 + 0.3 * -5.0) + 0.3 * 11.0) and len(alive) == 3
    assert optim.offline_ema([{"x": np.float64(4)}], 0.7)["x"] == 4
    with pytest.raises(ValueError, match="at least one checkpoint"):
        optim.offline_ema([], 0.7)


def test_a_bound_holds_after_the_step_and_lets_go_of_what_comes_back():
    """B19: a parameter by its path ends at the bound at most; a gradient that leads down counts."""
    params = {"scale": jnp.asarray(4.5), "other": jnp.asarray(4.5)}
    config = config_of(steps=10**9, lr=0.3, upper={"scale": 4.6})
    tx, _ = optim.make_optimizer(config, jax.tree.map(lambda _: "main", params))
    state = tx.init(params)
    for sign, scale, other in ((-1, 4.6, 4.8), (-1, 4.6, 5.1), (1, 4.3, 4.8)):
        grads = jax.tree.map(lambda p, sign=sign: jnp.full_like(p, sign), params)
        # A fresh moment each time: this is of the bound, not of Adam's memory.
        updates, _ = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        assert float(params["scale"]) == pytest.approx(scale, abs=1e-5)
        assert float(params["other"]) == pytest.approx(other, abs=1e-5)
    over = {"scale": jnp.asarray(5.0), "other": jnp.asarray(5.0)}  # weights from elsewhere
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, over), state, over)
    assert float(over["scale"] + updates["scale"]) == pytest.approx(4.6)
    with pytest.raises(UserError, match=r"config.optim.upper.scales: no parameter"):
        optim.make_optimizer(config_of(upper={"scales": 1.0}), {"scale": "main"})
