"""The largest buffers of a compiled program at its peak, from what XLA dumps while it compiles.

The dump is there even when the program does not fit and the compiler gives up.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from mmx.train import hlo

DUMP_OPTIONS = {"xla_dump_hlo_as_text": True}
_TOTAL = re.compile(r"Memory Space: default \(color=0\)\s+Total bytes: (\d+)")
_PEAK = re.compile(r"Live ranges at \d+ \(peak\):\n")
_LIVE = re.compile(r"\s+([\w.\-]+\{[\d,]*\}): \d+ bytes \(cumulative: \d+ bytes\)")
_VALUE = re.compile(r" value: <\d+ (\S+)(?: \(phi\))? @(\d+)> \(size=(\d+),offset=(\d+)\): (.*)")


@dataclass(frozen=True)
class Buffer:
    """One array that lives at the peak.

    Attributes:
      bytes: on one device.
      shape: as HLO writes it, without its layout.
      module: what makes it, see :func:`module_of`; "" when the compiler made it.
    """

    bytes: int
    shape: str
    module: str


def read_peak(folder: Path) -> tuple[int, list[Buffer]]:
    """(bytes of a device's main memory that the program takes, what lives at its peak there).

    The bytes are those that the compiler holds against what a chip has: arguments and heap, after
    buffers that never live together were given one place. (``memory_analysis`` says more: its
    temporaries are not packed.)

    Args:
      folder: that ``xla_dump_to`` named while the program was compiled.

    Returns:
      The buffers are in falling order of size; each place in memory once.

    Raises:
      ValueError: no such report there: XLA writes it in another way, or did not get so far.
    """
    total = _TOTAL.search(_read(folder, "memory-usage-report"))
    live = _PEAK.split(_read(folder, "live-range"))
    if total is None or len(live) < 2:
        raise ValueError(f"{folder}: XLA reported no memory")
    placed = _placed(_read(folder, "buffer-assignment"))
    computations, _ = hlo.parse(_read(folder, "after_optimizations", end=""))
    known = {one.name: one for body in computations.values() for one in body}
    found = {}
    for line in live[1].splitlines():
        name = _LIVE.fullmatch(line)
        if name is None:
            break
        place, size, shape = placed.get(name[1].removesuffix("{}"), (None, 0, ""))
        if place is None:  # in a chip's fast memory
            continue
        made = module_of(_maker(known, known.get(name[1].partition("{")[0])))
        if place not in found or (made and not found[place].module):
            found[place] = Buffer(size, re.sub(r"\{[^}]*\}", "", shape), made)
    return int(total[1]), sorted(found.values(), key=lambda buffer: -buffer.bytes)


def _read(folder: Path, what: str, end: str = "-") -> str:
    """The text of a report; of the largest program, as jax compiles small helpers too."""
    paths = [p for p in folder.glob(f"*{what}.txt") if not end or f"optimizations{end}" in p.name]
    if not paths:
        raise ValueError(f"{folder}: XLA wrote no {what}")
    return max(paths, key=lambda path: path.stat().st_size).read_text()


def _placed(report: str) -> dict[str, tuple[tuple[str, str], int, str]]:
    """value -> ((allocation, offset), bytes, shape) of all that lies in main memory."""
    out, allocation = {}, ""
    for line in report.splitlines():
        if line.startswith("allocation"):
            allocation = line.split(":")[0]
        elif found := _VALUE.match(line):
            name, color, size, offset, shape = found.groups()
            if color == "0":
                out[name.removesuffix("{}")] = ((allocation, offset), int(size), shape)
    return out


def _maker(known: dict[str, hlo.Instruction], one: hlo.Instruction | None) -> str:
    """The op_name of an instruction; of one that the compiler made, that of what it works on."""
    for _ in range(8):  # copies of copies end somewhere
        if one is None or one.op_name:
            break
        operands = re.findall(r"%([\w.\-]+)", one.operands)
        one = known.get(operands[0]) if operands else None
    return one.op_name if one else ""


# What jax puts around the names of modules.
_WRAPPED = re.compile(r"^(jit|jvp|transpose|vmap|checkpoint|remat|custom_vjp|shard_map)\((.*)\)$")
_PLUMBING = {
    "while", "body", "cond", "closed_call", "checkpoint", "rematted_computation", "scan", "remat",
    "shard_map", "pjit", "step", "",
}  # fmt: skip


def module_of(op_name: str) -> str:
    """``"jit(step)/transpose(jvp(Muse))/trunk/while/body/checkpoint/mlp_in/dot_general"`` ->
    ``"Muse/trunk/mlp_in/dot_general, backward"``; of an argument: its path."""
    if op_name and "/" not in op_name:
        return re.sub(r"\['?([^'\]]*)'?\]", r"/\1", op_name.replace("\\'", "'"))
    parts, marks = [], []
    for part in op_name.split("/"):
        while found := _WRAPPED.match(part):
            if found[1] == "transpose":
                marks.append("backward")
            part = "" if found[1] == "jit" and not parts else found[2]
        if part == "rematted_computation":
            marks.append("recomputed")
        if part not in _PLUMBING:
            parts.append(part)
    return ", ".join(["/".join(parts), *dict.fromkeys(marks)])
