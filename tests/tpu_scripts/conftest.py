"""A cloud of files on this machine; the scripts under test run against it as they are."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
REPO = HERE.parent.parent
PLACE = {"MMX_TPU_PROJECT": "my-project", "MMX_TPU_ZONE": "us-central2-b"}

# What a worker's `mmx` does: note its words, then whatever the test left in ~/behaviour.
FAKE_MMX = f"""#!/usr/bin/env bash
'{sys.executable}' -IS -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "$@" >>~/mmx-calls
printenv >~/mmx-environment
source ~/behaviour
"""
INSTALL = f"""#!/bin/sh
# Stands for constraints/install.sh: FOLDER EXTRAS DEVICE.
echo "$PYTHON $*" >>~/install-calls
[ ! -e ~/install-fails ] || {{ echo "the registry is down"; exit 1; }}
mkdir -p "$1/bin"
printf '#!/bin/sh\\nexec "{sys.executable}" "$@"\\n' >"$1/bin/python"
cp ../../fake-mmx "$1/bin/mmx"
chmod +x "$1/bin/"*
"""


class Cloud:
    """Its folder, and the scripts."""

    def __init__(self, folder: Path, scripts: Path):
        self.path = folder / "cloud"
        self.state = folder / "state"
        self.home = folder / "home"
        self.bin = folder / "bin"
        self.scripts = scripts
        for path in (self.path, self.home, self.bin):
            path.mkdir()
        self.tool(
            "gcloud", f'#!/bin/sh\nexec "{sys.executable}" -IS "{HERE}/fake_gcloud.py" "$@"\n'
        )
        self.tool("sleep", f'#!/bin/sh\necho "$1" >>"{self.path}/sleeps"\n')
        self.env = {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "WORKER_PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "FAKE_CLOUD": str(self.path),
            "MMX_TPU_STATE": str(self.state),
            "MMX_TPU_NAME": "my-tpu",
            **PLACE,
        }

    def tool(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def set(self, **files) -> None:
        """Write ``NAME.json`` of the fake: plan=[...], answers={...} (asked from the first on)."""
        if "answers" in files:
            for counter in self.path.glob("*.*.json"):
                counter.unlink()
        for name, value in files.items():
            (self.path / f"{name}.json").write_text(json.dumps(value))

    def run(self, script: str, *args: str, code: int = 0, stdin: str = "", **env: str):
        """Run ``SCRIPT.sh ARGS`` -> the finished process; it must end with the code."""
        done = subprocess.run(
            ["bash", self.scripts / f"{script}.sh", *args],
            env=self.env | env,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=60,
            input=stdin,
        )
        assert done.returncode == code, (script, args, done.returncode, done.stdout, done.stderr)
        return done

    def calls(self, *start: str) -> list[list[str]]:
        """The gcloud calls so far that begin like this, after ``compute tpus``."""
        log = self.path / "calls"
        calls = map(json.loads, log.read_text().splitlines()) if log.exists() else []
        calls = [c[2:] if c[:2] == ["compute", "tpus"] else c for c in calls]
        return [c for c in calls if c[: len(start)] == list(start)]

    def create(self, *args: str, plan=("ACTIVE",), code: int = 0):
        self.set(plan=[list(plan)])
        spec = ("--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite")
        return self.run("create", *spec, *args, code=code)

    def record(self, name="my-tpu") -> Path:
        return self.state / "my-project" / "us-central2-b" / name

    def worker(self, node: str, i: int) -> Path:
        """The home folder of a worker."""
        return self.path / "workers" / node / str(i)


@pytest.fixture(scope="session")
def source(tmp_path_factory) -> Path:
    """A repository of two commits with our scripts and a stand-in for the installation."""
    folder = tmp_path_factory.mktemp("source")
    shutil.copytree(REPO / "tpu_scripts", folder / "tpu_scripts")
    (folder / "constraints").mkdir()
    (folder / "constraints/install.sh").write_text(INSTALL)
    (folder / "constraints/install.sh").chmod(0o755)
    git = ["git", "-C", folder, "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "one"],
                    ["commit", "-qm", "two", "--allow-empty"]):  # fmt: skip
        subprocess.run([*git, *command], check=True, capture_output=True)
    return folder


@pytest.fixture
def cloud(tmp_path, source) -> Cloud:
    """Nothing in it yet."""
    return Cloud(tmp_path, source / "tpu_scripts")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory, source) -> Path:
    """The folders of two workers, synced and set up."""
    folder = tmp_path_factory.mktemp("pod")
    cloud = Cloud(folder, source / "tpu_scripts")
    cloud.create()
    for i in (0, 1):
        home = cloud.worker("my-tpu", i)
        (home / "fake-mmx").write_text(FAKE_MMX)
        (home / "behaviour").write_text("exit 0\n")
    cloud.run("sync")
    cloud.run("setup")
    return folder


@pytest.fixture
def pod(tmp_path, source, prepared) -> Iterator[Cloud]:
    """Two workers, synced and set up: what is sent to them really runs, and ends with the test."""
    cloud = Cloud(tmp_path, source / "tpu_scripts")
    for name in ("cloud", "state"):
        shutil.copytree(prepared / name, tmp_path / name, dirs_exist_ok=True)
    yield cloud
    for i in (0, 1):
        folder = cloud.worker("my-tpu", i) / "mmx-tpu"
        with open(folder / "lock", "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # a test that failed left it running
                os.killpg(int((folder / "current/session").read_text()), signal.SIGKILL)
