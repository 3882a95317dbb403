"""``--profile``: the trace of some steps, closed whatever happens."""

from pathlib import Path

import jax
import pytest
import toy
from jax.profiler import ProfileData

from mmx.cli.arguments import profiled_steps
from mmx.core.errors import UserError


def traced_steps(folder):
    """Numbers of the annotated steps in a trace."""
    data = ProfileData.from_file(str(folder / "host0.xplane.pb"))
    events = [e for plane in data.planes for line in plane.lines for e in line.events]
    assert len(events) > 100  # what the steps did is there too
    stats = [dict(event.stats) for event in events if event.name == "train"]
    return sorted(int(one["step_num"]) for one in stats)


def test_the_steps_asked_for_are_traced(toy_config, train_toy, tmp_path, capsys):
    config, run = toy_config(steps=8), tmp_path / "run"
    train_toy(config, run, profile=range(3, 6))
    folder = run / "plugins/profile/steps_3_5"
    assert traced_steps(folder) == [3, 4, 5]
    assert (folder / "host0.trace.json.gz").stat().st_size > 0
    told = capsys.readouterr().err
    assert (
        f"steps 3 to 5 are traced in {folder}; " in told and f"tensorboard --logdir {run}" in told
    )
    assert [p.name for p in folder.parent.iterdir()] == ["steps_3_5"]
    # Gone on with by the same command, as a supervisor does: no error, and no other trace.
    with config.unlocked():
        config.steps = 10
    train_toy(config, run, profile=range(3, 6))
    assert "--profile: no trace, this run goes on after step 8" in capsys.readouterr().err
    assert [p.name for p in folder.parent.iterdir()] == ["steps_3_5"]


def test_a_run_that_ends_among_them_closes_the_trace(toy_config, train_toy, tmp_path, monkeypatch):
    train_toy(toy_config(steps=4), tmp_path / "done", profile=range(3, 5))
    assert traced_steps(tmp_path / "done/plugins/profile/steps_3_4") == [3, 4]

    def fail(self, *args):
        raise RuntimeError("no picture")

    monkeypatch.setattr(toy.ToyTask, "preview", fail)
    with pytest.raises(RuntimeError, match="no picture"):
        train_toy(toy_config(), tmp_path / "failed", profile=range(4, 9))
    assert traced_steps(tmp_path / "failed/plugins/profile/steps_4_5") == [4, 5]


@pytest.mark.parametrize("absent", ["xplane.pb", "trace.json.gz"])
def test_a_jax_that_leaves_a_file_out_ends_no_run(
    toy_config, train_toy, tmp_path, monkeypatch, capsys, absent
):
    real = jax.profiler.stop_trace

    def stop_trace():
        real()
        folders = [Path(f) for f in scratch]
        (file,) = [file for folder in folders for file in folder.rglob(f"*.{absent}")]
        file.unlink()

    start, scratch = jax.profiler.start_trace, []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda f: (scratch.append(f), start(f)))
    monkeypatch.setattr(jax.profiler, "stop_trace", stop_trace)
    train_toy(toy_config(steps=4), tmp_path / "run", profile=range(2, 4))
    told, folder = capsys.readouterr().err, tmp_path / "run/plugins/profile/steps_2_3"
    assert ("jax wrote no trace of steps 2 to 3" in told) == (absent == "xplane.pb")
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize(
    "spec", ["0:3", "5:4", "4", "4:", "a:b", "-1:3", "8:13", "1:2:3", "", "²:3"]
)
def test_a_range_that_cannot_be(spec):
    with pytest.raises(UserError, match=r"--profile=.* from 1 to config.steps=12"):
        profiled_steps(spec, 12)
    assert profiled_steps("12:12", 12) == range(12, 13)
