"""`mmx fewshot`: a run whose words are the image's own, asked of a reader that is right."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from mmx.cli.main import main
from mmx.core.config import to_json
from mmx.data.vocabulary import Vocabulary
from mmx.eval.png import read_metadata
from mmx.ops.pyramid import Pyramid
from tests import sentence_fakes
from tests.data import tiny_tfds
from tests.eval import reader

NAMES = reader.NAMES[:3]
TRAINED = ("--split", "train[:50%]", "--queries", "tfds:greys", "--query-split", "train[50%:]")


class GreyWords:
    """Task of a run: the words of a grey image are three of its class, at all cells.

    Of a single layer only the cell that a pyramid's first word is of knows the class.
    """

    def __init__(self, sides, described):
        self.described = described
        ids = reader.word_ids()
        strings = tuple(f" {word}" for word in reader.WORDS)
        self.vocabulary = Vocabulary(ids, strings, reader.tokenizer().vocab_hash)
        self.pyramid = Pyramid(sides)

    def to_words(self, mesh):
        def run(params, extra, frozen, image_BHWC):
            self.described.append(len(image_BHWC))
            assert image_BHWC.shape[1:] == (4, 4, 3)
            kind = image_BHWC[:, 0, 0, 0].astype(int) % 3
            at = np.arange(self.pyramid.ends[-1])
            words = 3 * kind[:, None] + at % 3
            if self.pyramid.num_layers == 1:
                words = np.where(at == 10, words, 9)
            return words.astype(np.int32)

        return run


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """A function: flags of `mmx fewshot` -> (exit code, its folder)."""
    import ml_collections

    features = {
        "image": tiny_tfds.IMAGE,
        "caption": tiny_tfds.TEXT,
        "label": tiny_tfds.tfds.features.ClassLabel(names=[n.replace(" ", "_") for n in NAMES]),
    }
    grey = lambda n: {"image": tiny_tfds.png(n), "caption": f"c{n}", "label": n % 3}
    tiny_tfds.build(tmp_path, "greys", features, map(grey, range(60)))
    tiny_tfds.build(tmp_path, "more", features, [grey(n) for n in range(30)], splits=("test",))
    runs = {"run": (1, 2, 4), "flat": (4,), "coarse": (2,)}
    data = {"data_dir": str(tmp_path), "image_size": 4, "source": "tfds:greys", "split": "train"}
    guidance = {"weight": 1.0, "teacher": "captions"}
    config = {"family": "spae", "data": data, "guidance": guidance}
    for name in runs:
        (tmp_path / name / "checkpoints" / "7" / "model").mkdir(parents=True)
        (tmp_path / name / "checkpoints" / "7" / "_CHECKPOINT_METADATA").write_text("{}")
        text = to_json(ml_collections.ConfigDict(config))
        (tmp_path / name / "config.json").write_text(text)

    described = []

    def load_run(path, step=None):
        from mmx.core.run_dir import RunDir

        task = GreyWords(runs[RunDir(path).path.name], described)
        of = ml_collections.ConfigDict(config)
        return SimpleNamespace(dir=RunDir(path), step=7, config=of, task=task, mesh=None,
                               params=None, extra=None, frozen=None)  # fmt: skip

    lm = reader.Oracle()
    lm.arch, lm.generate = SimpleNamespace(context=4000), reader.Copier().generate
    monkeypatch.setattr("mmx.cli.run.load_run", load_run)
    monkeypatch.setattr("mmx.cli.backend.start_jax", lambda: None)
    monkeypatch.setattr("mmx.models.language_model.load_frozen_lm", lambda repository, dtype: lm)
    folder = tmp_path / "weights" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"bos_token_id": 0}')
    (folder / "tokenizer.json").write_text(reader.tokenizer().to_str())
    (folder / "model.safetensors").write_bytes(bytes(3 * 2**20 + 5))

    def run(*flags, out="out"):
        command = ["fewshot", f"{tmp_path}/run", "--lm", "tiny", "--source", "tfds:greys"]
        command += ["--queries", "tfds:more", "--episodes", "3", "--out", f"{tmp_path}/{out}"]
        return main([*command, *flags]), tmp_path / out

    run.described = described
    run.lm, run.weights = lm, folder / "model.safetensors"
    return run


def test_what_is_asked_and_kept(asked, capsys):
    flags = ["--ways", "3", "--baseline", str(asked("--ways", "3")[1].parent / "flat")]
    capsys.readouterr()
    code, out = asked(*flags, out="two")
    assert code == 0
    told = capsys.readouterr().out
    assert "3 episodes, 9 queries of 3 classes; chance 0.33" in told
    assert "1 shot, 21 words" in told and "words less baseline, mean of seven" in told
    results = json.loads((out / "results.json").read_text())
    scores = {(s["reading"], s["budget"], s["column"], s["rule"]): s["value"]
              for s in results["scores"]}  # fmt: skip
    for reading in ("words", "baseline"):
        for rule in ("sum", "mean", "overlap"):
            assert scores[reading, 5, "mean of seven", rule] == 1.0
            assert scores[reading, 1, "1 shot", rule] == scores[reading, 21, "1 shot", rule] == 1.0
    assert scores["shuffled", 5, "mean of seven", "sum"] < 0.8
    recipe = results["recipe"]
    assert recipe["asked"]["source"] == "more" and recipe["run"].startswith("run@7 (")
    assert recipe["template"]["before"] == "###\nInput:" and recipe["baseline"].startswith("flat@7")
    assert read_metadata(out / "episode.png")["recipe"] == recipe
    # The same command asks nothing again; of a killed one the rest, to the same bytes.
    files = {name: (out / name).read_bytes() for name in ("answers.jsonl", "results.json")}
    before = asked.lm.asked
    assert asked(*flags, out="two")[0] == 0 and asked.lm.asked == before
    (out / "results.json").unlink()
    lines = files["answers.jsonl"].splitlines(keepends=True)
    (out / "answers.jsonl").write_bytes(b"".join(lines[: 1 + 9 * 5]))
    assert asked(*flags, out="two")[0] == 0 and before < asked.lm.asked < 2 * before
    assert files == {name: (out / name).read_bytes() for name in files}


def test_what_is_written_stands_beside_what_is_asked(asked, capsys, tmp_path):
    """Without the flag nothing of it is there, and what was answered without it stays."""
    assert asked("--write", "20")[0] == 2
    told = capsys.readouterr().err
    assert "no sentence encoder there; make it: mmx prepare sentences wordllama" in told
    assert not asked.described and not (tmp_path / "out").exists()
    sentence_fakes.lay_encoders(asked.weights.parents[1])
    flags = ["--baseline", f"{tmp_path}/flat"]
    _, out = asked(*flags)
    held = {name: (out / name).read_bytes() for name in ("answers.jsonl", "results.json")}
    picture = (out / "episode.png").read_bytes()
    before = asked.lm.asked
    capsys.readouterr()
    assert asked(*flags, "--write", "20")[0] == 0 and asked.lm.asked == before
    told = capsys.readouterr().out
    assert (out / "answers.jsonl").read_bytes() == held["answers.jsonl"]
    results = json.loads((out / "results.json").read_text())
    written = results.pop("written")
    assert results == json.loads(held["results.json"])
    assert (written["tokens"], written["budget"], written["judge"]) == (20, 5, "wordllama")
    scores = {(s["reading"], s["rule"]): s["value"] for s in written["scores"]}
    for reading in ("words", "shuffled", "baseline"):
        assert scores[reading, "exact"] == 0.5 and scores[reading, "repeated"] == 1.0
    assert {d["reading"] for d in written["differences"]} == {"shuffled", "baseline"}
    row = written["rows"][0]
    assert f"{row['truth']} (wrote: {row['text']})" in told
    assert (out / "episode.png").read_bytes() != picture
    # A part of what was written is lost: the rest is written to the same bytes.
    lines = (out / "written.jsonl").read_bytes()
    (out / "written.jsonl").write_bytes(b"".join(lines.splitlines(keepends=True)[:9]))
    assert asked(*flags, "--write", "20")[0] == 0
    assert (out / "written.jsonl").read_bytes() == lines
    assert asked(*flags)[0] == 0
    assert held == {name: (out / name).read_bytes() for name in held}
    assert (out / "episode.png").read_bytes() == picture
    asked.lm.asked = 0
    assert asked("--write", "3990", out="long")[0] == 2 and asked.lm.asked == 0
    assert "reads 4000; give fewer --write, --words or --ways" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ways", "9"], "--ways=9: 3 classes have 5 images"),
        (["--words", "3"], "--words: 3 words: whole layers of this pyramid end at 1, 5, 21"),
        (["--budgets", "2"], "--budgets: 2 words: whole layers"),
        (["--baseline", "none"], "none"),
        (["--captions", *TRAINED], "--captions: greys train guided the words of"),
        (["--label", "kind"], "--label=kind: greys has no such field"),
        (["--ask", "count"], "--ask=count: greys has no factors"),
        (["--query-split", "none"], "data.split=none: more has the splits test"),
        (["--lm", "other"], "other: neither a folder"),
        (["--ask", "count", "--captions"], "not allowed with argument"),
        (["--budgets", "1,x"], "--budgets"),
        (["--lm_dtype", "half"], "--lm_dtype: invalid choice: 'half' (choose from"),
        (["--write", "x"], "--write"),
    ],
)
def test_bad_input(asked, flags, message, capsys):
    assert asked(*flags)[0] == 2
    assert message in capsys.readouterr().err and asked.lm.asked == 0
    assert not asked.described and not (asked.weights.parents[2] / "out").exists()


def test_images_that_the_run_was_trained_on_are_told(asked, capsys):
    code, out = asked(*TRAINED)
    assert code == 0
    told = "words: some of what is asked about was trained on: greys train"
    assert told in capsys.readouterr().out
    recipe = json.loads((out / "results.json").read_text())["recipe"]
    assert recipe["trained_on"] == {"words": ["greys train"]}
    assert asked(out="other")[0] == 0 and "trained on" not in capsys.readouterr().out


def test_another_language_model_does_not_go_on_with_the_answers(asked, capsys):
    assert asked()[0] == 0
    held = bytearray(asked.weights.read_bytes())
    held[-1] = 1
    asked.weights.write_bytes(held)
    assert asked()[0] == 2
    assert "answers.jsonl: made with lm_weights=" in capsys.readouterr().err


def test_another_study_in_the_same_folder(asked, capsys):
    assert asked()[0] == 0
    assert asked("--lm_dtype", "bfloat16")[0] == 2
    told = "made with lm_dtype=float32, not bfloat16; name another --out"
    assert told in capsys.readouterr().err
    assert asked("--seed", "1")[0] == 2
    assert "made with seed=0, not 1; name another --out" in capsys.readouterr().err


def test_a_language_model_of_another_vocabulary(asked, capsys, tmp_path):
    other = tmp_path / "weights" / "other"
    shutil.copytree(tmp_path / "weights" / "tiny", other)
    text = (other / "tokenizer.json").read_text().replace("<|begin|>", "<|start|>")
    (other / "tokenizer.json").write_text(text)
    assert asked("--lm", "other")[0] == 2
    assert "the language model's vocabulary has the hash" in capsys.readouterr().err
    assert not asked.described and not (tmp_path / "out").exists()


def test_a_baseline_at_no_cells_of_ours(asked, capsys, tmp_path):
    assert asked("--baseline", f"{tmp_path}/coarse")[0] == 2
    assert "--baseline: a pyramid of the sides (2,)" in capsys.readouterr().err
    assert not asked.described and not (tmp_path / "out").exists()
