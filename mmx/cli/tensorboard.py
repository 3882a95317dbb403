"""What the verbs tell TensorBoard."""

from collections.abc import Iterable, Mapping


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
