"""What the examples of a data set are called by one of its fields, whatever the field is."""

from collections.abc import Iterator
from typing import Any

from mmx.core.errors import UserError
from mmx.data.source import Joined, Source, open_source


def read_labels(source: Source | Joined, field: str | None) -> list[str]:
    """The name of each example, underscores as spaces.

    Args:
      source: of one data set.
      field: a label, a text or a number; None for the one label that it has.

    Raises:
      UserError: no such field, or no one label; lists the fields.
    """
    if field is None:
        if source.label is None:
            raise UserError(
                f"{source.info.name} has no one label: name with --label one of its fields: "
                f"{_fields(source)}"
            )
        field = source.label[0]
    if not has_field(source, field):
        raise UserError(
            f"--label={field}: {source.info.name} has no such field; it has {_fields(source)}"
        )
    names = source.class_names.get(field)
    return [str(names[v] if names else v).replace("_", " ") for v in read_values(source, field)]


def read_values(source: Source | Joined, field: str) -> list[Any]:
    """Of each example what one of its fields holds."""
    return [example[field] for example in _outlines(source)]


def lend_labels(
    source: Source | Joined, key: str, field: str, lender: Source | Joined, data_dir: Any = None
) -> list[str | None]:
    """:func:`read_labels`, from another data set that has things of the same names.

    Args:
      source: without the field.
      key: a field of both, equal where they mean the same thing ("codepoints").
      field: that only the lender has.
      lender: a split of the other, all splits of which lend.
      data_dir: of the lender.

    Returns:
      The names; None where the lender does not have the thing.

    Raises:
      UserError: one of them has no field ``key``, or the lender no ``field``.
    """
    for of in (source, lender):
        if not has_field(of, key):
            raise UserError(f"--key={key}: {of.info.name} has no such field; it has {_fields(of)}")
    known: dict[Any, str] = {}
    for split in lender.info.splits:
        lending = open_source(f"tfds:{lender.info.name}", split, data_dir, needs_image=False)
        known.update(zip(read_values(lending, key), read_labels(lending, field), strict=True))
    return [known.get(thing) for thing in read_values(source, key)]


def has_field(source: Source | Joined, field: str) -> bool:
    return field in _example(source)


def _fields(source: Source | Joined) -> str:
    return ", ".join(name for name in _example(source) if name not in ("image", "text"))


def _example(source: Source | Joined) -> dict[str, Any]:
    return next(_outlines(source))


def _outlines(source: Source | Joined) -> Iterator[dict[str, Any]]:
    for part in source.parts if isinstance(source, Joined) else [source]:
        yield from part.outlines()
