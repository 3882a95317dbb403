"""Checksums of checkpoints: a flipped bit is found before anything is made of it.

Orbax does not look: OCDBT has checksums of its own lists alone, and there is no option for the
arrays' (true of 0.12, zarr2 and zarr3). So, in a local folder, each step gets a list beside it,
``RUN/checksums/STEP.json``: ``{"files": {"model/d/0123": [size, crc32]}}``. A bucket needs none: it
keeps a checksum of each object and verifies it. A step without a list (of an earlier version, or
cut off before it was written) is read as it is.

What it costs: a thread reads every file of a step once more, mostly from the memory that it was
just written through, at about 1 GB/s of one core; no step waits for it, only the end of the run.
Restoring reads every file twice, process 0 alone for all.
"""

import contextlib
import json
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from etils import epath

from mmx.core import storage
from mmx.core.run_dir import finished_steps

_CHUNK = 2**22  # ours: bytes read at once
_READERS = 8  # ours: files read at the same time, while nothing else is done
_POLL = 0.25  # ours: seconds between two looks whether a step is whole


class Damaged(Exception):
    """A file is not what was written; names it."""


class Digests:
    """The lists of a folder of checkpoints; nothing at all in a bucket.

    Args:
      checkpoints: the folder of the steps.
      writes: whether this process writes them: one of all.
    """

    def __init__(self, checkpoints: epath.Path, writes: bool):
        self.checkpoints, self.folder = checkpoints, checkpoints.parent / "checksums"
        self._local = not storage.is_remote(checkpoints)
        self._writes = writes and self._local
        self._known = threading.Event()  # whether the last save became whole or failed
        self._thread: threading.Thread | None = None

    def forget(self, step: int) -> None:
        """Before a step is written: a list of an earlier one of the same number is wrong."""
        if self._writes and self._file(step).is_file():
            self._file(step).unlink()

    def follow(self, step: int) -> None:
        """Write the list of a step that is being saved, as soon as it is whole; does not block."""
        self.known()
        if self._writes:
            self._known = threading.Event()
            task = (step, self._known, self._thread)
            self._thread = threading.Thread(
                target=self._follow, args=task, daemon=True, name="digests"
            )
            self._thread.start()

    def known(self) -> None:
        """The step that is followed is whole by now, or never will be."""
        self._known.set()

    def close(self) -> None:
        """Wait for the last list; the lists of steps that are gone go, too."""
        self.known()
        if self._thread:
            self._thread.join()
        if self._writes:
            self._clean()

    def _follow(self, step: int, known: threading.Event, before: threading.Thread | None) -> None:
        folder = self.checkpoints / str(step)  # renamed into place once it is whole
        while not folder.is_dir():
            if known.wait(_POLL) and not folder.is_dir():
                return
        if before:
            before.join()
        try:
            files = {name: _digest(folder / name) for name in _names(folder)}
            self.folder.mkdir(exist_ok=True)
            storage.write(self._file(step), json.dumps({"files": files}, indent=1) + "\n")
        except OSError as error:
            if folder.is_dir():  # else newer ones took its place
                print(f"WARNING: {folder}: no checksums of it ({error})", file=sys.stderr)
        self._clean()

    def _clean(self) -> None:
        with contextlib.suppress(OSError):
            there = {f"{step}.json" for step in finished_steps(self.checkpoints)}
            for file in storage.children(self.folder):
                if file.name not in there:
                    file.unlink(missing_ok=True)

    def _file(self, step: int) -> epath.Path:
        return self.folder / f"{step}.json"

    def verify(self, step: int, items: tuple[str, ...]) -> None:
        """Compare the files of some items of a step with its list, if it has one.

        Raises:
          Damaged: a file is missing or has other bytes.
        """
        file = self._file(step)
        if not self._local or not file.is_file():
            return
        try:
            listed = json.loads(storage.read_text(file))["files"]
            wanted = {n: tuple(d) for n, d in listed.items() if n.partition("/")[0] in items}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            print(f"WARNING: {file}: damaged ({error!r}); not used", file=sys.stderr)
            return
        folder = self.checkpoints / str(step)
        with ThreadPoolExecutor(_READERS) as readers:
            found = readers.map(lambda name: _digest_or_none(folder / name), wanted)
            for (name, digest), now in zip(wanted.items(), found, strict=True):
                if now != digest:
                    what = "is missing" if now is None else "is not as it was written"
                    raise Damaged(f"{name} {what}, says {file}")


def _names(folder: epath.Path) -> list[str]:
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in files)


def _digest(file: epath.Path) -> tuple[int, int]:
    """(bytes, crc32) of a file."""
    size = crc = 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return size, crc


def _digest_or_none(file: epath.Path) -> tuple[int, int] | None:
    try:
        return _digest(file)
    except FileNotFoundError:
        return None
