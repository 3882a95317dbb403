"""Contract 4 for packed rows: the plan, what is at a position, and what a run keeps of it."""

import collections
import itertools
import time
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from tiny_tfds import IMAGE, TEXT, build, png

from mmx.core.errors import UserError
from mmx.core.run_dir import RunDir
from mmx.data import packing
from mmx.data.mixture import open_mixture, open_training, texts
from mmx.data.packing import PackedStream, Plan, best_fit
from mmx.data.source import DataInfo, open_source

LENGTH, IMAGES = 40, 2


def draw_sizes(count, seed):
    """Texts of any length and pairs of about half a row."""
    rng = np.random.default_rng(seed)
    tokens, images = rng.integers(1, LENGTH + 1, count), rng.integers(0, IMAGES + 1, count)
    return np.stack([np.where(images, 10 * images + tokens % 20, tokens), images], 1)


def one_by_one(sizes, length, max_images):
    """Best-fit decreasing as in the textbook: (room, image slots) of the rows that it opens."""
    rows = []
    for tokens, images in sorted(map(tuple, sizes.tolist()), reverse=True):
        fits = [row for row in rows if row[0] >= tokens and row[1] >= images]
        if fits:
            row = min(fits)
        else:
            row = [length, max_images]
            rows.append(row)
        row[0], row[1] = row[0] - tokens, row[1] - images
    return sorted(map(tuple, rows))


@pytest.mark.parametrize("seed", range(20))
def test_patterns_are_those_of_best_fit_decreasing(seed):
    sizes = draw_sizes(1 + 23 * seed, seed)
    counts = collections.Counter(map(tuple, sizes.tolist()))
    patterns = best_fit(counts, LENGTH, IMAGES)
    rows, held = [], collections.Counter()
    for pattern in patterns:
        for size, each in pattern.sizes:
            held[size] += each * pattern.rows
        room = LENGTH - sum(size[0] * each for size, each in pattern.sizes)
        slots = IMAGES - sum(size[1] * each for size, each in pattern.sizes)
        assert room >= 0 and slots >= 0 and pattern.rows > 0
        rows += [(room, slots)] * pattern.rows
    assert held == counts
    assert sorted(rows) == one_by_one(sizes, LENGTH, IMAGES)


def test_an_epoch_holds_each_document_once_and_every_row_fits():
    sizes = draw_sizes(3000, 0)  # some sizes occur once, others more often than a small permutation
    sizes[:1200] = 7, 0
    plan = Plan(sizes, LENGTH, IMAGES)
    epochs = []
    for epoch in range(2):
        rows = [plan.documents(5, epoch, offset) for offset in range(plan.rows)]
        assert sorted(itertools.chain(*rows)) == list(range(3000))
        assert all((sizes[row].sum(0) <= (LENGTH, IMAGES)).all() for row in rows)
        epochs.append(rows)
    assert plan.fill == sizes[:, 0].sum() / (plan.rows * LENGTH) > 0.9
    other_seed = [plan.documents(6, 0, offset) for offset in range(plan.rows)]
    for left, right in ((epochs[0], epochs[1]), (epochs[0], other_seed)):
        assert sum(a == b for a, b in zip(left, right)) < plan.rows / 50
        shapes = [[sizes[row].tolist() for row in rows] for rows in (left, right)]
        assert sum(a == b for a, b in zip(*shapes)) < plan.rows / 3 and shapes[0] != shapes[1]
        companions = [{frozenset(row) for row in rows} for rows in (left, right)]
        assert len(companions[0] & companions[1]) < plan.rows / 5  # those of one document alone


class Numbers:
    """Documents that are their own number."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return {"id": index}

    def __repr__(self):
        return f"Numbers({self.count})"


def transform(examples, rng):
    ids = np.full(LENGTH, -1, np.int32)
    ids[: len(examples)] = [example["id"] for example in examples]
    return {"ids": ids, "draw": rng.integers(0, 2**31, 2)}


def test_a_row_is_a_function_of_its_position_however_late():
    sizes = draw_sizes(100_000, 1)
    begun = time.monotonic()
    first = PackedStream(Numbers(len(sizes)), transform, 3, Plan(sizes, LENGTH, IMAGES))
    late = 100_000 * 64
    rows = [first.row(late + n) for n in range(64)]
    assert time.monotonic() - begun < 5
    again = PackedStream(Numbers(len(sizes)), transform, 3, Plan(sizes, LENGTH, IMAGES))
    for n in reversed(range(64)):  # another process, another order of calls
        row = again.row(late + n)
        assert row["position"] == late + n
        for name in ("ids", "draw"):
            np.testing.assert_array_equal(row[name], rows[n][name])
    assert not np.array_equal(again.row(late)["draw"], again.row(late + again.plan.rows)["draw"])


PINNED = 37, [[42], [37], [31], [4, 21]]


def test_the_order_is_pinned():
    """A run started by an older mmx must go on with the same data: never change these numbers."""
    stream = PackedStream(Numbers(50), transform, 0, Plan(draw_sizes(50, 2), LENGTH, IMAGES))
    found = [stream.documents(position) for position in (0, 1, stream.plan.rows, 10**9)]
    assert (stream.plan.rows, found) == PINNED


def test_an_error_names_the_documents():
    def bad(examples, rng):
        raise ValueError("no")

    stream = PackedStream(Numbers(3), bad, 0, Plan(np.array([[9, 0]] * 3), LENGTH, IMAGES))
    with pytest.raises(RuntimeError, match=r"position 7 \(example \[.*\] of Numbers.*ValueError"):
        stream.row(7)


# Of a run


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    examples = [{"image": png(i), "caption": f"picture {i}"} for i in range(12)]
    build(root, "pairs", {"image": IMAGE, "caption": TEXT}, examples, license="CC0")
    features = {"text": TEXT, "lemma": TEXT, "id": tfds.features.Scalar(np.int64)}
    examples = [{"text": "word " * (i % 7 + 1), "lemma": "w", "id": i} for i in range(40)]
    build(root, "words", features, examples, license="MIT", splits=("train", "test"))
    return root


def count_words(example):
    return len(example["text"].split())


class Task:
    """Counts words; a picture takes nine tokens."""

    def __init__(self):
        self.measured = 0

    def document_tokens(self, example):
        self.measured += 1
        assert example.get("image") is None  # not decoded
        return count_words(example) + 9 * ("image" in example), int("image" in example)

    def transform(self, examples, rng):
        words = list(map(count_words, examples))
        pictures = [example["image"].shape for example in examples if "image" in example]
        return {"words": np.int32(sum(words)), "pictures": np.int32(len(pictures))}


def make_config(root, **changes):
    data = dict(
        source="tfds:pairs",
        split="train*2",
        mix=("tfds:words train[:20]",),
        data_dir=str(root),
        row_len=24,
        max_images=2,
    )
    return ConfigDict(dict(seed=1, data=data | changes))


def test_a_run_measures_once_and_goes_on_with_the_same_rows(root, tmp_path, monkeypatch):
    config, run, said = make_config(root), RunDir(tmp_path), []
    task = Task()
    stream = packing.open_stream(config, task, run, said.append)
    assert task.measured == 12 + 20  # each once, however often an epoch holds it
    assert len(stream.source) == 2 * 12 + 20
    words = 24 * 2 + sum(count_words(stream.source[i]) for i in range(24, 44))
    tokens = words + 24 * 9
    full = tokens / (24 * stream.plan.rows)
    assert said == [
        f"an epoch: 44 documents ({tokens} tokens: pairs {264 / tokens:.1%}, words "
        f"{(tokens - 264) / tokens:.1%}; 24 images) in {stream.plan.rows} rows, {full:.1%} full"
    ]
    rows = [stream.row(position) for position in range(stream.plan.rows)]
    assert sum(row["pictures"] for row in rows) == 24
    assert stream.plan.images == 24 / len(rows)
    assert sum(int(row["words"]) for row in rows) == words

    again = Task()
    resumed = packing.open_stream(config, again, run, said.append)
    assert again.measured == 0 and said[0] == said[1]
    for position in (0, 5, 10**8):
        assert resumed.documents(position) == stream.documents(position)
    elsewhere = packing.open_stream(config, Task(), RunDir(tmp_path / "other"), None)
    assert elsewhere.documents(9) == stream.documents(9) and not (tmp_path / "other").exists()
    file = run.path / "lengths.npz"
    kept = file.read_bytes()
    file.write_bytes(b"?")
    with pytest.raises(UserError, match=r"lengths.npz: damaged; delete it"):
        packing.open_stream(config, task, run)
    file.write_bytes(kept)
    packing.open_stream(config, task, run)
    # As many documents, but of data that was built anew.
    monkeypatch.setattr(DataInfo, "fingerprint", "another")
    with pytest.raises(UserError, match=r"lengths.npz: not of this data; delete it"):
        packing.open_stream(config, task, run)


@pytest.mark.parametrize("limits", [dict(row_len=10), dict(row_len=24, max_images=0)])
def test_a_document_that_no_row_holds_is_named_before_training(root, tmp_path, limits):
    config = make_config(root, **limits)
    with pytest.raises(UserError) as error:
        packing.open_stream(config, Task(), RunDir(tmp_path), print)
    text = str(error.value)
    assert "Source(pairs, train, 12 examples), example 0: a document of 11 tokens" in text
    assert "11 others" in text and "\n" not in text
    assert not list(tmp_path.iterdir())


def test_bad_mixtures(root):
    with pytest.raises(UserError, match="'tfds:words' is not SOURCE SPLIT, such as"):
        open_mixture(make_config(root, mix=("tfds:words",)).data)
    with pytest.raises(UserError, match="tfds:none: not prepared"):
        open_mixture(make_config(root, mix=("tfds:none train",)).data)


def test_what_is_recorded_of_a_mixture(root):
    one = open_mixture(make_config(root, mix=()).data)
    assert one.info.name == "pairs" and one.info.splits == {"train": 12}
    two = open_mixture(make_config(root).data)
    assert two.info.name == "pairs + words" and two.info.attribution == "CC0\nMIT"
    assert two.info.splits == {"train": 12, "words/train": 40, "words/test": 40}
    words = open_source("tfds:words", "train", root, needs_image=False)
    assert [two[i]["text"] for i in (0, 12, 24, 43)] == [
        *[one[0]["text"]] * 2,
        words[0]["text"],
        words[19]["text"],
    ]
    other = open_mixture(make_config(root, mix=("tfds:pairs train",)).data)
    fingerprints = {info.info.fingerprint for info in (one, two)}
    assert len(fingerprints) == 2 and other.info.fingerprint == one.info.fingerprint
    captions = sorted(f"picture {i}" for i in range(12))
    found = list(texts(two))
    assert sorted(found[:12]) == sorted(found[12:24]) == captions and len(found) == 44
    plain = SimpleNamespace(source="tfds:pairs", split="train", data_dir=str(root))
    assert open_training(ConfigDict(vars(plain))).info.name == "pairs"


def test_texts_alone_open_where_the_caller_allows_it(root):
    source = open_source("tfds:words", "train", root, needs_image=False)
    example = source[0]
    assert example.keys() == {"text", "lemma", "id"} and example == source.outline(0)
    with pytest.raises(UserError, match=r"tfds:words: has no one image feature; its features:"):
        open_source("tfds:words", "train", root)
    pairs = open_source("tfds:pairs", "train", root)
    assert pairs.outline(3) == {**pairs[3], "image": None}
    assert list(pairs.outlines()) == [pairs.outline(i) for i in range(12)]
