"""One build at a time, whole or not at all."""

import threading
import time
from pathlib import Path

import pytest

from mmx.core.errors import UserError
from mmx.data import build


class FakeBuilder:
    """Writes what TFDS would, slowly."""

    def __init__(self, aside, built, error=None):
        self.folder, self.built, self.error = Path(aside, "set", "1.0.0"), built, error

    def download_and_prepare(self):
        self.folder.mkdir(parents=True)
        (self.folder / "dataset_info.json").write_text("{}")
        time.sleep(0.3)
        if self.error:
            raise self.error
        self.built.append(self.folder)


def _build(root, built, error=None):
    return build.build(root, "set/1.0.0", lambda a: FakeBuilder(a, built, error), ["a b", "a b"])


def test_of_two_builders_one_builds_and_the_other_finds_it(tmp_path):
    built, results = [], []
    threads = [
        threading.Thread(target=lambda: results.append(_build(tmp_path, built))) for _ in range(3)
    ]
    [thread.start() for thread in threads]
    assert not build.is_prepared(tmp_path / "set" / "1.0.0")  # nothing is seen before it is whole
    [thread.join() for thread in threads]
    assert sorted(results) == [False, False, True] and len(built) == 1
    assert build.is_prepared(tmp_path / "set" / "1.0.0")
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == [".lock", "1.0.0"]


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(28, "No space left on device"), UserError),
        (RuntimeError("train: write() failed: No space left on device"), UserError),
        (RuntimeError("a bug"), RuntimeError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_failed_build_leaves_nothing(tmp_path, error, raised):
    with pytest.raises(raised, match="--data_dir" if raised is UserError else None):
        _build(tmp_path, [], error)
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == [".lock"]
    assert _build(tmp_path, [])  # and the next one succeeds


def test_default_data_dir(monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    assert build.default_data_dir() == Path.home() / "tensorflow_datasets"
    monkeypatch.setenv("TFDS_DATA_DIR", "/somewhere")
    assert build.default_data_dir() == Path("/somewhere")
    assert build.default_data_dir("/else") == Path("/else")


def test_records_wait_on_the_disk_in_the_order_of_tfds(tmp_path):
    """While TFDS shuffles, memory holds keys only; above 1 GB it would ask for tensorflow."""
    from tensorflow_datasets.core import shuffle

    def fill(shuffler):
        for key in range(50):
            shuffler.add(f"key {key}", f"data {key}".encode())
        return shuffler

    plain = list(fill(shuffle.Shuffler(tmp_path, "salt")))
    with build._plain_tfds():
        ours = fill(shuffle.Shuffler(tmp_path, "salt"))
    assert not any(isinstance(part, bytes) for record in ours._mem_buffer for part in record)
    assert list(ours) == plain and plain != sorted(plain, key=lambda record: record[1])
    assert ours.size == sum(len(data) for _, data in plain)


@pytest.mark.parametrize(("config", "relative"), [(None, "set/2.1.0"), ("32", "set/32/2.1.0")])
def test_a_data_set_is_read_and_built_once(tmp_path, config, relative):
    read = []

    class Builder(FakeBuilder):
        name, VERSION = "set", "2.1.0"

        def __init__(self, config, data_dir, file_format, rows):
            assert (file_format, rows) == ("array_record", [5])
            super().__init__("", [])
            self.folder = Path(data_dir, "set", config or "", "2.1.0")

    def rows():
        read.append(1)
        return {"rows": [5]}, ["a b", "a b"]

    args = Builder, tmp_path, rows, config
    assert build.prepare(*args) == (tmp_path / relative, True)
    assert build.is_prepared(tmp_path / relative)
    assert build.prepare(*args) == (tmp_path / relative, False) and len(read) == 1
