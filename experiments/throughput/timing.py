"""Several ways to one result, timed in turns, so that load meets all alike."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}  # seconds; cpu: of all threads


def compare(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, dict]:
    """Of each compiled call its seconds, and those over the first one's in the same round:
    ``{name: {"cpu_s": [median, least, most], "cpu_ratio": ..., "wall_s": ..., ...}}``."""
    taken = {name: {clock: [] for clock in CLOCKS} for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = {clock: now() for clock, now in CLOCKS.items()}
            jax.block_until_ready(call())
            for clock, now in CLOCKS.items():
                taken[name][clock].append(now() - start[clock])
    first = next(iter(taken.values()))
    found: dict[str, dict] = {}
    for name, by_clock in taken.items():
        found[name] = {}
        for clock, seconds in by_clock.items():
            ratios = [a / b for a, b in zip(seconds, first[clock], strict=True)]
            found[name] |= {f"{clock}_s": _spread(seconds), f"{clock}_ratio": _spread(ratios)}
    return found


def table(found: Mapping[str, Mapping], more: Mapping[str, str]) -> str:
    """Markdown. ``more``: key of what stands beside the times -> its title."""
    head = ["", "CPU s", "times the first", "wall s", "times the first", *more.values()]
    rows = [head, ["---"] * len(head)]
    for name, of in found.items():
        keys = [f"{clock}_{what}" for clock in ("cpu", "wall") for what in ("s", "ratio")]
        cells = ["{:.2f} ({:.2f}-{:.2f})".format(*of[key]) for key in keys]
        rows.append([name, *cells, *(of[key] for key in more)])
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def _spread(values: Sequence[float]) -> list[float]:
    return [round(x, 4) for x in (statistics.median(values), min(values), max(values))]
