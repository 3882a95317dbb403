"""The endless stream of rows, and its batches on a mesh.

Contract of the design ("Position"): row r of step n is position p = n*B + r of one endless stream:
epochs joined, each a permutation from (seed, epoch), nothing dropped. A process loads the rows that
its devices address. What a transform draws comes from (seed, p). So the order and the draws are the
same on any number of devices and processes, and a run goes on at any step without replaying the
ones before.

Grain gives the random-access permutation, the worker threads and the prefetching. Its sharded index
sampler is not used: its order changes with the number of shards.

Legend: B rows of the global batch.
"""

import dataclasses
import functools
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import grain
import jax
import numpy as np
from grain import experimental as grain_experimental
from jax.sharding import NamedSharding

from mmx.core import preemption
from mmx.core.errors import UserError

Row = dict[str, np.ndarray]
Transform = Callable[[dict[str, Any], np.random.Generator], Row]
_EVAL_SEED = 0x5EED  # ours: evaluation draws the same for every run
# Grain's permutation walks through 2**16 numbers to stay in range: 6 ms an entry at 5 examples.
_SMALL = 1024
_READY = 2  # ours: batches kept ready on the devices
PERMUTATION = 1  # tag: the permutation's seed is drawn apart from the rows'


class Examples(Protocol):
    """What a stream reads: ``mmx.data.source.Source``, or a list of examples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class Stream:
    """Position -> row, a pure function.

    Attributes:
      source: the examples.
      transform: ``(example, rng) -> row``, arrays of fixed shapes.
      seed: of the order and of the transform's draws, >= 0.
    """

    source: Examples
    transform: Transform
    seed: int

    def __post_init__(self):
        if len(self.source) == 0:
            raise UserError(f"data.split: {self.source!r} has no examples")
        if self.seed < 0:
            raise UserError(f"seed={self.seed}: must not be negative")

    def index(self, position: int) -> int:
        """Which example is at a position: the epoch's permutation, computed for this one entry."""
        epoch, offset = divmod(position, len(self.source))
        return shuffled(offset, len(self.source), (self.seed, epoch, PERMUTATION))

    def row(self, position: int) -> Row:
        """The row at a position >= 0, with the position itself as ``row["position"]`` (uint32).

        Raises:
          RuntimeError: reading or transforming failed; names the position and the example.
        """
        index = self.index(position)
        rng = np.random.default_rng((self.seed, position))
        return load_row(self.source, self.transform, index, rng, position)


def shuffled(offset: int, size: int, key: tuple[int, ...]) -> int:
    """Entry ``offset`` of the permutation of range(size) that ``key`` draws; needs no other entry.

    Args:
      key: of whole numbers >= 0: a seed, an epoch, and a tag of what is permuted.
    """
    if size <= _SMALL:
        return int(_permutation(key, size)[offset])
    seed = _seed(key)
    return int(grain_experimental.index_shuffle(offset, max_index=size - 1, seed=seed, rounds=4))


@functools.lru_cache(maxsize=1024)
def _seed(key: tuple[int, ...]) -> int:
    return int(np.random.SeedSequence(key).generate_state(1)[0])


@functools.lru_cache(maxsize=1024)  # at most 8 MB
def _permutation(key: tuple[int, ...], size: int) -> np.ndarray:
    # NumPy promises the raw numbers of a bit generator for ever, its `permutation` it does not.
    bits = np.random.PCG64(np.random.SeedSequence(key))
    return np.argsort(bits.random_raw(size), kind="stable")


def load_row(
    source: Examples,
    transform: Transform,
    index: int | list[int],
    rng: np.random.Generator,
    position: int,
) -> Row:
    """The row of an example, or of several as a list, with its position.

    Raises:
      UserError, RuntimeError: reading or transforming failed; names the position and the example.
    """
    try:
        read = [source[i] for i in index] if isinstance(index, list) else source[index]
        row = transform(read, rng)
    except Exception as error:
        kind = UserError if isinstance(error, UserError) else RuntimeError
        raise kind(
            f"position {position} (example {index} of {source!r:.200}): "
            f"{type(error).__name__}: {error}"
        ) from error
    return {**row, "position": np.uint32(position)}


def local_rows(sharding: NamedSharding, batch_size: int) -> np.ndarray:
    """Rows of the global batch that this process's devices hold, ascending, each once.

    Args:
      sharding: of the batch; its first dimension is the rows.
      batch_size: B.

    Raises:
      UserError: B does not divide into the mesh's batch axes.
    """
    return rows_of(sharding, batch_size, sharding.addressable_devices)


def rows_of(sharding: NamedSharding, batch_size: int, devices: set[jax.Device]) -> np.ndarray:
    """``local_rows`` of any set of the mesh's devices."""
    axes = sharding.spec[0] if len(sharding.spec) else None
    axes = (axes,) if isinstance(axes, str) else axes or ()
    shards = int(np.prod([sharding.mesh.shape[axis] for axis in axes], dtype=int))
    if batch_size % shards:
        raise UserError(
            f"batch_size={batch_size} does not divide by {shards}, the size of the mesh axes {axes}"
        )
    slices = sharding.devices_indices_map((batch_size,))
    all_rows = np.arange(batch_size)
    return np.unique(np.concatenate([all_rows[slices[device]] for device in devices]))


class Batches(Iterator[dict[str, jax.Array]]):
    """Global batches, made in the background. Close it, or use it as a context manager."""

    def __init__(self, dataset: grain.IterDataset):
        self._open = [
            iter(dataset)
        ]  # emptied on closing: a Grain iterator may not outlive its modules
        # Also runs at interpreter exit, while the threads can still be joined.
        self._finalizer = weakref.finalize(self, _close_all, self._open)

    def __next__(self) -> dict[str, jax.Array]:
        if not self._open:
            raise ValueError("these batches are closed")
        return next(self._open[0])

    def close(self) -> None:
        """Stop the background work; returns when the thread that feeds the devices has ended."""
        self._finalizer()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *unused: Any) -> None:
        self.close()


class _EvalBatches(Batches):
    """Each next one may raise :class:`mmx.core.preemption.Interrupted`."""

    def __next__(self) -> dict[str, jax.Array]:
        preemption.check()
        return super().__next__()


def _close_all(iterators: list[Any]) -> None:
    while iterators:
        iterators.pop().close()


def batches(
    stream: Stream,
    batch_size: int,
    sharding: NamedSharding,
    start_step: int = 0,
    num_threads: int = 1,
) -> Batches:
    """The stream's batches from step ``start_step`` on, without end; some are kept ready.

    Args:
      stream: of rows.
      batch_size: B, rows of the global batch.
      sharding: of every array of the batch; rows are its first dimension.
      start_step: n; the first batch holds the positions n*B ... n*B + B - 1.
      num_threads: that read and transform, each a whole local batch at a time; at least 1.

    Returns:
      An iterator of dicts of global ``jax.Array`` [B, ...], ``"position"`` uint32 [B] among them.
      An error in a row is raised by ``next``.

    Raises:
      UserError: B does not divide into the mesh's batch axes.
    """
    rows = local_rows(sharding, batch_size)
    load = functools.partial(_train_batch, stream, rows, batch_size, start_step)
    return Batches(
        _background(load, sys.maxsize, rows, batch_size, sharding, num_threads, prefetch=_READY)
    )


def eval_batches(
    source: Examples,
    transform: Transform,
    batch_size: int,
    sharding: NamedSharding,
    limit: int | None = None,
) -> Batches:
    """Every example once, in order, in batches of one size.

    The last batch is filled up with copies of the last example; ``"_mask"`` bool [B] is True on the
    real rows. ``"position"`` is the example's index, and the transform's draws depend on that
    alone. All processes get the same number of batches. Between two of them a process that was
    asked to stop does so: evaluating must not use up the time that it is given.

    Args:
      source: the examples.
      transform: as in training.
      batch_size: B.
      sharding: as in ``batches``.
      limit: only the first ``limit`` examples.
    """
    count = len(source) if limit is None else min(limit, len(source))
    rows = local_rows(sharding, batch_size)
    load = functools.partial(_eval_batch, source, transform, rows, batch_size, count)
    steps = -(-count // batch_size)
    dataset = _background(load, steps, rows, batch_size, sharding, num_threads=1, prefetch=1)
    return _EvalBatches(dataset)


def _train_batch(
    stream: Stream, rows: np.ndarray, batch_size: int, start_step: int, step: int
) -> Row:
    first = (start_step + step) * batch_size
    return _stack([stream.row(first + int(row)) for row in rows])


def _eval_batch(
    source: Examples, transform: Transform, rows: np.ndarray, batch_size: int, count: int, step: int
) -> Row:
    wanted = step * batch_size + rows
    indices, loaded = np.minimum(wanted, count - 1).tolist(), {}
    for index in sorted(set(indices)):  # the last example, which fills up, once
        rng = np.random.default_rng((_EVAL_SEED, index))
        loaded[index] = load_row(source, transform, index, rng, index)
    return {**_stack([loaded[index] for index in indices]), "_mask": wanted < count}


def _stack(rows: list[Row]) -> Row:
    batch = {}
    for key in rows[0]:
        values = [row[key] for row in rows]
        shapes = {np.shape(value) for value in values}
        if len(shapes) > 1:
            raise ValueError(f"rows of one batch differ in the shape of {key!r}: {sorted(shapes)}")
        batch[key] = np.stack(values)
    return batch


class _Steps:
    """The random-access source that Grain reads: step -> this process's part of the batch."""

    def __init__(self, load: Callable[[int], Row], steps: int):
        self._load, self._steps = load, steps

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> Row:
        return self._load(int(step))

    def __repr__(self) -> str:
        return "mmx batches"


def _background(
    load: Callable[[int], Row],
    steps: int,
    rows: np.ndarray,
    batch_size: int,
    sharding: NamedSharding,
    num_threads: int,
    prefetch: int,
) -> grain.IterDataset:
    options = grain.ReadOptions(
        num_threads=num_threads, prefetch_buffer_size=max(num_threads, prefetch)
    )
    dataset = grain.MapDataset.source(_Steps(load, steps)).to_iter_dataset(options)
    dataset = dataset.map(functools.partial(put_batch, rows, batch_size, sharding))
    return grain_experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=prefetch)


def put_batch(
    rows: np.ndarray, batch_size: int, sharding: NamedSharding, local: Mapping[str, np.ndarray]
) -> dict[str, jax.Array]:
    """This process's rows -> global arrays.

    Args:
      rows: which rows of the global batch ``local`` holds, ascending.
      batch_size: B.
      sharding: of the result; its first dimension is the rows.
      local: arrays [len(rows), ...].
    """

    def place(value: np.ndarray) -> jax.Array:
        shape = (batch_size, *value.shape[1:])
        part = functools.partial(local_part, value, rows, batch_size=batch_size)
        return jax.make_array_from_callback(shape, sharding, part)

    return {key: place(value) for key, value in local.items()}


def local_part(
    value: np.ndarray, rows: np.ndarray, index: tuple[slice, ...], batch_size: int
) -> np.ndarray:
    """The part of this process's rows that a device holds.

    Args:
      value: [len(rows), ...].
      rows: the global numbers of value's rows, ascending.
      index: the device's part of the global array [batch_size, ...].
      batch_size: B.
    """
    # A device's rows are neighbours and all among ours: only their place there is to be found.
    start, stop, _ = index[0].indices(batch_size)
    first = int(np.searchsorted(rows, start))
    return value[(slice(first, first + stop - start), *index[1:])]
