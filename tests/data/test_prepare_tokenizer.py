"""`mmx prepare tokenizer`: a data set of `tfds build` gets what Muse needs."""

import re
import threading
import time

import pytest
import tensorflow_datasets as tfds
from tiny_tfds import IMAGE, TEXT, build, png

from mmx.cli.main import main
from mmx.core import config as configs
from mmx.core.errors import UserError
from mmx.core.run_dir import RunDir
from mmx.data import tokenizer as tokenizers
from mmx.data.source import Source
from mmx.data.text import Tokenizer, train_tokenizer
from mmx.models.texts import own_tokenizer

NAMES = ["hot_dog", "cat", "rocket"]


@pytest.fixture
def root(tmp_path):
    features = {"image": IMAGE, "label": tfds.features.ClassLabel(names=NAMES)}
    examples = [{"image": png(i), "label": i % 3} for i in range(12)]
    return build(tmp_path / "data", "labelled", features, examples)


def _files(root):
    return sorted(path.name for path in (root / "labelled" / "1.0.0").iterdir())


def _muse_tokenizer(root, run_path, data_dir):
    """What a Muse on this data would open."""
    config = configs.load_config("muse/openmoji32:tiny").copy_and_resolve_references()
    config.data.source, config.data.split = "tfds:labelled", "train"
    config.data.data_dir = data_dir
    run_path.mkdir()
    run = RunDir(run_path)
    return own_tokenizer(config, run), run


@pytest.mark.parametrize("by", ["config", "environment"])
def test_the_command_that_muse_names_makes_what_muse_needs(root, tmp_path, monkeypatch, capsys, by):
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    data_dir = str(root) if by == "config" else ""
    with pytest.raises(UserError, match=r"config\.data\.source='tfds:labelled' has no") as error:
        _muse_tokenizer(root, tmp_path / "refused", data_dir)
    command = re.search(r"run: mmx (.*)$", str(error.value)).group(1)
    assert command == f"prepare tokenizer tfds:labelled --data_dir {root}"
    monkeypatch.delenv("TFDS_DATA_DIR")
    before = _files(root)
    assert main(command.split()) == 0
    shown = capsys.readouterr()
    file = root / "labelled" / "1.0.0" / "tokenizer.json"
    assert shown.out == f"tfds:labelled: prepared {file}\n"
    lines = shown.err.splitlines()
    assert lines[-1].startswith("reading captions 12/12 eta") and len(lines) <= 8
    assert _files(root) == sorted([*before, "tokenizer.json"])
    # The very file that the other builders would make of these captions.
    captions = [f"a photo of a {NAMES[i % 3].replace('_', ' ')}" for i in range(12)]
    train_tokenizer(captions, 2048, tmp_path / "expected.json")
    assert file.read_bytes() == (tmp_path / "expected.json").read_bytes()
    opened, run = _muse_tokenizer(root, tmp_path / "run", str(root))
    assert run.tokenizer_file.read_bytes() == file.read_bytes()
    text_ids, _ = opened.encode(["a photo of a hot dog"], 16, strict=True)
    assert opened.decode(text_ids[0]) == "a photo of a hot dog"


def test_a_tokenizer_that_is_there_stays(root, capsys):
    call = ["prepare", "tokenizer", "tfds:labelled", "--data_dir", str(root)]
    file = root / "labelled" / "1.0.0" / "tokenizer.json"
    file.write_text("somebody's")
    assert main(call) == 2
    refusal = capsys.readouterr().err
    assert refusal.count("\n") == 1
    assert f"tfds:labelled: {file} is there already; delete it to make another" in refusal
    assert file.read_text() == "somebody's"
    file.unlink()
    assert main(call) == 0 and Tokenizer.load(file)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tfds:nowhere", "data.source=tfds:nowhere: not prepared in .*; run: tfds build nowhere"),
        ("tfds:silent", "data.source=tfds:silent: needs a text feature .* or a label"),
        ("silent", "expected tfds:NAME"),
    ],
)
def test_data_that_cannot_have_one(tmp_path, capsys, spec, message):
    build(tmp_path, "silent", {"image": IMAGE}, [{"image": png(0)}])
    capsys.readouterr()
    assert main(["prepare", "tokenizer", spec, "--data_dir", str(tmp_path)]) == 2
    refusal = capsys.readouterr().err
    assert re.search(message, refusal) and refusal.count("\n") == 1
    assert not list(tmp_path.rglob("*tokenizer*"))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a damaged record")])
def test_a_broken_reading_leaves_nothing(root, monkeypatch, error):
    before = _files(root)

    def caption(self, index):
        if index == 7:
            raise error
        return "a cat"

    monkeypatch.setattr(Source, "caption", caption)
    with pytest.raises(type(error)):
        tokenizers.prepare("tfds:labelled", root)
    assert _files(root) == before


def test_of_two_at_once_one_makes_it_and_the_other_is_refused(root, monkeypatch):
    results = []

    def caption(self, index):
        time.sleep(0.02)
        return "a cat"

    def prepare():
        try:
            results.append(tokenizers.prepare("tfds:labelled", root).name)
        except UserError as error:
            results.append("there already" if "there already" in str(error) else str(error))

    monkeypatch.setattr(Source, "caption", caption)
    threads = [threading.Thread(target=prepare) for _ in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sorted(results) == ["there already", "tokenizer.json"]


def test_a_directory_that_refuses_is_named_before_the_reading(root, monkeypatch):
    (root / "labelled" / "1.0.0" / ".tokenizer.json.tmp").mkdir()
    monkeypatch.setattr(Source, "caption", lambda self, index: pytest.fail("was read"))
    with pytest.raises(UserError, match=r"cannot make its tokenizer in .*1\.0\.0"):
        tokenizers.prepare("tfds:labelled", root)


def test_so_many_captions_and_no_more(tmp_path, monkeypatch):
    examples = [{"image": b"no image", "text": f"word{i} word{i}"} for i in range(9)]
    build(tmp_path, "many", {"image": IMAGE, "text": TEXT}, examples)
    monkeypatch.setattr(tokenizers, "_MAX_CAPTIONS", 4)
    read, caption = [], Source.caption
    monkeypatch.setattr(Source, "caption", lambda s, i: read.append(i) or caption(s, i))
    tokenizers.prepare("tfds:many", tmp_path)
    assert read == [0, 1, 2, 3]


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["prepare", "tokenizer", "--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0 and "tfds:NAME[/CONFIG]" in shown
    examples = shown.partition("\nexamples:\n")[2].partition("\n\n")[0].splitlines()
    assert any(line.startswith("  mmx prepare tokenizer tfds:") for line in examples)
    assert all(len(line) <= 100 for line in examples)
