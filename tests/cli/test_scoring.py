"""What is kept of a score when something ends the process, without a model that scores."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from mmx.cli import evaluate
from mmx.cli.scoring import Scorer
from mmx.core.errors import UserError
from mmx.core.run_dir import RunDir
from mmx.eval import metrics
from mmx.eval.evaluator import Evaluator
from mmx.eval.ledger import Ledger
from mmx.eval.stats import Score


@pytest.fixture
def run(hollow, tmp_path, monkeypatch) -> RunDir:
    """A run of which a report says one score, its step."""
    shutil.copytree(hollow("scored", "vqgan/openmoji32:tiny"), tmp_path / "run")
    run = RunDir(tmp_path / "run")

    def report(self):
        path = self.picture(self._opened.step)
        path.parent.mkdir(exist_ok=True)
        path.touch()
        step = self._opened.step
        return {"test/psnr": Score(step, step - 1, step + 1, 9)}

    reports = []
    opened = lambda self, step: setattr(self, "_opened", SimpleNamespace(step=step, task=Rebuilds))
    monkeypatch.setattr(Scorer, "_open", opened)
    monkeypatch.setattr(
        Scorer, "_report", lambda self: (reports.append(self._opened.step) or report(self), None)
    )
    data = {"directory": "", "splits": {"train": 99, "test": 24}, "fingerprint": "0123456789abcdef"}
    run.data_file.write_text(json.dumps(data))
    monkeypatch.setattr(Scorer, "reports", reports, raising=False)  # the steps of which one is made
    return run


class Rebuilds:
    """A task whose pictures are a little darker than they should be."""

    def measured(opened, seed):
        image = np.random.default_rng(seed).integers(5, 256, (12, 16, 16, 3), np.uint8)
        for start in (0, 8):
            real = image[start : start + 8]
            yield {"image": real - np.uint8(5), "real": real, "reference": 255 - real,
                   "text": ["a"] * len(real)}  # fmt: skip


def points(run: RunDir) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.evals / "seed0")).Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


def test_what_another_machine_has_scored_is_seen_at_each_look(run):
    mine, other = Scorer(run), Scorer(run)
    follower = evaluate._Follower(mine, waits=False)
    assert follower._open() == [10, 20]
    other.score(10)
    other.close()
    assert follower._open() == [20] and mine.scores(10)["test/psnr"]["value"] == 10


def test_a_closed_scorer_holds_no_weights_and_can_go_on(run):
    """`mmx compare` scores run after run and then draws: all at once may not fit the device."""
    scorer = Scorer(run)
    scorer.score(10)
    assert scorer._opened is not None
    scorer.close()
    assert scorer._opened is None
    scorer.score(20)
    scorer.close()
    assert {step for step, _ in points(run)["scores/test/psnr"]} == {10, 20}


@pytest.mark.parametrize("dies_in", ["_log", "_ledger.add"])
def test_a_death_between_tensorboard_and_the_ledger_loses_no_point(run, dies_in, monkeypatch):
    def die(*args):
        raise KeyboardInterrupt

    first = Scorer(run)
    target = first._ledger if "ledger" in dies_in else first
    monkeypatch.setattr(target, dies_in.rpartition(".")[2], die)
    with pytest.raises(KeyboardInterrupt):
        first.score(10)
    first.close()

    again = Scorer(run)
    assert not again.is_complete(10)
    again.score(10)
    again.close()
    assert again.scores(10)["test/psnr"]["value"] == 10
    assert set(points(run)["scores/test/psnr"]) == {(10, 10.0)}
    assert set(points(run)["scores_low/test/psnr"]) == {(10, 9.0)}


def test_a_metric_that_is_named_later_is_computed_alone(run, capsys):
    first = Scorer(run, metrics=["psnr"])
    first.score(10)
    first.close()
    assert charts(run) == {"psnr", "test/psnr"}
    before = run.evals_file.read_text()
    later = Scorer(run, metrics=["ssim", "psnr"])
    assert later._missing(10) == ["ssim"] and not later.is_complete(10)
    later.score(10)
    assert later.is_complete(10) and Scorer.reports == [10]
    assert run.evals_file.read_text().startswith(before)
    scores = later.scores(10)
    of = "one half of test rebuilt, against the other half, 32 px, tfds:openmoji/32 (01234567)"
    assert {(s["evaluator"], s["recipe"], s["n"]) for s in scores.values()} == {
        ("report", "tfds:openmoji/32 (01234567)", 9), ("psnr", of, 12), ("ssim", of, 12),
    }  # fmt: skip
    assert scores["psnr"]["value"] == pytest.approx(-20 * np.log10(5 / 255), rel=1e-6)
    later.close()
    # All that is scored has a chart, whenever it was named; those that were said last are shown.
    assert set(points(run)) >= {"scores/psnr", "scores/ssim", "scores/test/psnr"}
    assert charts(run) == {"psnr", "ssim", "test/psnr"}
    # The config's own are what is shown without the flag: their network is not here.
    assert list(Scorer(run).scores(10)) == ["test/psnr", "ssim"]


def charts(run: RunDir) -> set[str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.custom_scalar import layout_pb2

    events = EventAccumulator(str(run.evals / "seed0")).Reload()
    (content,) = events.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val
    layout = layout_pb2.Layout.FromString(content)
    return {chart.title for category in layout.category for chart in category.chart}


def test_a_metric_that_the_pictures_do_not_allow_costs_no_other(run, monkeypatch):
    def none(state):
        raise UserError("too few")

    few = Evaluator("kid_mobilenetv2_96px", ("image",), int, lambda s, b: s, int, none)
    make = metrics.make
    monkeypatch.setattr(metrics, "make", lambda names, *args: [few, *make(names[1:], *args)])
    monkeypatch.setattr(metrics, "missing_file", lambda *args: None)
    monkeypatch.setattr(metrics, "network_of", lambda *args: "")
    scorer = Scorer(run, metrics=["kid_mobilenetv2_96px", "ssim"])
    with pytest.raises(UserError, match="kid_mobilenetv2_96px: too few"):
        scorer.score(10)
    scorer.close()
    assert scorer.scores(10).keys() == {"test/psnr", "ssim"}
    assert not scorer.is_complete(10) and Scorer(run, metrics=["ssim"]).is_complete(10)


def test_who_may_not_score(run, hollow, tmp_path, refused):
    """A scorer is a CLIP that had no part in the run, and what it is stands in the recipe."""
    clip = hollow("clip64", "clip/openmoji64:tiny")
    named = ["evaluate", run.path, "--metrics", "clip_score,psnr"]
    assert "name the run of a CLIP, config.eval.scorer=RUN[@STEP]" in refused(*named)
    other = hollow("a muse")
    assert "does not compare images with texts" in refused(*named, "--scorer", other)
    recipes = Scorer(run, metrics=["clip_score"], scorer=str(clip)).recipes
    digest = RunDir(clip).identity(20)
    assert recipes["clip_score"].startswith(f"clip64@20 (centre 64 px, save {digest}), one half")
    # Not there (any more): the other metrics need none, and what it has scored is shown.
    Ledger(run.evals_file).add(20, 0, "clip_score", recipes["clip_score"], {"clip": 0.5})
    gone = Scorer(run, metrics=["clip_score", "psnr"], scorer=str(tmp_path / "gone"))
    assert gone.recipes.keys() == {"report", "psnr"} and gone.scores(20)["clip"]["value"] == 0.5
    train = ["train", "--config", "muse/openmoji32:tiny", "--workdir", tmp_path / "new"]
    assert "no such run" in refused(*train, f"--config.eval.scorer={tmp_path}/gone")
    assert "does not compare" in refused(*train, f"--config.eval.scorer={other}")
    # It taught the run: a stage of it.
    stage = run.stage("teacher")
    stage.mkdir(parents=True)
    for pin in (
        {"spec": f"{clip}@10", "step": 10},
        {"spec": "moved", "step": 20, "save": RunDir(clip).identity(20)},
    ):
        (stage / "pin.json").write_text(json.dumps(pin))
        assert "its stage 'teacher'" in refused(*named, "--scorer", clip)
    assert "shows no pictures that psnr could measure" in refused(
        "evaluate", clip, "--metrics", "psnr"
    )
    assert "'kid': use one of" in refused("compare", run.path, "--metrics", "kid")
    # What taught the tokenizer does not score what is drawn with it.
    config = RunDir(other).config_file.read_text()
    codec = run.stage("codec")
    codec.mkdir()
    (codec / "config.json").write_text(config.replace('"loss": {', '"loss": {"perceptual": 0.1, '))
    assert "a network that taught never scores" in refused(
        "evaluate", run.path, "--metrics", "lpips_vgg"
    )
