"""Errors that a user can mend: the command prints them as one line and exits with code 2."""

from collections.abc import Mapping
from typing import Any


class UserError(Exception):
    """Something the user gave is wrong; the message names the field, the value and what to do."""


def choose(field: str, table: Mapping[str, Any], name: str) -> Any:
    """The entry of a table that a config field names.

    Args:
      field: how the user writes it, ``"config.model.norm"``, for the message.
      table: the choices.
      name: what the user chose.

    Raises:
      UserError: not one of the choices; lists them.
    """
    if name not in table:
        raise UserError(f"{field}={name!r}: use one of {', '.join(table)}")
    return table[name]
