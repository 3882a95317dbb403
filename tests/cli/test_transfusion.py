"""A Transfusion run in use: pictures, captions, edits and mixed documents, and what is refused."""

import itertools
import json
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import mmx as package
from mmx.cli.main import main
from mmx.core import config as configs
from mmx.core import rng as rngs
from mmx.core import tree
from mmx.core.errors import UserError
from mmx.core.run_dir import RunDir
from mmx.data.text import train_tokenizer
from mmx.eval import edits
from mmx.eval.grid import GAP, MARGIN, TILE
from mmx.eval.png import read_metadata
from mmx.models.registry import make_task
from mmx.models.transfusion import report as reports
from mmx.train.checkpoint import Checkpoints
from mmx.train.start import read_weights
from mmx.train.state import TrainState

CAPTIONS = ("red heart", "violin", "dog face", "red apple", "make it blue", "a tree and a house")


def save_run(path, spec: str, **changes) -> RunDir:
    """A run of a shipped config with random weights, as training leaves it after 10 steps."""
    config = configs.load_config(spec)
    config.update_from_flattened_dict(changes)
    run = RunDir(path)
    run.path.mkdir()
    train_tokenizer(2 * CAPTIONS, 300, run.tokenizer_file)
    run.config_file.write_text(configs.to_json(config))
    task = make_task(config, run)
    params, extra = jax.jit(lambda key: nn.unbox(task.init(key)))(rngs.base_key(0))
    # What starts as zero would draw the same always.
    params = jax.tree.map(
        lambda x: x + 0.05 * jax.random.normal(jax.random.key(1), x.shape), params
    )
    state = TrainState(jnp.int32(10), params, {}, None, extra, jnp.int32(-1))
    checkpoints = Checkpoints(run.checkpoints)
    checkpoints.save(10, state)
    checkpoints.close()
    return run


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    codec = save_run(folder / "kl", "vqgan/openmoji32_kl:tiny").path
    more = {"sample.steps": 2, "sample.text": 6, "data.max_images": 2}
    return save_run(
        folder / "tf", "transfusion/openmoji32:tiny", **{"codec.run": str(codec), **more}
    ).path


@pytest.fixture(scope="module")
def run(where):
    return package.load(where)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A square image, a wide grey one, and what is no image."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / "a.png")
    Image.fromarray(rng.integers(0, 256, (40, 60), np.uint8)).save(folder / "grey.jpg")
    (folder / "none.png").write_text("no image")
    return folder


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def call(capsys, *argv) -> str:
    capsys.readouterr()
    code = main([str(a) for a in argv])
    told = capsys.readouterr()
    assert code == 0, told.err
    return told.out


def test_sample(run, where, tmp_path, capsys):
    out = tmp_path / "x.png"
    argv = ["sample", where, "red heart", "--out", out, "--seed", 3]
    assert call(capsys, *argv) == f"{out}\n"
    image_u8 = run.sample(["red heart", "violin"], seed=3)
    np.testing.assert_array_equal(pixels(out), image_u8[0])
    record = read_metadata(out)
    assert record["prompt"] == "red heart" and record["settings"]["guidance"] == 3.0
    second = run.sample(["violin"], seed=3, first_index=1)
    assert np.abs(second[0].astype(int) - image_u8[1]).max() <= 1
    assert (image_u8 != run.sample(["red heart", "violin"], seed=4)).any((1, 2, 3)).all()


def test_caption(run, where, files, capsys):
    """A line a file, in the order given; as Python writes it, one at a time or together."""
    both = [files / "a.png", files / "grey.jpg"]
    out = call(capsys, "caption", where, *both, "--json", "-")
    told = json.loads(out)
    assert [one["file"] for one in told] == list(map(str, both))
    parts = run.generate([[pixels(both[1])]], images=0)[0]
    assert " ".join("".join(parts).split()) == told[1]["caption"]
    lines = call(capsys, "caption", where, both[1]).splitlines()
    assert lines == [f"{both[1]}\t{told[1]['caption']}"]


def test_edit(run, where, files, tmp_path, capsys):
    """What is read matters, the image and the instruction; several come with what was read."""
    out = tmp_path / "x.png"
    argv = ["edit", where, files / "a.png", "make it blue", "--out", out, "-n", 2]
    assert call(capsys, *argv) == f"{out}\n"
    record, page = read_metadata(out), pixels(out)
    assert record["prompt"] == "make it blue" and record["image"] == str(files / "a.png")
    image, other = pixels(files / "a.png"), pixels(files / "grey.jpg")
    documents = [[image, "make it blue"], [other, "make it blue"], [image, "violin"]]
    first, *others = (parts[0] for parts in run.generate(documents, draw=True))
    for place, shown in enumerate((image, first)):
        x, large = MARGIN + place * (TILE + GAP), shown.repeat(4, 0).repeat(4, 1)
        window = np.lib.stride_tricks.sliding_window_view(page[:, x : x + TILE], TILE, 0)
        assert (window.transpose(0, 3, 1, 2) == large).all((1, 2, 3)).any()
    assert first.shape == (32, 32, 3) and page.shape[1] > 3 * TILE
    assert all((edited != first).any() for edited in others)


def test_a_document_goes_on_with_texts_and_images(run, files):
    documents = [["red heart", pixels(files / "a.png")], ["dog face"], [pixels(files / "grey.jpg")]]
    more = {"images": 2, "temperature": 1.0, "draw": True}
    drawn = run.generate(documents, seed=5, **more)
    for parts in drawn:
        kinds = [isinstance(part, str) for part in parts]
        assert not kinds[0] and 1 <= len(parts) - sum(kinds) <= 2
        assert not any(a and b for a, b in itertools.pairwise(kinds)), "two texts in a row are one"
        images = [part for part in parts if not isinstance(part, str)]
        assert all(image.shape == (32, 32, 3) and image.dtype == np.uint8 for image in images)
    texts = lambda documents: [[p for p in parts if isinstance(p, str)] for parts in documents]
    assert any(map(any, texts(drawn)))
    alone = run.generate(documents[1:], seed=5, first_index=1, **more)
    assert texts(alone) == texts(drawn)[1:]
    assert texts(run.generate(documents, seed=6, **more)) != texts(drawn)


def test_what_the_commands_refuse(where, files, refused, early, tmp_path, muse_less):
    image, none = files / "a.png", files / "none.png"
    long = "red " * 40
    assert "none.png: not a PNG, JPEG or WebP image" in refused("caption", where, image, none)
    assert "gone.png: No such file" in refused("caption", where, files / "gone.png")
    assert "none.png: not a PNG" in refused("edit", where, none, "make it blue")
    assert "is too long: 40 tokens, at most 32 fit" in refused("edit", where, image, long)
    assert "prompt '' is empty" in refused("edit", where, image, "")
    assert "has to end in .png" in refused("edit", where, image, "violin", "--out", "x.jpg")
    for verb in (["caption", muse_less, image], ["edit", muse_less, image, "x"]):
        assert "a run of the family 'vqgan', which reads no images" in refused(*verb)
    texts = tmp_path / "texts"
    shutil.copytree(where, texts)
    config = texts / "config.json"
    config.write_text(config.read_text().replace('"max_images": 2', '"max_images": 0'))
    for verb in (["sample", texts, "x"], ["edit", texts, image, "x"], ["caption", texts, image]):
        assert "config.data.max_images=0, so it learned from texts alone" in refused(*verb)


@pytest.fixture
def muse_less(where):
    return where.parent / "kl"


def test_what_python_refuses(run, files):
    image = pixels(files / "a.png")
    for parts, says in (
        ([image[..., 0]], r"uint8 of shape \(32, 32\): give uint8 \[H, W, 3\], RGB"),
        ([image / 255], r"float64 of shape"),
        ([image[:0]], r"shape \(0, 32, 3\)"),
        ([image] * 3, "3 images in the prompt, .* at most config.data.max_images=2"),
        (["red " * 40], "is too long: 40 tokens, at most 32 fit"),
        (["red " * 20] * 2, "the prompt is 41 tokens, but at most 33 fit"),
        ([""], "is empty"),
    ):
        with pytest.raises(UserError, match=says):
            run.generate([parts])
    with pytest.raises(UserError, match="takes a list of documents"):
        run.generate(["red heart"])
    with pytest.raises(UserError, match="images=0: an image is asked for"):
        run.generate([["red heart"]], draw=True, images=0)
    with pytest.raises(UserError, match="--negative: a Transfusion run"):
        run.draw(["red heart"], "blue", run.options(), 0)


def test_a_run_on_pairs_goes_on_with_edits_and_is_scored_by_them(
    where, data_dir, tmp_path, capsys, monkeypatch
):
    run = RunDir(tmp_path / "edits")
    of = {"codec.run": where.parent / "kl", "data.data_dir": data_dir}
    of |= {"data.mix": "('tfds:openmoji/32 train*70',)", "preview_prompts": "()"}
    of |= {"batch_size": 8, "steps": 2, "eval.examples": 8, "sample.steps": 1}
    flags = [f"--config.{name}={value}" for name, value in of.items()]
    spec = ["--config", "transfusion/openmoji32:tiny,edit", "--init_from", where]
    call(capsys, "train", *spec, "--workdir", run.path, *flags)
    assert run.tokenizer_file.read_bytes() == RunDir(where).tokenizer_file.read_bytes()
    old, new = (tree.flatten(read_weights(r)[0]) for r in (RunDir(where), run))
    moved = {path: np.abs(old[path] - new[path]).max() for path in new}
    assert old.keys() == new.keys() and 0 < max(moved.values()) < 2e-3, moved

    both = []

    def both_ways(writer, model, data, seed):
        """What pairs are scored by has tests of its own."""
        both.append((data.source, data.split, data.image_size))
        return {"training_caption_recall/r1": 0.5}, [], "recall", "OpenMoji", None

    monkeypatch.setattr(edits, "ASKED", 8)
    monkeypatch.setattr(reports, "_both_ways", both_ways)
    told = call(capsys, "evaluate", run.path)
    assert both == [("tfds:openmoji/32", "train*70", 32)]
    scores = dict(line.split(maxsplit=1) for line in told.splitlines())
    splits = {name.partition("/")[0] for name in scores if name.startswith("edits_")}
    sides = ("train", "test", "heldout_composition")
    assert splits == {f"edits_{side}{kind}" for side in sides for kind in ("", "_colour")}
    assert scores["edits_test/right_variant_unchanged"].startswith("0 [0, ")
    assert scores["edits_train/right_variant_chance"] == "0.1667"
    assert scores["training_caption_recall/r1"] == "0.5"
    record = read_metadata(run.samples / "evaluate-step2-seed0.png")
    assert sum(text.startswith("make ") for text in record["prompts"]) == 6 * 8
    assert main(["evaluate", str(run.path), "--metrics", "psnr"]) == 2
    assert "psnr are of images with a text each" in capsys.readouterr().err
