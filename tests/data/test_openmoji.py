"""The built OpenMoji data set: content, attribution, same bytes each time, whole or not at all."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mmx.core.errors import UserError
from mmx.data import emoji_table, openmoji
from mmx.data.source import open_source
from mmx.data.text import Tokenizer

ENV = {**os.environ, "PYTHONPATH": ":".join(path for path in sys.path if path)}


def _prepare(root, **options):
    program = f"from mmx.data import openmoji; openmoji.prepare('32', {str(root)!r})"
    return subprocess.Popen([sys.executable, "-c", program], env=ENV, **options)


def _files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_splits_and_features(data_dir):
    entries = {e.codepoints: e for e in emoji_table.load_entries()[1]}
    expected = emoji_table.assign_splits(list(entries.values()))
    for split, chosen in expected.items():
        source = open_source("tfds:openmoji/32", split, data_dir)
        assert len(source) == len(chosen) == source.info.splits[split]
        examples = [source[i] for i in range(len(source))]
        assert {e["codepoints"] for e in examples} == {e.codepoints for e in chosen}
        for example in examples[:200]:
            entry = entries[example["codepoints"]]
            assert example["image"].shape == (32, 32, 3) and example["image"].dtype == np.uint8
            assert example["text"] == example["caption"] == entry.caption
            for key in ("base", "concept", "gender", "skin_tone", "is_flag", "untoned"):
                assert example[key] == getattr(entry, key), key


def test_pictures_are_drawn_on_white_and_differ(data_dir):
    source = open_source("tfds:openmoji/32", "train", data_dir)
    images = {source[i]["text"]: source[i]["image"] for i in range(len(source))}
    # Some drawings are the same ("cook", "man cook"; the flags of Chad and Romania), most are not.
    assert len({image.tobytes() for image in images.values()}) > 0.95 * len(images)
    corners = np.array([image[0, 0] for image in images.values()])
    assert (corners == 255).all(-1).mean() > 0.95
    red, green, blue = images["red heart"][16, 16].astype(int)
    assert red > 180 and green < 100 and blue < 100


def test_attribution_and_tokenizer(data_dir):
    source = open_source("tfds:openmoji/32", "train", data_dir)
    assert source.info.attribution == "OpenMoji, CC BY-SA 4.0"
    tokenizer = Tokenizer.load(source.info.tokenizer_path)
    assert 1000 < tokenizer.vocab_size <= 2048
    captions = [source[i]["text"] for i in range(len(source))]
    _, text_mask = tokenizer.encode(captions, 32, strict=True)  # none is cut
    assert text_mask.sum(1).mean() < 8


def test_second_prepare_touches_nothing(data_dir):
    directory = data_dir / "openmoji" / "32" / "1.0.0"
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
    began = time.monotonic()
    assert openmoji.prepare("32", data_dir) == (directory, False)
    assert time.monotonic() - began < 2
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*")} == before


def test_killed_build_leaves_nothing_and_the_next_makes_the_same_bytes(data_dir, tmp_path):
    root = tmp_path / "data"
    process = _prepare(root, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "drawing" in line:  # the workers are at it
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(root.rglob(".incomplete-*"))  # it was really under way
    with pytest.raises(UserError, match="mmx prepare openmoji --config 32"):
        open_source("tfds:openmoji/32", "train", root)
    log = tmp_path / "log"
    with log.open("w") as stderr:
        assert _prepare(root, stderr=stderr).wait(120) == 0
    assert not list(root.rglob(".incomplete-*"))
    built = root / "openmoji" / "32" / "1.0.0"
    assert _files(built) == _files(data_dir / "openmoji" / "32" / "1.0.0")
    lines = log.read_text().splitlines()  # a log: plain lines with an ETA, few of them
    assert 3 <= len(lines) <= 8 and all("eta" in line and "\r" not in line for line in lines)
    sources = [open_source("tfds:openmoji/32", "train", r) for r in (root, data_dir)]
    assert sources[0].info.fingerprint == sources[1].info.fingerprint


def _few(monkeypatch):
    """A tenth of the drawings, some of each split."""
    folder, entries = emoji_table.load_entries()
    some = [entry for split in emoji_table.assign_splits(entries).values() for entry in split[::10]]
    kept = {entry.concept for entry in some}
    entries = [entry for entry in entries if entry.concept in kept][::3]
    monkeypatch.setattr(emoji_table, "load_entries", lambda: (folder, entries))
    assert all(emoji_table.assign_splits(entries).values())


def test_a_build_that_dies_after_tfds_wrote_leaves_nothing(tmp_path, monkeypatch):
    _few(monkeypatch)

    def fail(*unused):
        raise RuntimeError("disk unplugged")

    monkeypatch.setattr("mmx.data.build.train_tokenizer", fail)
    with pytest.raises(RuntimeError, match="unplugged"):
        openmoji.prepare("32", tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]
    with pytest.raises(UserError, match="not prepared"):
        open_source("tfds:openmoji/32", "train", tmp_path)


def test_the_64_pixel_config(tmp_path, monkeypatch):
    _few(monkeypatch)
    openmoji.prepare("64", tmp_path)
    assert open_source("tfds:openmoji/64", "train", tmp_path)[0]["image"].shape == (64, 64, 3)


def test_errors(tmp_path):
    with pytest.raises(UserError, match="32, 64"):
        openmoji.prepare("48", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write there"):
        openmoji.prepare("32", tmp_path / "file")
    other = tmp_path / "openmoji" / "32" / "1.0.0"
    other.mkdir(parents=True)
    (other / "precious").write_text("x")
    with pytest.raises(UserError, match="mmx did not make it"):
        openmoji.prepare("32", tmp_path)
    assert (other / "precious").exists()


def test_a_full_disk_is_one_clear_error(tmp_path):
    # No full disk at hand: a limit on the size of a file fails the same writes in the same places.
    program = (
        "import resource; from mmx.core.errors import UserError; from mmx.data import openmoji\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))\n"
        f"try: openmoji.prepare('32', {str(tmp_path)!r})\n"
        "except UserError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=ENV, stdout=subprocess.PIPE, text=True, check=True
    )
    assert f"--data_dir={tmp_path}: cannot write there" in done.stdout
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [".lock"]


def test_no_tensorflow_and_no_jax(data_dir):
    program = (
        "import sys; from mmx.data import openmoji;"
        "from mmx.data.source import open_source;"
        f"open_source('tfds:openmoji/32', 'train', {str(data_dir)!r})[0];"
        "bad = [m for m in ('tensorflow', 'jax', 'torch') if m in sys.modules];"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=ENV)
