"""Killed at any moment and started again, a run goes on as if nothing had been: to the bit."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import HERE, goodput_of, read_scalars, training

from mmx.core.run_dir import open_or_create
from mmx.train.metrics import Writer

REPO = HERE.parent.parent
TOY = [sys.executable, str(HERE / "toy.py"), "train", "--config", f"{HERE / 'toy_config.py'}:slow"]
LONG = ["--config.steps=40", "--config.eval_every=20", "--config.preview_every=20",
        "--config.save_every=3", "--config.data.threads=2"]  # fmt: skip


def start(command, folder, devices=1):
    environment = {
        **os.environ,
        "JAX_NUM_CPU_DEVICES": str(devices),
        "PYTHONPATH": str(REPO),
        "PYTHONUNBUFFERED": "1",
    }
    log = open(f"{folder}.log", "a")  # noqa: SIM115 the child's until it ends
    return subprocess.Popen(
        [*command, "--workdir", str(folder)], env=environment, stdout=log, stderr=log
    )


def run(command, folder):
    code = start(command, folder).wait(timeout=600)
    assert code == 0, Path(f"{folder}.log").read_text()


def saved_steps(folder):
    return {int(p.name) for p in (folder / "checkpoints").glob("*") if p.name.isdigit()}


def wait_for(process, happened):
    """Poll without a pause; True when it happened while the process was alive."""
    while process.poll() is None:
        if happened():
            return True
    return False


def saving(folder):
    return any("checkpoint-tmp" in p.name for p in (folder / "checkpoints").glob("*"))


def held(process, folder):
    """Stop the process in the middle of a save: True while it stands there."""
    if not saving(folder):
        return False
    process.send_signal(signal.SIGSTOP)
    state = Path(f"/proc/{process.pid}/stat")
    while state.read_text().rpartition(")")[2].split()[0] not in "TZ":
        time.sleep(0.001)
    if not saving(folder):  # it was faster
        process.send_signal(signal.SIGCONT)
        return False
    return True


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    run([*TOY, *LONG], folder)
    scalars = training(read_scalars(folder))
    assert sorted(scalars["loss/total"]) == list(range(1, 41))
    return scalars


def test_killed_while_saving_and_at_random_steps(unbroken, tmp_path):
    folder, command = tmp_path / "run", [*TOY, *LONG]
    draw, kills = random.Random(5), 0
    for moment in ("save", "step", "save", "step"):
        process, before = start(command, folder), saved_steps(folder)
        if moment == "save":
            hit = wait_for(process, lambda: saved_steps(folder) - before and held(process, folder))  # noqa: B023
        else:
            hit = wait_for(process, lambda: saved_steps(folder) - before)  # noqa: B023
            time.sleep(draw.uniform(0.0, 0.3))
        process.kill()
        code = process.wait()
        assert hit and code == -signal.SIGKILL, (moment, code)
        kills += 1
    run(command, folder)
    assert kills == 4
    told = Path(f"{folder}.log").read_text()
    assert told.count("going on from step") == 4
    # A save that a kill has hit is kept aside; no checkpoint was broken.
    hit = len(list((folder / "broken").glob("unfinished-*")))
    assert 2 <= hit == told.count("a save that did not end; moved to") == told.count("WARNING")
    # Every step once, those before a kill too: events are on disk before a checkpoint is.
    assert training(read_scalars(folder)) == unbroken
    # Each start has recorded where its time went, and knows which steps the ones before had done.
    starts, done = goodput_of(folder), 0
    assert [lines[-1]["event"] for lines in starts] == ["now"] * 4 + ["end"]
    for lines in starts:
        begun = next(line for line in lines if line["event"] == "start")
        assert begun["redo_until"] == max(done, begun["step"])
        assert ("redo" in lines[-1]["seconds"]) == (begun["step"] < done)
        done = max(done, lines[-1]["step"])
    assert done == 40


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_saves_and_says_so(unbroken, tmp_path, number):
    folder, command = tmp_path / "run", [*TOY, *LONG]
    process = start(command, folder)
    assert wait_for(process, lambda: 6 in saved_steps(folder))
    process.send_signal(number)
    assert process.wait(timeout=120) == 75
    told = Path(f"{folder}.log").read_text()
    stopped = max(saved_steps(folder))
    assert f"mmx: stopped at step {stopped}; saved in {folder}; run the same command" in told
    assert "Traceback" not in told
    # All that was done is kept, and nothing was done beyond it.
    assert max(read_scalars(folder)["loss/total"]) == stopped < 40
    began = time.time()
    run(command, folder)
    ended = time.time()
    assert f"going on from step {stopped}" in Path(f"{folder}.log").read_text()
    again = training(read_scalars(folder))
    if stopped == 20:  # then stopping came first, and step 20 was not scored
        again["test/loss"][20] = unbroken["test/loss"][20]
    assert again == unbroken
    # The seconds are those of the process, from its start to its end.
    first, second = goodput_of(folder)
    assert (first[-1]["why"], first[-1]["step"]) == ("Preempted", stopped)
    assert len([line for line in told.splitlines() if line.startswith("goodput ")]) == 1
    begun, end = next(line for line in second if line["event"] == "start"), second[-1]
    assert -0.1 < begun["time"] - begun["at"] - began < 0.5
    assert sum(end["seconds"].values()) == pytest.approx(end["at"], abs=0.01)
    assert 0.0 < ended - began - end["at"] < 5.0  # Python's own end is not in it


def test_killed_before_the_first_checkpoint_it_starts_anew(toy_config, train_toy, tmp_path):
    """Events of the run that left no checkpoint are purged as well."""
    config = toy_config(steps=2)
    run_dir = open_or_create(tmp_path / "run", config)
    dead = Writer(run_dir.path, 0)
    dead.scalars(1, {"loss/total": 123.0})
    dead.scalars(3, {"loss/total": 456.0, "stale": 1.0})
    train_toy(config, run_dir.path)
    scalars = read_scalars(run_dir.path)
    assert sorted(scalars["loss/total"]) == [1, 2] and scalars["loss/total"][1] < 100
    assert not scalars.get("stale")


def test_the_real_command_resumes_to_the_bit(data_dir, tmp_path):
    """The image tokenizer: its codebook changes without gradients and restarts dead codes."""
    command = [sys.executable, "-m", "mmx.cli.main", "train", "--config", "vqgan/openmoji32:tiny",
               f"--config.data.data_dir={data_dir}", "--config.log_every=1", "--config.steps=14",
               "--config.eval_every=7", "--config.preview_every=7", "--config.save_every=3",
               "--config.eval.examples=16"]  # fmt: skip
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(command, whole)
    process = start(command, broken)
    assert wait_for(process, lambda: saved_steps(broken) and held(process, broken))
    process.kill()
    assert process.wait() == -signal.SIGKILL
    run(command, broken)
    told = Path(f"{broken}.log").read_text()
    assert "going on from step" in told and told.count("a save that did not end; moved to") == 1
    a, b = (training(read_scalars(folder)) for folder in (whole, broken))
    assert a == b and sorted(a["loss/total"]) == list(range(1, 15)) and "test/psnr" in a
