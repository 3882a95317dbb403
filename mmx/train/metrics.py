"""TensorBoard events without tensorflow; host 0 alone writes."""

import contextlib
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from etils.epath import PathLike

from mmx.core import storage
from mmx.core.errors import UserError
from mmx.data.packing import PackedStream
from mmx.train.goodput import Goodput

# Peak bf16 FLOP/s of one device by jax's device_kind; vendors' data sheets, dense.
PEAK_FLOPS = {
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}


def peak_flops() -> float:
    """FLOP/s of all devices together; 0 where it is not known."""
    import jax

    return PEAK_FLOPS.get(jax.devices()[0].device_kind, 0.0) * jax.device_count()


# What a line of the log shows, by the last word of its name; TensorBoard has everything.
_SHOWN = (
    *("total", "loss", "accuracy", "psnr", "text_to_image_r1", "steps_per_sec"),
    *("text_loss", "diffusion_loss"),
)
_SHORT = {"loss/total": "loss", "speed/steps_per_sec": "steps/s"}


def brief(values: dict) -> str:
    """A line for the log."""
    shown = [n for n in sorted(values) if n.rpartition("/")[2] in _SHOWN]
    return "  ".join(f"{_SHORT.get(name, name)} {float(values[name]):.4g}" for name in shown)


class Writer:
    """Scalars, images and text of a run, on disk when a call returns.

    No thread and no queue between the loop and the file: what was written before a checkpoint is
    there after a kill -9, and a full disk is an error here instead of a hang. A run in a bucket is
    half a minute behind, see :mod:`mmx.train.bucket_events`; :meth:`sync` with each checkpoint.

    Args:
      directory: of the events: the run itself.
      start_step: events of later steps, left by a process that died, are marked as purged; None
        purges nothing (evaluating a run must not hide its later steps).
      enabled: False on every host but the first: then nothing is written.
    """

    def __init__(self, directory: PathLike, start_step: int | None = None, enabled: bool = True):
        self._events = None
        if enabled:
            from tensorboardX.event_file_writer import EventsWriter

            # Names sort by time; two starts in one second must not share a file.
            suffix = f".{time.time_ns()}"
            with _disk_errors(directory):
                if storage.is_remote(directory):
                    from mmx.train.bucket_events import BucketEvents

                    self._events = BucketEvents(storage.path(directory), suffix)
                else:
                    self._events = EventsWriter(str(directory / "events"), suffix)
            if start_step is not None:
                from tensorboardX.proto.event_pb2 import SessionLog

                log = SessionLog(status=SessionLog.START)
                self._write(start_step + 1 if start_step else 0, [{"session_log": log}])

    def _write(self, step: int, events: list[dict]) -> None:
        from tensorboardX.proto.event_pb2 import Event

        with _disk_errors(self._events._file_name):
            for event in events:
                self._events.write_event(Event(wall_time=time.time(), step=step, **event))
            self._events.flush()

    def scalars(self, step: int, values: dict[str, Any]) -> None:
        if self._events:
            from tensorboardX import summary

            items = [(name, float(value)) for name, value in values.items()]
            self._write(step, [{"summary": summary.scalar(*item)} for item in items])

    def image(self, step: int, name: str, image_u8: np.ndarray) -> None:
        """uint8 [H, W, 3]."""
        if self._events:
            from tensorboardX import summary

            self._write(step, [{"summary": summary.image(name, image_u8, dataformats="HWC")}])

    def text(self, step: int, name: str, markdown: str) -> None:
        if self._events:
            from tensorboardX import summary

            self._write(step, [{"summary": summary.text(name, markdown)}])

    def layout(self, step: int, categories: dict[str, dict]) -> None:
        """Charts of the CUSTOM SCALARS tab: {category: {chart: ("Margin" | "Multiline", tags)}}."""
        if self._events:
            from tensorboardX import summary

            self._write(step, [{"summary": summary.custom_scalars(categories)}])

    def hparams(self, step: int, name: str, values: dict[str, Any], scores: Iterable[str]) -> None:
        """The run in TensorBoard's HPARAMS tab: its config, and which scalars are its scores.

        Args:
          name: of the run there, and of no other: TensorBoard averages what has the same. Its
            group, too: runs that differ in their seed alone stay apart.
          values: what a table can hold as it is, else its text.
          scores: tags of scalars.
        """
        if not self._events:
            return
        from tensorboardX import summary
        from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

        plain = {k: v if isinstance(v, int | float | str | bool) else str(v)
                 for k, v in values.items()}  # fmt: skip
        parts = summary.hparams(plain, dict.fromkeys(scores))
        held = parts[1].value[0].metadata.plugin_data
        start = HParamsPluginData.FromString(held.content)
        start.session_start_info.group_name = name
        held.content = start.SerializeToString()
        self._write(step, [{"summary": part} for part in parts])

    def sync(self) -> None:
        """Have in the bucket what is not there yet; a disk has it all."""
        if self._events and hasattr(self._events, "sync"):
            with _disk_errors(self._events._file_name):
                self._events.sync()

    def close(self) -> None:
        if self._events:
            with _disk_errors(self._events._file_name):
                self._events.close()


@contextlib.contextmanager
def _disk_errors(file):
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{file}: cannot write ({error.strerror or error}); free some disk space, then run "
            "the same command again to go on from the last checkpoint"
        ) from error
    except UserError as error:  # of a bucket
        raise UserError(
            f"{error}; run the same command again to go on from the last checkpoint"
        ) from error


def row_flops(task, stream) -> Callable[[], float]:
    """Model FLOPs of a row: of one that holds several documents with as many images as it has."""
    if isinstance(stream, PackedStream):
        return lambda: task.train_flops_per_row(images=stream.plan.images)
    return task.train_flops_per_row


class Meter:
    """Speed, share of time lost waiting for data, and MFU, over the steps since the last reading.

    What else a run spends time on (compiling, evaluating, saving) is no part of its speed.

    Args:
      clock: of the run.
      step: steps done so far.
      batch_size: rows a step.
      flops_per_row: ``() -> model FLOPs`` of one row's forward and backward pass.
      peak: FLOP/s of all devices together; 0 where it is not known: then no MFU.
    """

    def __init__(self, clock: Goodput, step: int, batch_size: int, flops_per_row, peak: float):
        self.clock, self.batch_size, self.peak = clock, batch_size, peak
        self.flops_per_row = flops_per_row() if peak else 0.0
        self.step, self.busy, self.waited = step, *self._training()

    def _training(self) -> tuple[float, float]:
        """Seconds of steps, and seconds lost to waiting for data, so far."""
        seconds = self.clock.seconds()
        return seconds.get("step", 0.0) + seconds.get("redo", 0.0), seconds.get("data", 0.0)

    def read(self, step: int) -> dict[str, float]:
        """The speeds since the last reading."""
        busy, waited = self._training()
        lost = waited - self.waited
        elapsed = max(busy - self.busy + lost, 1e-9)
        rate = (step - self.step) / elapsed
        self.step, self.busy, self.waited = step, busy, waited
        values = {
            "speed/steps_per_sec": rate,
            "speed/examples_per_sec": rate * self.batch_size,
            "speed/data_wait_share": lost / elapsed,
        }
        if self.peak:
            values["speed/mfu"] = rate * self.batch_size * self.flops_per_row / self.peak
        return values
