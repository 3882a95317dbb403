"""What examples are called by a field, of their own data set or of another."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
import tiny_tfds

from mmx.core.errors import UserError
from mmx.data.labels import lend_labels, read_labels
from mmx.data.source import open_source

LABEL = tfds.features.ClassLabel(names=["ankle_boot", "bag"])
SIZE = tfds.features.Scalar(np.int64)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("labels")
    plain = {"image": tiny_tfds.IMAGE, "caption": tiny_tfds.TEXT, "points": tiny_tfds.TEXT}
    one = lambda n: {"image": tiny_tfds.png(n), "caption": f"text {n}", "points": f"p{n}"}
    features = {**plain, "label": LABEL, "size": SIZE}
    tiny_tfds.build(
        root, "full", features, [{**one(n), "label": n % 2, "size": n} for n in range(6)],
        splits=("train", "test"),
    )  # fmt: skip
    tiny_tfds.build(root, "bare", plain, [one(n) for n in (4, 9, 1)])
    return root


def test_by_each_kind_of_field(data):
    source = open_source("tfds:full", "train", data)
    order = [source.outline(n)["size"] for n in range(6)]
    assert read_labels(source, None) == [["ankle boot", "bag"][n % 2] for n in order]
    assert read_labels(source, "label") == read_labels(source, None)
    assert read_labels(source, "size") == [str(n) for n in order]
    assert read_labels(source, "caption") == [f"text {n}" for n in order]
    joined = open_source("tfds:full", "train+test", data)
    assert read_labels(joined, "size") == [str(joined[n]["size"]) for n in range(12)]


def test_of_another_data_set(data):
    bare, full = open_source("tfds:bare", "train", data), open_source("tfds:full", "test[:1]", data)
    names = dict(zip((bare.outline(n)["points"] for n in range(3)),
                     lend_labels(bare, "points", "label", full, data)))  # fmt: skip
    assert names == {"p4": "ankle boot", "p9": None, "p1": "bag"}
    with pytest.raises(UserError, match="--key=size: bare has no such field; it has"):
        lend_labels(bare, "size", "label", full, data)


def test_errors(data):
    with pytest.raises(UserError, match="bare has no one label: name with --label"):
        read_labels(open_source("tfds:bare", "train", data), None)
    with pytest.raises(UserError, match=r"--label=kind: full has no such field; it has .*size"):
        read_labels(open_source("tfds:full", "train", data), "kind")
