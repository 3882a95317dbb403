"""A map over worker processes with progress. Imports nothing heavy: each worker imports it anew."""

import collections
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

from mmx.core.progress import Progress

_CHUNK = 16  # items that travel together
_AHEAD = 8  # ours: chunks a process may be ahead of the reader; more would fill the memory
_WORTH_A_PROCESS = 64  # ours: items; starting a process costs as much as drawing some hundred icons


def parallel_map(
    function: Callable[[Any], Any],
    items: Sequence[Any],
    what: str,
    processes: int | None = None,
) -> Iterator[Any]:
    """``map`` over worker processes, in order, with progress on stderr.

    Results wait for the reader a few at a time, so a long map needs no memory for all of them.

    Args:
      function: of one item; importable by name, or a ``functools.partial`` of such.
      items: what to map over.
      what: the word beside the bar.
      processes: at most so many, by default one a core; fewer for few items. With 1, all happens in
        this process.
    """
    processes = min(processes or os.cpu_count() or 1, max(1, len(items) // _WORTH_A_PROCESS))
    progress = Progress(len(items), what, every=max(1, len(items) // 5))
    for done, result in enumerate(_map(function, items, processes), start=1):
        progress.update(done)
        yield result
    progress.close()


def _map(function: Callable[[Any], Any], items: Sequence[Any], processes: int) -> Iterator[Any]:
    if processes == 1:
        yield from map(function, items)
        return
    # spawn: a fork would copy the locks of whatever threads run here.
    pool = ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
    )
    starts = iter(range(0, len(items), _CHUNK))
    with pool:

        def submit(count: int) -> list[Future]:
            chunks = (items[s : s + _CHUNK] for s in itertools.islice(starts, count))
            return [pool.submit(_map_chunk, function, chunk) for chunk in chunks]

        waiting = collections.deque(submit(_AHEAD * processes))
        while waiting:
            yield from waiting.popleft().result()
            waiting.extend(submit(1))


def _map_chunk(function: Callable[[Any], Any], chunk: Sequence[Any]) -> list[Any]:
    return [function(item) for item in chunk]


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    # A killed parent closes nothing; without this its workers would wait for work for ever.
    multiprocessing.parent_process().join()
    os._exit(1)
