"""CLIP by the commands of the README: trained, scored, and put to use on pictures of others."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from mmx.cli.main import main
from mmx.cli.run import load_run
from mmx.cli.scoring import Scorer
from mmx.core.run_dir import RunDir, evaluate_alone
from mmx.eval.images import as_uint8
from mmx.eval.ledger import Ledger
from mmx.eval.png import read_metadata, save_image


@pytest.fixture(scope="module")
def clip_run(data_dir, tmp_path_factory):
    """Trained for 20 steps in this process, over its eight devices. Never write into it."""
    run = tmp_path_factory.mktemp("clip") / "run"
    command = ["train", "--config", "clip/openmoji64:tiny", f"--config.data.data_dir={data_dir}"]
    command += ["--config.optim.lr=3e-3", "--config.loss.form=ring", "--workdir", str(run)]
    assert main(command) == 0
    return run


@pytest.fixture
def own(clip_run, tmp_path):
    return shutil.copytree(clip_run, tmp_path / "run")


def test_training_lowers_the_loss_and_evaluate_ranks(own, data_dir, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(own))
    events.Reload()
    loss = [e.value for e in events.Scalars("loss/total")]
    assert len(loss) == 2 and loss[-1] < np.log(16)
    assert events.Tags()["images"] == ["nearest"]
    assert events.Scalars("test/text_to_image_r10")[-1].step == 20

    assert main(["evaluate", str(own)]) == 0
    out = capsys.readouterr().out
    for split in ("train", "test", "heldout_composition"):
        for way in ("image_to_text", "text_to_image"):
            for k in (1, 5, 10):
                assert f"{split}/{way}_r{k} " in out
    scores = Scorer(RunDir(own), data_dir=str(data_dir)).scores(20)
    one = scores["test/text_to_image_r10"]
    assert one["low"] < one["value"] < one["high"] and one["n"] == 350
    assert scores["test/text_to_image_r10_chance"]["value"] == pytest.approx(10 / 350, rel=0.02)
    info = read_metadata(own / "samples" / "evaluate-step20-seed0.png")
    assert len(info["prompts"]) == 8 and "CC BY-SA" in info["attribution"]


def colours(folder, count=12):
    """Pictures in sub-folders whose names are their classes."""
    rng = np.random.default_rng(0)
    for name, colour in (("red_square", (220, 30, 30)), ("blue_square", (30, 30, 220))):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            noise = rng.integers(-20, 21, (40, 40, 3))
            image = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(image).save(folder / name / f"{i}.png")


def test_zero_shot_and_probe_on_a_folder(own, tmp_path, capsys, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    colours(tmp_path / "colours")
    data = str(tmp_path / "data")
    command = ["prepare", "folder", str(tmp_path / "colours"), "--name", "colours", "--size", "32"]
    assert main([*command, "--test-share", "0.4", "--data_dir", data]) == 0
    zero_shot = ["evaluate", str(own), "--zero-shot", "tfds:colours", "--data_dir", data]
    capsys.readouterr()
    before = sorted(own.glob("events*"))
    assert main([*zero_shot, "--probe", "train"]) == 0
    out = capsys.readouterr().out
    assert "zero_shot/top1" in out and "linear_probe/top1" in out and "2 classes" in out
    lines = [json.loads(line) for line in (own / "evals.jsonl").read_text().splitlines()]
    assert {(line["step"], line["evaluator"]) for line in lines} == {(20, "zero_shot")}
    scores = {line["metric"]: line for line in lines}
    assert scores["zero_shot/chance"]["value"] == 0.5
    probe = scores["linear_probe/top1"]
    assert probe["value"] == 1 and probe["n"] >= 4
    # Training's own events are as they were; once scored, it is not done again.
    assert sorted(own.glob("events*")) == before
    events = EventAccumulator(str(own / "evals/zero_shot"))
    events.Reload()
    (event,) = events.Scalars("scores/colours/test/linear_probe/top1")
    assert (event.step, event.value) == (20, 1.0)
    with monkeypatch.context() as patched:
        patched.setattr("mmx.cli.zero_shot._score", lambda *_: pytest.fail("scored again"))
        assert main([*zero_shot, "--probe", "train"]) == 0
    assert capsys.readouterr().out == out
    with evaluate_alone(RunDir(own)):
        assert main([*zero_shot]) == 2
    assert "another `mmx evaluate` is at work" in capsys.readouterr().err

    def refused(*args):
        assert main([*zero_shot, *args]) == 2
        return capsys.readouterr().err

    names = tmp_path / "names.txt"
    names.write_text("red\nblue\ngreen\n")
    assert "3 names, but tfds:colours has 2 classes" in refused("--classes", str(names))
    names.write_text("a photo\n")
    assert "needs one {}" in refused("--templates", str(names))
    names.write_text(" ".join(["red heart {}"] * 1 + ["very"] * 40) + "\n")
    assert "is too long" in refused("--templates", str(names))
    assert "has the splits" in refused("--probe", "nothing")
    for learned, asked in (
        ("train", "train"),
        ("train+test", "test"),
        ("train[:50%]", "train"),
        ("train", "train[:50%]"),
        ("test+train[:9]", "train[:9]"),
        ("train[:50%]", "train[40%:]"),
        ("train[:3]", "test+train[2:4]*2"),
    ):
        told = refused("--probe", learned, "--split", asked)
        assert f"--probe={learned}: the classifier would be scored on what it learned from" in told


def test_captions_are_no_classes_and_a_tokenizer_does_not_compare(own, data_dir, vqgan_run, capsys):
    data = ["--data_dir", str(data_dir)]
    assert main(["evaluate", str(own), "--zero-shot", "tfds:openmoji/32", *data]) == 2
    assert "350 different captions, which are no classes" in capsys.readouterr().err
    assert main(["evaluate", str(vqgan_run), "--zero-shot", "tfds:openmoji/32", *data]) == 2
    assert "family 'vqgan', which does not compare" in capsys.readouterr().err


def test_rerank_orders_files_by_their_own_prompts(own, tmp_path, capsys):
    rng = np.random.default_rng(0)
    folder = tmp_path / "drawn"
    for i in range(6):
        image = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        save_image(folder / f"{i}.png", image, {"prompt": ["red heart", "violin"][i % 2]})
    sheet, found = tmp_path / "best.png", tmp_path / "found.json"
    command = ["rerank", str(own), str(folder), "--out", str(sheet), "--json", str(found)]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert out.index("red heart") < out.index("violin")
    heart, violin = json.loads(found.read_text())
    assert {p["file"][-5] for p in heart["pictures"]} == {"0", "2", "4"}
    assert {p["file"][-5] for p in violin["pictures"]} == {"1", "3", "5"}
    cosine = [p["cosine"] for p in heart["pictures"]]
    assert cosine == sorted(cosine, reverse=True) and -1 <= cosine[-1] < cosine[0] <= 1
    assert read_metadata(sheet)["prompts"] == ["red heart", "violin"]
    assert main([*command, "--best", "1", "--prompt", "rocket"]) == 0
    (best,) = json.loads(found.read_text())
    assert best["prompt"] == "rocket" and len(best["pictures"]) == 1

    def refused(*args):
        assert main(["rerank", str(own), *map(str, args)]) == 2
        return capsys.readouterr().err

    save_image(tmp_path / "sheet.png", image, {"prompt": "a", "count": 4})
    assert "a sheet of 4 pictures" in refused(tmp_path / "sheet.png")
    assert "no such picture or folder" in refused(tmp_path / "nothing.png")
    Image.fromarray(image).save(tmp_path / "plain.png")
    assert "say what it is to show: --prompt" in refused(tmp_path / "plain.png")
    assert "is too long" in refused(folder, "--prompt", "very " * 60)


def test_a_clip_scores_what_a_tokenizer_rebuilds(
    clip_run, vqgan_run, tmp_path, capsys, monkeypatch
):
    """By name, with the true pictures and the captions of others beside it; and only once."""
    monkeypatch.setattr("mmx.eval.report.MAX_EXAMPLES", 40)
    run = shutil.copytree(vqgan_run, tmp_path / "run")
    Scorer(RunDir(run)).picture(20).parent.mkdir(exist_ok=True)
    Scorer(RunDir(run)).picture(20).touch()  # the report is scored already
    Ledger(RunDir(run).evals_file).add(20, 0, "report", Scorer(RunDir(run)).recipes["report"],
                                       {"test/psnr": 20.0})  # fmt: skip
    command = ["evaluate", str(run), "--metrics", "clip_score,cmmd,psnr", "--scorer", str(clip_run)]
    assert main(command) == 0
    out = capsys.readouterr().out
    lines = {line["metric"]: line for line in Ledger(RunDir(run).evals_file).lines}
    assert all(f"\n{name} " in out for name in lines if name != "test/psnr")
    name = "clip_score_run@20"
    assert {f"{name}", f"{name}/real", f"{name}/shuffled", "cmmd_run@20", "cmmd_run@20/blurred",
            "cmmd_run@20/real_vs_real", "psnr", "test/psnr"} == lines.keys()  # fmt: skip
    assert {line["n"] for line in lines.values() if line["evaluator"] != "report"} == {20}
    recipe = lines[name]["recipe"]
    assert recipe == lines["cmmd_run@20"]["recipe"]
    assert recipe.startswith("run@20 (centre 64 px, save ")
    assert (
        "), one half of test rebuilt, against the other half, 32 px, tfds:openmoji/32 (" in recipe
    )
    assert "weights" not in lines["psnr"]["recipe"]
    # What the embedder itself says of the same rows.
    opened = load_run(vqgan_run)
    batches = list(opened.task.measured(opened, 0))
    clip = load_run(clip_run)
    embed = clip.task.embedding(clip)
    text_NE = embed.texts([text for b in batches for text in b["text"]], strict=False)
    image_NE = embed.images([image for b in batches for image in b["real"]])
    cosine_N = (text_NE * image_NE).sum(1)
    assert lines[f"{name}/real"]["value"] == pytest.approx(2.5 * cosine_N.clip(0).mean(), rel=1e-4)
    rebuilt_NE = embed.images([image for b in batches for image in as_uint8(b["image"])])
    others = 2.5 * (rebuilt_NE @ text_NE.T).clip(0)[~np.eye(20, dtype=bool)]
    assert lines[f"{name}/shuffled"]["value"] == pytest.approx(others.mean(), rel=1e-4)
    again = (run / "evals.jsonl").read_text()
    assert main(command) == 0 and (run / "evals.jsonl").read_text() == again
