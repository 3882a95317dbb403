"""A Debian package by import (``import debian_package``), as dpkg-deb writes it."""

import io
import tarfile


def make(files, member=b"data.tar.xz/"):
    """An ar archive with a compressed tar.

    Args:
      files: path -> bytes.
      member: what the ar archive calls the tar.
    """
    tarred = io.BytesIO()
    with tarfile.open(fileobj=tarred, mode="w:xz") as archive:
        for path, data in files.items():
            info = tarfile.TarInfo(path)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))

    def entry(name, data):
        head = name.ljust(16) + b"0           0     0     100644  " + str(len(data)).encode()
        return head.ljust(58) + b"`\n" + data + b"\n" * (len(data) % 2)

    return b"!<arch>\n" + entry(b"debian-binary", b"2.0") + entry(member, tarred.getvalue())
