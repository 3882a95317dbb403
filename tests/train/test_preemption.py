"""A stop is looked for while waiting for data, evaluating, and before the first step."""

import os
import signal
import threading

import numpy as np
import pytest
import toy
from conftest import read_scalars

from mmx.core import preemption
from mmx.core.run_dir import RunDir
from mmx.data import pipeline
from mmx.train.checkpoint import Checkpoints
from mmx.train.sharding import batch_sharding


def ask():
    os.kill(os.getpid(), signal.SIGTERM)


class Slow:
    """An evaluator of many batches, in whose first a stop is asked for."""

    def __init__(self, mesh):
        self.mesh, self.batches = mesh, 0

    def run(self, params, extra, frozen):
        del params, extra, frozen
        rows = batch_sharding(self.mesh)
        transform = lambda example, rng: {"x": example["x"]}
        with pipeline.eval_batches(toy.ToySource(), transform, 8, rows) as batches:
            for _ in batches:
                self.batches += 1
                ask()
        yield "test/slow", 1.0


@pytest.mark.parametrize(
    ("steps", "then"),
    [
        (12, "run the same command to go on"),
        (5, "this was the last step: `mmx evaluate` scores it"),
    ],
)
def test_an_evaluation_stops_between_two_batches(toy_config, train_toy, tmp_path, steps, then):
    class Task(toy.ToyTask):
        def evaluators(self, mesh):
            self.slow = Slow(mesh)
            return [self.slow]

    config = toy_config(steps=steps, save_every=99, preview_every=99)
    task = Task(config)
    with pytest.raises(preemption.Preempted, match=f"stopped at step 5; saved in .*run; {then}$"):
        train_toy(config, tmp_path / "run", task=task)
    assert task.slow.batches == 1 and RunDir(tmp_path / "run").steps() == [5]
    scalars = read_scalars(tmp_path / "run")
    assert max(scalars["loss/total"]) == 5
    if steps == 12:  # saved by the stop itself
        assert max(scalars["goodput/save"]) == 5


def test_waiting_for_data_is_left_at_once(toy_config, train_toy, tmp_path, monkeypatch):
    """Saved before the row that all wait for has come; it comes, that the threads can end."""
    saved, came = threading.Event(), []

    class Task(toy.ToyTask):
        def transform(self, example, rng):
            self.rows = getattr(self, "rows", 0) + 1
            if self.rows == 8 * 6 + 1:
                threading.Timer(0.5, ask).start()
                came.append(saved.wait(20))
            return super().transform(example, rng)

    real = Checkpoints.save

    def save(self, step, state):
        real(self, step, state)
        saved.set()

    monkeypatch.setattr(Checkpoints, "save", save)
    config = toy_config(save_every=99, eval_every=99, preview_every=99)
    with pytest.raises(preemption.Preempted, match="stopped at step 6; saved in"):
        train_toy(config, tmp_path / "run", task=Task(config))
    assert came == [True] and RunDir(tmp_path / "run").steps() == [6]
    assert max(read_scalars(tmp_path / "run")["loss/total"]) == 6


@pytest.mark.parametrize(
    ("where", "message", "steps"),
    [
        ("load_frozen", "stopped before the first step; nothing to save", []),
        ("evaluators", "stopped at step 0; saved in", [0]),
    ],
)
def test_before_the_first_step(toy_config, train_toy, tmp_path, where, message, steps):
    task = toy.ToyTask(toy_config())
    real = getattr(task, where)

    def asked(mesh):
        ask()
        return real(mesh)

    setattr(task, where, asked)
    with pytest.raises(preemption.Preempted, match=message):
        train_toy(toy_config(), tmp_path / "run", task=task)
    assert RunDir(tmp_path / "run").steps() == steps


def test_a_stop_and_a_step_that_is_not_finite(toy_config, train_toy, tmp_path):
    """The step that was under way turns out bad: that is what is said, and the one before saved."""
    from mmx.train.loop import NonFinite

    class Task(toy.ToyTask):
        def transform(self, example, rng):
            self.rows = getattr(self, "rows", 0) + 1
            if self.rows == 8 * 7 + 1:
                threading.Timer(0.3, ask).start()
                threading.Event().wait(1.5)
            return super().transform(example, rng)

    config = toy_config(toy__poison="loss", toy__poison_step=7, save_every=99, eval_every=99,
                        preview_every=99)  # fmt: skip
    with pytest.raises(NonFinite, match="step 7"):
        train_toy(config, tmp_path / "run", task=Task(config))
    assert RunDir(tmp_path / "run").steps() == [6]


def test_outside_a_watch_nothing_is_looked_for():
    preemption.check()
    with preemption.watch((signal.SIGTERM,)) as stop:
        assert not stop.asked()
        ask()
        assert stop.asked()
        with pytest.raises(preemption.Interrupted):
            preemption.check()
    preemption.check()


def test_a_second_interrupt_is_one(monkeypatch):
    with preemption.watch() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.asked()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_several_processes_look_in_step(monkeypatch):
    """jax's service gets numbers that grow over all watches, and is not asked again after a yes."""
    from jax.experimental import multihost_utils

    seen = []

    def reached(number):
        seen.append(number)
        return len(seen) == 3

    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", reached)
    for _ in range(2):
        with preemption.watch(many=True) as stop:
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
            preemption.check()
            with stop.waiting():
                pass
    with preemption.watch(many=True) as stop:
        assert stop.asked() and stop.asked()
        with stop.waiting():  # the others may have gone on
            pass
    assert len(seen) == 3 and np.all(np.diff(seen) == 1)


def test_a_stop_before_a_watch_inside_another_is_kept():
    with preemption.watch((signal.SIGTERM,)) as outer:
        ask()
        with preemption.watch() as inner:
            assert inner.asked()
        with pytest.raises(preemption.Interrupted):
            preemption.check()
        assert outer.asked()


@pytest.mark.parametrize("where", ["_check_inputs", "_train"])
def test_a_stop_before_the_loop_ends_with_75(tmp_path, monkeypatch, capsys, where):
    """While the data is read, and while the task is made."""
    from mmx.cli import main, train

    monkeypatch.setattr("mmx.models.registry._TASKS", {"toy": ("toy", "ToyTask")})
    monkeypatch.setattr("mmx.data.source.open_source", toy.open_toy)
    monkeypatch.setattr("mmx.train.loop.open_source", toy.open_toy)
    real = getattr(train, where)

    def asked(*args):
        ask()
        return real(*args)

    monkeypatch.setattr(train, where, asked)
    config, run = toy.__file__.replace("toy.py", "toy_config.py"), tmp_path / "run"
    assert main.main(["train", "--config", config, "--workdir", str(run)]) == 75
    assert "mmx: stopped before the first step; nothing to save" in capsys.readouterr().err
    assert RunDir(run).steps() == [] and run.exists() == (where == "_train")
