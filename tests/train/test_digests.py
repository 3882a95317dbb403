"""A flipped bit in a checkpoint is found, though its file is as long as before."""

import json
import shutil
import subprocess
import sys
import threading

import jax
import pytest
from saved import largest, layout, run_of, same, state_of

from mmx.core.errors import UserError
from mmx.train import digests
from mmx.train.checkpoint import Checkpoints
from mmx.train.start import read_weights


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """A run with the checkpoints 1 and 2; copy it, never write into it."""
    folder = tmp_path_factory.mktemp("two") / "run"
    checkpoints = Checkpoints(folder / "checkpoints")
    for step in (1, 2):
        checkpoints.save(step, state_of(step))
    checkpoints.close()
    return folder


@pytest.fixture
def run(two_steps, tmp_path):
    return shutil.copytree(two_steps, tmp_path / "run")


def flip(file, at=0.5):
    data = bytearray(file.read_bytes())
    data[int(len(data) * at)] ^= 4
    file.write_bytes(bytes(data))


def newest(run):
    checkpoints = Checkpoints(run / "checkpoints")
    try:
        return checkpoints.restore_newest(*layout(state_of(1)))
    finally:
        checkpoints.close()


@pytest.mark.parametrize("item", ["model", "train"])
@pytest.mark.parametrize("at", [0.1, 0.5, 0.9])
def test_a_flipped_bit_is_named_and_the_step_before_is_used(run, capsys, item, at):
    file = largest(run / "checkpoints/2" / item)
    flip(file, at)
    step, state = newest(run)
    assert step == 1 and same(state, state_of(1))
    told = capsys.readouterr().err
    assert told.startswith("WARNING: checkpoint ") and "going on from step 1" in told
    assert f"{file.relative_to(run / 'checkpoints/2')} is not as it was written" in told
    (moved,) = (run / "broken").iterdir()  # nothing is deleted
    assert (moved / file.relative_to(run / "checkpoints/2")).is_file()
    assert [f.name for f in (run / "checksums").iterdir()] == ["1.json"]


def test_an_untouched_step_passes_and_its_list_is_of_all_files(run, capsys):
    listed = json.loads((run / "checksums/2.json").read_text())["files"]
    folder = run / "checkpoints/2"
    assert {folder / name for name in listed} == {f for f in folder.rglob("*") if f.is_file()}
    assert all((folder / name).stat().st_size == size for name, (size, _) in listed.items())
    step, state = newest(run)
    assert step == 2 and same(state, state_of(2)) and capsys.readouterr().err == ""


@pytest.mark.parametrize("damage", ["absent", "half", "other"])
def test_without_a_usable_list_a_step_is_read_as_it_is(run, capsys, damage):
    file = run / "checksums/2.json"
    if damage == "absent":
        file.unlink()
    else:
        file.write_text(file.read_text()[:90] if damage == "half" else '{"files": [1]}')
    assert newest(run)[0] == 2
    told = capsys.readouterr().err
    assert told == "" if damage == "absent" else f"WARNING: {file}: damaged" in told


def test_reading_weights_looks_at_the_model_alone(run):
    flip(largest(run / "checkpoints/2/train"))
    assert read_weights(run_of(run / "checkpoints"))[2] == 2
    checkpoints = Checkpoints(run / "checkpoints", read_only=True)
    assert checkpoints.is_readable(1) and not checkpoints.is_readable(2)
    flip(largest(run / "checkpoints/2/model"))
    with pytest.raises(UserError, match=r"not as it was written, .*name another as RUN@STEP: \[1"):
        read_weights(run_of(run / "checkpoints"))
    checkpoints.close()


def test_lists_go_with_their_steps_and_are_not_those_of_an_earlier_try(run):
    shutil.rmtree(run / "checkpoints/2")
    checkpoints = Checkpoints(run / "checkpoints", keep=1)
    real, seen = checkpoints.manager.save, []

    def save(step, **more):
        seen.append((run / "checksums/2.json").exists())
        return real(step, **more)

    checkpoints.manager.save = save
    checkpoints.save(2, state_of(5))
    checkpoints.close()
    assert seen == [False]  # killed from here on, the step would have no list
    assert [f.name for f in (run / "checksums").iterdir()] == ["2.json"]
    assert newest(run)[0] == 2


def test_saving_does_not_wait_for_the_checksums(tmp_path, monkeypatch):
    go, real = threading.Event(), digests._digest

    def slow(file):
        assert go.wait(60)
        return real(file)

    monkeypatch.setattr(digests, "_digest", slow)
    checkpoints = Checkpoints(tmp_path / "run/checkpoints")
    for step in (1, 2, 3):
        checkpoints.save(step, state_of(step))
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2, 3] and not (tmp_path / "run/checksums").exists()
    go.set()
    checkpoints.close()
    assert len(list((tmp_path / "run/checksums").iterdir())) == 3


def test_a_killed_run_has_the_list_of_its_last_save(tmp_path):
    """It is not the next save that writes it."""
    script = f"""
import os, sys, time
sys.path.insert(0, {str(digests.__file__.rpartition("/mmx/")[0] + "/tests/train")!r})
from saved import state_of
from mmx.train.checkpoint import Checkpoints
checkpoints = Checkpoints({str(tmp_path / "run/checkpoints")!r})
checkpoints.save(1, state_of(1))
until = time.monotonic() + 60
while not os.path.exists({str(tmp_path / "run/checksums/1.json")!r}):
    assert time.monotonic() < until
    time.sleep(0.05)
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == 9
    flip(largest(tmp_path / "run/checkpoints/1/model"))
    assert newest(tmp_path / "run") is None


def test_a_disk_that_takes_no_list_is_said_and_costs_no_save(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checksums").write_text("in the way")
    checkpoints = Checkpoints(tmp_path / "run/checkpoints")
    checkpoints.save(1, state_of(1))
    checkpoints.close()
    assert "no checksums of it" in capsys.readouterr().err
    (tmp_path / "run/checksums").unlink()
    assert newest(tmp_path / "run")[0] == 1


@pytest.mark.parametrize(("index", "read_only"), [(0, False), (0, True), (1, False)])
def test_only_process_0_writes_and_no_reader(run, monkeypatch, index, read_only):
    monkeypatch.setattr(jax, "process_index", lambda: index)
    made = Checkpoints(run / "checkpoints", read_only=read_only).digests
    made.forget(2)
    writes = (index, read_only) == (0, False)
    assert (run / "checksums/2.json").exists() == (not writes)
    (run / "checksums/2.json").unlink(missing_ok=True)
    made.follow(2)
    made.close()
    assert (run / "checksums/2.json").exists() == writes
