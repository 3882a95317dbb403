"""What the verbs tell TensorBoard, and how it is started."""

import os
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

# TensorBoard keeps ten images of a tag unless told, chosen at random: sliders of two runs would
# not stop at the same steps.
IMAGES = 200


def command(logdir: os.PathLike) -> str:
    """The command as it can be typed here: an environment that is not activated is named."""
    return f"{_script()} --logdir {shlex.quote(str(logdir))} --samples_per_plugin=images={IMAGES}"


def _script() -> str:
    script = Path(sys.executable).with_name("tensorboard")
    if not script.is_file():
        return "tensorboard"
    relative = os.path.relpath(script)
    if os.sep not in relative:
        relative = os.path.join(os.curdir, relative)  # else a shell would search for it
    return shlex.quote(min(relative, str(script), key=len))


def write_scores(writer, step: int, scores: Mapping[str, Mapping]) -> None:
    """Lines of the ledger as scalars: ``scores/METRIC``, and the ends of its interval beside."""
    values = {}
    for name, line in scores.items():
        for tag, end in zip(interval_tags(name), ("value", "low", "high"), strict=True):
            if line.get(end) is not None:
                values[tag] = line[end]
    writer.scalars(step, values)


def interval_tags(name: str) -> tuple[str, str, str]:
    """Tags of a metric's value and of the ends of its interval."""
    return f"scores/{name}", f"scores_low/{name}", f"scores_high/{name}"


def layout(scores: Iterable[tuple[str, bool]]) -> dict[str, dict]:
    """Charts for the CUSTOM SCALARS tab, one a metric: the value, its interval as a band.

    Args:
      scores: metrics and whether each has an interval.
    """
    charts: dict[str, dict] = {}
    for name, has_interval in scores:
        tags = list(interval_tags(name))
        chart = ("Margin", tags) if has_interval else ("Multiline", tags[:1])
        charts.setdefault(name.partition("/")[0], {})[name] = chart
    return charts
