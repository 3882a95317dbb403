"""A SPAE run by the real commands: trained, gone on with, on another mesh, scored, compared."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mmx.cli.main import main
from mmx.core import tree
from mmx.core.run_dir import RunDir
from mmx.train.start import read_weights
from tests.sentence_fakes import lay_encoders
from tests.tokenizer_fakes import byte_pairs

NAMES = ("red", "dog", "cat", "sun", "face", "woman", "man", "flag", "hand", "green", "blue", "sea")


@pytest.fixture(autouse=True)
def own_process(monkeypatch):
    """A command sets its process up; not this one."""
    monkeypatch.setattr("mmx.cli.backend._keep_freed_memory", lambda: None)


@pytest.fixture(scope="module")
def prepared(data_dir, tmp_path_factory):
    """A data directory: OpenMoji, a language model of 16 numbers a row, tiny encoders."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "openmoji").symlink_to(data_dir / "openmoji")
    weights = folder / "weights"
    weights.mkdir()
    lay_encoders(weights)
    (weights / "tiny").mkdir()
    words = byte_pairs([f" {name}" for name in NAMES])
    (weights / "tiny/tokenizer.json").write_text(words.to_str())
    size = words.vocab_size
    config = dict(
        model_type="llama", vocab_size=size, hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, intermediate_size=16, hidden_act="silu",
        max_position_embeddings=64, rms_norm_eps=1e-5, rope_theta=1e4, tie_word_embeddings=True,
    )  # fmt: skip
    (weights / "tiny/config.json").write_text(json.dumps(config))
    rows = np.random.default_rng(0).normal(size=(size, 16)).astype(np.float32)
    save_file({"model.embed_tokens.weight": rows}, weights / "tiny/model.safetensors")
    return folder


def train(prepared, workdir, *flags):
    flags = (
        "--config.words.lm=tiny", "--config.words.width=16", f"--config.words.size={len(NAMES)}",
        "--config.words.code_dim=8", "--config.data.split=test", "--config.eval.examples=8",
        "--config.save_every=4", "--config.eval_every=8", "--config.preview_every=8",
        f"--config.data.data_dir={prepared}", "--config.steps=8", *flags,
    )  # fmt: skip
    command = ("train", "--config", "spae/openmoji32:tiny", "--workdir", str(workdir))
    assert main([*command, *flags]) == 0
    return RunDir(workdir)


@pytest.fixture(scope="module")
def run(prepared, tmp_path_factory):
    """Of 8 steps, on eight devices."""
    patch = pytest.MonkeyPatch()
    patch.setattr("mmx.cli.backend._keep_freed_memory", lambda: None)
    made = train(prepared, tmp_path_factory.mktemp("run") / "spae")
    patch.undo()
    return made


def weights(run):
    return tree.flatten(read_weights(run, 8)[0])


def test_a_run_that_stopped_goes_on_as_one_run_through(run, prepared, tmp_path):
    shutil.copytree(run.path, tmp_path / "again")
    shutil.rmtree(tmp_path / "again/checkpoints/8")  # as if it had been killed after step 4
    kept = tmp_path / "again/stages/words/table.safetensors"
    before = kept.read_bytes()
    again = train(prepared, tmp_path / "again")
    assert kept.read_bytes() == before  # and weights are nowhere else
    wanted = weights(run)
    for path, leaf in weights(again).items():
        np.testing.assert_array_equal(leaf, wanted[path], err_msg=path)
    assert not any("table" in path or "words" in path for path in wanted)
    teacher = load_file(run.stage("teacher") / "features.safetensors")
    assert teacher["words"].shape == (len(NAMES), teacher["captions"].shape[1])


def test_a_table_over_devices_is_the_same_table(run, prepared, tmp_path):
    flags = ("--config.mesh.data=4", "--config.mesh.tensor=2")
    sharded = weights(train(prepared, tmp_path / "sharded", *flags))
    for path, leaf in weights(run).items():
        np.testing.assert_allclose(sharded[path], leaf, atol=2e-4, err_msg=path)


def test_a_run_is_scored_once_and_compared(run, tmp_path, capsys):
    here = tmp_path / "spae"
    shutil.copytree(run.path, here)
    assert main(["evaluate", str(here), "--metrics", "ssim"]) == 0
    told = capsys.readouterr().out
    for name in ("test/psnr_1", "test/psnr_5", "test/words", "test/meaning_2", "ssim"):
        assert name in told
    lines = (here / "evals.jsonl").read_text()
    assert main(["evaluate", str(here), "--metrics", "ssim"]) == 0
    assert (here / "evals.jsonl").read_text() == lines
    assert main(["compare", f"{here}@4", f"{here}@8", "--out", str(tmp_path / "c")]) == 0
    assert (tmp_path / "c/sheet.png").is_file()
