"""SIGTERM and Ctrl-C ask; the loop answers between two steps, saves and stops."""

import contextlib
import signal

EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: start the same command again


class Preempted(Exception):
    """The run was asked to stop, saved, and stopped."""


class Flag:
    """True once a stop was asked for."""

    def __init__(self):
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextlib.contextmanager
def watch():
    """A flag that SIGTERM or the first Ctrl-C sets; a second Ctrl-C interrupts at once."""
    flag = Flag()

    def handle(number, frame):
        del frame
        if number == signal.SIGINT and flag:
            raise KeyboardInterrupt
        flag.signal = number

    previous = {n: signal.signal(n, handle) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
