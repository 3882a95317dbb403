"""Files of a Debian package, which apt downloads and which is read as an archive: nothing is
installed, and none of its scripts is run."""

import io
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mmx.core.errors import UserError


def read(package: str, file: str | Path | None, members: Sequence[str]) -> list[bytes]:
    """What some files of a package hold.

    Args:
      package: its name, for apt and for messages.
      file: as ``apt-get download`` writes it; None downloads it.
      members: "./usr/share/...", in the order wanted.

    Raises:
      UserError: no such file, no download, or an archive without those files.
    """
    if file is not None and not Path(file).is_file():
        raise UserError(f"--package={file}: no such file")
    return unpack(package, download(package) if file is None else Path(file).read_bytes(), members)


def unpack(package: str, data: bytes, members: Sequence[str]) -> list[bytes]:
    """:func:`read` of the bytes of a package. Raises UserError."""
    try:
        with tarfile.open(fileobj=io.BytesIO(_member(data, "data.tar"))) as archive:
            return [archive.extractfile(name).read() for name in members]
    except (tarfile.TarError, KeyError, ValueError) as error:
        raise UserError(f"{package}: cannot be read as that package ({error})") from error


def _member(data: bytes, name: str) -> bytes:
    """Of a Debian package, an ar archive, the member whose name begins so."""
    at = len(b"!<arch>\n")
    while at < len(data):
        header = data[at : at + 60].decode("latin-1")
        size, at = int(header[48:58]), at + 60
        if header.startswith(name):
            return data[at : at + size]
        at += size + size % 2
    raise ValueError(f"no {name}")


def download(package: str) -> bytes:
    """A package, by apt.

    Raises:
      UserError: apt is not there, or cannot download it.
    """
    elsewhere = "take the file from another machine: --package FILE.deb"
    with tempfile.TemporaryDirectory(prefix="mmx-") as folder:
        command = ["apt-get", "download", package]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        except FileNotFoundError:
            raise UserError(f"{package}: apt-get is not installed; {elsewhere}") from None
        found = sorted(Path(folder).glob("*.deb"))
        if done.returncode or not found:
            reason = (done.stderr.strip() or "no file came").splitlines()[-1]
            raise UserError(
                f"{package}: not downloaded ({reason}); run `apt-get update`, or {elsewhere}"
            )
        return found[0].read_bytes()
