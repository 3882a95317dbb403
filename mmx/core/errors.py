"""Errors that a user can mend: the command prints them as one line and exits with code 2."""

from collections.abc import Hashable, Mapping
from typing import Any

EXIT_BAD_INPUT = 2
EXIT_FAULT = 70  # EX_SOFTWARE of sysexits.h: the same command again may go better


class UserError(Exception):
    """Something the user gave is wrong; the message names the field, the value and what to do."""


class Unavailable(UserError):
    """A store or a network did not answer, which may pass: the command exits with 70, not 2."""


def choose(field: str, table: Mapping[str, Any], name: str) -> Any:
    """The entry of a table that a config field names.

    Args:
      field: how the user writes it, ``"config.model.norm"``, for the message.
      table: the choices.
      name: what the user chose.

    Raises:
      UserError: not one of the choices; lists them.
    """
    if not isinstance(name, Hashable) or name not in table:  # a list, as JSON may have it
        raise UserError(f"{field}={name!r}: use one of {', '.join(table)}")
    return table[name]
