"""The JSON files beside published weights."""

import json
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
