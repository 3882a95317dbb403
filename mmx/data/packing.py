"""Rows of several documents: which documents share a row, and what is at a position.

Contract of the design ("Position"): a packed row is a pure function of its position p. The plan is
made from the documents' lengths alone, so an epoch has the same number of rows each time and any
row is found without those before it; which documents of a length fill a place, and the order of
the rows, are drawn anew from (seed, epoch). Nothing is dropped and nothing is cut here: a task cuts
a text at ``config.text.max_len`` as elsewhere and counts what is left.

What a run needs for it (the loop then takes :func:`open_stream` in place of a plain stream):
  - ``config.data.row_len``, tokens of a row, and ``config.data.max_images``, images of a row;
  - ``task.document_tokens(example) -> (tokens, images)``: what one document takes of a row, with
    its markers. The example is as the data has it but for its images, each of which is None: a
    pair ``{"text", "image": None}``, a text ``{"text"}``, or ``{"parts": [None, "text", ...]}``;
  - ``task.transform(examples, rng) -> row``: of a list of examples, with their images.
What is mixed is said in ``config.data.mix``, see `mmx.data.mixture`.

Legend: N documents of an epoch.
"""

import bisect
import dataclasses
import hashlib
import io
import itertools
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mmx.core import storage
from mmx.core.errors import UserError
from mmx.core.progress import Progress
from mmx.data import pipeline
from mmx.data.mixture import Mixture, open_mixture

_MEMBERS = 2  # tag: apart from pipeline.PERMUTATION, which orders the rows
_FILE = "lengths.npz"  # of a run
Size = tuple[int, int]  # (tokens, images) of a document


@dataclasses.dataclass(frozen=True)
class Pattern:
    """Rows that hold documents of the same sizes.

    Attributes:
      rows: how many.
      sizes: (size, how many documents of it in each of the rows), longest first.
    """

    rows: int
    sizes: tuple[tuple[Size, int], ...]


@dataclasses.dataclass(frozen=True)
class _Rows:
    """A pattern under way."""

    room: int
    slots: int
    rows: int
    sizes: tuple[tuple[Size, int], ...] = ()

    def fits(self, size: Size) -> int:
        """How many documents of a size each of the rows takes."""
        tokens, images = size
        return min(self.room // tokens, self.slots // images if images else self.room)

    def put(self, size: Size, each: int, rows: int) -> "_Rows":
        """So many of these rows, each with ``each`` documents more."""
        room, slots = self.room - each * size[0], self.slots - each * size[1]
        return _Rows(room, slots, rows, (*self.sizes, (size, each)))


def _room(rows: _Rows) -> tuple[int, int]:
    return rows.room, rows.slots


def best_fit(counts: Mapping[Size, int], length: int, max_images: int) -> list[Pattern]:
    """Best-fit decreasing on the histogram of sizes: each document, longest first, goes into the
    row with the least room that it fits. Rows of equal content are handled together, as in
    arXiv 2107.02027, so the time depends on the number of sizes and not of documents.

    Args:
      counts: size (tokens from 1 on, images) -> how many documents.
      length: tokens of a row.
      max_images: of a row.

    Returns:
      Patterns that hold every document once. Raises ValueError for one longer than a row.
    """
    groups: list[_Rows] = []  # the least room first
    for size, left in sorted(counts.items(), reverse=True):
        if not (most := _Rows(length, max_images, 1).fits(size)):
            raise ValueError(f"{size} does not fit {(length, max_images)}")
        filled, at = [], bisect.bisect_left(groups, (size[0], 0), key=_room)
        while left:
            if at == len(groups):  # no row fits: new ones
                groups.append(_Rows(length, max_images, -(-left // most)))
            if not (each := groups[at].fits(size)):
                at += 1
                continue
            rows = groups.pop(at)
            whole = min(rows.rows, left // each)
            left -= whole * each
            # So many rows are filled, one more takes what is left, the others stay as they were.
            rest = min(left, each) if whole < rows.rows else 0
            left -= rest
            filled += [rows.put(size, each, whole)] if whole else []
            filled += [rows.put(size, rest, 1)] if rest else []
            if same := rows.rows - whole - bool(rest):
                filled.append(dataclasses.replace(rows, rows=same))
        for rows in filled:
            bisect.insort(groups, rows, key=_room)
    return [Pattern(rows.rows, rows.sizes) for rows in groups]


class Plan:
    """The rows of an epoch, without their order.

    Args:
      sizes_N2: int [N, 2], tokens and images of each document, none larger than a row.
      length: tokens of a row.
      max_images: of a row.

    Attributes:
      rows: of an epoch.
      fill: the share of their tokens that documents take.
      images: of a row, at the mean of what its documents take at the most (copies that a draw may
        leave out are counted).
    """

    def __init__(self, sizes_N2: np.ndarray, length: int, max_images: int):
        distinct, kind_N, counts = np.unique(
            sizes_N2, axis=0, return_inverse=True, return_counts=True
        )
        kinds = {tuple(size): kind for kind, size in enumerate(distinct.tolist())}
        patterns = best_fit(dict(zip(kinds, counts.tolist())), length, max_images)
        self._by_kind_N = np.argsort(kind_N.reshape(-1), kind="stable")
        self._counts = counts.tolist()
        self._first = [0, *itertools.accumulate(self._counts)]
        self._starts = [0, *itertools.accumulate(pattern.rows for pattern in patterns)]
        # Of each pattern (kind, documents a row, documents of the kind in the patterns before).
        used, self._takes = [0] * len(kinds), []
        for pattern in patterns:
            takes = [(kinds[size], each, used[kinds[size]]) for size, each in pattern.sizes]
            self._takes.append(takes)
            for kind, each, _ in takes:
                used[kind] += each * pattern.rows
        self.rows = self._starts[-1]
        self.fill = float(sizes_N2[:, 0].sum() / (self.rows * length))
        self.images = float(sizes_N2[:, 1].sum() / self.rows)

    def documents(self, seed: int, epoch: int, offset: int) -> list[int]:
        """The documents of an epoch's row, as numbers in [0, N).

        Over the offsets 0 ... rows - 1 of an epoch each document occurs once.
        """
        row = pipeline.shuffled(offset, self.rows, (seed, epoch, pipeline.PERMUTATION))
        pattern = bisect.bisect_right(self._starts, row) - 1
        found = []
        for kind, each, used in self._takes[pattern]:
            first = used + (row - self._starts[pattern]) * each
            key = seed, epoch, _MEMBERS, kind
            for place in range(first, first + each):
                member = pipeline.shuffled(place, self._counts[kind], key)
                found.append(int(self._by_kind_N[self._first[kind] + member]))
        return found


@dataclasses.dataclass(frozen=True)
class PackedStream:
    """Position -> row, a pure function: what `pipeline.Stream` is, of several documents a row.

    Attributes:
      source: the documents of an epoch.
      transform: ``(list of examples, rng) -> row``, arrays of fixed shapes.
      seed: of the order and of the transform's draws, >= 0.
      plan: of the source.
    """

    source: Mixture
    transform: Callable[[list[dict[str, Any]], np.random.Generator], pipeline.Row]
    seed: int
    plan: Plan

    def documents(self, position: int) -> list[int]:
        """Which documents are in the row at a position."""
        return self.plan.documents(self.seed, *divmod(position, self.plan.rows))

    def row(self, position: int) -> pipeline.Row:
        """The row at a position >= 0, with the position itself as ``row["position"]`` (uint32).

        Raises:
          UserError, RuntimeError: reading or transforming failed; names position and documents.
        """
        rng = np.random.default_rng((self.seed, position))
        documents = self.documents(position)
        return pipeline.load_row(self.source, self.transform, documents, rng, position)


def open_stream(config, task, run, say: Callable[[str], None] | None = None) -> PackedStream:
    """The rows that a run trains on.

    The lengths of the documents are measured at the run's first start and kept with it: a run goes
    on with the plan that it began with.

    Args:
      config: with ``data.row_len`` and ``data.max_images``.
      task: see the head of this file.
      run: the `mmx.core.run_dir.RunDir`.
      say: is told what the plan is; None for all processes but the first, which also keeps the
        lengths.

    Raises:
      UserError: what is mixed cannot be opened; a document longer than a row (names it).
    """
    source = open_mixture(config.data)
    parts = list({id(part): part for part in source.parts}.values())
    data = _digest(parts)
    sizes = _stored(run, data)
    if sizes is None:
        sizes = measure(parts, task.document_tokens, quiet=say is None)
        _check(parts, sizes, config.data)
        if say is not None:
            _store(run, sizes, data)
    ends = np.cumsum([len(part) for part in parts])[:-1]
    size_of = {id(part): found for part, found in zip(parts, np.split(sizes, ends))}
    sizes_N2 = np.concatenate([size_of[id(part)] for part in source.parts])
    plan = Plan(sizes_N2, config.data.row_len, config.data.max_images)
    if say is not None:
        say(describe(source, sizes_N2, plan))
    return PackedStream(source, task.transform, config.seed, plan)


def measure(
    parts: list[Any], document_tokens: Callable[[dict], Size], quiet: bool = False
) -> np.ndarray:
    """int32 [n, 2], tokens and images of each document of the parts, in order."""
    total, sizes = sum(map(len, parts)), []
    every = max(1, total // 5)
    progress = Progress(total, "measuring documents", every=every, enabled=not quiet)
    for part in parts:
        for example in part.outlines():
            sizes.append(document_tokens(example))
            progress.update(len(sizes))
    progress.close()
    return np.array(sizes, np.int32).reshape(-1, 2)


def describe(source: Mixture, sizes_N2: np.ndarray, plan: Plan) -> str:
    """In one line what an epoch holds, and the shares of the sources."""
    tokens, images = sizes_N2.sum(0, dtype=np.int64).tolist()
    ends = np.cumsum([len(part) for part in source.parts])[:-1]
    share: dict[str, int] = {}
    for part, sizes in zip(source.parts, np.split(sizes_N2, ends)):
        share[part.info.name] = share.get(part.info.name, 0) + int(sizes[:, 0].sum())
    shares = ", ".join(f"{name} {count / tokens:.1%}" for name, count in share.items())
    return (
        f"an epoch: {len(sizes_N2):,} documents ({tokens:,} tokens: {shares}; {images:,} images) "
        f"in {plan.rows:,} rows, {plan.fill:.1%} full"
    )


def _check(parts: list[Any], sizes: np.ndarray, data) -> None:
    over = (sizes > (data.row_len, data.max_images)).any(1)
    if not over.any():
        return
    index = int(over.argmax())
    tokens, images = sizes[index].tolist()
    for part in parts:
        if index < len(part):
            break
        index -= len(part)
    raise UserError(
        f"{part!r}, example {index}: a document of {tokens} tokens and {images} images is longer "
        f"than a row (config.data.row_len={data.row_len}, config.data.max_images="
        f"{data.max_images}), as are {int(over.sum()) - 1} others; give longer rows, or cut texts "
        "by config.text.max_len"
    )


def _digest(parts: list[Any]) -> str:
    """Of what the lengths are of, but for the config and the tokenizer, which a run keeps."""
    of = [f"{part.info.name} {part.split} {len(part)} {part.info.fingerprint}" for part in parts]
    return hashlib.sha256("\n".join(of).encode()).hexdigest()[:16]


def _stored(run, data: str) -> np.ndarray | None:
    """The lengths that the run keeps; None when it keeps none yet."""
    file = run.path / _FILE
    if not file.is_file():
        return None
    try:
        with np.load(io.BytesIO(storage.read_bytes(file)), allow_pickle=False) as kept:
            sizes, of = kept["sizes"], str(kept["data"])
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{file}: damaged; delete it to measure anew") from error
    if of != data:
        raise UserError(f"{file}: not of this data; delete it to measure anew")
    return sizes


def _store(run, sizes: np.ndarray, data: str) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, sizes=sizes, data=data)
    storage.write(run.path / _FILE, buffer.getvalue())
