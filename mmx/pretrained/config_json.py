"""The JSON files beside published weights."""

import json
import math
from collections.abc import Mapping
from typing import Any

from etils.epath import Path

from mmx.core import storage
from mmx.core.errors import UserError


def read_json(file: Path) -> dict:
    """Raises UserError: not a JSON object."""
    try:
        config = json.loads(storage.read_text(file))
        config.get("")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{file}: not a JSON object ({error})") from error
    return config


def check_sizes(file: Path, sizes: Mapping[str, Any]) -> None:
    """Raises UserError for the first that is no size; names its field."""
    for field, value in sizes.items():
        if type(value) is not int or value < 1:
            raise UserError(
                f"{file}: {field}={value!r}: it has to be a whole number of at least 1; take the "
                "file as it was published"
            )


def check_numbers(file: Path | str, numbers: Mapping[str, Any]) -> None:
    """Raises UserError for the first that is no finite number above 0; names its field."""
    for field, value in numbers.items():
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise UserError(
                f"{file}: {field}={value!r}: it has to be a number above 0; take the file as it "
                "was published"
            )


def check_flags(file: Path | str, flags: Mapping[str, Any]) -> None:
    """Raises UserError for the first that is neither true nor false; names its field."""
    for field, value in flags.items():
        if type(value) is not bool:
            raise UserError(
                f"{file}: {field}={value!r}: it has to be true or false; take the file as it was "
                "published"
            )
