"""Two processes of four devices each on this machine, that end with their test."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from conftest import HERE

REPO = HERE.parent.parent
TOY = [sys.executable, str(HERE / "toy.py"), "train", "--config", f"{HERE / 'toy_config.py'}:slow"]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def environment(**more) -> dict[str, str]:
    # 8 seconds without a sign of life: else a test takes a minute.
    return {**os.environ, "PYTHONPATH": str(REPO), "PYTHONUNBUFFERED": "1",
            "TOY_LOST_SECONDS": "8", **more}  # fmt: skip


class Pair:
    """Both processes of a run; what they say is in ``told(index)``."""

    def __init__(self, command, workdir: Path, **more):
        port, self.logs, self.processes = free_port(), [], []
        self.began = time.monotonic()
        for index in range(2):
            env = environment(
                JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}",
                JAX_NUM_PROCESSES="2",
                JAX_PROCESS_ID=str(index),
                JAX_NUM_CPU_DEVICES="4",
                **more,
            )
            self.logs.append(workdir.with_name(f"{workdir.name}-{port}.{index}.log"))
            with open(self.logs[-1], "w") as log:
                command = [*command, "--workdir", str(workdir)]
                self.processes.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))

    def told(self, index: int) -> str:
        return self.logs[index].read_text()

    def wait(self, timeout: float = 120) -> list[int]:
        """Both exit codes."""
        end = time.monotonic() + timeout
        return [p.wait(max(end - time.monotonic(), 0.1)) for p in self.processes]

    def until(self, happened, timeout: float = 90) -> None:
        end = time.monotonic() + timeout
        while not happened():
            alive = all(p.poll() is None for p in self.processes)
            assert alive and time.monotonic() < end, self.told(0) + self.told(1)
            time.sleep(0.02)


@contextlib.contextmanager
def pair(command, workdir: Path, **more):
    """A :class:`Pair` that does not outlive this."""
    both = Pair(command, workdir, **more)
    try:
        yield both
    finally:
        for process in both.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()
