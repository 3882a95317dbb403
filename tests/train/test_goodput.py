"""Where the time of a run went: the categories add up, and what a crash cost is among them."""

import json
import re
import time

import jax
import jax.numpy as jnp
import pytest
import toy
from conftest import goodput_of, read_scalars

from mmx.core import storage
from mmx.core.run_dir import RunDir, open_or_create
from mmx.train import goodput
from mmx.train.goodput import Goodput


class Device:
    """Steps that take a while, one after the other, as on an accelerator: sent, not waited for."""

    def __init__(self, seconds):
        self.seconds, self.free = seconds, 0.0

    def step(self, state):
        self.free = max(time.monotonic(), self.free) + self.seconds
        return state, Result(self.free)


class Result:
    def __init__(self, when):
        self.when = when

    def block_until_ready(self):
        time.sleep(max(0.0, self.when - time.monotonic()))


def slow_batches(seconds):
    while True:
        time.sleep(seconds)
        yield None


@pytest.mark.parametrize(("data", "lost"), [(0.03, 0.0), (0.12, 0.06)])
def test_waiting_for_data_costs_only_while_the_device_is_idle(data, lost):
    """The device works 0.06 s a step; the host, like the loop, reads a step late."""
    clock, device, loader, pending = Goodput(), Device(0.06), slow_batches(data), None
    with clock:
        for _ in clock.steps(0, 8):
            clock.next_batch(loader)
            _, result = clock.call(device.step, None)
            if pending:
                pending.block_until_ready()
            pending = result
    seconds = clock.seconds()
    # The first batch is waited for in full: nothing is at work yet.
    assert seconds["data"] == pytest.approx(data + 7 * lost, abs=0.03 + 0.2 * 7 * lost)
    assert seconds["step"] == pytest.approx(7 * 0.06, abs=0.15)


def test_spans_share_out_the_time_and_the_inner_one_has_its_own():
    clock = Goodput(time.monotonic() - 5.0)
    began = time.monotonic() - 5.0
    with clock.span("save"):
        time.sleep(0.05)
        with clock.span("profile"):
            time.sleep(0.1)
        time.sleep(0.15)
    time.sleep(0.2)
    with pytest.raises(RuntimeError), clock.span("eval"):
        raise RuntimeError
    seconds = clock.seconds()
    assert sum(seconds.values()) == pytest.approx(time.monotonic() - began, abs=0.01)
    assert seconds["init"] == pytest.approx(5.2, abs=0.09)
    assert seconds["save"] == pytest.approx(0.2, abs=0.09)
    assert seconds["profile"] == pytest.approx(0.1, abs=0.09)
    assert re.match(
        r"goodput 0.0 % of 5.\d s: init 5.\d s, save 0.\d s, profile 0.", clock.summary()
    )


def test_long_times_read_as_a_clock():
    clock = Goodput(time.monotonic() - 3723.0)
    assert clock.summary() == "goodput 0.0 % of 1:02:03: init 1:02:03"


def test_an_error_loses_the_steps_since_the_last_save(
    toy_config, train_toy, tmp_path, monkeypatch, capsys
):
    """The toy saves at step 4; the batch of step 7 cannot be read: 5 and 6 are done again."""
    config, run = toy_config(toy__delay=0.01), tmp_path / "run"
    real = toy.ToyTask.transform

    def fail(self, example, rng):
        if self.rows == 6 * config.batch_size:
            raise ValueError("no such row")
        self.rows += 1
        return real(self, example, rng)

    with monkeypatch.context() as patch:
        patch.setattr(toy.ToyTask, "rows", 0, raising=False)
        patch.setattr(toy.ToyTask, "transform", fail)
        with pytest.raises(RuntimeError, match="no such row"):
            train_toy(config, run)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("goodput ")]
    assert len(told) == 1 and "starts" not in told[0]
    (first,) = goodput_of(run)
    assert first[-1]["event"] == "end" and first[-1]["why"] == "RuntimeError"
    assert first[-1]["step"] == 6 and "redo" not in first[-1]["seconds"]

    train_toy(config, run)
    _, second = goodput_of(run)
    named = [line["event"] for line in second]
    assert named[0] == "restore" and named[-1] == "end" and "compile" in named
    begun = second[named.index("start")]
    assert (begun["step"], begun["redo_until"]) == (4, 6)
    end = second[-1]
    assert end["why"] == "done" and end["step"] == 12
    assert end["seconds"]["redo"] > 0.0 and end["seconds"]["step"] > 0.0
    assert sum(end["seconds"].values()) == pytest.approx(end["at"], abs=0.01)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("goodput ")]
    assert len(told) == 1 and "redo" in told[0] and "; of all 2 starts " in told[0]
    # TensorBoard has the sums of both starts, as of the last save.
    scalars = read_scalars(run)
    shares = {tag: points for tag, points in scalars.items() if tag.startswith("goodput/")}
    assert sum(points.get(12, 0.0) for points in shares.values()) == pytest.approx(1.0, abs=1e-3)
    both = first[-1]["seconds"]["init"] + end["seconds"]["init"]
    assert scalars["goodput_seconds/init"][12] == pytest.approx(both, abs=0.001)

    # A start that leaves a damaged record is left out, and does not cost the run.
    file = sorted((run / "goodput").glob("*"))[0]
    file.write_text(file.read_text()[:-20])
    Goodput().open(open_or_create(run, config), 12)
    assert f"WARNING: {file}: damaged" in capsys.readouterr().err


def test_a_run_begun_anew_with_another_config_owes_nothing(toy_config, tmp_path):
    config = toy_config()
    run = open_or_create(tmp_path / "run", config)
    with Goodput() as clock:
        clock.open(run, 0)
        clock.step = 9
    with Goodput() as clock:
        clock.open(open_or_create(run.path, config), 0)
        assert json.loads(clock._lines[-1])["redo_until"] == 9
    with config.unlocked():
        config.optim.lr = 0.5
    with Goodput() as clock:
        clock.open(open_or_create(run.path, config), 0)
        assert json.loads(clock._lines[-1])["redo_until"] == 0


def test_a_record_that_cannot_be_written_costs_neither_time_nor_the_run(
    toy_config, train_toy, tmp_path, monkeypatch, capsys
):
    real = storage.write

    def refuse(file, data):
        if str(file).startswith(str(tmp_path / "run" / "goodput")):  # not of a run before
            time.sleep(0.3)
            raise OSError(28, "No space left on device")
        real(file, data)

    monkeypatch.setattr(storage, "write", refuse)
    train_toy(toy_config(), tmp_path / "run")
    told = capsys.readouterr().err
    assert told.count("no more records of goodput") == 1 and "No space left on device" in told
    assert told.count("\ngoodput ") == 1 and RunDir(tmp_path / "run").steps()[-1] == 12

    clock = Goodput()
    with pytest.raises(ZeroDivisionError), clock:
        clock.open(RunDir(tmp_path / "run"), 0)
        began = time.monotonic()
        with clock.span("eval"):
            raise ZeroDivisionError  # what comes out, not the record's error
    assert clock._current == "init" and time.monotonic() - began < 2.0


def test_a_slow_disk_is_not_waited_for(toy_config, tmp_path, monkeypatch):
    run, real = open_or_create(tmp_path / "run", toy_config()), storage.write

    def slow(file, data):
        time.sleep(0.5)
        real(file, data)

    monkeypatch.setattr(storage, "write", slow)
    with Goodput() as clock:
        clock.open(run, 0)
        began = time.monotonic()
        for _ in range(20):
            with clock.span("eval"):
                pass
        assert time.monotonic() - began < 0.3
    ((*_, end),) = goodput_of(run.path)
    assert end["event"] == "end"


def test_a_long_start_has_several_files_and_counts_once(toy_config, tmp_path, monkeypatch):
    monkeypatch.setattr(goodput, "_LINES", 4)
    run = open_or_create(tmp_path / "run", toy_config())
    with Goodput(time.monotonic() - 7.0) as clock:
        clock.open(run, 0)
        for clock.step in range(1, 11):
            clock.note("here")
            time.sleep(0.01)
    files = goodput_of(run.path)
    assert len(files) == 3 and max(map(len, files)) == 5  # with the sums
    assert [x["step"] for file in files for x in file if x["event"] == "here"] == [*range(1, 11)]
    again = Goodput()
    with again:
        again.open(run, 0)
        (before,) = again._before
    assert before == files[-1][-1]["seconds"] and before["init"] > 7.0
    assert again._redo_until == 10


@pytest.fixture
def traced():
    """Names of the functions that jax traces, as it does."""
    names = []

    def listen(event, seconds, **about):
        del seconds
        if event.endswith(("jaxpr_trace_duration", "backend_compile_duration")):
            names.append(about.get("fun_name", event))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


def test_after_the_first_of_each_nothing_is_traced_again(
    toy_config, train_toy, tmp_path, monkeypatch, traced
):
    """Neither after evaluating, previewing and saving nor after a resume: one trace a process."""
    saves, real = [], Goodput.scalars

    def scalars(self):  # the loop calls it after all that it does at a step
        saves.append(len(traced))
        return real(self)

    monkeypatch.setattr(Goodput, "scalars", scalars)
    config = toy_config(eval_every=3, preview_every=3, save_every=3, steps=9)
    train_toy(config, tmp_path / "run")
    assert traced.count("step") == 1 and traced.count("jit(step)") == 1
    assert len(saves) == 3 and traced[saves[0] : saves[2]] == []
    with config.unlocked():
        config.steps = 15
    del traced[:], saves[:]
    train_toy(config, tmp_path / "run")
    assert traced.count("step") == 1 and len(saves) == 2
    assert traced[saves[0] : saves[1]] == []
    jax.jit(lambda x: x + 1)(jnp.ones(17))  # the listener does listen
    assert traced[saves[1] :]
