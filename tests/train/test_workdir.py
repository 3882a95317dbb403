"""What lies in a workdir decides how ``mmx train`` goes on there, and whether it does."""

import shutil

import pytest
import toy
from conftest import HERE

from mmx.cli import main as cli
from mmx.core.run_dir import RunDir, train_alone
from mmx.data import source
from mmx.models import registry
from mmx.train import loop


@pytest.fixture
def train(monkeypatch, tmp_path, capsys):
    """``train(*flags) -> (exit code, stdout, stderr)``: the toy family in this process."""
    monkeypatch.setattr(registry, "_TASKS", {"toy": ("toy", "ToyTask")})
    for module in (source, loop):
        monkeypatch.setattr(module, "open_source", toy.open_toy)
    monkeypatch.setattr(cli, "before_jax", lambda: None)
    monkeypatch.setattr("mmx.cli.backend.start_jax", lambda: None)

    def run(*flags):
        config = f"{HERE / 'toy_config.py'}"
        argv = ["train", "--config", config, "--workdir", str(tmp_path / "run"), *map(str, flags)]
        capsys.readouterr()
        code = cli.main(argv)
        return code, *capsys.readouterr()

    return run


def cut_in_half(checkpoint):
    largest = max((p for p in checkpoint.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


@pytest.mark.parametrize("item", ["model", "train"])
def test_all_is_done_only_when_the_last_checkpoint_can_be_read(train, tmp_path, item):
    run = tmp_path / "run"
    assert train()[0] == 0
    assert train() == (0, f"{run}: all 12 steps are done; `mmx evaluate` scores them\n", "")
    cut_in_half(run / "checkpoints/12" / item)
    code, out, err = train()
    assert (code, out) == (0, f"{run}: trained to step 12\n")
    assert f"WARNING: checkpoint {run}/checkpoints/12: " in err
    assert f"moved to {run}/broken/12-" in err and "going on from step 8" in err
    assert train()[1] == f"{run}: all 12 steps are done; `mmx evaluate` scores them\n"


def test_other_data_is_refused_and_nothing_changes(train, tmp_path, monkeypatch):
    assert train()[0] == 0
    before = (tmp_path / "run/data.json").read_text()
    with monkeypatch.context() as patch:
        patch.setattr(toy.ToySource.info, "fingerprint", "of other examples")
        code, _, err = train("--config.steps=16")
    assert code == 2 and err.count("\n") == 1
    assert "data/toy: not the data that" in err and "of other examples" in err
    assert (tmp_path / "run/data.json").read_text() == before
    assert train("--config.steps=16")[0] == 0


def test_a_start_that_failed_holds_nobody_to_its_config(train, tmp_path, monkeypatch):
    """As when the memory of the device is too small for the batch: no checkpoint, any config."""

    def full(*args, **kwargs):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(loop.pipeline, "batches", full)
        code, _, err = train("--config.batch_size=64")
    assert code == 70 and err.splitlines()[-1] == "RuntimeError: RESOURCE_EXHAUSTED: out of memory"
    run = RunDir(tmp_path / "run")
    assert run.config().batch_size == 64 and not run.steps()
    monkeypatch.setattr(toy.ToySource.info, "fingerprint", "of other examples")
    assert train("--config.batch_size=16")[0] == 0
    assert run.config().batch_size == 16
    code, _, err = train("--config.batch_size=8", "--config.steps=16")
    assert code == 2 and "batch_size: 16 -> 8" in err


def test_two_do_not_train_in_one_workdir(train, tmp_path):
    run = RunDir(tmp_path / "run")
    with train_alone(run):
        code, _, err = train()
    assert code == 2 and "another `mmx train` is at work there" in err
    assert [p.name for p in run.path.iterdir()] == [".lock"]  # the other's files stay
    assert train()[0] == 0


def test_a_refusal_by_the_model_deletes_nothing_and_binds_nobody(train, tmp_path):
    code, _, err = train("--config.batch_size=12")
    assert code == 2 and "batch_size=12 does not divide" in err
    (tmp_path / "run/notes.txt").write_text("mine")
    assert train("--config.batch_size=13")[0] == 2
    assert train("--config.batch_size=16")[0] == 0
    assert (tmp_path / "run/notes.txt").read_text() == "mine"


def test_two_dots_behind_a_folder_that_is_not_there(train, tmp_path):
    """As a path it is nothing; once ``new`` is made it would be the folder of others."""
    (tmp_path / "others").mkdir()
    (tmp_path / "others/notes.txt").write_text("mine")
    code, _, err = train("--workdir", tmp_path / "new/../others")
    assert code == 2 and "not empty and is no run" in err
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "others/notes.txt").read_text() == "mine"


def test_a_run_whose_checkpoints_broke_still_has_its_config(train, tmp_path):
    assert train()[0] == 0
    run = RunDir(tmp_path / "run")
    run.checkpoints.rename(run.broken)
    code, _, err = train("--config.batch_size=16")
    assert code == 2 and "batch_size: 8 -> 16" in err
    assert train()[0] == 0


def test_a_mesh_that_does_not_divide_is_one_line(train, tmp_path):
    code, _, err = train("--config.mesh.data=1", "--config.mesh.tensor=8", "--config.toy.width=12")
    assert code == 2 and err.count("\n") == 1
    assert "of size 12 does not divide over 8 devices (mlp -> tensor): change config.mesh" in err


def test_init_from_in_a_run_that_goes_on_is_said_to_be_unused(train, tmp_path):
    assert train()[0] == 0
    earlier = shutil.copytree(tmp_path / "run", tmp_path / "earlier")
    code, _, err = train("--init_from", earlier, "--config.steps=14")
    assert code == 0 and f"--init_from={earlier} is for a new run: not used" in err
    shutil.rmtree(earlier)
    assert train("--init_from", earlier, "--config.steps=15")[0] == 0
    shutil.rmtree(tmp_path / "run")
    assert train("--init_from", earlier)[0] == 2


@pytest.mark.parametrize("field", ["toy.width=0", "optim.lr=-1", "keep=0", "batch_size=0"])
def test_numbers_are_looked_at_first(train, field, monkeypatch):
    monkeypatch.setattr("mmx.cli.backend.start_jax", None)  # not even reached
    code, _, err = train(f"--config.{field}")
    assert code == 2 and f"config.{field.partition('=')[0]}=" in err and "must be at least" in err
