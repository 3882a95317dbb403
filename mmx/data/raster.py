"""SVG files to PNG bytes, in parallel processes.

Imports nothing heavy: every worker process imports this file anew.
"""

import io
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from mmx.core.progress import Progress


def rasterise(path: Path, size: int) -> bytes:
    """Draw an SVG file on white.

    Args:
      path: of the file.
      size: pixels of a side.

    Returns:
      The bytes of an RGB PNG of ``size`` x ``size``, the same on every machine with the same
      packages: no system font is looked at.
    """
    import resvg_py
    from PIL import Image

    drawn = resvg_py.svg_to_bytes(
        svg_path=str(path), width=size, height=size, background="#ffffff", skip_system_fonts=True
    )
    image = Image.open(io.BytesIO(drawn)).convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def parallel_map(
    function: Callable[[Any], Any], items: list[Any], what: str, processes: int | None = None
) -> Iterator[Any]:
    """``map`` over worker processes, in order, with progress on stderr.

    Args:
      function: of one item; importable by name, or a ``functools.partial`` of such.
      items: what to map over.
      what: the word beside the bar.
      processes: as many as cores by default, never more than items; 1 works in this process.
    """
    processes = min(processes or os.cpu_count() or 1, max(1, len(items) // 64))
    progress = Progress(len(items), what, every=max(1, len(items) // 5))
    for done, result in enumerate(_map(function, items, processes), start=1):
        progress.update(done)
        yield result
    progress.close()


def _map(function: Callable[[Any], Any], items: list[Any], processes: int) -> Iterable[Any]:
    if processes == 1:
        yield from map(function, items)
        return
    # spawn: a fork would copy the threads' locks of whatever is loaded here.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        yield from pool.map(function, items, chunksize=16)
