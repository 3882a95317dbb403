"""Files of a Debian package, and what is said when they do not come."""

import subprocess

import debian_package
import pytest

from mmx.core.errors import UserError
from mmx.data import debian


def test_files_come_in_the_order_wanted():
    data = debian_package.make({"./a": b"first", "./b": b"second!"})
    assert debian.unpack("some", data, ["./b", "./a"]) == [b"second!", b"first"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no archive" * 20,
        debian_package.make({"./a": b""}, b"control.tar.xz/"),
        debian_package.make({"./b": b""}),
    ],
)
def test_another_archive(data):
    with pytest.raises(UserError, match="some: cannot be read as that package"):
        debian.unpack("some", data, ["./a"])


def test_no_package(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"--package=.*none\.deb: no such file"):
        debian.read("some", str(tmp_path / "none.deb"), [])
    failed = subprocess.CompletedProcess([], 100, "", "E: Unable to locate package some\n")
    monkeypatch.setattr(debian.subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(UserError, match=r"not downloaded \(E: Unable to locate.*apt-get update"):
        debian.download("some")
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="apt-get is not installed"):
        debian.download("some")
