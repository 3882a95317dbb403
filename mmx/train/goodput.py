"""Goodput: the share of a run's time that went into steps which count, and where the rest went.

RUN/goodput/START.jsonl: a file a start (several of a long one), a JSON object a line. What
happened, in order (``at``: seconds since the command began), and as the last line, replaced from
time to time and at the end, the sums since the command began:
``{"event": "now" | "end", "at", "step", "seconds": {category: seconds}}``.

A record that cannot be written (a full disk, a bucket that refuses) is warned of, and none is
written from then on: the run goes on, and says its summary all the same.

Every second belongs to one category, so they add up to the time of the process:

init     from the command to the first step, less what is named below
restore  reading a checkpoint
compile  the first call of the step function: tracing, compiling or reading the compiled program
data     the device had nothing to do because the next batch was not there; of several hosts, of
         host 0: waiting for another host's batch is part of its steps
step     training steps: the device's work, and all else between two steps
redo     the same, for steps that an earlier start had done and not saved (a crash, ``kill -9``)
eval, preview
save     what a checkpoint keeps the loop waiting for; writing goes on beside the steps
profile  starting and writing a trace; the steps in it are steps
other    after the last step
"""

import contextlib
import datetime
import json
import queue
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from mmx.core import storage
from mmx.core.run_dir import RunDir

_EVERY = 30.0  # ours: seconds between two records of the sums while nothing else happens
_PATIENCE = 60.0  # ours: seconds that the end waits for the last record; the run is saved by then
_LINES = 500  # ours: of a file, which is written whole each time; then another begins


class Goodput:
    """The one clock of a training process.

    Args:
      began: of ``time.monotonic()``, when the command began; now, when it is None.

    Attributes:
      step: the last step that was sent to the devices.
      result: what it will give, an array; None before the first.
    """

    def __init__(self, began: float | None = None):
        self._began = self._last = time.monotonic() if began is None else began
        self._seconds: dict[str, float] = {}
        self._current, self.step, self.result = "init", 0, None
        self._file, self._parts, self._written = None, 1, 0.0
        self._lines: list[str] = []  # of this file
        self._texts: dict[Any, str] = {}  # of each file that is to be written
        self._wake, self._over = threading.Event(), False
        self._recorder = threading.Thread(target=self._record, daemon=True, name="goodput records")
        self._before: list[dict[str, float]] = []  # the sums of earlier starts
        self._redo_until = 0
        self._sent, self._finished = 0, (0, 0.0)  # steps sent; (number, when) of the last one done
        self._results: queue.SimpleQueue = queue.SimpleQueue()
        self._watcher: threading.Thread | None = None

    def seconds(self) -> dict[str, float]:
        """Of each category so far."""
        self._charge()
        return dict(self._seconds)

    def _charge(self, until: float | None = None) -> float:
        """Give the time since the last call to the current category."""
        now = time.monotonic() if until is None else until
        self._seconds[self._current] = self._seconds.get(self._current, 0.0) + now - self._last
        self._last = now
        return now

    @contextlib.contextmanager
    def span(self, category: str) -> Iterator[None]:
        """Time spent here is of ``category``; also a decorator. Spans do not overlap: of one inside
        another, the time is the inner one's."""
        began, outer, self._current = self._charge(), self._current, category
        try:
            yield
        finally:
            seconds, self._current = round(self._charge() - began, 4), outer
            self.note(category, seconds=seconds)

    def note(self, event: str, **values: Any) -> None:
        """Record that something has happened."""
        at = round(time.monotonic() - self._began, 4)
        if self._file and len(self._lines) >= _LINES:
            self._parts, self._lines = self._parts + 1, []
            start = self._file.name.partition("Z")[0]
            self._file = self._file.with_name(f"{start}Z.part{self._parts:04d}.jsonl")
        self._lines.append(json.dumps({"event": event, "at": at, "step": self.step, **values}))
        self._write("now")

    def open(self, run: RunDir, step: int) -> None:
        """From here on all is recorded in the run, which starts after ``step``; on host 0 alone."""
        run.goodput.mkdir(exist_ok=True)
        files = [file for file in storage.children(run.goodput) if file.suffix == ".jsonl"]
        # Of a start with several files, the last has the sums of all of it.
        lines = {file.name.partition("Z")[0]: x for file in sorted(files) if (x := _sums(file))}
        earlier = list(lines.values())
        self._before = [line["seconds"] for line in earlier]
        self._redo_until = max((line["step"] for line in earlier), default=0)
        now = datetime.datetime.now(datetime.UTC)
        self._file, self.step = run.goodput / now.strftime("%Y%m%dT%H%M%S.%fZ.jsonl"), step
        self._recorder.start()
        self.note("start", time=now.timestamp(), redo_until=max(self._redo_until, step))

    def steps(self, start: int, stop: int) -> Iterator[int]:
        """The steps to do, ``start + 1`` to ``stop``."""
        self.step = start
        try:
            for done in range(start + 1, stop + 1):
                self._charge()
                self._current = "redo" if done <= self._redo_until else "step"
                yield done
                if time.monotonic() - self._written > _EVERY:
                    self._write("now")
        finally:
            self._charge()
            self._current = "other"

    def next_batch(self, loader: Iterator) -> Any:
        """``next(loader)``; waiting for it costs only while the device has nothing to do."""
        began = self._charge()
        batch = next(loader)
        now = time.monotonic()
        number, finished = self._finished
        idle = now - max(began, finished) if number == self._sent else 0.0
        self._charge(now - idle)
        self._seconds["data"] = self._seconds.get("data", 0.0) + idle
        self._last = now
        return batch

    def call(self, step_fn, *args) -> tuple[Any, Any]:
        """``(state, result) = step_fn(*args)``; the first call compiles."""
        with contextlib.nullcontext() if self._sent else self.span("compile"):
            state, self.result = step_fn(*args)
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._watch, daemon=True, name="goodput")
            self._watcher.start()
        self.step += 1
        self._sent += 1
        self._results.put((self._sent, self.result))
        return state, self.result

    def _watch(self) -> None:
        """Note when each step is done: the loop itself learns it late, or while it waits."""
        import jax

        while (item := self._results.get()) is not None:
            number, result = item
            with contextlib.suppress(RuntimeError):  # the loop meets it too, and says so
                jax.block_until_ready(result)
            self._finished = (number, time.monotonic())

    def scalars(self) -> dict[str, float]:
        """For TensorBoard, of all starts of the run together: shares of 1, and seconds."""
        sums = _add([*self._before, self.seconds()])
        whole = max(sum(sums.values()), 1e-9)
        shares = {f"goodput/{name}": value / whole for name, value in sums.items()}
        return shares | {f"goodput_seconds/{name}": value for name, value in sums.items()}

    def summary(self) -> str:
        """One line: ``goodput 93.1 % of 12:03: step 11:13, eval 0:29, compile 21.2 s``."""
        text = _share(self.seconds())
        rest = sorted(self._seconds.items(), key=lambda item: -item[1])
        text += ": " + ", ".join(f"{name} {_duration(value)}" for name, value in rest)
        if self._before:
            starts = len(self._before) + 1
            text += f"; of all {starts} starts {_share(_add([*self._before, self._seconds]))}"
        return f"goodput {text}"

    def _write(self, event: str, **values: Any) -> None:
        if self._file:
            seconds = {name: round(value, 4) for name, value in self.seconds().items()}
            at = round(self._last - self._began, 4)
            sums = {"event": event, "at": at, "step": self.step, "seconds": seconds, **values}
            # Whole, not appended: an object store cannot append, and a kill leaves no half a line.
            self._texts[self._file] = "\n".join([*self._lines, json.dumps(sums)]) + "\n"
            self._wake.set()
            self._written = time.monotonic()

    def _record(self) -> None:
        """Write beside the loop: a disk, or a bucket, takes its time."""
        over, works = False, True
        while not over:
            self._wake.wait()
            self._wake.clear()
            over = self._over
            while self._texts:
                file, text = self._texts.popitem()
                try:
                    if works:
                        storage.write(file, text)
                except Exception as error:  # no record is worth the training
                    works = False
                    print(f"WARNING: {file}: no more records of goodput: {error}", file=sys.stderr)

    def __enter__(self) -> "Goodput":
        return self

    def __exit__(self, kind, error, trace) -> None:
        """Record the sums, and say them where they were recorded."""
        if self._watcher:
            self._results.put(None)
            self._watcher.join(timeout=1.0)  # no longer: a step may never end
        self._write("end", why="done" if kind is None else kind.__name__)
        if self._file:
            self._over = True
            self._wake.set()
            self._recorder.join(timeout=_PATIENCE)
            print(self.summary(), file=sys.stderr, flush=True)


def _sums(file) -> dict | None:
    """The last line of an earlier start."""
    try:
        line = json.loads(storage.read_text(file).splitlines()[-1])
        return {"step": int(line["step"]), "seconds": dict(line["seconds"])}
    except (ValueError, KeyError, TypeError, IndexError) as error:
        print(f"WARNING: {file}: damaged ({error!r}); left out of the goodput", file=sys.stderr)
        return None


def _add(many: list[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for one in many for name in one)
    return {name: sum(one.get(name, 0.0) for one in many) for name in names}


def _share(seconds: dict[str, float]) -> str:
    whole = sum(seconds.values())
    return f"{100 * seconds.get('step', 0.0) / max(whole, 1e-9):.1f} % of {_duration(whole)}"


def _duration(seconds: float) -> str:
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def ending(run: RunDir) -> str:
    """Why the newest start of training ended: "done", or what ended it ("NonFinite", "Preempted").

    "" while it goes on, where it was killed, and where it left no record.
    """
    files = sorted(p for p in storage.children(run.goodput) if p.suffix == ".jsonl")
    try:
        last = json.loads(storage.read_text(files[-1]).splitlines()[-1])
    except (IndexError, ValueError, FileNotFoundError):
        return ""
    return str(last.get("why", "")) if last.get("event") == "end" else ""
