"""What the verbs tell TensorBoard."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from etils.epath import Path

    from mmx.eval.comparison import Column, Comparison


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


def write_comparison(folder: "Path", shown: "Comparison") -> None:
    """A comparison, each run a folder of events.

    The same tags in all of them, the steps of the checkpoints, so that sliders of one picture stop
    side by side: one image a prompt, all of a checkpoint as one, and all of a run as one. HPARAMS
    has what differs and the last scores. A score of another recipe has another name.
    """
    import numpy as np

    from mmx.eval.tile import tile
    from mmx.train.metrics import Writer

    of = {(c.run, c.step): scores for c, scores in zip(shown.columns, shown.scores_of())}
    for i, (run, columns) in enumerate(shown.groups()):
        (folder / run).mkdir(parents=True, exist_ok=True)
        writer = Writer(folder / run)
        scores = {n: "low" in line for c in columns for n, line in of[run, c.step].items()}
        if i == 0:
            every = {n: "low" in line for lines in of.values() for n, line in lines.items()}
            writer.layout(0, layout(every.items()))
        for column in columns:
            write_scores(writer, column.step, of[run, column.step])
            if column.images is not None:
                _write_images(writer, column, shown.rows)
        if columns[-1].images is not None:
            strip = np.stack([enlarged(column.images) for column in columns], 1)
            writer.image(columns[-1].step, "filmstrip", tile(strip))
        fields = {name: _plain(values)[run] for name, values in shown.differences.items()}
        tags = [interval_tags(name)[0] for name in scores]
        fields |= {"steps compared": ", ".join(str(column.step) for column in columns)}
        writer.hparams(columns[-1].step, run, fields, tags)
        writer.close()


def _write_images(writer, column: "Column", rows: Sequence[str]) -> None:
    from mmx.eval.tile import tile

    images = enlarged(column.images)
    writer.image(column.step, "samples/all", tile(images[None]))
    for i, (text, image) in enumerate(zip(rows, images, strict=True)):
        writer.image(column.step, f"samples/{i:02d}_{slug(text)}", image)


def _plain(values: Mapping[str, str]) -> Mapping[str, float | str]:
    """Numbers where all are, so that the table sorts by them."""
    try:
        return {run: float(value) for run, value in values.items()}
    except ValueError:
        return values


def slug(text: str) -> str:
    """``"Red heart!"`` -> ``"red_heart"``: a tag without signs that TensorBoard would split at."""
    return re.sub(r"\W+", "_", text.lower()).strip("_")[:40]


def enlarged(images_u8: "np.ndarray") -> "np.ndarray":
    """By the largest whole factor that leaves them no wider than 128 pixels, but at least 1."""
    scale = max(1, 128 // images_u8.shape[2])
    return images_u8.repeat(scale, 1).repeat(scale, 2)
