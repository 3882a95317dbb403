"""``--config.a.b=V``, ``--config.a.b V``, ``--config.flag``, ``--noconfig.flag``.

The flags of ml_collections' config_flags and what they mean there, read by absl's parsers; one of
true and false may also be given its value as the next word. Not that module itself: it wants its
flags defined before parsing, and reports what is wrong as an exception of Python, without the
nearest field.
"""

import ast
import difflib
import re
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from mmx.core.config import flat_items
from mmx.core.errors import UserError

_FLAG = re.compile(r"--(no)?config\.([^=]*)(?:=(.*))?", re.DOTALL)
# type of the field -> (how its flag is read, what to say when it cannot be)
_KINDS = {
    bool: (flags.BooleanParser(), "true or false"),
    int: (flags.IntegerParser(), "a whole number"),
    float: (flags.FloatParser(), "a number"),
    str: (flags.ArgumentParser(), "a text"),
}


def apply(config: ConfigDict, arguments: list[str]) -> ConfigDict:
    """Set the fields that the arguments name; a value is read as the type of the field.

    Args:
      config: changed in place.
      arguments: ``["--config.optim.lr=1e-3", "--config.steps", "10"]``; a tuple is written
        ``"('a', 'b')"`` or by repeating its flag. Of a flag that is repeated else, the last holds.
        A flag of true or false needs no value: ``--config.data.flip``, ``--noconfig.data.flip``.

    Returns:
      The config.

    Raises:
      UserError: an argument that is no such flag, an unknown field (names the nearest one), a value
        of another type.
    """
    fields = flat_items(config)
    for field, texts in _group(fields, arguments).items():
        old = fields[field]
        try:
            new = _tuple(old, texts) if isinstance(old, list) else _scalar(type(old), texts[-1])
        except (ValueError, TypeError, SyntaxError) as error:
            given = " ".join(f"--config.{field}={text}" for text in texts)
            what = "a tuple" if isinstance(old, list) else _KINDS[type(old)][1]
            like = f'"{tuple(old)}"' if isinstance(old, list) else repr(old)
            raise UserError(f"{given}: give {what} such as {like}") from error
        group, _, name = field.rpartition(".")
        inner = config
        for part in filter(None, group.split(".")):
            inner = inner[part]
        inner[name] = new
    return config


def _scalar(kind: type, text: str) -> Any:
    return _KINDS[kind][0].parse(text)


def _tuple(old: list, texts: list[str]) -> tuple:
    """One literal ``(1, 2)``, or an element a flag; elements are of the old ones' type."""
    kind = type(old[0]) if old else str
    if len(texts) == 1 and texts[0].lstrip().startswith(("(", "[")):
        values = ast.literal_eval(texts[0].strip())
        if not isinstance(values, tuple | list) or {type(v) for v in values} - {kind}:
            raise ValueError(f"not all are of {kind}")
        return tuple(values)
    return tuple(_scalar(kind, text) for text in texts)


def _group(fields: dict[str, Any], arguments: list[str]) -> dict[str, list[str]]:
    """Field -> the values given for it."""
    found: dict[str, list[str]] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        match = _FLAG.fullmatch(argument)
        if not match:
            raise UserError(
                f"unknown argument {argument!r}; a field is --config.FIELD=VALUE, and --help lists "
                "the other flags"
            )
        no, field, value = match.groups()
        if field not in fields:
            raise UserError(_unknown(field, fields))
        is_bool = isinstance(fields[field], bool)
        if no:
            if not is_bool or value is not None:
                raise UserError(f"{argument}: give a value, --config.{field}=VALUE")
            value = "false"
        elif value is None:
            if rest and not rest[0].startswith("--"):
                value = rest.pop(0)
            elif is_bool:
                value = "true"
            else:
                raise UserError(f"--config.{field}: give a value, --config.{field}=VALUE")
        found.setdefault(field, []).append(value)
    return found


def _unknown(field: str, fields: dict[str, Any]) -> str:
    inside = [name for name in fields if name.startswith(f"{field}.")]
    if inside:
        return f"--config.{field} is a group; name one of its fields: {', '.join(inside)}"
    # The right name in the wrong group is nearer than it looks.
    last = field.rpartition(".")[2]
    near = [name for name in fields if name.rpartition(".")[2] == last]
    near = near or difflib.get_close_matches(field, fields, n=1, cutoff=0.4)
    hint = f" Did you mean --config.{near[0]}?" if near else ""
    return f"--config.{field}: the config has no such field.{hint} --print_config lists them."
