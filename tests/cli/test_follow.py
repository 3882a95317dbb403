"""``mmx evaluate --follow`` beside a training that is played: checkpoints come, half, and go."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from mmx.cli import evaluate
from mmx.cli.main import main
from mmx.core.run_dir import RunDir, evaluate_alone
from mmx.train.goodput import ending


@pytest.fixture
def run(vqgan_run, tmp_path, monkeypatch) -> Path:
    """A run with the checkpoint of step 10; that of step 20, its last, is still in ``tmp_path``."""
    for module in ("mmx.models.vqgan.report", "mmx.eval.report"):
        monkeypatch.setattr(f"{module}.MAX_EXAMPLES", 32)
    run = tmp_path / "run"
    shutil.copytree(vqgan_run, run)
    shutil.move(run / "checkpoints" / "20", tmp_path / "20")
    return run


@pytest.fixture
def looks(monkeypatch):
    """``looks(event, ...)``: what happens while the command waits, one event a wait."""

    def play(*events):
        left = iter(events)
        monkeypatch.setattr(evaluate.time, "sleep", lambda seconds: next(left)())
        return left

    return play


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "evals.jsonl").read_text().splitlines()]


def scored(run: Path) -> list[int]:
    return sorted({line["step"] for line in lines(run)})


def contents(run: Path) -> dict[Path, bytes]:
    """Every file that training wrote."""
    ours = ("evals", "evals.jsonl", "samples")
    files = [p for p in run.rglob("*") if p.is_file() and p.relative_to(run).parts[0] not in ours]
    return {path: path.read_bytes() for path in files}


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


def test_follow_scores_each_checkpoint_once(run, tmp_path, looks, capsys, monkeypatch):
    last = run / "checkpoints" / "20"
    before = contents(run)
    digests = (run / "checksums" / "20.json").read_bytes()

    def half():  # as a copy to another machine is half-way
        os.remove(run / "checksums" / "20.json")
        shutil.copytree(tmp_path / "20", last)
        for file in (last / "model").rglob("*"):
            if file.is_file():
                file.write_bytes(file.read_bytes()[:-8])

    def saving():  # what training is at work on has another name
        (run / "checkpoints" / "20.orbax-checkpoint-tmp-7").mkdir()

    def whole():
        (run / "checkpoints" / "20.orbax-checkpoint-tmp-7").rmdir()
        shutil.rmtree(last)
        shutil.copytree(tmp_path / "20", last)
        (run / "checksums" / "20.json").write_bytes(digests)

    left = looks(saving, half, lambda: None, whole)
    assert main(["evaluate", str(run), "--follow"]) == 0
    out, err = capsys.readouterr()
    assert next(left, "none") == "none"
    assert out.startswith("scored:      2 checkpoints\n") and scored(run) == [10, 20]
    first, *told = [line for line in err.splitlines() if "rebuild" not in line]
    assert first.startswith("mmx: not scored: kid_mobilenetv2_96px; for that: mmx prepare features")
    assert [line.partition(":")[0] for line in told] == [
        "step 10",
        "waiting for the next checkpoint (step 10 of 20; looking every 10 s)",
        "step 20",
        "waiting for what is not whole yet (step 20 of 20; looking every 10 s)",
        "step 20",
    ]
    assert "cannot be read" in told[2] and told[2].endswith("once its files change")
    assert told[4].startswith("step 20: 10 scores in ")
    after = contents(run)
    assert {p: after[p] for p in before} == before  # and nothing but step 20 came
    assert all(p.is_relative_to(last) for p in after.keys() - before.keys())
    # TensorBoard has each at its step, beside the run's own events.
    points = scalars(run / "evals" / "seed0")
    for line in lines(run):
        at = dict(points[f"scores/{line['metric']}"])
        assert at.keys() == {10, 20} and at[line["step"]] == pytest.approx(line["value"])
        assert dict(points[f"scores_low/{line['metric']}"])[line["step"]] <= at[line["step"]]
    data = lines(run)[0]["recipe"]
    halves = f"one half of test rebuilt, against the other half, 32 px, {data}"
    assert {(x["evaluator"], x["recipe"], x["seed"]) for x in lines(run)} == {
        ("report", data, 0), ("ssim", halves, 0),
    }  # fmt: skip

    def anew(*args, **kwargs):
        raise AssertionError("scored again")

    monkeypatch.setattr("mmx.cli.run.load_run", anew)
    assert main(["evaluate", str(run), "--follow"]) == 0
    assert capsys.readouterr().out == out
    assert main(["evaluate", f"{run}@10"]) == 0
    assert "train/psnr" in capsys.readouterr().out


def test_a_checkpoint_that_vanishes_is_named_and_not_counted(run, tmp_path, capsys, monkeypatch):
    shutil.copytree(tmp_path / "20", run / "checkpoints" / "20")
    from mmx.cli.run import read_weights

    def read(of, step=None):
        if step == 10:  # retention is faster
            shutil.rmtree(run / "checkpoints" / "10")
        return read_weights(of, step)

    monkeypatch.setattr("mmx.cli.run.read_weights", read)
    assert main(["evaluate", str(run), "--follow"]) == 0
    out, err = capsys.readouterr()
    assert err.splitlines()[0] == "step 10: not scored, training has removed it (config.keep=2)"
    assert out.startswith("scored:      1 checkpoint\n") and scored(run) == [20]


def test_a_stop_is_no_loss(run, tmp_path, looks, capsys):
    looks(lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["evaluate", str(run), "--follow"]) == 75
    err = capsys.readouterr().err
    assert err.endswith("mmx: stopped; 1 checkpoint scored; run the same command to go on\n")
    first = (run / "evals.jsonl").read_text()
    shutil.copytree(tmp_path / "20", run / "checkpoints" / "20")
    assert main(["evaluate", str(run), "--follow"]) == 0
    assert (run / "evals.jsonl").read_text().startswith(first) and scored(run) == [10, 20]


def test_every_checkpoint_names_what_cannot_be_read(run, capsys):
    broken = run / "checkpoints" / "20" / "model"
    broken.mkdir(parents=True)
    assert main(["evaluate", str(run), "--every-checkpoint"]) == 2
    out, err = capsys.readouterr()
    assert out.startswith("scored:      1 checkpoint\n") and scored(run) == [10]
    assert err.splitlines()[-1].endswith("not scored, as they cannot be read: 20")


def test_a_last_step_that_stays_broken_ends_the_wait(run, monkeypatch, capsys):
    (run / "checkpoints" / "20").mkdir()
    monkeypatch.setattr(evaluate, "_PATIENCE", -1.0)
    assert main(["evaluate", str(run), "--follow"]) == 2
    assert capsys.readouterr().err.endswith("not scored, as they cannot be read: 20\n")


def test_the_first_checkpoint_may_be_waited_for(run, looks, capsys, early):
    shutil.rmtree(run / "checkpoints")
    looks()
    assert main(["evaluate", str(run)]) == 2
    assert "has no checkpoint yet" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--follow"]) == 70
    assert "jax was started" in capsys.readouterr().err  # it goes to work


def test_what_cannot_be_followed(run, refused, early, monkeypatch):
    assert "name no step" in refused("evaluate", f"{run}@10", "--follow")
    assert "not allowed with" in refused("evaluate", run, "--follow", "--every-checkpoint")
    assert "no such run" in refused("evaluate", f"{run}-missing", "--follow")
    monkeypatch.setattr("mmx.cli.backend.start_jax", lambda: None)
    with evaluate_alone(RunDir(run)):
        assert "another `mmx evaluate` is at work" in refused("evaluate", run, "--follow")


def test_a_training_that_ended_early_ends_the_wait(run, looks, capsys, refused):
    assert ending(RunDir(run)) == "done"  # its start wrote so; that it reached step 20 is hidden
    (record,) = (run / "goodput").iterdir()
    text = record.read_text()
    record.write_text(text.replace('"why": "done"', '"why": "Preempted"'))

    def fails():  # it went on, and is another start
        last = json.loads(text.splitlines()[-1]) | {"step": 12, "why": "NonFinite"}
        record.with_name("9.jsonl").write_text(json.dumps(last) + "\n")

    left = looks(lambda: None, fails)
    assert main(["evaluate", str(run), "--follow"]) == 0
    out, err = capsys.readouterr()
    assert next(left, "none") == "none" and out.startswith("scored:      1 checkpoint\n")
    waits, ended = err.splitlines()[-2:]
    assert "(step 10 of 20; training has stopped, Preempted; looking every 10 s)" in waits
    assert ended == "training ended at step 10 of 20: its loss or gradient is not finite"
    assert "--idle=5 is for --follow" in refused("evaluate", run, "--idle", "5")


def test_an_idle_run_is_let_go(run, looks, capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(evaluate.time, "monotonic", lambda: now[0])

    def minutes(count):
        return lambda: now.__setitem__(0, now[0] + 60 * count)

    looks(minutes(4), minutes(2))
    assert main(["evaluate", str(run), "--follow", "--idle", "5"]) == 0
    out, err = capsys.readouterr()
    assert err.splitlines()[-1] == "no checkpoint came for 6 min (step 10 of 20)"
    assert out.startswith("scored:      1 checkpoint\n")
