"""A map over worker processes with progress. Imports nothing heavy: each worker imports it anew."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from mmx.core.progress import Progress

_WORTH_A_PROCESS = 64  # ours: items; starting a process costs as much as drawing some hundred icons


def parallel_map(
    function: Callable[[Any], Any], items: list[Any], what: str, processes: int | None = None
) -> Iterator[Any]:
    """``map`` over worker processes, in order, with progress on stderr.

    Args:
      function: of one item; importable by name, or a ``functools.partial`` of such.
      items: what to map over.
      what: the word beside the bar.
      processes: one a core by default, fewer for few items; with 1, all happens in this process.
    """
    processes = processes or min(os.cpu_count() or 1, max(1, len(items) // _WORTH_A_PROCESS))
    progress = Progress(len(items), what, every=max(1, len(items) // 5))
    for done, result in enumerate(_map(function, items, processes), start=1):
        progress.update(done)
        yield result
    progress.close()


def _map(function: Callable[[Any], Any], items: list[Any], processes: int) -> Iterator[Any]:
    if processes == 1:
        yield from map(function, items)
        return
    # spawn: a fork would copy the locks of whatever threads run here.
    pool = ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
    )
    with pool:
        yield from pool.map(function, items, chunksize=16)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    # A killed parent closes nothing; without this its workers would wait for work for ever.
    multiprocessing.parent_process().join()
    os._exit(1)
