"""Opening TFDS data sets by their directory: captions from texts and labels, clear errors."""

import json
import os
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tiny_tfds import IMAGE, TEXT, build, png

from mmx.core.errors import UserError
from mmx.data import source as source_lib
from mmx.data.image import ImageError
from mmx.data.source import open_source


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")
    features = {
        "image": IMAGE,
        "caption": TEXT,
        "id": tfds.features.Scalar(np.int64),
        "score": tfds.features.Scalar(np.float32),
        "box": tfds.features.Tensor(shape=(4,), dtype=np.float32),
    }
    examples = [
        {
            "image": png(i),
            "caption": f"cäption {i}",
            "id": i,
            "score": i / 2,
            "box": np.zeros(4, np.float32),
        }
        for i in range(20)
    ]
    build(root, "captioned", features, examples, license="CC0")
    return root


@pytest.fixture(scope="module")
def labelled(root):
    features = {
        "image": tfds.features.Image(shape=(6, 8, 1)),
        "file": TEXT,
        "label": tfds.features.ClassLabel(names=["hot_dog", "cat"]),
    }
    from PIL import Image

    examples = [
        {"image": Image.new("L", (8, 6), 100 * i), "file": f"{i}.png", "label": i} for i in (0, 1)
    ]
    return build(root, "labelled", features, examples)


def test_examples(root):
    source = open_source("tfds:captioned", "train", root)
    assert len(source) == 20
    seen = set()
    for index in range(20):
        example = source[index]
        i = example["id"]
        seen.add(i)
        assert isinstance(i, int) and isinstance(example["score"], float)
        assert example["text"] == example["caption"] == f"cäption {i}"
        assert example["score"] == i / 2 and "box" not in example
        np.testing.assert_array_equal(example["image"], np.full((6, 8, 3), i, np.uint8))
    assert seen == set(range(20))
    info = source.info
    assert (info.name, info.attribution, info.tokenizer_path) == ("captioned", "CC0", None)
    assert info.splits == {"train": 20} and info.directory == root / "captioned" / "1.0.0"


def test_labels_become_captions(labelled):
    source = open_source("tfds:labelled", "train", labelled)
    assert source.label == ("label", ("hot_dog", "cat")) and source[1]["label"] == 1
    joined = open_source("tfds:labelled", "train*2", labelled)
    assert joined.label == source.label
    texts = {source[i]["file"]: source[i]["text"] for i in range(2)}
    assert texts == {"0.png": "a photo of a hot dog", "1.png": "a photo of a cat"}
    assert {source[i]["label"] for i in range(2)} == {0, 1}
    assert source[0]["image"].shape == (6, 8, 3)


def test_split_slices(root):
    whole = open_source("tfds:captioned", "train", root)
    half = open_source("tfds:captioned", "train[:50%]", root)
    assert [half[i]["id"] for i in range(10)] == [whole[i]["id"] for i in range(10)]
    assert len(half) == 10


def test_examples_cannot_be_spoilt(root):
    source = open_source("tfds:captioned", "train", root)
    example = source[3]
    example["text"] = "other"
    example["added"] = 1
    assert source[3]["text"] != "other" and "added" not in source[3]
    with pytest.raises(ValueError, match="read-only"):
        example["image"][0] = 0


def test_the_cache_is_bounded(root, monkeypatch):
    monkeypatch.setattr(source_lib, "_CACHE_BYTES", 3 * 6 * 8 * 3)
    source = open_source("tfds:captioned", "train", root)
    expected = [source[i]["id"] for i in range(20)]
    assert len(source._cache) == 3
    assert [source[i]["id"] for i in range(20)] == expected


def test_threads_read_the_same(root):
    source = open_source("tfds:captioned", "train", root)
    expected = [source[i]["id"] for i in range(20)]
    source, results = open_source("tfds:captioned", "train", root), {}

    def read(thread):
        results[thread] = [source[i]["id"] for i in range(20)]

    threads = [threading.Thread(target=read, args=(t,)) for t in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert all(result == expected for result in results.values()) and len(results) == 8


def test_newest_version_and_configs(tmp_path):
    features = {"image": IMAGE, "text": TEXT}
    for version in ("1.9.0", "1.10.0"):
        example = {"image": png(0), "text": version}
        build(tmp_path, "many", features, [example], version=version)
    assert open_source("tfds:many", "train", tmp_path)[0]["text"] == "1.10.0"
    for config in ("a", "b"):
        build(tmp_path, "sized", features, [{"image": png(0), "text": config}], config=config)
    assert open_source("tfds:sized/b", "train", tmp_path)[0]["text"] == "b"
    with pytest.raises(UserError, match="tfds:sized/a, tfds:sized/b"):
        open_source("tfds:sized", "train", tmp_path)


def test_default_data_dir(root, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    assert len(open_source("tfds:captioned", "train")) == 20


@pytest.mark.parametrize(
    ("spec", "command"),
    [
        ("tfds:openmoji/32", "mmx prepare openmoji --config 32"),
        ("tfds:openmoji/64", "mmx prepare openmoji --config 64"),
        ("tfds:mnist", "tfds build mnist --file_format=array_record"),
        ("tfds:caltech/a", "tfds build caltech/a --file_format=array_record"),
        ("tfds:photos", "mmx prepare folder DIR --name photos --data_dir"),
    ],
)
def test_not_prepared_names_the_command(tmp_path, spec, command):
    with pytest.raises(UserError, match="not prepared") as error:
        open_source(spec, "train", tmp_path)
    assert command in str(error.value) and str(tmp_path) in str(error.value)
    assert ("prepare folder" in str(error.value)) == (spec in ("tfds:mnist", "tfds:photos"))


def test_a_placeholder_asks_for_a_name(tmp_path):
    with pytest.raises(UserError, match=r"tfds:NAME stands for .*=tfds:YOURS; .* folder DIR"):
        open_source("tfds:NAME", "train", tmp_path)


@pytest.mark.parametrize(
    "spec", ["mnist", "tfds:", "tfds:../x", "tfds:a/b/c", "hf:x", "tfds:/etc", "tfds:a/.."]
)
def test_malformed_specs(root, spec):
    with pytest.raises(UserError, match="expected tfds:NAME"):
        open_source(spec, "train", root)


def test_wrong_split_lists_the_splits(root):
    with pytest.raises(UserError, match=r"data\.split=val: captioned has the splits train"):
        open_source("tfds:captioned", "val", root)
    with pytest.raises(UserError, match="train"):
        open_source("tfds:captioned", "train[:x%]", root)


def _copy(root, tmp_path):
    shutil.copytree(root / "captioned", tmp_path / "captioned")
    return tmp_path / "captioned" / "1.0.0"


def test_other_file_formats(root, tmp_path):
    info_path = _copy(root, tmp_path) / "dataset_info.json"
    info = json.loads(info_path.read_text())
    info_path.write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    with pytest.raises(
        UserError, match=r"prepared as tfrecord.*tfds build captioned --file_format"
    ):
        open_source("tfds:captioned", "train", tmp_path)


def test_damaged_directories(root, tmp_path):
    directory = _copy(root, tmp_path)
    next(directory.glob("*array_record*")).unlink()
    with pytest.raises(UserError, match="missing; the data set captioned is not whole"):
        open_source("tfds:captioned", "train", tmp_path)
    (directory / "features.json").write_text("{")
    with pytest.raises(UserError, match="cannot open this data set"):
        open_source("tfds:captioned", "train", tmp_path)


def test_a_caption_is_read_without_its_image(root, labelled, tmp_path):
    for name in ("captioned", "labelled"):
        source = open_source(f"tfds:{name}", "train", root)
        texts = [source.caption(i) for i in range(len(source))]
        assert texts == [source[i]["text"] for i in range(len(source))]
    build(tmp_path, "bad", {"image": IMAGE, "text": TEXT}, [{"image": b"xx", "text": "a"}])
    assert open_source("tfds:bad", "train", tmp_path).caption(0) == "a"


def test_a_damaged_image_names_itself(tmp_path):
    build(tmp_path, "bad", {"image": IMAGE, "text": TEXT}, [{"image": b"xx", "text": "a"}])
    source = open_source("tfds:bad", "train", tmp_path)
    with pytest.raises(ImageError, match=r"bad train\[0\]: not a PNG"):
        source[0]


def test_features_that_do_not_fit(tmp_path):
    build(tmp_path, "noimage", {"text": TEXT}, [{"text": "a"}])
    with pytest.raises(UserError, match="no one image"):
        open_source("tfds:noimage", "train", tmp_path)
    build(tmp_path, "notext", {"image": IMAGE}, [{"image": png(0)}])
    with pytest.raises(UserError, match="needs a text feature"):
        open_source("tfds:notext", "train", tmp_path)
    example = {"image": png(0), "a": "x", "b": "y"}
    build(tmp_path, "unclear", {"image": IMAGE, "a": TEXT, "b": TEXT}, [example])
    with pytest.raises(UserError, match="needs a text feature"):
        open_source("tfds:unclear", "train", tmp_path)


def _fingerprint(root, name="captioned"):
    return open_source(f"tfds:{name}", "train", root).info.fingerprint


def test_fingerprint_is_of_the_examples_and_not_of_what_lies_beside_them(root, tmp_path):
    first = _fingerprint(root)
    directory = _copy(root, tmp_path)
    # What tells of the making changes with the version of TFDS and the dates of the files.
    (directory / "metadata.json").write_text('{"origin": "elsewhere"}')
    info = directory / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"citation": "a paper"}))
    (directory / "notes.txt").write_text("a stray file")
    (directory / "captioned-train.array_record-00000-of-00001.bak").write_text("another")
    (directory / "tokenizer.json").write_text("{}")  # each run has a copy of its own
    assert _fingerprint(tmp_path) == first
    shard = next(directory.glob("*array_record*-00001"))
    data = bytearray(shard.read_bytes())
    data[-100] ^= 1
    shard.write_bytes(bytes(data))
    assert _fingerprint(tmp_path) != first


@pytest.mark.parametrize("large", [False, True])
def test_fingerprint_sees_every_split_and_what_the_numbers_mean(tmp_path, monkeypatch, large):
    features = {"image": IMAGE, "label": tfds.features.ClassLabel(names=["dog", "cat"])}
    example = {"image": png(0), "label": 0}
    build(tmp_path, "two", features, [example], splits=("train", "test"))
    if large:  # then the shards are known by name and size alone
        monkeypatch.setattr(source_lib, "_HASH_BYTES", 0)
    seen = [_fingerprint(tmp_path, "two")]
    directory = tmp_path / "two" / "1.0.0"
    (directory / "label.labels.txt").write_text("dog\nfox\n")
    seen.append(_fingerprint(tmp_path, "two"))
    described = directory / "features.json"
    described.write_text(described.read_text() + "\n")
    seen.append(_fingerprint(tmp_path, "two"))
    test = next(directory.glob("two-test.array_record*"))
    test.write_bytes(test.read_bytes() + b"\0")
    seen.append(_fingerprint(tmp_path, "two"))
    for drawings in ("12ab", "34cd"):
        (directory / "metadata.json").write_text(json.dumps({"drawings": drawings}))
        seen.append(_fingerprint(tmp_path, "two"))
    assert len(set(seen)) == 6


def test_no_builder_is_imported_and_no_tensorflow(labelled):
    program = (
        "import sys; from mmx.data.source import open_source;"
        f"open_source('tfds:labelled', 'train', {str(labelled)!r})[0];"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('tensorflow', 'jax')"
        " or 'datasets.labelled' in m or m.endswith('tiny_tfds')];"
        "assert not bad, bad"
    )
    env = {**os.environ, "PYTHONPATH": ":".join(path for path in sys.path if path)}
    subprocess.run([sys.executable, "-c", program], check=True, env=env)


def test_splits_join_and_repeat(root):
    once = open_source("tfds:captioned", "train", root)
    joined = open_source("tfds:captioned", "train[:5]*3+train[5:]", root)
    assert len(joined) == 3 * 5 + 15 and joined.info == once.info
    texts = [joined[i]["text"] for i in range(len(joined))]
    first, rest = [[once[i]["text"] for i in range(*r)] for r in ((0, 5), (5, 20))]
    assert texts == first * 3 + rest


@pytest.mark.parametrize(
    ("a", "b", "shared"),
    [
        ("train", "train", True),
        ("train", "test", False),
        ("train[:50%]", "train[40%:]", True),
        ("train[:50%]", "train[50%:]", False),
        ("train[:3]", "test+train[2:4]*2", True),
        ("train[:3]", "test+train[3:4]*2", False),
        ("train[-10:]", "train[:90]", False),
        ("train[-11:]", "train[:90]", True),
        ("train[1shard:]", "train[:9]", True),  # may be
    ],
)
def test_what_two_splits_share(a, b, shared):
    from mmx.data.splits import share

    sizes = {"train": 100, "test": 20}
    assert share(a, b, sizes) == share(b, a, sizes) == shared


@pytest.mark.parametrize("split", ["train*0", "train*x", "train*-1", "train*"])
def test_a_wrong_count_of_repeats_is_refused(root, split):
    with pytest.raises(UserError, match="how often"):
        open_source("tfds:captioned", split, root)


def test_an_unknown_part_is_refused(root):
    with pytest.raises(UserError, match="has the splits train"):
        open_source("tfds:captioned", "train+tset", root)
