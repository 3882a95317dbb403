"""TensorBoard events without tensorflow; host 0 alone writes."""

import contextlib
import time
from pathlib import Path
from typing import Any

import numpy as np

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


class Writer:
    """Scalars, images and text of a run.

    Args:
      directory: of the events: the run itself.
      start_step: events of later steps, left by a process that died, are marked as purged.
      enabled: False on every host but the first: then nothing is written.
    """

    def __init__(self, directory: Path, start_step: int = 0, enabled: bool = True):
        self._writer = None
        if enabled:
            from tensorboardX import SummaryWriter

            purge = start_step + 1 if start_step else None
            self._writer = SummaryWriter(str(directory), purge_step=purge, flush_secs=10)

    def scalars(self, step: int, values: dict[str, Any]) -> None:
        if self._writer:
            for name, value in values.items():
                self._writer.add_scalar(name, float(value), step)

    def image(self, step: int, name: str, image_u8: np.ndarray) -> None:
        """uint8 [H, W, 3]."""
        if self._writer:
            self._writer.add_image(name, image_u8, step, dataformats="HWC")

    def text(self, step: int, name: str, markdown: str) -> None:
        if self._writer:
            self._writer.add_text(name, markdown, step)

    def hparams(self, values: dict[str, Any], scores: dict[str, float]) -> None:
        """The run in TensorBoard's HPARAMS tab: its config against its last scores."""
        if self._writer:
            plain = {k: v if isinstance(v, int | float | str | bool) else str(v)
                     for k, v in values.items()}  # fmt: skip
            self._writer.add_hparams(plain, {k: float(v) for k, v in scores.items()}, name=".")

    def close(self) -> None:
        if self._writer:
            self._writer.close()


class Meter:
    """Speed, share of time spent waiting for data, and MFU, over the steps since the last reading.

    Args:
      step: steps done so far.
      batch_size: rows a step.
      flops_per_row: ``() -> model FLOPs`` of one row's forward and backward pass.
      peak: FLOP/s of all devices together; 0 where it is not known: then no MFU.
    """

    def __init__(self, step: int, batch_size: int, flops_per_row, peak: float):
        self.batch_size, self.peak = batch_size, peak
        self.flops_per_row = flops_per_row() if peak else 0.0
        self._restart(step, 0.0)

    def _restart(self, step: int, waited: float) -> None:
        self.step, self.waited_before = step, waited
        self.began, self.idle = time.monotonic(), 0.0

    @contextlib.contextmanager
    def paused(self):
        """Time spent here (evaluating, saving) does not count as training."""
        began = time.monotonic()
        yield
        self.idle += time.monotonic() - began

    def read(self, step: int, waited: float) -> dict[str, float]:
        """The speeds since the last reading; ``waited``: seconds waited for data since the start."""
        elapsed = max(time.monotonic() - self.began - self.idle, 1e-9)
        rate = (step - self.step) / elapsed
        values = {
            "speed/steps_per_sec": rate,
            "speed/examples_per_sec": rate * self.batch_size,
            "speed/data_wait_share": (waited - self.waited_before) / elapsed,
        }
        if self.peak:
            values["speed/mfu"] = rate * self.batch_size * self.flops_per_row / self.peak
        self._restart(step, waited)
        return values
