"""``--config.a.b=V`` and ``--config.a.b V``: the flags of ml_collections, with our errors."""

import difflib
import re

from absl import flags
from ml_collections import ConfigDict, config_flags

from mmx.core.config import flat_items
from mmx.core.errors import UserError

_FLAG = re.compile(r"--config\.([^=]*)(?:=(.*))?", re.DOTALL)


def apply(config: ConfigDict, arguments: list[str]) -> ConfigDict:
    """Set the fields that the arguments name; the value is read as the field's type.

    Args:
      config: changed in place.
      arguments: ``["--config.optim.lr=1e-3", "--config.steps", "10"]``; a tuple is written
        ``"('a', 'b')"`` or by repeating its flag.

    Returns:
      The config.

    Raises:
      UserError: an argument that is no such flag, an unknown field (names the nearest one), a value
        of another type.
    """
    for field, texts in _group(config, arguments).items():
        now = flat_items(config)[field]
        given = [f"--config.{field}={text}" for text in texts]
        values = flags.FlagValues()
        config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, sys_argv=["mmx", *given]
        )
        try:
            values(["mmx", *given])
        except (flags.Error, TypeError, ValueError) as error:
            raise UserError(f"{' '.join(given)}: give {_like(now)}") from error
        if not _same_kind(now, flat_items(config)[field]):
            raise UserError(f"{' '.join(given)}: give {_like(now)}")
    return config


def _same_kind(old, new) -> bool:
    """Tuples alone are left to check: ml_collections takes any literal for an element."""
    if not isinstance(old, list):
        return True
    kinds = tuple({type(value) for value in old}) or (object,)
    return all(isinstance(v, kinds) and not str(v).startswith(("(", "[")) for v in new)


def _like(value) -> str:
    if isinstance(value, list):
        return f"""a tuple such as "{tuple(value)}\""""
    kinds = {bool: "true or false", int: "a whole number", float: "a number"}
    return f"{kinds.get(type(value), 'a text')} such as {value!r}"


def _group(config: ConfigDict, arguments: list[str]) -> dict[str, list[str]]:
    """Field -> the values given for it (a tuple's flag may repeat)."""
    fields = flat_items(config)
    found: dict[str, list[str]] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        match = _FLAG.fullmatch(argument)
        if not match:
            raise UserError(f"unknown argument {argument!r}; see `mmx train --help`")
        field, value = match.groups()
        if field not in fields:
            raise UserError(_unknown(field, fields))
        if value is None:
            if not rest or rest[0].startswith("--"):
                raise UserError(f"--config.{field}: give a value, --config.{field}=VALUE")
            value = rest.pop(0)
        found.setdefault(field, []).append(value)
    return found


def _unknown(field: str, fields: dict) -> str:
    inside = [name for name in fields if name.startswith(f"{field}.")]
    if inside:
        return f"--config.{field} is a group; name one of its fields: {', '.join(inside)}"
    near = difflib.get_close_matches(field, fields, n=1, cutoff=0.4)
    # The right name in the wrong group is nearer than it looks.
    near = [n for n in fields if n.rpartition(".")[2] == field.rpartition(".")[2]][:1] or near
    hint = f" Did you mean --config.{near[0]}?" if near else ""
    return f"--config.{field}: the config has no such field.{hint} --print_config lists them."
