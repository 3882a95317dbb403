"""SIGTERM and Ctrl-C ask; whoever computes for long looks between two pieces of work, and stops.

A signal is of the whole process, and so is the watch for it: a loop over batches need not be handed
one to look. On several processes the looks are counted: a signal to any of them is carried to all
by jax, and answered by all at the same look. So all have to look at the same places.
"""

import contextlib
import itertools
import os
import signal

EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: start the same command again


class Preempted(Exception):
    """The command was asked to stop, kept what it had, and stopped."""


class Interrupted(Exception):
    """A stop was asked for: the work at hand is not finished. See :func:`check`."""


class Watch:
    """Whether a stop was asked for.

    Args:
      many: this process is one of several, which ``jax.distributed`` joined; its preemption service
        then has SIGTERM.
    """

    _looks = itertools.count()  # of the process: jax's service wants numbers that only grow

    def __init__(self, many: bool):
        self._many, self._asked, self._waiting = many, False, False

    def asked(self) -> bool:
        """Look. Costs microseconds; says yes for good once it has said yes."""
        if self._many and not self._asked:
            from jax.experimental import multihost_utils

            self._asked = multihost_utils.reached_preemption_sync_point(next(self._looks))
        return self._asked

    @contextlib.contextmanager
    def waiting(self):
        """What happens here is only waiting: a signal raises :class:`Interrupted` at once.

        Not on several processes: the others may be a step further, and could not stop here.
        """
        self._waiting = not self._many
        try:
            if self._waiting and self._asked:
                raise Interrupted
            yield
        finally:
            self._waiting = False

    def handle(self, number: int, frame) -> None:
        """A signal came."""
        del frame
        if self._many:  # Ctrl-C; the second interrupts at once
            signal.signal(number, signal.default_int_handler)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        if number == signal.SIGINT and self._asked:
            raise KeyboardInterrupt
        self._asked = True
        if self._waiting:
            raise Interrupted


_watch: Watch | None = None


@contextlib.contextmanager
def watch(signals=(signal.SIGTERM, signal.SIGINT), many: bool = False):
    """While this is open the signals ask; a second Ctrl-C interrupts at once.

    One inside another takes over that a stop was asked for.

    Args:
      signals: that ask.
      many: see :class:`Watch`.
    """
    global _watch
    if many:
        signals = [number for number in signals if number != signal.SIGTERM]
    outer, _watch = _watch, Watch(many)
    if outer and not many:
        _watch._asked = outer._asked
    previous = {n: signal.signal(n, _watch.handle) for n in signals}
    try:
        yield _watch
    finally:
        _watch = outer
        for number, handler in previous.items():
            signal.signal(number, handler)


def check() -> None:
    """Between two batches of long work: raises :class:`Interrupted` once a stop was asked for."""
    if _watch and _watch.asked():
        raise Interrupted
