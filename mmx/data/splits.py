"""What ``data.split`` names: splits of a data set and slices of them, joined and repeated."""

from collections.abc import Mapping
from types import SimpleNamespace

from mmx.core.errors import UserError


def split_parts(split: str) -> list[tuple[str, int]]:
    """``"train*4+train_toned"`` -> [("train", 4), ("train_toned", 1)].

    Raises:
      UserError: a count that is not a whole number of at least 1.
    """
    parts = []
    for part in split.split("+"):
        name, star, times = part.strip().partition("*")
        if star and not (times.strip().isdecimal() and int(times) > 0):
            raise UserError(f"data.split={split}: after * comes how often, a whole number from 1")
        parts.append((name.strip(), int(times) if star else 1))
    return parts


def share(a: str, b: str, sizes: Mapping[str, int]) -> bool:
    """Whether an example may be in both: two splits, as :func:`open_source` takes them.

    Args:
      a, b: of one data set; a slice by shards counts as the whole split.
      sizes: its splits -> number of examples.
    """
    return any(
        name == other and max(first, start) < min(end, stop)
        for name, first, end in _spans(a, sizes)
        for other, start, stop in _spans(b, sizes)
    )


def _spans(split: str, sizes: Mapping[str, int]) -> list[tuple[str, int, int]]:
    """Of each part its split, the first example and the one after the last."""
    from tensorflow_datasets.core import ReadInstruction

    spans, infos = [], {name: SimpleNamespace(num_examples=size) for name, size in sizes.items()}
    for part, _ in split_parts(split):
        read = ReadInstruction.from_spec(part)
        if read.unit == "shard":
            spans.append((read.split_name, 0, sizes[read.split_name]))
            continue
        for span in read.to_absolute(infos):
            end = sizes[span.splitname] if span.to is None else span.to
            spans.append((span.splitname, span.from_ or 0, end))
    return spans
