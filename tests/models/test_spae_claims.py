"""The study of `experiments/spae_claims`: its arms, its restarts, its scores, its arithmetic."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import studies

from mmx.core.errors import UserError
from mmx.core.preemption import Preempted
from mmx.eval.episodes import Pool, draw_classes

NAMES = ("arms", "jobs", "report", "scoring", "statistic", "training")
arms, jobs, report, scoring, statistic, training = studies.load("spae_claims", *NAMES)
ENDS = (1, 5)


def test_arms_differ_in_one_field():
    flat = lambda arm, seed=0: {
        f"{a}.{b}": v
        for a, part in arms.make_config(arm, seed, "there").to_dict().items()
        for b, v in (part.items() if isinstance(part, dict) else [("", part)])
    }
    base = flat("base")
    differs = lambda other: {k: v for k, v in other.items() if v != base[k]}
    assert differs(flat("rq")) == {"pyramid.scheme": "rq"}
    assert differs(flat("unguided")) == {"guidance.weight": 0.0}
    assert differs(flat("base", 2)) == {"seed.": 2}
    assert base["pyramid.scheme"] == "saq" and base["data.data_dir"] == "there"
    assert all(base[name if "." in name else f"{name}."] == v for name, v in arms.SAID.items())


@pytest.fixture
def study(monkeypatch):
    """The study without data or training: what was trained, and what the next one does."""
    done, acts = [], []

    def train(out, arm, seed, data_dir):
        done.append((arm, seed))
        if acts:
            acts.pop(0)()

    def load_run(path):
        task = SimpleNamespace(
            to_words=lambda mesh: None, from_words=lambda mesh: None, num_words=2,
            vocabulary=SimpleNamespace(words=lambda rows: ["a", "b"]),
            pyramid=SimpleNamespace(ends=ENDS),
        )  # fmt: skip
        config = SimpleNamespace(batch_size=64)
        return SimpleNamespace(task=task, mesh=None, params=0, extra=0, frozen=0, step=300,
                               config=config)  # fmt: skip

    test = SimpleNamespace(groups=["dog", "cat"], episodes={})
    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(training, "load_run", load_run)
    monkeypatch.setattr(training, "open_test", lambda data_dir, size: test)
    monkeypatch.setattr(training, "load_sentences", lambda name, data_dir: None)
    monkeypatch.setattr(training, "score", lambda *args: {"psnr": [[1.0]]})
    clock = iter(range(0, 10**6, 600))
    monkeypatch.setattr(training.time, "process_time", lambda: next(clock))
    return SimpleNamespace(done=done, acts=acts)


def stop():
    raise Preempted("stopped")


def test_the_same_command_goes_on_and_counts_what_was_stopped(study, tmp_path):
    study.acts += [lambda: None, stop]
    with pytest.raises(Preempted):
        training.do_all(tmp_path, list(arms.ARMS), "data")
    assert study.done == [("base", 0), ("rq", 0)]
    assert [r["arm"] for r in jobs.read_records(tmp_path)] == ["base"]
    assert jobs.spent(tmp_path, "base") == jobs.spent(tmp_path, "rq") == 600.0
    study.done.clear()
    training.do_all(tmp_path, list(arms.ARMS), "data")
    every = [(arm, seed) for seed in arms.SEEDS for arm in arms.ARMS]
    assert study.done == every[1:]
    assert [(r["arm"], r["seed"]) for r in jobs.read_records(tmp_path)] == every
    assert jobs.spent(tmp_path, "base") == 1800.0 and jobs.spent(tmp_path, "rq") == 2400.0
    study.done.clear()
    training.do_all(tmp_path, list(arms.ARMS), "data")
    assert not study.done


def test_an_arm_whose_minutes_are_over_stays_unfinished(study, tmp_path, capsys):
    for seed in (0, 1):
        folder = jobs.folder_of(tmp_path, "rq", seed)
        folder.mkdir()
        jobs.spend(folder, 1000.0)
    training.do_all(tmp_path, ["rq", "base"], "data")
    assert study.done == [("base", seed) for seed in arms.SEEDS]
    assert "rq: its 30 CPU-minutes are over; left unfinished" in capsys.readouterr().out


def test_a_record_of_other_settings_is_not_taken_for_done(study, tmp_path, monkeypatch):
    training.do_all(tmp_path, ["rq"], "data")
    training.do_all(tmp_path, ["rq"], "elsewhere")  # the same images, in another place
    assert len(study.done) == 3
    results = report.collect(tmp_path)
    assert len(results["runs"]) == 3 and "config" not in results["runs"][0]
    assert results["settings"] == report.said()
    shipped = arms.configs.load_config("spae/openmoji32").copy_and_resolve_references()
    monkeypatch.setattr(arms.configs, "load_config", lambda name: shipped)
    # How it is watched, where and how fast it runs.
    shipped.eval.metrics, shipped.data.threads, shipped.mesh.data = ("ssim",), 4, 2
    training.do_all(tmp_path, ["rq"], "data")
    assert len(study.done) == 3 and "model.norm" not in arms.SAID
    for change in (
        lambda patch: patch.setitem(shipped.model, "norm", "group"),
        lambda patch: patch.setitem(arms.ARMS, "rq", {"pyramid.scheme": "area"}),
        lambda patch: patch.setitem(arms.SAID, "optim.lr", 2e-3),
        lambda patch: patch.setattr(jobs, "RECIPE", ("another judge",)),
    ):
        with monkeypatch.context() as patch:
            change(patch)
            with pytest.raises(UserError, match=r"rq-0/record.json: a run of other settings"):
                training.do_all(tmp_path, ["base"], "data")


def test_words_and_features_are_made_once(tmp_path):
    made = tmp_path / "base-0" / "run" / "stages"
    run = tmp_path / "rq-0" / "run"
    run.mkdir(parents=True)
    training.take_stages(tmp_path, run)
    assert not (run / "stages").exists()
    for name in ("words/table", "teacher/kept.json"):
        (made / name).parent.mkdir(parents=True)
        (made / name).write_text(name)
    training.take_stages(tmp_path, run)
    assert (run / "stages" / "words" / "table").read_text() == "words/table"
    (made / "words" / "table").write_text("new")
    training.take_stages(tmp_path, run)  # its own are there
    assert (run / "stages" / "words" / "table").read_text() == "words/table"


def test_scores_of_known_words():
    """Four images of two things; layer 1 has their word, layer 2 another's or none of theirs."""
    captions = ["dog", "cat", "dog", "cat"]
    words = np.array([[0, 1, 1, 2, 2], [1, 2, 2, 2, 2], [0, 2, 2, 2, 2], [1, 2, 2, 2, 2]])
    axis = {"dog": 0, "cat": 1, "sky": 2}
    judge = SimpleNamespace(embed=lambda texts: np.eye(3)[[axis[t] for t in texts]])
    image = np.arange(4, dtype=np.uint8)[:, None, None, None] * np.ones((4, 4, 4, 3), np.uint8)
    episodes = {2: draw_classes(Pool(captions * 3), None, 0, 4, 2)}
    test = scoring.Test(image, captions, captions, {})

    def draw(some):
        error = {1: 0.2, 5: 0.1}[some.shape[1]]
        return image[: len(some)] / 127.5 - 1 + error

    found = scoring.score(lambda x: words[: len(x)], draw, ["dog", "cat", "sky"], ENDS, judge, test)
    # 10 log10(4 / error^2)
    np.testing.assert_allclose(found["psnr"], [[20.0] * 4, [26.021] * 4], atol=1e-3)
    # The second layer of the first image: two of four are the other's word.
    assert found["margin"] == [[1.0] * 4, [-0.5, 0.0, 0.0, 0.0]]
    assert found["unique"] == [2, 2]
    some = np.tile(words, (3, 1))
    by_overlap = scoring.overlap_hits(ENDS, some, episodes[2])
    np.testing.assert_array_equal(by_overlap[0], 1.0)
    same = scoring.overlap_hits(ENDS, np.zeros((12, 5), int), episodes[2])
    np.testing.assert_array_equal(same, 0.5)  # nothing told: ties
    assert len(scoring.classes(episodes[2])) == by_overlap.shape[1] == 8


def test_intervals_speak_of_images_in_groups_and_of_seeds():
    rng = np.random.default_rng(0)
    x = rng.normal(size=400)
    x = (x - x.mean()) / x.std()
    alone = np.arange(400)
    half = lambda score: (score.high - score.low) / 2
    # The mean of n normal numbers: half of the interval is 1.96 / sqrt(n).
    assert half(statistic.estimate(x[None], alone)) == pytest.approx(1.96 / 20, rel=0.08)
    # Each four times over, together: as wide as without; taken for images of their own, half.
    four, label = np.repeat(x, 4)[None], np.repeat(alone, 4)
    assert half(statistic.estimate(four, label)) == pytest.approx(1.96 / 20, rel=0.08)
    assert half(statistic.estimate(four, np.arange(1600))) == pytest.approx(1.96 / 40, rel=0.08)
    # Groups of unlike size: the mean is of images.
    assert statistic.estimate([[3.0, 3.0, 0.0]], ["a", "a", "b"]).value == 2.0
    seeds = statistic.estimate(np.array([[0.0], [1.0], [2.0]]) + 0 * x, alone)
    assert seeds.value == 1.0 and seeds.low < 0.4 < 1.6 < seeds.high


def fake(arm, seed, psnr, margin, accuracy):
    """A record of 40 images: each psnr and margin is its layer's, with a spread that all share."""
    spread = np.linspace(-0.5, 0.5, 40)
    return {
        "arm": arm, "seed": seed, "unique": [7, 90 + seed],
        "psnr": [(spread + level).tolist() for level in psnr],
        "margin": [(spread / 10 + level + seed / 100).tolist() for level in margin],
        "hits": {w: [([1.0, 0.0] * 20)[:20] + [a] * 20 for a in accuracy] for w in "25"},
    }  # fmt: skip


def test_a_table_says_what_agrees_and_what_is_unfinished():
    runs = [fake("base", seed, (10.0, 14.0), (0.3, 0.1), (0.0, 1.0)) for seed in (0, 1, 2)]
    runs += [fake("rq", seed, (10.0, 15.0), (0.3, 0.1), (0.5, 0.5)) for seed in (0, 1, 2)]
    runs += [fake("unguided", 0, (10.0, 15.0), (0.0, 0.1), (0.5, 0.5))]
    labels = [*range(40)]
    results = {
        "ends": ENDS, "minutes": dict.fromkeys(arms.ARMS, 1.25), "runs": runs,
        "test": {"groups": labels, "classes": {"2": labels, "5": labels}},
    }  # fmt: skip
    text = report.table(results)
    assert "| (a) MSE by 5 words: RQ above SAQ | -0.03" in text
    verdicts = [line.split(" | ")[-1][:-2] for line in text.splitlines() if line.startswith("| (")]
    assert verdicts[:3] == ["DISAGREES", "undecided", "unfinished: 1 of 3 seeds"]
    # 5 words are the last here: nothing above itself.
    assert verdicts[4:] == ["undecided"] * 3
    assert "guided 3, unguided unfinished: 1 of 3" in text and "| 7, 7, 7 | 7 |" in text
    # Paired by seed: what the seeds of both differ by is gone.
    score = report.difference(results, ("base", 0), ("base", 1), "margin")
    assert score.value == pytest.approx(0.2) and score.high - score.low < 1e-9
    few = report.difference(results, ("base", 1), ("base", 0), "2")
    assert few.value == pytest.approx(0.5)
    assert report.difference(results, ("unguided", 0), ("base", 0), "psnr").n == 40
    mse = report.value(results, "base", "mse", 0).value
    assert mse == pytest.approx(np.mean(4 * 10 ** (-(np.linspace(-0.5, 0.5, 40) + 10) / 10)))
    empty = report.table(results | {"runs": runs[:1]})
    assert "RQ unfinished: 0 of 3" in empty


def test_what_was_measured_is_what_is_said():
    """The table agrees with the results of the JSON beside it, and they with the config of today.

    Where the shipped config has changed: a new value is of another study, so give SAID the old
    one; a new field goes into the JSON if results are the same with it.
    """
    results = json.loads((report.HERE / "results.json").read_text())
    assert (report.HERE / "table.md").read_text() == report.table(results)
    assert results["settings"] == report.said()
