"""Two processes with four devices each are one run of eight: rows, losses, files, and its ends."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import toy
from conftest import read_scalars, training
from jax.sharding import AxisType
from pair import REPO, TOY, environment, free_port, pair

from mmx.cli import main as cli
from mmx.core.partition import MESH_AXES
from mmx.core.run_dir import RunDir
from mmx.data import source
from mmx.models import registry
from mmx.train import loop
from mmx.train.start import read_weights

# Rows arrive slowly enough for a signal to hit a step that is not the last.
FLAGS = ["--config.steps=24", "--config.save_every=4", "--config.eval_every=8",
         "--config.preview_every=8", "--config.keep=9", "--config.toy.delay=0.01"]  # fmt: skip
COMMAND = [*TOY, *FLAGS]
B, STEPS = 8, 24
# Gloo tells of each connection word by word, from several threads: their lines mix.
GLOO = re.compile(
    r"\[Gloo\] Rank |is connected to |peer ranks\. Expected number of connected peer ranks is : "
    r"|\d+ ?|\s"
)


def steps_of(folder) -> list[int]:
    names = [p.name for p in (folder / "checkpoints").glob("*")]
    return sorted(int(name) for name in names if name.isdigit())


def close(a, b, rtol=1e-5):
    """Losses agree to the order in which float32 sums are taken."""
    assert a.keys() == b.keys()
    for tag in a:
        assert a[tag].keys() == b[tag].keys(), tag
        got, want = np.array([*a[tag].values()]), np.array([*b[tag].values()])
        np.testing.assert_allclose(got, want, rtol=rtol, atol=1e-6, err_msg=tag)


def alone(folder, devices: int) -> str:
    """The same command in this process, on some of its devices; returns what it says."""
    mesh = jax.make_mesh(
        (1, devices, 1, 1),
        MESH_AXES,
        axis_types=(AxisType.Auto,) * 4,
        devices=jax.devices()[:devices],
    )
    told = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(told):
        patch.setattr(registry, "_TASKS", {"toy": ("toy", "ToyTask")})
        patch.setattr(source, "open_source", toy.open_toy)
        patch.setattr(loop, "open_source", toy.open_toy)
        patch.setattr(loop, "make_mesh", lambda config: mesh)
        patch.setattr(cli, "before_jax", lambda: None)
        patch.setattr("mmx.cli.backend.start_jax", lambda: None)
        code = cli.main([*COMMAND[2:], "--workdir", str(folder)])
    assert code == 0, told.getvalue()
    return told.getvalue()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A run of two processes that nothing disturbs."""
    folder = tmp_path_factory.mktemp("hosts") / "run"
    rows = folder.with_name("rows")
    rows.mkdir()
    with pair(COMMAND, folder, TOY_ROWS=str(rows)) as both:
        assert both.wait() == [0, 0], both.told(0) + both.told(1)
        told = [both.told(0), both.told(1)]
    return folder, rows, told


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """The same run in one process with eight devices."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    alone(folder, 8)
    return folder


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_losses_are_those_of_one_process(unbroken, one_process):
    pairs, single = (training(read_scalars(run)) for run in (unbroken[0], one_process))
    assert sorted(pairs["loss/total"]) == list(range(1, STEPS + 1)) and len(pairs["test/loss"]) == 3
    close(pairs, single)
    for a, b in zip(*(_leaves(run) for run in (unbroken[0], one_process)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def _leaves(run, step=None):
    params, extra, _ = read_weights(RunDir(run), step)
    return jax.tree.leaves((params, extra))


def test_each_row_is_loaded_where_it_lies_and_nowhere_else(unbroken):
    _, rows, _ = unbroken
    for index in range(2):
        loaded = sorted(lines(rows / f"loaded{index}.jsonl"))
        mine = [n * B + r for n in range(STEPS) for r in range(4 * index, 4 * index + 4)]
        assert loaded[: len(mine)] == mine  # some of the steps after are loaded already
        assert all(p % B // 4 == index for p in loaded) and len(set(loaded)) == len(loaded)
    batches = [lines(rows / f"placed{index}.jsonl") for index in range(2)]
    for step in range(STEPS):
        shards = sorted(batches[0][step] + batches[1][step])
        assert [start for start, _ in shards] == list(range(B))
        assert [p for _, part in shards for p in part] == list(range(step * B, step * B + B))


def test_process_0_alone_writes(unbroken, one_process):
    folder, _, told = unbroken
    names = lambda run: sorted(re.sub(r"\d{6,}.*", "", p.name) for p in run.iterdir())
    assert names(folder) == names(one_process)
    sums = sorted(int(p.stem) for p in (folder / "checksums").iterdir())
    assert sums == steps_of(folder)
    assert len(list(folder.glob("events*"))) == len(list((folder / "goodput").iterdir())) == 1
    starts = json.loads((folder / "environment.json").read_text())
    assert len(starts) == 1 and len(starts[0]["devices"]) == 8
    assert steps_of(folder) == [4, 8, 12, 16, 20, 24]
    assert "trained to step 24" in told[0] and "first/kernel" in told[0]
    assert GLOO.sub("", told[1]) == ""


def test_stopped_killed_and_damaged_it_goes_on_to_the_bit(unbroken, tmp_path):
    folder = tmp_path / "run"
    # A signal to one of them: both save the same step.
    with pair(COMMAND, folder) as both:
        both.until(lambda: 4 in steps_of(folder))
        both.processes[1].send_signal(signal.SIGTERM)
        assert both.wait() == [75, 75], both.told(0) + both.told(1)
        stopped = steps_of(folder)[-1]
        assert f"stopped at step {stopped}; saved in" in both.told(0) and stopped < STEPS
        assert max(read_scalars(folder)["loss/total"]) == stopped
    # The newest checkpoint breaks: named, kept aside, and the one before is used. So is what a save
    # that was killed leaves.
    newest = folder / "checkpoints" / str(stopped)
    left = shutil.copytree(newest, f"{newest}.orbax-checkpoint-tmp")
    largest = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:1000])
    # One is killed in a save: the other says so and ends within the time that it may be silent.
    with pair(COMMAND, folder) as both:
        both.until(lambda: _started(both) and _saving(folder))
        both.processes[1].kill()
        killed = time.monotonic()
        assert both.wait(60) == [76, -9], both.told(0)
        assert time.monotonic() - killed < 30
        last = both.told(0).splitlines()[-1]
        assert last.startswith("mmx: error: process 0 of 2: ") and "another one is gone" in last
        assert f"WARNING: checkpoint {newest}" in both.told(0)
        assert f"going on from step {_before(stopped)} of" in both.told(0)
        assert f"WARNING: {left}: a save that did not end" in both.told(0)
        assert len(list((folder / "broken").iterdir())) == 2 and "WARNING" not in both.told(1)
    with pair(COMMAND, folder) as both:
        assert both.wait() == [0, 0], both.told(0) + both.told(1)
        assert "going on from step" in both.told(0)
    want, got = (training(read_scalars(run)) for run in (unbroken[0], folder))
    got["test/loss"] |= {8: want["test/loss"][8]} if stopped == 8 else {}
    assert got == want
    for a, b in zip(_leaves(folder), _leaves(unbroken[0]), strict=True):
        np.testing.assert_array_equal(a, b)


def _saving(folder):
    return list((folder / "checkpoints").glob("*checkpoint-tmp*"))


def _started(both):
    return re.search(r"train toy \d+/24", both.told(0))


def _before(stopped):
    return 4 * ((stopped - 1) // 4)


def test_two_processes_then_one_with_fewer_devices(unbroken, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(unbroken[0], folder)
    for step, devices in ((8, 4), (12, 2), (16, 1)):
        _leave(folder, step)
        assert f"going on from step {step} of" in alone(folder, devices)
    close(training(read_scalars(folder)), training(read_scalars(unbroken[0])))


def test_one_process_then_two_on_another_mesh(one_process, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(one_process, folder)
    _leave(folder, 16)
    mesh = ["--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2"]
    with pair([*COMMAND, *mesh], folder) as both:
        assert both.wait() == [0, 0], both.told(0) + both.told(1)
        assert "going on from step 16" in both.told(0)
    close(training(read_scalars(folder)), training(read_scalars(one_process)))


def _leave(folder, step: int):
    """Go back to a step: delete the checkpoints after it."""
    for later in (s for s in steps_of(folder) if s > step):
        shutil.rmtree(folder / "checkpoints" / str(later))


def test_what_one_misses_all_are_told(tmp_path):
    with pair(COMMAND, tmp_path / "run", TOY_NO_DATA="1") as both:
        assert both.wait(60) == [2, 2]
        assert both.told(1).splitlines()[-1] == "mmx: error: data/toy: no such folder"
        assert both.told(0).splitlines()[-1] == "mmx: error: process 1: data/toy: no such folder"
    assert not (tmp_path / "run/config.json").exists()


def test_a_score_that_fails_on_one_ends_all(unbroken, tmp_path):
    """No array is whole on one process here: what was saved before is, and goes on."""
    folder, command = tmp_path / "run", [*COMMAND, "--config.mesh.fsdp=8"]
    with pair(command, folder, TOY_BAD_EVAL="1") as both:
        assert both.wait(60) == [70, 70], both.told(0) + both.told(1)
        assert "mmx: error: process 1: RuntimeError: no score today" in both.told(0)
    assert steps_of(folder) == [4]
    with pair(command, folder) as both:
        assert both.wait() == [0, 0], both.told(0) + both.told(1)
        assert "going on from step 4" in both.told(0)
    close(training(read_scalars(folder)), training(read_scalars(unbroken[0])))
    # Each wrote its own parts of the state.
    for item in ("model", "train"):
        written = (folder / "checkpoints" / "24" / item).glob("ocdbt.process_*")
        assert {p.name for p in written if any((p / "d").iterdir())} == {
            "ocdbt.process_0",
            "ocdbt.process_1",
        }


def test_who_waits_in_vain_says_for_whom(tmp_path):
    """The first of two without the second, and a second without its first."""
    waiting = []
    for index in range(2):
        env = environment(
            JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{free_port()}", JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(index), TOY_JOIN_SECONDS="2",
        )  # fmt: skip
        command = [*COMMAND, "--workdir", str(tmp_path / "run")]
        waiting.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
    try:
        for index, process in enumerate(waiting):
            last = process.communicate(timeout=60)[1].splitlines()[-1]
            assert process.returncode == 76
            start = f"mmx: error: process {index} of 2: not all have joined 127.0.0.1:"
            assert last.startswith(start) and "within 2 s; start the same command on each" in last
    finally:
        for process in waiting:
            process.kill()


def test_the_readme_s_two_processes_train_muse(muse_run, vqgan_run, data_dir, tmp_path):
    """The command as it is printed, on tiny data: with its frozen stage, evaluation and preview."""
    text = (REPO / "README.md").read_text()
    (block,) = re.findall(r"```\n(for i in 0 1; do\n.*?)```", text, flags=re.DOTALL)
    # One evaluation and one preview, of one prompt and two passes: compiling takes long enough.
    once = " ".join(f"--config.{n}_every=20" for n in ("eval", "preview", "save"))
    once += " --config.sample.steps=2 --config.preview_prompts=\"('red heart',)\""
    for old, new in (
        ("localhost:8476", f"127.0.0.1:{free_port()}"),
        ("muse/openmoji32", f"muse/openmoji32:tiny --config.data.data_dir={data_dir} {once}"),
        ("runs/vqgan", str(vqgan_run)),
        ("runs/muse", str(tmp_path / "muse")),
    ):
        assert block.count(old) == 1, (old, block)
        block = block.replace(old, new)
    (tmp_path / "mmx").write_text(f'#!/bin/sh\nexec {sys.executable} -m mmx.cli.main "$@"\n')
    (tmp_path / "mmx").chmod(0o755)
    # A device each: what takes long is to compile, and eight that share the cores.
    env = environment(PATH=f"{tmp_path}:{os.environ['PATH']}", JAX_NUM_CPU_DEVICES="1")
    out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    shell = subprocess.Popen(["bash", "-c", block], env=env, start_new_session=True, **out)
    try:
        told, _ = shell.communicate(timeout=150)
    finally:
        if shell.poll() is None:
            os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
    assert told.count("trained to step 20") == 1, told
    got, want = (training(read_scalars(run)) for run in (tmp_path / "muse", muse_run))
    assert [*got["loss/total"]] == [10, 20] and [*got["test/loss"]] == [20]
    want["test/loss"].pop(10)
    close({k: got[k] for k in ("loss/total", "test/loss")},
          {k: want[k] for k in ("loss/total", "test/loss")}, rtol=1e-3)  # fmt: skip
