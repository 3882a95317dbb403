"""What is kept of a score when something ends the process, without a model that scores."""

import shutil
from types import SimpleNamespace

import pytest

from mmx.cli import evaluate
from mmx.cli.scoring import Scorer
from mmx.core.run_dir import RunDir
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

    opened = lambda self, step: setattr(self, "_opened", SimpleNamespace(step=step))
    monkeypatch.setattr(Scorer, "_open", opened)
    monkeypatch.setattr(Scorer, "_report", report)
    return run


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
