"""The loop: evaluation changes nothing, metrics come one step late, bad steps change nothing."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import toy
from conftest import read_scalars, training

from mmx.core.errors import UserError
from mmx.core.run_dir import RunDir
from mmx.data import packing, pipeline
from mmx.train import loop, metrics, plan
from mmx.train.start import read_weights


def saved(folder, step=None):
    params, extra, step = read_weights(RunDir(folder), step)
    return jax.tree.leaves((params, extra)), step


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_evaluating_and_previewing_leave_training_as_it_is(toy_config, train_toy, tmp_path):
    often = toy_config(eval_every=1, preview_every=1)
    never = toy_config(eval_every=99, preview_every=99)
    task = train_toy(often, tmp_path / "often")
    assert task.events.count("eval") == task.events.count("preview") == 12
    assert train_toy(never, tmp_path / "never").events == ["eval", "preview"]  # at the end
    a, b = (training(read_scalars(tmp_path / name)) for name in ("often", "never"))
    assert len(a.pop("test/loss")) == 12 and len(b.pop("test/loss")) == 1
    assert a == b and len(a["loss/total"]) == 12
    assert same(saved(tmp_path / "often")[0], saved(tmp_path / "never")[0])


def test_a_score_that_fails_does_not_cost_the_training_before_it(
    toy_config, train_toy, tmp_path, monkeypatch
):
    def fail(self, *args):
        raise RuntimeError("no score")

    with monkeypatch.context() as patch:
        patch.setattr(toy.ToyTask, "preview", fail)
        with pytest.raises(RuntimeError, match="no score"):
            train_toy(toy_config(eval_every=99, preview_every=99), tmp_path / "run")
    assert RunDir(tmp_path / "run").steps()[-1] == 12


def test_flops_of_packed_rows_are_of_the_images_there():
    task = SimpleNamespace(train_flops_per_row=lambda images=12: 100 + images)
    plan_ = packing.Plan(np.array([[9, 1], [9, 1], [4, 0], [9, 1]]), 20, 12)
    packed = packing.PackedStream(None, None, 0, plan_)
    assert metrics.row_flops(task, packed)() == 100 + 3 / plan_.rows == 101.5
    assert metrics.row_flops(task, pipeline.Stream([{}], None, 0))() == 112


class Spy:
    """Stands for the metrics of a step: notes when they are read."""

    def __init__(self, vector, step, log):
        self.vector, self.step, self.log = vector, step, log

    def __array__(self, *args, **kwargs):
        self.log.append(f"read {self.step}")
        return np.asarray(self.vector)


@pytest.fixture
def spied(monkeypatch):
    """The order of dispatching and reading, and the jitted step."""
    log, real, made = [], plan.jit_sharded, {}

    def spy(fn, mesh, **kwargs):
        call = real(fn, mesh, **kwargs)

        def step(state, *rest):
            log.append(f"dispatch {sum(e.startswith('dispatch') for e in log) + 1}")
            new, vector = call(state, *rest)
            made.update(before=state, jitted=call.jitted)
            return new, Spy(vector, len(made.setdefault("vectors", [])) + 1, log)

        def counted(state, *rest):
            out = step(state, *rest)
            made["vectors"].append(out[1])
            return out

        return counted

    monkeypatch.setattr(plan, "jit_sharded", spy)
    return log, made


def test_metrics_are_read_one_step_late(toy_config, train_toy, tmp_path, spied):
    log, made = spied
    train_toy(toy_config(steps=5, eval_every=3, preview_every=99, save_every=99), tmp_path / "run")
    want = ["dispatch 1", "dispatch 2", "read 1", "dispatch 3", "read 2", "read 3",
            "dispatch 4", "dispatch 5", "read 4", "read 5"]  # fmt: skip
    assert log == want
    # One program for the whole run, and the old state's memory was given to the new one.
    assert made["jitted"]._cache_size() == 1
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(made["before"]))


def test_nothing_is_sent_to_the_devices_unasked(toy_config, train_toy, tmp_path, monkeypatch):
    """The guard is on around each step: a batch that is still on the host is refused."""
    real = loop.pipeline.batches

    class OnHost:
        def __init__(self, *args, **kwargs):
            self.inner = real(*args, **kwargs)

        def __next__(self):
            return jax.tree.map(np.asarray, next(self.inner))

        def __enter__(self):
            return self

        def __exit__(self, *unused):
            self.inner.close()

    monkeypatch.setattr(loop.pipeline, "batches", OnHost)
    with pytest.raises(Exception, match="Disallowed host-to-device"):
        train_toy(toy_config(), tmp_path / "run")


@pytest.mark.parametrize(
    ("poison", "metric"),
    [("loss", "loss/total"), ("gradient", "grad_norm/main"), ("extra", "extra_norm")],
)
def test_a_step_that_is_not_finite_changes_nothing(toy_config, train_toy, tmp_path, poison, metric):
    config = toy_config(toy__poison=poison, toy__poison_step=7, eval_every=99, preview_every=99)
    with pytest.raises(loop.NonFinite, match=rf"step 7: .*{metric}") as raised:
        train_toy(config, tmp_path / "bad")
    assert "the state of step 6 is saved" in str(raised.value)
    weights, step = saved(tmp_path / "bad")
    assert step == 6 and all(np.isfinite(leaf).all() for leaf in weights)
    # Step 8 had been sent off before step 7 was known to be bad, and changed nothing either.
    with config.unlocked():
        config.toy.poison_step, config.save_every = 0, 6
    train_toy(config, tmp_path / "good")
    want, _ = saved(tmp_path / "good", 6)
    assert same(weights, want)
    # Started again it meets the same step.
    with config.unlocked():
        config.toy.poison_step, config.save_every = 7, 4
    with pytest.raises(loop.NonFinite, match="step 7"):
        train_toy(config, tmp_path / "bad")


def test_an_update_that_is_not_finite_is_not_taken(toy_config, train_toy, tmp_path):
    config = toy_config(optim__lr=1e38, optim__warmup_steps=0, optim__weight_decay=0.0)
    with pytest.raises(loop.NonFinite, match=r"step 1: .*update_norm/main"):
        train_toy(config, tmp_path / "run")
    weights, step = saved(tmp_path / "run")
    assert step == 0 and all(np.isfinite(leaf).all() for leaf in weights)


def test_init_from_takes_what_fits_and_lists_the_rest(toy_config, train_toy, tmp_path, capsys):
    train_toy(toy_config(), tmp_path / "old")
    train_toy(toy_config("gan", steps=1, optim__lr=0.0, optim_disc__lr=0.0), tmp_path / "new",
              init_from=f"{tmp_path / 'old'}@8")  # fmt: skip
    told = capsys.readouterr().err
    assert "took 6 of 7 arrays" in told and "fresh: params/disc/kernel (8, 16)" in told
    old, _, _ = read_weights(RunDir(tmp_path / "old"), 8)
    new, extra, _ = read_weights(RunDir(tmp_path / "new"))
    assert np.array_equal(new["first"]["kernel"], old["first"]["kernel"])
    assert np.array_equal(new["fixed"]["kernel"], old["fixed"]["kernel"])
    assert extra["count"] == 8 + 1

    train_toy(toy_config(steps=1, toy__running=False), tmp_path / "plain",
              init_from=str(tmp_path / "new"))  # fmt: skip
    told = capsys.readouterr().err
    assert "took 4 of 4 arrays" in told and "fresh" not in told
    assert told.count("unused") == 3
    assert "unused: params/disc/kernel (8, 16)" in told and "unused: extra/count ()" in told


def test_init_from_another_shape(toy_config, train_toy, tmp_path, capsys):
    train_toy(toy_config(steps=1), tmp_path / "old")
    with pytest.raises(UserError, match="no parameter has the path and shape"):
        train_toy(toy_config(steps=1, toy__width=8), tmp_path / "new",
                  init_from=str(tmp_path / "old"))  # fmt: skip
    with pytest.raises(UserError, match="no such run directory"):
        train_toy(toy_config(steps=1), tmp_path / "other", init_from=str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 12}, "batch_size=12 does not divide over 8 devices"),
        ({"optim__accum": 2}, "take a multiple of 16"),
        ({"eval_every": 0}, "config.eval_every=0: must be at least 1; for never"),
        ({"steps": 0}, "config.steps=0: must be at least 1"),
        ({"optim__accum": 0}, "config.optim.accum=0"),
        ({"keep": 0}, "config.keep=0"),
        ({"optim__lr": -1.0}, "config.optim.lr=-1.0: must be at least 0"),
        ({"mesh__data": 3}, "data=3.*does not multiply to the 8 devices"),
        ({"mesh__fsdp": 0}, "fsdp=0.*does not multiply to the 8 devices"),
        ({"mesh__fsdp": -1}, "does not multiply to the 8 devices"),
        ({"optim__name": "sgd"}, "config.optim.name='sgd': use 'adamw' or 'adafactor'"),
    ],
)
def test_a_config_that_cannot_work_is_refused(toy_config, train_toy, tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        train_toy(toy_config(**fields), tmp_path / "run")


def test_a_run_explains_itself(toy_config, train_toy, tmp_path):
    train_toy(toy_config(), tmp_path / "run")
    environment = json.loads((tmp_path / "run/environment.json").read_text())
    assert environment[0]["versions"]["jax"] == jax.__version__
    assert len(environment[0]["devices"]) == 8
    assert (tmp_path / "run/attribution.txt").read_text() == "toy numbers\n"
    assert RunDir(tmp_path / "run").config() == toy_config()
    assert RunDir(tmp_path / "run").steps() == [8, 12]  # keep=2 of 4, 8, 12
    assert toy.EXAMPLES < 12 * 8  # the run went through more than two epochs
