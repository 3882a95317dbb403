"""``mmx evaluate`` and ``mmx train`` from end to end, on tiny runs."""

import json
import shutil
from pathlib import Path

import pytest

from mmx.cli.main import main
from mmx.cli.scoring import Scorer
from mmx.core.run_dir import RunDir
from mmx.eval.png import read_metadata
from mmx.pretrained.weights import weights_file


def copy(run: Path, where: Path) -> Path:
    shutil.copytree(run, where)
    return where


def test_a_network_that_came_later_makes_more_to_score(muse_run, data_dir, tmp_path):
    (tmp_path / "openmoji").symlink_to(data_dir / "openmoji")
    named = ["psnr", "kid_mobilenetv2_96px"]
    recipes = lambda: Scorer(RunDir(muse_run), data_dir=str(tmp_path), metrics=named).recipes
    before, file = recipes(), weights_file("mobilenetv2", tmp_path)
    drawings = "drawings to captions of train+train_toned, against other images of it, 32 px"
    assert before == {"report": before["report"], "psnr": f"{drawings}, {before['report']}"}
    file.parent.mkdir()
    file.write_bytes(b"abc")
    kid = f"mobilenetv2_96px (weights ba7816bf), {before['psnr']}"
    assert recipes() == before | {"kid_mobilenetv2_96px": kid}


def test_evaluate_scores_once(muse_run, tmp_path, capsys, monkeypatch):
    run = copy(muse_run, tmp_path / "my run; 'a'")
    assert main(["evaluate", str(run)]) == 0
    captured = capsys.readouterr()
    picture = run / "samples" / "evaluate-step20-seed0.png"
    out = captured.out
    assert f"\nscores:      {run}/evals.jsonl\n" in out
    assert f"\npicture:     {picture}\n" in out
    # Quoted for a shell.
    quoted = f"'{tmp_path}/my run; '\"'\"'a'\"'\"''"
    assert out.endswith(f"tensorboard --logdir {quoted} --samples_per_plugin=images=200\n")
    assert "training_caption_recall/r1" in out and "held_out/" in out
    assert "draw 256/256" in captured.err
    assert "not scored: kid_mobilenetv2_96px, precision_recall_mobilenetv2_96px" in captured.err
    assert "; for that: mmx prepare features mobilenetv2" in captured.err
    lines = [json.loads(line) for line in (run / "evals.jsonl").read_text().splitlines()]
    scores = {line["metric"]: line for line in lines}
    assert len(lines) == len(scores) and {(s["step"], s["seed"]) for s in lines} == {(20, 0)}
    recall = scores["training_caption_recall/r1"]
    assert recall["n"] == 256 and recall["recipe"].startswith("tfds:openmoji/32 (")
    assert recall["low"] <= recall["value"] <= recall["high"]
    record = read_metadata(picture)
    assert record["step"] == 20 and record["seed"] == 0 and record["run"] == str(run)
    assert (
        record["settings"] == RunDir(run).config().sample.to_dict()
        and "CC BY-SA" in record["attribution"]
    )
    assert len(record["prompts"]) >= 64

    def anew(*args, **kwargs):
        raise KeyboardInterrupt  # leaves main with 130

    monkeypatch.setattr("mmx.cli.run.load_run", anew)
    assert main(["evaluate", str(run)]) == 0
    again = capsys.readouterr()
    assert again.out == out and again.err == ""
    # Whatever differs is scored anew: the seed, the step, a picture that is gone, a new checkpoint.
    assert main(["evaluate", str(run), "--seed", "1"]) == 130
    assert main(["evaluate", f"{run}@10"]) == 130
    picture.rename(tmp_path / "aside.png")
    assert main(["evaluate", str(run)]) == 130
    (tmp_path / "aside.png").rename(picture)
    assert main(["evaluate", str(run)]) == 0
    shutil.copytree(run / "checkpoints" / "20", run / "checkpoints" / "30")
    assert main(["evaluate", str(run)]) == 130
    shutil.rmtree(run / "checkpoints" / "30")
    (run / "evals.jsonl").write_text("{\n")
    assert main(["evaluate", str(run)]) == 2
    assert "evals.jsonl, line 1: not a score" in capsys.readouterr().err


def test_an_unknown_family_is_refused_before_jax_starts(vqgan_run, tmp_path, capsys):
    run = copy(vqgan_run, tmp_path / "run")
    config = run / "config.json"
    config.write_text(config.read_text().replace('"vqgan"', '"dalle"'))
    assert main(["evaluate", str(run)]) == 2
    assert "config.family='dalle': use one of vqgan, muse" in capsys.readouterr().err


def test_evaluate_a_tokenizer(vqgan_run, data_dir, tmp_path, capsys):
    run = copy(vqgan_run, tmp_path / "run")
    # The data moved since: --data_dir says where it is, for every split.
    config = run / "config.json"
    config.write_text(config.read_text().replace(str(data_dir), "/gone"))
    assert main(["evaluate", str(run)]) == 2
    assert "--data_dir" in capsys.readouterr().err
    # What another preparation made is scored, and said to be another.
    record = json.loads((run / "data.json").read_text())
    (run / "data.json").write_text(json.dumps(record | {"fingerprint": "of others"}))
    assert main(["evaluate", str(run), "--data_dir", str(data_dir)]) == 0
    out, err = capsys.readouterr()
    assert "warning" in err and "prepared anew since" in err
    for split in ("train", "train_toned", "test"):
        assert f"{split}/psnr" in out and f"{split}/codebook_use" in out
    picture = run / "samples" / "evaluate-step20-seed0.png"
    assert f"picture:     {picture}\n" in out
    assert len(read_metadata(picture)["prompts"]) == 24


@pytest.fixture
def damaged(vqgan_run, tmp_path):
    run = copy(vqgan_run, tmp_path / "run")
    for path in (run / "checkpoints" / "20" / "model").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-8])
    return run


def test_evaluate_refuses_a_truncated_checkpoint(damaged, capsys):
    assert main(["evaluate", str(damaged)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "checkpoints/20: this checkpoint cannot be read" in err
    assert not (damaged / "evals.jsonl").exists()


def test_train_end_to_end(data_dir, tmp_path, capsys, mmx):
    """Odd paths, a config outside the repository, short lines in the log, the result on stdout.

    Trained on the eight devices of the tests, then scored by a process that has one.
    """
    source = Path(__file__).resolve().parents[2] / "configs" / "vqgan" / "openmoji32.py"
    config = tmp_path / "it's my: config.py"
    shutil.copy(source, config)
    run = tmp_path / "run $(x) 'ü'"
    argv = ["train", "--config", f"{config}:tiny", "--workdir", str(run),
            "--config.data.data_dir", str(data_dir),
            "--config.steps=4", "--config.log_every=2"]  # fmt: skip
    assert main(argv) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{run}: trained to step 4\n"
    lines = [line for line in captured.err.splitlines() if line.startswith("train vqgan")]
    assert [line.split()[2] for line in lines] == ["2/4", "4/4"]
    assert all("loss" in line and "psnr" in line and len(line) < 100 for line in lines)
    assert main(argv) == 0
    assert capsys.readouterr().out == f"{run}: all 4 steps are done; `mmx evaluate` scores them\n"
    done = mmx("evaluate", run)
    assert done.stdout.startswith("train/psnr ") and "Traceback" not in done.stderr


def test_refused_by_the_model_binds_nobody(data_dir, tmp_path, capsys):
    """An image size is known to fit only once the model is made: the next one may be another."""
    run = tmp_path / "run"
    for size in (33, 35):
        argv = ["train", "--config", "vqgan/openmoji32:tiny", "--workdir", str(run),
                f"--config.data.data_dir={data_dir}",
                f"--config.data.image_size={size}"]  # fmt: skip
        assert main(argv) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and f"config.data.image_size={size}" in err and "use 3" in err
    assert {p.name for p in run.iterdir()} == {".lock", "config.json", "data.json"}


def test_failed_training_exits_with_1(data_dir, tmp_path, capsys):
    argv = ["train", "--config", "vqgan/openmoji32:tiny", "--workdir", str(tmp_path / "run"),
            f"--config.data.data_dir={data_dir}",
            "--config.optim.lr=1e38", "--config.steps=4"]  # fmt: skip
    assert main(argv) == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err and err.splitlines()[-1].startswith("mmx: error: step ")
