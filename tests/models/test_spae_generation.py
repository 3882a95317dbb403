"""The study of drawing by a frozen language model, with a codec and models that need no weights."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import studies
import word_fakes
from word_fakes import ROWS, SIDE, SMALL, WORDS, Oracle, from_words, last_output, prompter, to_words

from mmx.core.errors import UserError
from mmx.eval.images import psnr
from mmx.models.spae.in_context.conditions import TASKS, VIDEO_TASKS, Picture
from mmx.ops.pyramid import Pyramid
from mmx.train.sharding import make_mesh

report, run, scoring, study = studies.load("spae_generation", "report", "run", "scoring", "study")
IMAGES = np.random.default_rng(0).integers(0, 256, (6, SIDE, SIDE, 3), np.uint8)
CAPTIONS = ("red cat", "red dog", "blue cat", "blue dog", "green cat", "green dog")
PICTURES = list(map(Picture, CAPTIONS, IMAGES))
SETTINGS = dict(
    lm="oracle", seed=0, supports=3, block=8, ratios=[0.5, 0.4, 0.3], kept_layers=2, mask_word="",
    words=ROWS, sides=[1, 2, 4, 4], attribution="nobody", every=list(TASKS),
)  # fmt: skip


def of(lm, **changes):
    return study.Study(
        lm, prompter(), to_words, from_words, PICTURES[:2], PICTURES[2:], SETTINGS | changes
    )


def test_scores_by_hand():
    true, other = to_words(np.stack([p.image for p in PICTURES[:2]]))
    half = np.where(np.arange(37) < 21, true, other)
    is_asked = np.arange(37) % 2 == 0
    scores = scoring.score(
        {"drawn": half, "copied": None, "codec": true}, true, is_asked, SMALL.ends,
        PICTURES[0].image, from_words,
    )  # fmt: skip
    assert scores.keys() == {"drawn", "codec"}
    lucky = float((other == true)[22::2].mean())
    assert scores["drawn"]["right"] == [1.0, 1.0, 1.0, lucky] and lucky < 0.5
    assert scores["codec"]["psnr_recon"] == 100 and scores["codec"]["right"] == [1.0] * 4
    best = psnr(PICTURES[0].image[None], from_words(true[None]))[0]
    assert scores["codec"]["psnr"] == best > scores["drawn"]["psnr"]
    wanted = psnr(from_words(true[None]), from_words(half[None]))[0]
    assert scores["drawn"]["psnr_recon"] == wanted
    none = scoring.score({"drawn": half}, true, np.arange(37) > 4, SMALL.ends, PICTURES[0].image,
                         from_words)  # fmt: skip
    assert none["drawn"]["right"][:2] == [None, None]


def test_a_copier_of_noisy_examples_has_their_words(tmp_path):
    """Right where the last example has no noise; the vote of all three is where the two others
    agree, too; of wrong examples next to nothing is right."""
    part, (title, images, captions) = of(Oracle(last_output)).do("deblur", tmp_path)
    mean = part["mean"]
    hit = round(0.3 * 32) / 32
    assert mean["drawn"]["right"][:2] == [1.0, 1.0]
    lower = {name: np.mean(scores["right"][2:]) for name, scores in mean.items()}
    assert 1 - hit <= lower["drawn"] < 1 - hit + 0.1  # a random word may be the true one
    assert lower["voted"] > lower["drawn"] > lower["wrong"] + 0.5
    assert mean["wrong"]["psnr_recon"][0] < mean["drawn"]["psnr_recon"][0] < 100
    assert mean["codec"]["psnr_recon"][0] == 100
    assert title == TASKS["deblur"].title and len(images) == len(captions) == 8
    assert [captions[2], captions[-1]] == ["given", "true picture"]
    assert captions[3].startswith("language model: ")


class Broken(Oracle):
    """Stops at its third call."""

    def generate(self, *args, **kwargs):
        if self.calls == 3:
            raise KeyboardInterrupt
        return super().generate(*args, **kwargs)


def test_a_study_that_was_stopped_goes_on(tmp_path):
    """To the same words as one that was not, with the calls that were left; of other settings it
    is refused; what is done is not done again."""
    whole, _ = of(lm := Oracle(last_output)).do("class", tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        of(Broken(last_output)).do("class", tmp_path / "parts")
    assert json.loads((tmp_path / "parts/oracle/class-0.json").read_text())["done"] == 3
    rest = Oracle(last_output)
    parts, _ = of(rest).do("class", tmp_path / "parts")
    words = [
        json.loads((tmp_path / d / "oracle/class-1.json").read_text())["words"]
        for d in ("whole", "parts")
    ]
    assert words[0] == words[1] and rest.calls == lm.calls - 3
    assert whole["pictures"] == parts["pictures"]
    of(rest).do("class", tmp_path / "parts")
    assert rest.calls == lm.calls - 3
    retrained = dataclasses.replace(of(rest), to_words=lambda images: 49 - to_words(images))
    for other, field in ((of(rest, block=9), "block=8, not 9"), (retrained, "prompts=")):
        with pytest.raises(UserError, match=f"made with {field}.*name another --workdir"):
            other.do("class", tmp_path / "parts")


def test_noise_may_be_one_word(tmp_path):
    of(Oracle(last_output), mask_word="w7").do("deblur", tmp_path)
    kept = np.array(json.loads((tmp_path / "oracle/deblur-0.json").read_text())["words"])
    true = to_words(PICTURES[0].image[None])
    wrong = kept[:1][kept[:1] != true]
    assert len(wrong) and set(wrong.tolist()) == {7}


def test_all_files_of_the_tasks_that_are_done(tmp_path):
    names = ["class", "inpaint"]
    results = run.do_all(of(Oracle(last_output)), names, tmp_path / "work", tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["tasks"].keys() == {*names}
    table = (tmp_path / "table.md").read_text()
    assert "Unfinished: interpolate, brighten" in table and "noise 50% to 30%" in table
    drawn = results["tasks"]["class"]["mean"]["drawn"]["psnr"]
    assert (
        f"| {TASKS['class'].title} | 2 | {drawn[0]:.1f} [{drawn[1]:.1f}, {drawn[2]:.1f}] |" in table
    )
    assert (tmp_path / "generation.png").stat().st_size > 1000
    copied = [line for line in table.splitlines() if line.startswith(f"| {TASKS['class'].title}")]
    assert copied[0].split(" | ")[4] == "-"  # a text cannot be copied


def test_one_workdir_serves_several_language_models(tmp_path, monkeypatch):
    """Each has its own answers, goes on with those, and writes where ``--out`` says."""
    lms = {
        "a/b.c": Oracle(last_output),
        "other": Oracle(lambda n, prompt, k: WORDS.lm_ids([3] * k)),
    }
    monkeypatch.setattr(
        run,
        "open_study",
        lambda args: dataclasses.replace(of(lms[args.lm]), settings=SETTINGS | {"lm": args.lm}),
    )
    monkeypatch.setattr(run, "start_jax", lambda: None)

    def ask(lm, out):
        flags = f"run --lm {lm} --tasks class --workdir {tmp_path / 'work'} --out {out}"
        monkeypatch.setattr("sys.argv", ["run.py", *flags.split()])
        run.main()
        return json.loads((out / "results.json").read_text())["tasks"]["class"]["pictures"]

    first, second = (ask(lm, tmp_path / "results" / lm) for lm in lms)
    assert first != second
    calls = [lm.calls for lm in lms.values()]
    assert ask("a/b.c", tmp_path / "again") == first and [lm.calls for lm in lms.values()] == calls
    assert {p.name for p in (tmp_path / "work").iterdir()} == {"a_b.c", "other"}
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        ask("other", tmp_path / "file")


def test_the_readme_has_the_table_of_its_results():
    folder = Path(study.__file__).resolve().parent
    results = json.loads((folder / "results.json").read_text())
    assert (folder / "table.md").read_text() == report.table(results)
    assert report.table(results).strip() in (folder / "README.md").read_text()


class Stored:
    """A split of random videos that counts how many are read."""

    info = SimpleNamespace(attribution="nobody")

    def __init__(self, count, shape):
        self.count, self.shape, self.read = count, shape, []

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        self.read.append(i)
        image = np.random.default_rng(i).integers(0, 256, self.shape, np.uint8)
        return {"text": f"cat {i % 7}", "image": image}

    def outlines(self):
        return iter([{"text": f"cat {i % 7}"} for i in range(self.count)])


@pytest.fixture
def videos(build, tmp_path, monkeypatch):
    """A tiny run of videos and all that is asked of it, without a language model: the splits, its
    tokenizer, and a function that runs the study."""
    small = {"model.channels": 8, "data.image_size": 8, "data.frames": 4, "model.time": (2,),
             "pyramid.sides": (1, 2, 2), "pyramid.frames": (1, 1, 2),
             "guidance.thresholds": (0.9,)}  # fmt: skip
    task = build.spae("spae/moving32:tiny", small)
    params, extra = build.params(task)
    opened = SimpleNamespace(
        config=task.config, task=task, params=params, extra=extra, frozen=task._frozen_host(),
        mesh=make_mesh(dict(slice=1, data=-1, fsdp=1, tensor=1)), step=3,
        dir=SimpleNamespace(path=Path("runs/videos")),
    )  # fmt: skip
    splits = {"test": Stored(5, (4, 8, 8, 3)), "train": Stored(900, (4, 8, 8, 3))}
    tokenizer = word_fakes.Tokens()
    tokenizer.vocab_hash, tokenizer.encode = task.vocabulary.lm_hash, lambda text: [61]
    dtypes = []

    def load_frozen_lm(repository, dtype):
        dtypes.append(dtype)
        return Oracle(lambda n, prompt, k: task.vocabulary.lm_ids([3] * k), 48)

    for name, fake in {
        "load_run": lambda spec: opened,
        "open_source": lambda name, split, data_dir: splits[split],
        "open_lm": lambda name, data_dir: None,
        "load_tokenizer": lambda repository: tokenizer,
        "load_frozen_lm": load_frozen_lm,
        "fingerprint": lambda repository: "weights",
    }.items():
        monkeypatch.setattr(run, name, fake)
    monkeypatch.setattr(run, "start_jax", lambda: None)

    def ask(*more):
        flags = f"runs/videos --tasks class --supports 3 --images 1 --workdir {tmp_path}"
        monkeypatch.setattr("sys.argv", ["run.py", *flags.split(), *more])
        run.main()

    return SimpleNamespace(splits=splits, tokenizer=tokenizer, dtypes=dtypes, ask=ask)


def test_a_study_of_a_run_of_videos(videos, tmp_path):
    """All captions are looked at and the nearest chosen; of the others no video is read."""
    splits = videos.splits
    videos.ask()
    results = json.loads((tmp_path / "smollm2-135m-instruct/results.json").read_text())
    settings = results["settings"]
    assert (settings["lm_weights"], settings["lm_dtype"]) == ("weights", "float32")
    assert [len(splits[name].read) for name in ("test", "train")] == [1, 3]
    own = results["tasks"]["class"]["pictures"][0]["caption"]
    assert {f"cat {i % 7}" for i in splits["train"].read} == {own}


def test_a_language_model_of_another_vocabulary_or_dtype(videos, tmp_path, capsys):
    """The former is refused before it is loaded, the latter does not go on with the words."""
    videos.ask()
    with pytest.raises(SystemExit):
        videos.ask("--lm_dtype", "bfloat16")
    told = "made with lm_dtype=float32, not bfloat16; name another --workdir"
    assert told in capsys.readouterr().err and videos.dtypes == ["float32", "bfloat16"]
    videos.tokenizer.vocab_hash = "other"
    with pytest.raises(SystemExit):
        videos.ask("--out", str(tmp_path / "other"))
    assert "the language model's vocabulary has the hash other" in capsys.readouterr().err
    assert len(videos.dtypes) == 2 and not (tmp_path / "other").exists()


def test_a_video_is_continued(tmp_path):
    """The words of its earlier frames are those of what is given; the model writes the others."""
    pyramid = Pyramid((1, 2, 4), frames=(1, 1, 2))
    codec = word_fakes.VideoCodec(pyramid)
    videos = np.random.default_rng(1).integers(0, 256, (4, 4, 8, 8, 3), np.uint8)
    some = list(map(Picture, ("a", "b", "c", "d"), videos))
    of_videos = study.Study(
        Oracle(last_output), prompter(pyramid), codec.to_words, codec.from_words,
        some[:1], some[1:], SETTINGS | {"ratios": [0.0] * 3},
    )  # fmt: skip
    results = run.do_all(of_videos, ["continue"], tmp_path / "work", tmp_path)
    assert results["settings"]["every"] == list(VIDEO_TASKS)
    mean = results["tasks"]["continue"]["mean"]
    assert mean["drawn"]["right"][-1] == 1 and mean["wrong"]["right"][-1] < 0.5
    assert mean["drawn"]["psnr"] == mean["codec"]["psnr"]
    kept = json.loads((tmp_path / "work/oracle/continue-0.json").read_text())["words"]
    true = codec.to_words(videos[:1])[0]
    early = np.arange(5, 5 + 16)  # of the last layer the first of two frames
    for words in kept:
        np.testing.assert_array_equal(np.array(words)[early], true[early])
    with pytest.raises(UserError, match="--tasks deblur: those of this run are class, continue"):
        run.do_all(of_videos, ["deblur"], tmp_path / "work", tmp_path)
