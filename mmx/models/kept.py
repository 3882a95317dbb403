"""What a run computes once and keeps beside its checkpoints: files of a stage, known by digest."""

import hashlib
import json
from typing import Any

from etils.epath import Path

from mmx.core import storage
from mmx.core.errors import UserError

_RECORD = "kept.json"


def is_kept(folder: Path) -> bool:
    """Is the stage there and whole?"""
    return (folder / _RECORD).is_file()


def keep(folder: Path, files: dict[str, bytes], **told: Any) -> None:
    """Lay files down, and last a record of their digests: a folder with it is whole.

    Args:
      files: name -> content.
      told: what else the record says.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        storage.write(folder / name, data)
    digests = {name: _digest(data) for name, data in files.items()}
    storage.write(folder / _RECORD, json.dumps(told | {"sha256": digests}, indent=2) + "\n")


def read(folder: Path) -> dict[str, bytes]:
    """Name -> content of what :func:`keep` laid down.

    Raises:
      UserError: nothing is kept there, or a file is not the one that was.
    """
    if not is_kept(folder):
        raise UserError(f"{folder}: nothing is kept there yet; start its training")
    wanted = json.loads(storage.read_text(folder / _RECORD))["sha256"]
    files = {}
    for name, digest in wanted.items():
        file = folder / name
        files[name] = storage.read_bytes(file) if file.is_file() else b""
        if _digest(files[name]) != digest:
            raise UserError(
                f"{file}: changed or damaged since it was kept; put back the one of sha256 {digest}"
            )
    return files


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
