"""``mmx import``: a folder as the hub has it becomes a run that everything else of mmx takes."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mmx
from mmx.cli.main import main
from mmx.core.run_dir import RunDir
from mmx.data.clip_bpe import ClipTokenizer
from mmx.data.siglip_text import SiglipTokenizer
from mmx.models.clip.published import load_published
from mmx.models.texts import TOKENIZERS
from mmx.pretrained.hub import Repository

GOLDENS = Path(__file__).parents[1] / "goldens/pretrained"


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """The tiny CLIP of the goldens, with a row for each id of CLIP's vocabulary."""
    folder = tmp_path_factory.mktemp("hub") / "clip"
    shutil.copytree(GOLDENS / "clip_quick_gelu", folder)
    tensors = load_file(folder / "model.safetensors")
    table = np.random.default_rng(0).normal(size=(49408, 16)).astype(np.float16)
    tensors["text_model.embeddings.token_embedding.weight"] = table
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["vocab_size"] = 49408
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def run(published, tmp_path_factory) -> Path:
    """A run of it, whose source is gone."""
    copy = tmp_path_factory.mktemp("copy") / "clip"
    shutil.copytree(published, copy)
    run = tmp_path_factory.mktemp("runs") / "clip"
    argv = ["import", str(copy), "--workdir", str(run), "--config.data.source=tfds:openmoji/32"]
    assert main(argv) == 0
    shutil.rmtree(copy)
    return run


def test_the_run_holds_the_weights_and_clip_s_tokenizer(run, published):
    opened = mmx.load(run)
    assert opened.step == 0 and opened.config.data.image_size == 16
    assert opened.config.batch_size == 128  # not the recipe's 32,768
    assert isinstance(opened.task.tokenizer, ClipTokenizer)
    _, params, extra = load_published(Repository(published))
    assert opened.extra == extra == {}
    jax.tree.map(np.testing.assert_array_equal, opened.params, params)
    kept = ClipTokenizer.load(RunDir(run).tokenizer_file)
    texts = ["A photo of a cat, &amp; more 😀"]
    want = ClipTokenizer.published().encode(texts, 12)[0]
    np.testing.assert_array_equal(kept.encode(texts, 12)[0], want)
    np.testing.assert_array_equal(opened.task.text_ids(texts), want)


def test_images_are_seen_as_published(run):
    opened = mmx.load(run)
    picture = load_file(GOLDENS / "pictures.safetensors")
    row = opened.task.plain({"image": picture["image_0"], "text": "a"})
    pixels = (row["image"] / 255 - np.array((0.48145466, 0.4578275, 0.40821073))) / np.array(
        (0.26862954, 0.26130258, 0.27577711)
    )
    np.testing.assert_allclose(pixels, picture["clip_0"], atol=1e-6)


def test_it_is_evaluated_as_any_run(run, data_dir, capsys):
    assert main(["evaluate", str(run), "--data_dir", str(data_dir)]) == 0
    assert "image_to_text_r1" in capsys.readouterr().out


def test_a_second_import_is_done_already(run, published, capsys):
    argv = ["import", str(published), "--workdir", str(run)]
    assert main([*argv, "--config.data.source=tfds:openmoji/32"]) == 0
    assert "the weights are there" in capsys.readouterr().out


def test_siglip_brings_its_tokenizer_or_is_refused(tmp_path, capsys):
    folder, run = tmp_path / "siglip", tmp_path / "run"
    shutil.copytree(GOLDENS / "siglip", folder)
    argv = ["import", str(folder), "--workdir", str(run)]
    assert main(argv) == 2
    assert "no tokenizer.json in it" in capsys.readouterr().err
    assert not (run / "config.json").exists()
    shutil.copy(GOLDENS / "siglip_text/tokenizer.json", folder)
    assert main(argv) == 0
    opened = mmx.load(run)
    assert isinstance(opened.task.tokenizer, SiglipTokenizer)
    assert opened.config.data.crop == "stretch" and opened.config.loss.kind == "sigmoid"
    assert opened.params["logit_bias"] == -2.5
    # A run that starts from these weights takes their tokenizer by its file.
    text = opened.config.copy_and_resolve_references()
    text.text.tokenizer_file = str(run / "tokenizer.json")
    later = RunDir(tmp_path / "later")
    later.path.mkdir()
    assert isinstance(TOKENIZERS["siglip"](text, later), SiglipTokenizer)
    assert later.tokenizer_file.read_text() == (run / "tokenizer.json").read_text()


def test_weights_that_do_not_fit_write_nothing(tmp_path, published, capsys):
    folder, run = tmp_path / "clip", tmp_path / "run"
    shutil.copytree(published, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["more"] = tensors.pop("logit_scale")
    save_file(tensors, folder / "model.safetensors")
    argv = ["import", str(folder), "--workdir", str(run)]
    assert main(argv) == 2
    told = capsys.readouterr().err
    assert "missing: logit_scale" in told and "extra: more ()" in told
    assert not (run / "config.json").exists()
    assert main([*argv, "--config.data.sorce=x"]) == 2
    assert "config.data.source" in capsys.readouterr().err
    tiny = ["import", str(GOLDENS / "clip_gelu"), "--workdir", str(run)]
    assert main(tiny) == 2
    assert "not CLIP's vocabulary of 49408" in capsys.readouterr().err
