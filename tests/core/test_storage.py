"""Local files: whole or absent. (Buckets: tests/train/test_bucket.py.)"""

import errno
import os

import pytest

from mmx.core import storage
from mmx.core.errors import Unavailable, UserError


@pytest.fixture
def waits(monkeypatch):
    """Seconds slept between tries, without sleeping."""
    slept = []
    monkeypatch.setattr(storage.time, "sleep", slept.append)
    return slept


def failing(times, error):
    calls = []

    def action():
        calls.append(1)
        if len(calls) <= times:
            raise error
        return "done"

    return action, calls


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    file = storage.path(tmp_path) / "config.json"
    storage.write(file, "old")
    with pytest.raises(OSError, match="No space left"), storage.staged(file) as temporary:
        temporary.write_text("a new te")
        raise OSError(28, "No space left on device")
    assert storage.read_text(file) == "old" and storage.children(file.parent) == [file]
    storage.write(file, b"new")
    assert storage.read_bytes(file) == b"new" and storage.children(file.parent) == [file]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "I/O"), TimeoutError(), ConnectionError()])
def test_what_may_pass_is_tried_again_with_longer_waits(waits, error):
    action, calls = failing(4, error)
    assert storage.retry("x: cannot be written", action) == "done" and len(calls) == 5
    assert all(0.5 * 2**i <= wait <= 1.5 * 2**i for i, wait in enumerate(waits))
    assert len(waits) == 4 and len({wait / 2**i for i, wait in enumerate(waits)}) == 4  # jitter


def test_tries_come_to_an_end(waits):
    action, calls = failing(99, OSError(errno.EIO, "Input/output error"))
    want = r"^x: cannot be written \(Input/output error; tried 6 times in \d+ s\)$"
    with pytest.raises(Unavailable, match=want):
        storage.retry("x: cannot be written", action)
    assert len(calls) == 6 and len(waits) == 5


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), PermissionError(13, "no"), FileNotFoundError("x"),
              ValueError("x")]
)  # fmt: skip
def test_what_cannot_pass_is_not_tried_again(waits, error):
    action, calls = failing(99, error)
    with pytest.raises(type(error)):
        storage.retry("x", action)
    assert len(calls) == 1 and waits == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("gs:/bucket/run", "name a local folder, or a bucket as gs://BUCKET/FOLDER"),
        ("gs://", "name a local folder, or a bucket"),
        ("gs:///run", "name a local folder, or a bucket"),
        ("s3://bucket/run", "name a local folder, or a bucket"),
        ("gs://bucket/a/../b", 'a bucket knows no ".."'),
    ],
)
def test_other_addresses_are_refused(given, message):
    with pytest.raises(UserError, match=f"^{given}: {message}"):
        storage.path(given)


def test_gcsfs_that_is_missing_is_named(monkeypatch):
    storage._prepare_for_buckets.cache_clear()
    monkeypatch.setattr(storage.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed: pip install 'mmx\[gcs\]'"):
        storage.path("gs://bucket/run")


def test_paths_are_made_whole():
    assert str(storage.path("gs://bucket//run/")) == "gs://bucket/run"
    assert str(storage.normal("gs://bucket//run/./x")) == "gs://bucket/run/x"
    assert str(storage.absolute("gs://bucket/run")) == "gs://bucket/run"
    assert str(storage.normal("new/../old")) == "old"
    assert storage.absolute("old").is_absolute()


def test_what_changes_below_a_folder_is_seen(tmp_path):
    folder = storage.path(tmp_path) / "8"
    assert storage.versions(folder) == {}
    file = folder / "model" / "d" / "0"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"half")
    half = storage.versions(folder)
    assert [name.rpartition("/8/")[2] for name in half] == ["model/d/0"]
    assert storage.versions(folder) == half
    os.utime(file, ns=(0, 1))
    touched = storage.versions(folder)
    file.write_bytes(b"whole")
    os.utime(file, ns=(0, 1))
    assert half != touched != storage.versions(folder)
