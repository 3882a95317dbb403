"""Files of a run, wherever it lies: in a local folder, or in a bucket (``gs://BUCKET/FOLDER``).

All paths are :class:`etils.epath.Path`. Two things differ in a bucket, and this file hides both: an
object appears whole when its write ends, so nothing is renamed; and writing fails for a moment now
and then, so it is tried again, a few times, for some minutes at most.
"""

import contextlib
import errno
import importlib.util
import logging
import os
import pathlib
import random
import re
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from mmx.core.errors import Unavailable, UserError

if TYPE_CHECKING:  # at run time in functions: `mmx --help` does without
    from etils import epath

# Else epath reads buckets through tensorflow wherever that happens to be installed.
os.environ["EPATH_USE_TF"] = "false"

T = TypeVar("T")
PROBE = ".mmx-probe-"  # how the names of objects begin that are there for a moment only
_TRIES = 6  # ours: with the waits between them, half a minute; gcsfs takes as long over each
_FIRST_WAIT = 1.0  # ours: seconds; doubles each time
_TIMEOUT = 60.0  # ours: seconds for one request; a request carries 5 MiB at most
# What may be over in a moment: the network, or the mount of a bucket (gcsfuse, NFS).
_TRANSIENT = {
    errno.EIO, errno.EAGAIN, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET,
    errno.ECONNREFUSED, errno.ECONNABORTED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EPIPE,
}  # fmt: skip
_STORE = ("gcsfs", "google", "aiohttp", "requests")  # whose errors are those of a bucket


def path(given: "str | os.PathLike") -> "epath.Path":
    """A local path or ``gs://BUCKET/...``.

    Raises:
      UserError: another kind of address, no bucket, "..", or gcsfs is not installed.
    """
    from etils import epath

    text = os.fspath(given)
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        return epath.Path(text)
    parts = text.removeprefix("gs://").split("/")
    if not text.startswith("gs://") or not parts[0]:
        raise UserError(f"{text}: name a local folder, or a bucket as gs://BUCKET/FOLDER")
    if ".." in parts:
        raise UserError(f'{text}: a bucket knows no ".."; spell the path out')
    _prepare_for_buckets()
    return epath.Path(text)


def normal(given: "str | os.PathLike") -> "epath.Path":
    """:func:`path` without "..": PATH/new/../old names another folder once PATH/new is made."""
    return path(given if is_remote(given) else os.path.normpath(given))


def absolute(given: "str | os.PathLike") -> "epath.Path":
    """:func:`path` from the root (epath's own ``absolute`` takes gs:// for a local folder)."""
    return path(given if is_remote(given) else os.path.abspath(given))


def is_remote(given: "str | os.PathLike") -> bool:
    return os.fspath(given).startswith("gs://")


@cache
def _prepare_for_buckets() -> None:
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError("gs:// needs gcsfs, which is not installed: pip install 'mmx[gcs]'")
    import fsspec.config

    # Other hosts, and the library that writes arrays, write there too: what was listed once must
    # be listed again.
    fsspec.config.conf["gcs"] = {"use_listings_cache": False, "requests_timeout": _TIMEOUT}
    for name in ("gcsfs", "google"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # their errors are raised, too


def _store():
    """The very file system that epath uses."""
    import fsspec

    return fsspec.filesystem("gcs", finalize_on_close=True)


# Reading


def children(folder: "epath.Path") -> "list[epath.Path]":
    """What lies in a folder; [] when there is none. A store that does not answer is an error."""
    try:
        if not is_remote(folder):
            return list(folder.iterdir())
        store, own = _store(), os.fspath(folder).removeprefix("gs://")
        names = [name.rstrip("/") for name in store.ls(own, detail=False)]
        # A folder made in the browser is an empty object of the folder's own name.
        return [folder / name.rpartition("/")[2] for name in names if name != own]
    except (FileNotFoundError, NotADirectoryError):
        return []


def sizes(folder: "epath.Path") -> dict[str, int]:
    """Bytes of each file in a folder, by name; of a bucket, one request for a thousand files."""
    if is_remote(folder):
        found = _store().ls(os.fspath(folder).removeprefix("gs://"), detail=True)
        files = (entry for entry in found if entry["type"] == "file")
        return {entry["name"].rpartition("/")[2]: entry["size"] for entry in files}
    with os.scandir(folder) as entries:
        return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}


def versions(folder: "epath.Path") -> dict[str, tuple]:
    """Each file below a folder -> what changes when it is written anew; {} when there is none."""
    if is_remote(folder):
        found = _store().find(os.fspath(folder).removeprefix("gs://"), detail=True)
        return {name: (entry["size"], entry.get("generation")) for name, entry in found.items()}
    out = {}
    for file in pathlib.Path(folder).rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # it went meanwhile
            if file.is_file():
                stat = file.stat()
                out[str(file)] = (stat.st_size, stat.st_mtime_ns)
    return out


def read_bytes(file: "epath.Path") -> bytes:
    """All of a file. Raises FileNotFoundError."""
    return retry(f"{file}: cannot be read", file.read_bytes)


def read_text(file: "epath.Path") -> str:
    """All of a UTF-8 file. Raises FileNotFoundError."""
    return read_bytes(file).decode()


@contextlib.contextmanager
def fetched(file: "epath.Path") -> "Iterator[epath.Path]":
    """A file as a local one, for a reader that wants a file's name: itself, or a copy."""
    if not is_remote(file):
        yield file
        return
    with tempfile.TemporaryDirectory(prefix="mmx-") as folder:
        local = path(folder) / file.name
        retry(f"{file}: cannot be read", lambda: file.copy(local, overwrite=True))
        yield local


# Writing


def write(file: "epath.Path", data: bytes | str) -> None:
    """Write whole or not at all.

    Raises:
      UserError: the bucket refuses, or does not answer for some minutes.
      OSError: the local disk refuses.
    """
    data = data.encode() if isinstance(data, str) else data
    if is_remote(file):
        with _refusals(file):
            retry(f"{file}: cannot be written", lambda: file.write_bytes(data))
    else:
        with staged(file) as temporary:
            temporary.write_bytes(data)


@contextlib.contextmanager
def staged(file: "epath.Path") -> "Iterator[epath.Path]":
    """A local name to write to; what is there at the end becomes ``file``, whole or not at all.

    Raises:
      UserError, OSError: as :func:`write`.
    """
    if is_remote(file):
        with tempfile.TemporaryDirectory(prefix="mmx-") as folder:
            local = path(folder) / file.name
            yield local
            with _refusals(file):
                retry(f"{file}: cannot be written", lambda: local.copy(file, overwrite=True))
        return
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())  # a name that outlives a power cut must not be an empty file
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def move(folder: "epath.Path", to: "epath.Path") -> None:
    """Rename a folder. In a bucket it is copied, object by object, then deleted."""
    to.parent.mkdir(parents=True, exist_ok=True)
    if not is_remote(folder):
        folder.rename(to)
        return
    # Not epath's: it wants the folder above to exist, which in a bucket only files do.
    _store().mv(os.fspath(folder), os.fspath(to), recursive=True)


def check_bucket(flag: str, folder: "epath.Path") -> None:
    """Find out now, by writing an object and deleting it, whether a bucket takes files.

    Args:
      flag: how the user named it, for the message.

    Raises:
      UserError: no such bucket, no credentials, no permission.
    """
    probe = folder / f"{PROBE}{secrets.token_hex(4)}"
    try:
        probe.write_bytes(b"mmx")
        probe.unlink()
    except FileNotFoundError as error:
        raise UserError(f"{flag}: no bucket gs://{folder.parts[2]}") from error
    except Exception as error:
        if explain(error) is None:
            raise
        raise refusal(error, f"{flag}: cannot write there ({_reason(error)})") from error


# Trying again


def retry(doing: str, action: Callable[[], T], tries: int = _TRIES) -> T:
    """``action()``; after an error that may pass, again, with longer and longer waits.

    Args:
      doing: what failed, for the message: "PATH: cannot be written".
      action: may be begun anew from the start.

    Raises:
      Unavailable: it failed ``tries`` times.
      Exception: the action's own, when trying again cannot help (a full disk, no permission).
    """
    began = time.monotonic()
    for left in reversed(range(tries)):
        try:
            return action()
        except Exception as error:
            if not is_transient(error):
                raise
            if not left:
                raise Unavailable(
                    f"{doing} ({_reason(error)}; tried {tries} times in "
                    f"{time.monotonic() - began:.0f} s)"
                ) from error
        # Many hosts fail together: they must not all come back together.
        time.sleep(_FIRST_WAIT * 2 ** (tries - 1 - left) * random.uniform(0.5, 1.5))
    raise AssertionError("unreachable")


def is_transient(error: BaseException) -> bool:
    """May the same call work in a moment?"""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _TRANSIENT
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if type(error) is ValueError:  # tensorstore's only type
        return str(error).startswith(("UNAVAILABLE", "DEADLINE_EXCEEDED"))
    gcsfs = sys.modules.get("gcsfs.retry")
    return gcsfs is not None and gcsfs.is_retriable(error)


def refusal(error: BaseException, message: str) -> UserError:
    """An error with a message of ours, of the kind that says whether it may pass."""
    passing = isinstance(error, Unavailable) or is_transient(error)
    return (Unavailable if passing else UserError)(message)


def explain(error: BaseException) -> str | None:
    """In one line, if it is a bucket's error that a user can mend; else None."""
    ours = type(error).__module__.partition(".")[0] in _STORE
    if type(error) is ValueError:  # tensorstore's only type
        ours = str(error).startswith(("PERMISSION_DENIED", "UNAUTHENTICATED"))
    if isinstance(error, OSError) and error.errno is None:
        ours |= isinstance(error, TimeoutError) or str(error).startswith("Forbidden")
    return _reason(error) if ours else None


def _reason(error: Any) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = getattr(error, "strerror", None) or ": ".join(lines)[:200]
    if isinstance(error, TimeoutError):
        text = text or "no answer in time"
    return text if isinstance(error, OSError) and text else f"{type(error).__name__}: {text}"


@contextlib.contextmanager
def _refusals(file: "epath.Path") -> Iterator[None]:
    """A bucket's refusal in words of ours."""
    try:
        yield
    except FileNotFoundError as error:
        bucket = file.parts[2]
        raise UserError(f"{file}: cannot be written (no bucket gs://{bucket})") from error
    except Exception as error:
        if explain(error) is None:
            raise
        raise refusal(error, f"{file}: cannot be written ({_reason(error)})") from error
