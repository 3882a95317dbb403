"""Configs: one Python file a run, ``get_config(arg="")``, named by path or by short name.

``muse/openmoji32:tiny`` is the file ``configs/muse/openmoji32.py`` called with ``"tiny"``. Short
names resolve in a checkout and in an installed package alike. A run keeps its resolved config as
JSON.
"""

import ast
import difflib
import importlib.util
import json
import math
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mmx.core.errors import UserError

_PACKAGE = Path(__file__).resolve().parent.parent
# May change when a run goes on: where it runs, how long, how often it speaks and keeps.
RESUME_ALLOWED = (
    "mesh",
    "steps",
    "log_every",
    "eval_every",
    "preview_every",
    "save_every",
    "keep",
    "codec.config",
    "guidance.config",
    "eval.metrics",
    "eval.scorer",
    "data.data_dir",
    "data.threads",
)
# By the last word of their names, in any group: whole numbers from 1 on (or a tuple that is not
# empty), and numbers from 0 on. A family checks what has another range itself.
_COUNTS = {
    "steps", "batch_size", "accum", "log_every", "eval_every", "preview_every", "save_every",
    "keep", "threads", "image_size", "examples", "splits", "max_len", "depth", "width", "heads",
    "mlp", "patch", "channels", "multipliers", "num_codes", "code_dim", "levels", "bits",
    "latent_dim", "row_len",
}  # fmt: skip
_NOT_NEGATIVE = {
    "seed", "shift", "max_images", "code_width", "lr", "lr_end", "weight_decay", "warmup_steps",
    "ema", "kl",
}  # fmt: skip


def config_dir() -> Path:
    """The folder of the shipped configs: beside the package, or inside it when installed."""
    beside = _PACKAGE.parent / "configs"
    return beside if (beside / "muse").is_dir() else _PACKAGE / "configs"


def list_configs() -> dict[str, str]:
    """Short name -> the first line of the config's docstring, read without running the file."""
    found = {}
    root = config_dir()
    for path in sorted(root.glob("*/*.py")):
        if path.stem == "__init__":
            continue
        found[f"{path.parent.name}/{path.stem}"] = _purpose(path)
    return found


def _purpose(path: Path) -> str:
    try:
        return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
    except (SyntaxError, ValueError):
        return "(not valid Python)"


def find_config(spec: str) -> tuple[Path, str]:
    """``FILE:ARGS`` or ``family/name:ARGS`` -> (path of the file, args).

    Raises:
      UserError: no such file or short name; names the nearest one.
    """
    # A folder's name may hold a colon, an argument does not.
    name, colon, arg = spec.rpartition(":")
    if not colon or "/" in arg or spec.endswith(".py"):
        name, arg = spec, ""
    path = Path(name)
    if path.suffix == ".py" and path.is_file():
        return path.resolve(), arg
    # "configs/muse/openmoji32.py" also works outside a checkout.
    short = name.removeprefix("configs/").removesuffix(".py")
    names = list_configs()
    if short in names:
        return config_dir() / f"{short}.py", arg
    near = difflib.get_close_matches(short, names, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UserError(f"--config={spec}: no such file or config.{hint} `mmx configs` lists them.")


def load_config(spec: str) -> ConfigDict:
    """The locked config of a spec.

    Raises:
      UserError: an unknown file, name or argument; a file that does not run, with the line; a field
        that no flag could set (None, an array).
    """
    path, arg = find_config(spec)
    module_spec = importlib.util.spec_from_file_location(f"mmx_config_{path.stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise UserError(f'{path}: has no get_config(arg=""), which returns a ConfigDict')
        config = module.get_config(arg)
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"{error.filename}, line {error.lineno}: {error.msg}") from error
    except Exception as error:  # it is the user's program
        where = [f.lineno for f in traceback.extract_tb(error.__traceback__)
                 if f.filename == str(path)]  # fmt: skip
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}, line {where[-1] if where else 1}: {type(error).__name__}: {reason}"
        ) from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config returns {type(config).__name__}, not a ConfigDict")
    for name, value in flat_items(config).items():
        parts = value if isinstance(value, list) else [value]  # a tuple, as flat_items has it
        if not all(isinstance(part, bool | int | float | str) for part in parts):
            raise UserError(
                f"{path}: config.{name}={value!r}: a field is true or false, a number, a text or a "
                "tuple of such, so that a flag and JSON can hold it"
            )
    return config.lock()


def parse_arg(arg: str, **known: Any) -> dict[str, Any]:
    """The argument string of a config: ``"tiny"`` sets the flag ``tiny``, nothing else is known.

    Args:
      arg: comma-separated flags, each one of ``known``.
      **known: flag -> default (False).

    Raises:
      UserError: an unknown flag.
    """
    out = dict(known)
    for part in filter(None, arg.split(",")):
        if part not in known:
            raise UserError(f"config argument {part!r} is unknown; known: {', '.join(known)}")
        out[part] = True
    return out


def one_of(flags: Mapping[str, bool], *names: str) -> str:
    """The one of these flags of :func:`parse_arg` that is set; "" if none is.

    Raises:
      UserError: two are.
    """
    chosen = [name for name in names if flags[name]]
    if len(chosen) > 1:
        raise UserError(f"config arguments {' and '.join(map(repr, chosen))}: give one of them")
    return "".join(chosen)


def flat_items(config: Any, prefix: str = "") -> dict[str, Any]:
    """``{"optim.lr": 1e-3}``: the leaves of a config by dotted name; tuples count as leaves."""
    out = {}
    for key in sorted(config):
        value = config[key]
        if isinstance(value, ConfigDict | dict):
            out |= flat_items(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = list(value) if isinstance(value, tuple | list) else value
    return out


def to_text(config: ConfigDict) -> str:
    """One ``name = value`` a line: what ``--print_config`` shows and the goldens hold."""
    return "\n".join(f"{name} = {value!r}" for name, value in flat_items(config).items())


def to_json(config: ConfigDict) -> str:
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> ConfigDict:
    """A locked config; JSON's lists come back as the tuples they were."""

    def tuples(value):
        if isinstance(value, dict):
            return {k: tuples(v) for k, v in value.items()}
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    return ConfigDict(tuples(json.loads(text))).lock()


def check_numbers(config: ConfigDict) -> None:
    """Refuse numbers that no run of any family can work with, before anything is computed.

    Raises:
      UserError: names the field.
    """
    for name, value in flat_items(config).items():
        last, given = name.rpartition(".")[2], f"config.{name}={value}"
        parts = value if isinstance(value, list) else [value]
        numbers = [part for part in parts if not isinstance(part, str)]
        if not all(map(math.isfinite, numbers)):
            raise UserError(f"{given}: give a finite number")
        if last in _COUNTS:
            if not parts:
                raise UserError(f"{given}: give at least one")
            if not all(isinstance(n, int) for n in numbers):
                raise UserError(f"{given}: give a whole number")
            if any(n < 1 for n in numbers):
                hint = "; for never, give more than config.steps" if last.endswith("_every") else ""
                raise UserError(f"{given}: must be at least 1{hint}")
        if last in _NOT_NEGATIVE and any(n < 0 for n in numbers):
            raise UserError(f"{given}: must be at least 0")
        if last == "clip_norm" and any(n <= 0 for n in numbers):
            raise UserError(f"{given}: would make every gradient 0; for no clipping, give 1e9")


def _may_change(name: str) -> bool:
    return name in RESUME_ALLOWED or name.partition(".")[0] in RESUME_ALLOWED


def fixed_items(config: ConfigDict) -> dict[str, Any]:
    """:func:`flat_items` of the fields that make a run what it is: not ``RESUME_ALLOWED``."""
    return {name: value for name, value in flat_items(config).items() if not _may_change(name)}


def changed_fields(old: ConfigDict, new: ConfigDict) -> list[str]:
    """``"  name: old -> new"`` of each of the :func:`fixed_items` that differs."""
    before, after = fixed_items(old), fixed_items(new)
    return [
        f"  {name}: {before.get(name, '(absent)')!r} -> {after.get(name, '(absent)')!r}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def check_resumable(old: ConfigDict, new: ConfigDict) -> None:
    """Refuse to go on in a run with a config that would make another run.

    Raises:
      UserError: lists every field that differs and is not one of ``RESUME_ALLOWED``.
    """
    if changed := changed_fields(old, new):
        raise UserError(
            "the run in this workdir has another config; use a new --workdir or undo:\n"
            + "\n".join(changed)
        )
