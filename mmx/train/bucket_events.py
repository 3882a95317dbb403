"""TensorBoard events of a run in a bucket, where a file can be replaced but not appended to.

A file grows in a local temporary folder and is copied over whole: at most every half minute, at
each checkpoint and at the end. At 4 MiB the next file begins, so that a copy is a matter of a
tenth of a second however long the run is; TensorBoard reads a run's files one after the other.
"""

import os
import tempfile
import time

from etils.epath import Path
from tensorboardX.event_file_writer import EventsWriter

from mmx.core import storage

_EVERY = 30.0  # ours: seconds; what a kill -9 between two checkpoints may cost
_MAX_BYTES = 4 * 2**20  # ours


class BucketEvents:
    """As tensorboardX's ``EventsWriter``: ``write_event``, ``flush``, ``close``; and ``sync``."""

    def __init__(self, directory: Path, suffix: str):
        self._directory, self._suffix, self._count = directory, suffix, 0
        self._folder = tempfile.TemporaryDirectory(prefix="mmx-events-")
        self._begin()

    def _begin(self) -> None:
        suffix = f"{self._suffix}.{self._count:04d}"  # names sort by time
        self._local = EventsWriter(os.path.join(self._folder.name, "events"), suffix)
        self._file_name = str(self._directory / os.path.basename(self._local._file_name))
        self._count += 1
        self._is_new, self._copied = True, -float("inf")

    def write_event(self, event) -> None:
        self._local.write_event(event)
        self._is_new = True

    def flush(self) -> None:
        """Copy the file if the last copy is half a minute old."""
        if time.monotonic() - self._copied >= _EVERY:
            self.sync()

    def sync(self) -> None:
        """Have all events in the bucket when this returns. Raises UserError."""
        if not self._is_new:
            return
        self._local.flush()
        with open(self._local._file_name, "rb") as file:
            data = file.read()
        storage.write(storage.path(self._file_name), data)
        self._is_new, self._copied = False, time.monotonic()
        if len(data) >= _MAX_BYTES:
            self._local.close()
            os.unlink(self._local._file_name)
            self._begin()
            self._is_new = False  # nothing but a header

    def close(self) -> None:
        self.sync()
        self._local.close()
        self._folder.cleanup()
