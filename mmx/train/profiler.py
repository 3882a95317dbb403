"""``--profile 100:110``: a trace of some steps, for TensorBoard's XProf."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax

from mmx.core import storage
from mmx.core.run_dir import RunDir
from mmx.train.goodput import Goodput

_KINDS = ("xplane.pb", "trace.json.gz")


class Profile:
    """Traces the steps of a range; the trace is closed when the run stops inside it.

    Each process writes what its own devices did, RUN/plugins/profile/steps_A_B/hostN.xplane.pb.

    Args:
      wanted: the steps, or None.
      run: where the trace goes.
      clock: of the run. Starting and writing the trace is ``profile`` there; the steps in it count
        as steps, though they are somewhat slower.
      say: tells the user, on host 0.
    """

    def __init__(self, wanted: range | None, run: RunDir, clock: Goodput, say):
        self.wanted, self.clock, self.say = wanted or range(0), clock, say
        self.folder = run.path / "plugins" / "profile"  # where TensorBoard looks
        self._first, self._last, self._scratch = 0, 0, None

    def steps(self, steps: Iterator[int]) -> Iterator[int]:
        """The same steps, each annotated by its number."""
        for done in steps:
            if self.wanted and not self._last and done > self.wanted[-1]:
                # No error: a supervisor gives the same command again after each preemption.
                self.say(f"--profile: no trace, this run goes on after step {done - 1}")
            if done in self.wanted and not self._scratch:
                self._start(done)
            if done not in self.wanted:
                self.close()
            self._last = done
            with jax.profiler.StepTraceAnnotation("train", step_num=done):
                yield done

    def _start(self, first: int) -> None:
        with self.clock.span("profile"):
            jax.block_until_ready(self.clock.result)  # no end of an earlier step in the trace
            # Written here first: the profiler can write to no object store, and names its folder
            # and file by the clock and the host's name, which processes need not agree on or
            # may share.
            self._first, self._scratch = first, tempfile.TemporaryDirectory()
            jax.profiler.start_trace(self._scratch.name)

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *unused) -> None:
        self.close()

    def close(self) -> None:
        """End the trace, if there is one, write it and say where."""
        if not self._scratch:
            return
        with self.clock.span("profile"), self._scratch as scratch:
            self._scratch = None
            with contextlib.suppress(RuntimeError):  # a step that failed: the loop says so
                jax.block_until_ready(self.clock.result)
            jax.profiler.stop_trace()
            folder = self.folder / f"steps_{self._first}_{self._last}"
            folder.mkdir(parents=True, exist_ok=True)
            # For XProf, and for ui.perfetto.dev, which a jax may leave out.
            made = {kind: [*Path(scratch).rglob(f"*.{kind}")] for kind in _KINDS}
            for kind, files in made.items():
                for file in files[:1]:
                    to = folder / f"host{jax.process_index()}.{kind}"
                    storage.write(to, file.read_bytes())
        if not made["xplane.pb"]:
            self.say(f"--profile: jax wrote no trace of steps {self._first} to {self._last}")
            return
        self.say(
            f"steps {self._first} to {self._last} are traced in {folder}; to look at them: "
            f"pip install xprof; tensorboard --logdir {self.folder.parent.parent}"
        )
