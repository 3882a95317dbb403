"""Tensors of safetensors files -> a tree of ours, each device reading its own part.

A parameter of ours is a published tensor with its dimensions in another order, or a stack of one a
layer (our layers are scanned). Nothing is read whole that a mesh shards.
"""

import contextlib
import functools
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open

from mmx.core import storage, tree
from mmx.core.errors import UserError
from mmx.nn.linear import round_up
from mmx.pretrained.hub import Repository

# Each dimension of ours, as the dimensions of the tensor that make it.
Layout = tuple[tuple[int, ...], ...]
VECTOR: Layout = ((0,),)
MATRIX: Layout = ((0,), (1,))
LINEAR: Layout = ((1,), (0,))  # PyTorch's [out, in] -> [in, out]
_MIB = 2**20
CONV: Layout = ((2,), (3,), (1,), (0,))  # OIHW -> HWIO
PATCH: Layout = ((2, 3, 1), (0,))  # OIHW -> [H * W * I, O]: a patch's pixels, row by row
SCALAR: Layout = ()  # whatever has one element
FLAT: Layout = ((0, 1, 2),)  # [1, 1, D] -> [D]


@dataclass(frozen=True)
class Source:
    """Where a parameter of ours lies.

    Attributes:
      name: of its tensor; with ``{}`` for the number of the layer, one of each is stacked.
      layout: of it, or of each layer.
      part: ``(k, n)``, the k-th of n equal parts of the tensor's dimension ``part_of``.
      padded: the tensor's first dimension is a vocabulary, which may be rounded up here; what is
        added is zero.
    """

    name: str
    layout: Layout = VECTOR
    part: tuple[int, int] = (0, 1)
    padded: bool = False
    part_of: int = 0

    @property
    def stacked(self) -> bool:
        return "{}" in self.name

    @property
    def grows(self) -> int | None:
        """Our dimension that may be larger than the tensor's."""
        return self.layout.index((0,)) if self.padded else None

    def names(self, shape: tuple[int, ...]) -> list[str]:
        """Of the tensors that make a parameter of this shape."""
        if not self.stacked:
            return [self.name]
        return [self.name.format(layer) for layer in range(shape[0])]

    def shape(self, tensor: tuple[int, ...]) -> tuple[int, ...] | None:
        """What a tensor of some shape makes; None when it cannot be laid out so."""
        taken = [d for group in self.layout for d in group]
        if any(d >= len(tensor) for d in taken):
            return None
        if any(size != 1 for d, size in enumerate(tensor) if d not in taken):
            return None
        sizes, parts = list(tensor), self.part[1]
        if parts > 1:
            if sizes[self.part_of] % parts:
                return None
            sizes[self.part_of] //= parts
        return tuple(math.prod(sizes[d] for d in group) for group in self.layout)

    def misfit(self, tensor: tuple[int, ...], wanted: tuple[int, ...]) -> str | None:
        """How a tensor of some shape fails to make a parameter; None when it does."""
        made = self.shape(tensor)
        rounded = [round_up(n) if d == self.grows else n for d, n in enumerate(made or ())]
        if made == wanted or (made and tuple(rounded) == wanted):
            return None
        return f"makes {made}, not {wanted}" if made else f"does not make {wanted}"


class TensorFiles(contextlib.ExitStack):
    """The safetensors of a repository: one file, or several that an index lists. Close it.

    Args:
      repository: that holds them.
      name: of the file, ``model.safetensors``; its index is ``model.safetensors.index.json``.

    Attributes:
      shapes: name -> shape of each tensor.

    Raises:
      UserError: no such file, or one that cannot be read.
    """

    def __init__(self, repository: Repository, name: str = "model.safetensors"):
        super().__init__()
        self.source = repository.source
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._files: dict[str, Any] = {}
        with contextlib.ExitStack() as opened:
            for file in _file_names(repository, name):
                path = opened.enter_context(repository.local(file))
                try:
                    tensors = opened.enter_context(safe_open(path, "np"))
                    for tensor in tensors.keys():  # noqa: SIM118
                        self.shapes[tensor] = tuple(tensors.get_slice(tensor).get_shape())
                        self._files[tensor] = tensors
                except (SafetensorError, OSError) as error:
                    raise UserError(
                        f"{self.source}: {file}: not a readable safetensors file ({error})"
                    ) from error
            self.push(opened.pop_all())

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A part of a tensor, of its own dtype; nothing else of it is read."""
        sizes = [s.stop - s.start for s in index]
        if 0 in sizes:  # which safetensors refuses
            return np.zeros(sizes, np.float32)
        return np.asarray(self._files[name].get_slice(name)[index or ...])


def fingerprint(repository: Repository, name: str = "model.safetensors") -> str:
    """Hex digest by which other weights are known, cheaply: of config.json, and of each file of
    safetensors its name, its size, and a MiB at its start, middle and end. The rest is not read.

    Args: as of :class:`TensorFiles`.

    Raises:
      UserError: no such files.
    """
    digest = hashlib.sha256(storage.read_bytes(repository.get("config.json")))
    for file in _file_names(repository, name):
        path = repository.get(file)
        size = path.stat().length
        digest.update(f"\n{file} {size}\n".encode())
        with path.open("rb") as opened:
            for at in (0, size // 2, max(0, size - _MIB)):
                opened.seek(at)
                digest.update(opened.read(_MIB))
    return digest.hexdigest()[:16]


def _file_names(repository: Repository, name: str) -> list[str]:
    if repository.find(name) is not None:
        return [name]
    index = repository.find(f"{name}.index.json")
    if index is None:
        raise UserError(f"{repository.source}: neither {name} nor {name}.index.json in it")
    try:
        return sorted(set(json.loads(storage.read_text(index))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index}: not an index of safetensors files") from error


def read_tree(
    files: TensorFiles, sources: Mapping[str, Source], target: Any, ignored: Iterable[str] = ()
) -> Any:
    """The parameters of a model from published tensors.

    Args:
      files: that hold them.
      sources: path of a parameter of ours -> where it lies; one for each of ``target``.
      target: tree of ``jax.ShapeDtypeStruct``; where those have a sharding the result lies on its
        mesh and each process reads only what its devices hold; else it is of numpy arrays.
      ignored: tensors that are no parameters.

    Raises:
      UserError: tensors that are missing, of another shape or of no parameter; lists all of them.
    """
    flat = tree.flatten(target)
    problems = _problems(files, sources, {p: leaf.shape for p, leaf in flat.items()}, ignored)
    if problems:
        raise UserError(
            f"{files.source}: not the weights of this model; {len(problems)} of its tensors do "
            "not fit:\n  " + "\n  ".join(problems)
        )

    def one(path, leaf):
        # Devices that hold the same part share one reading.
        @functools.cache
        def read(bounds):
            part = _read(files, sources[path], leaf.shape, tuple(slice(*b) for b in bounds))
            return np.ascontiguousarray(part.astype(leaf.dtype)).reshape(part.shape)

        def at(index):
            return read(tuple(s.indices(size)[:2] for s, size in zip(index, leaf.shape)))

        if getattr(leaf, "sharding", None) is None:
            return at(tuple(slice(None) for _ in leaf.shape))
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, at)

    return tree.map_with_path(one, target)


def _problems(files, sources, shapes, ignored) -> list[str]:
    """All that does not fit, one line each."""
    missing, misshapen, used = [], [], set()
    for path, shape in shapes.items():
        source = sources[path]
        wanted = tuple(shape[1:] if source.stacked else shape)
        for name in source.names(shape):
            used.add(name)
            if name not in files.shapes:
                missing.append(f"missing: {name} (for {path})")
            elif why := source.misfit(files.shapes[name], wanted):
                misshapen.append(f"misshapen: {name} {files.shapes[name]} {why} (for {path})")
    extra = [f"extra: {n} {s}" for n, s in files.shapes.items() if n not in used | set(ignored)]
    return missing + misshapen + extra


def _read(files, source: Source, shape, index) -> np.ndarray:
    if not source.stacked:
        return _one(files, source.name, source, index)
    layers = [source.name.format(layer) for layer in range(shape[0])[index[0]]]
    return np.stack([_one(files, name, source, index[1:]) for name in layers])


def _one(files, name: str, source: Source, index) -> np.ndarray:
    """Of one tensor, the part that makes ``index`` of ours."""
    tensor, (part, parts) = files.shapes[name], source.part
    bounds = [[0, size] for size in tensor]
    if parts > 1:
        size = tensor[source.part_of] // parts
        bounds[source.part_of] = [part * size, (part + 1) * size]
    later = [slice(None)] * len(source.layout)
    for d, group in enumerate(source.layout):
        if len(group) == 1:  # cut before it is read; where several make one, after
            first = bounds[group[0]][0]
            bounds[group[0]] = [
                min(first + i, tensor[group[0]]) for i in (index[d].start, index[d].stop)
            ]
        else:
            later[d] = index[d]
    x = files.read(name, tuple(slice(*b) for b in bounds))
    if source.padded:
        rows = index[source.grows].stop - index[source.grows].start - len(x)
        x = np.pad(x, [(0, rows)] + [(0, 0)] * (x.ndim - 1))
    taken = [d for group in source.layout for d in group]
    rest = [d for d in range(x.ndim) if d not in taken]
    sizes = [math.prod(x.shape[d] for d in group) for group in source.layout]
    return x.transpose(*taken, *rest).reshape(sizes)[tuple(later)]
