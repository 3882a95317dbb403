"""Progress of long work: a bar with an ETA on a terminal, plain lines in a log."""

import os
import sys
import time

_BAR = range(5, 21)  # columns that the bar takes: what the words leave, or none
_REDRAW = 0.05  # seconds: no terminal needs it more often


class Progress:
    """Counts to ``total`` on stderr.

    Args:
      total: units of work in all.
      what: a word for it ("train", "rasterise").
      start: units already done (a resumed run).
      every: on a log, a line each ``every`` units.
      enabled: False for all hosts but one: says nothing.
    """

    def __init__(
        self, total: int, what: str, start: int = 0, every: int = 100, enabled: bool = True
    ):
        self.total, self.what, self.start, self.every = total, what, start, every
        self.enabled = enabled
        self.tty = enabled and sys.stderr.isatty()
        self.done, self.note = start, ""
        self.began = time.monotonic()
        self._first: tuple[float, int] | None = None
        self._drawn = 0.0

    def update(self, done: int, note: str = "") -> None:
        """Say that ``done`` units are done; ``note`` stays beside the bar until the next one."""
        if not self.enabled:
            return
        now = time.monotonic()
        self.done, self.note = done, note or self.note
        line = self._line(now, _columns() - 1 if self.tty else 0)
        # The first unit compiles, opens, warms up: it says nothing about the speed of the others.
        self._first = self._first or (now, done)
        if not self.tty:
            if done % self.every == 0 or done == self.total:
                print(line, file=sys.stderr, flush=True)
        elif note or done == self.total or now - self._drawn > _REDRAW:
            self._drawn = now
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Lines of their own, above the bar."""
        if self.enabled:
            print(f"\r\033[K{text}" if self.tty else text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the bar as it is and go to the next line."""
        if self.tty and self._first:
            print(file=sys.stderr)

    def _line(self, now: float, columns: int) -> str:
        """With a bar, cut to ``columns``; without one and whole when that is 0."""
        since, base = self._first or (self.began, self.start)
        fresh = self.done - base
        left = _clock((now - since) / fresh * (self.total - self.done)) if fresh > 0 else "?"
        words = f"{self.done}/{self.total} eta {left}"
        words += f"  {self.note}" if self.note else ""
        line = f"{self.what} {words}"
        if not columns:
            return line
        size = min(columns - len(line) - len("[] "), _BAR[-1])
        if size in _BAR:
            full = size * self.done // max(self.total, 1)
            line = f"{self.what} [{'#' * full}{'.' * (size - full)}] {words}"
        return line[:columns]


def _columns() -> int:
    """Of the terminal that stderr is; asked each time, as windows change."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
