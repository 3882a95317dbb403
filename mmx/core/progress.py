"""Progress of long work: a bar with an ETA on a terminal, plain lines in a log."""

import sys
import time


class Progress:
    """Counts to ``total``.

    Args:
      total: units of work in all.
      what: a word for it ("train", "rasterise").
      start: units already done (a resumed run).
      every: on a log, a line each ``every`` units.
    """

    def __init__(self, total: int, what: str, start: int = 0, every: int = 100):
        self.total, self.what, self.start, self.every = total, what, start, every
        self.began = time.monotonic()
        self.tty = sys.stderr.isatty()
        self.done = start

    def update(self, done: int, note: str = "") -> None:
        """Say that ``done`` units are done; ``note`` is shown beside the count."""
        self.done = done
        if self.tty:
            print(f"\r\033[K{self._line(note)}", end="", file=sys.stderr, flush=True)
        elif done % self.every == 0 or done == self.total:
            print(self._line(note), file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A line of its own, above the bar."""
        print(f"\r\033[K{text}" if self.tty else text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.tty:
            print(file=sys.stderr)

    def _line(self, note: str) -> str:
        elapsed = time.monotonic() - self.began
        fresh = self.done - self.start
        eta = "?" if fresh <= 0 else _clock(elapsed / fresh * (self.total - self.done))
        text = f"{self.what} {self.done}/{self.total} eta {eta}"
        return f"{text}  {note}" if note else text


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
