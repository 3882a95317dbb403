"""Tensors of a ``.pth`` file, and nothing else: the file is read as data, never executed.

Such a file is a program for Python's pickle machine, which may call anything. Here a machine of our
own follows it that knows a few constants and containers and calls nothing: it makes note of tensors
and fails on all else. Both layouts are read: the zip of PyTorch 1.6 and later, and the older one.
"""

import io
import math
import os
import pickletools
import zipfile
from typing import Any, NamedTuple

import numpy as np

from mmx.core.errors import UserError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {
    "torch FloatStorage": np.dtype("<f4"),
    "torch HalfStorage": np.dtype("<f2"),
    "torch DoubleStorage": np.dtype("<f8"),
    "torch LongStorage": np.dtype("<i8"),
    "torch IntStorage": np.dtype("<i4"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINSTRING", "BINSTRING"}
_MARK = object()
# What nonsense runs into; RuntimeError is what zipfile raises for a password.
_DAMAGE = (
    ValueError, TypeError, LookupError, AttributeError, EOFError, OverflowError, RuntimeError
)  # fmt: skip
_MAX_AXES = 64  # numpy's own limit
_MAX_SHARING = 4  # ours: numbers of all tensors together over those stored; tied weights are 2


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    count: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple
    strides: tuple


class _Refused(ValueError):
    """What is in the file, in words."""


def read_tensors(data: bytes, name: str | os.PathLike) -> dict[str, np.ndarray]:
    """All tensors of a state dict, by name.

    Args:
      data: the whole file.
      name: of the file, for messages.

    Raises:
      UserError: not such a file, cut off, or with anything in it but tensors by name.
    """
    try:
        return _read_zip(data) if data[:2] == b"PK" else _read_legacy(data)
    except (_Refused, zipfile.BadZipFile) as error:
        raise UserError(f"{name}: not read, as it is no file of tensors ({error})") from error
    except _DAMAGE as error:
        raise UserError(f"{name}: damaged, or no file of tensors ({error})") from error


def _read_zip(data: bytes) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        pickles = [n for n in archive.namelist() if n.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise _Refused("no data.pkl in the archive")
        folder = pickles[0].removesuffix("data.pkl")
        order = f"{folder}byteorder"
        if order in archive.namelist() and _member(archive, order) != b"little":
            raise _Refused("written on a big-endian machine")
        noted = _named_tensors(_follow(io.BytesIO(_member(archive, pickles[0]))))
        wanted = {t.storage.key: t.storage for t in noted.values()}
        storages = {key: _member(archive, f"{folder}data/{key}") for key in wanted}
    for key, storage in wanted.items():
        if len(storages[key]) != storage.count * storage.dtype.itemsize:
            raise ValueError(f"storage {key} of {len(storages[key])} bytes, not {storage.count} "
                             "numbers")  # fmt: skip
    return _cut(noted, storages)


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """A file of the archive. PyTorch compresses none, and what is compressed could be a bomb."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise _Refused(f"{name} is compressed")
    return archive.read(info)


def _read_legacy(data: bytes) -> dict[str, np.ndarray]:
    file = io.BytesIO(data)
    if _follow(file) != _LEGACY_MAGIC:
        raise _Refused("neither a zip nor a file of torch.save")
    _follow(file)  # the version of the protocol
    if _follow(file).get("little_endian") is not True:
        raise _Refused("written on a big-endian machine")
    noted = _named_tensors(_follow(file))
    wanted = {t.storage.key: t.storage for t in noted.values()}
    storages = {}
    for key in _follow(file):  # the order in which the bytes follow
        storage = wanted[_text(key)]
        count = int.from_bytes(file.read(8), "little")
        if count != storage.count:
            raise ValueError(f"storage {key} of {count} numbers, expected {storage.count}")
        storages[key] = file.read(count * storage.dtype.itemsize)
    return _cut(noted, storages)


def _named_tensors(state: Any) -> dict[str, _Tensor]:
    if not isinstance(state, dict):
        raise _Refused("no dictionary of tensors")
    for key, value in state.items():
        if not isinstance(value, _Tensor):
            raise _Refused(f"{key!r} is no tensor")
    return state


def _text(key: Any) -> str:
    """The key, where it is a text: hashing tuples nested in tuples can end the process."""
    if not isinstance(key, str):
        raise _Refused("a name that is no text")
    return key


def _cut(noted: dict[str, _Tensor], storages: dict[str, bytes]) -> dict[str, np.ndarray]:
    tensors = {}
    left = _MAX_SHARING * sum(map(len, storages.values()))
    for name, tensor in noted.items():
        flat = np.frombuffer(storages[tensor.storage.key], tensor.storage.dtype)
        shape, strides = tensor.shape, tensor.strides
        if len(shape) != len(strides) or min((*shape, *strides, tensor.offset), default=0) < 0:
            raise ValueError(f"{name}: shape {shape}, strides {strides}, offset {tensor.offset}")
        last = tensor.offset + sum((n - 1) * s for n, s in zip(shape, strides))
        if 0 not in shape and last >= len(flat):
            raise ValueError(f"{name}: its storage holds {len(flat)} numbers, it needs {last + 1}")
        size = math.prod(shape)
        left -= size * flat.itemsize
        if size > len(flat) or left < 0:  # numbers used over and over: small files, huge tensors
            raise ValueError(f"{name}: {size} numbers out of {len(flat)}")
        view = np.lib.stride_tricks.as_strided(
            flat[tensor.offset :], shape, [s * flat.itemsize for s in strides], writeable=False
        )
        tensors[name] = np.ascontiguousarray(view).reshape(shape)
    return tensors


def _call(function: str, args: Any) -> Any:
    """The only functions whose results we note; none is called."""
    if function == "collections OrderedDict" and args in ((), ([],)):
        return {}
    if function == "collections OrderedDict" and len(args) == 1:
        return {_text(key): value for key, value in args[0]}
    if function == "torch._utils _rebuild_tensor_v2" and len(args) >= 4:
        storage, offset, shape, strides = args[:4]
        if len(shape) > _MAX_AXES or len(strides) > _MAX_AXES:
            raise _Refused(f"a tensor of more than {_MAX_AXES} axes")
        whole = (offset, *shape, *strides)
        if not isinstance(storage, _Storage) or not all(type(n) is int for n in whole):
            raise _Refused("a tensor of no storage")
        return _Tensor(storage, offset, tuple(shape), tuple(strides))
    raise _Refused(f"it calls {function.replace(' ', '.')}")


def _persistent(args: Any) -> _Storage:
    if not isinstance(args, tuple) or len(args) < 5 or args[0] != "storage":
        raise _Refused("a persistent id that names no storage")
    _, kind, key, _, count = args[:5]
    if _text(kind) not in _DTYPES:
        raise _Refused(f"numbers of type {kind}")
    if not isinstance(key, str) or "/" in key or type(count) is not int or count < 0:
        raise _Refused("a storage without a name")
    return _Storage(key, _DTYPES[kind], count)


def _follow(file: io.BytesIO) -> Any:
    """The value of one pickle; afterwards the file stands behind it."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list:
        at = len(stack) - 1 - stack[::-1].index(_MARK)
        taken = stack[at + 1 :]
        del stack[at:]
        return taken

    for op, arg, _ in pickletools.genops(file):
        name = op.name
        if name == "PROTO":
            continue
        elif name == "STOP":
            return stack.pop()
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _LITERALS:
            stack.append(arg)
        elif name == "GLOBAL":
            stack.append(_Global(arg))
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            size = int(name[-1])
            stack[-size:] = [tuple(stack[-size:])]
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[arg] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[arg])
        elif name == "APPEND":
            item = stack.pop()
            stack[-1].append(item)
        elif name == "APPENDS":
            items = since_mark()
            stack[-1].extend(items)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            stack[-1][_text(key)] = value
        elif name == "SETITEMS":
            items = since_mark()
            stack[-1].update(zip(map(_text, items[::2]), items[1::2], strict=True))
        elif name == "BINPERSID":
            stack.append(_persistent(stack.pop()))
        elif name == "REDUCE":
            args, function = stack.pop(), stack.pop()
            stack.append(_call(function if isinstance(function, _Global) else "a value", args))
        elif name == "BUILD":  # OrderedDict's attributes: the metadata of a state dict's layers
            stack.pop()
        else:
            raise _Refused(f"instruction {name}")
    raise EOFError("cut off")


class _Global(str):
    """The name of a class or function, never looked up."""
