"""The largest buffers of a compiled program at its peak, from what XLA dumps while it compiles.

The dump is there even when the program does not fit and the compiler gives up.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from mmx.train import hlo

DUMP_OPTIONS = {"xla_dump_hlo_as_text": True}
_PEAK = re.compile(r"Live ranges at \d+ \(peak\):")
_LIVE = re.compile(r"\s+([\w.\-]+)(\{[\d,]*\}): (\d+) bytes \(cumulative: (\d+) bytes\)")


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
    """(bytes that live at the peak, the buffers that do, the largest first).

    Args:
      folder: that ``xla_dump_to`` named while the program was compiled.

    Raises:
      ValueError: no live ranges there: XLA writes them in another way, or did not get so far.
    """
    # Several when jax compiled helpers too: ours is the largest.
    reports = sorted(folder.glob("*live-range.txt"), key=lambda path: path.stat().st_size)
    if not reports:
        raise ValueError(f"{folder}: no live ranges")
    report = reports[-1].read_text()
    start = _PEAK.search(report)
    if start is None:
        raise ValueError(f"{reports[-1]}: no peak in it")
    live, total = [], 0
    for line in report[start.end() :].strip("\n").splitlines():
        found = _LIVE.fullmatch(line)
        if not found:
            break
        live.append((found[1], found[2], int(found[3])))
        total = int(found[4])
    program = reports[-1].with_name(reports[-1].name.replace("-live-range", ""))
    computations, _ = hlo.parse(program.read_text())
    known = {one.name: one for body in computations.values() for one in body}
    buffers = []
    for name, index, size in live:
        one = known.get(name)
        shape = one.shape if one else ""
        for at in filter(None, index.strip("{}").split(",")):
            parts = hlo.parts(shape)
            shape = parts[int(at)] if int(at) < len(parts) else ""
        shape = re.sub(r"\{[^}]*\}", "", shape).strip()
        buffers.append(Buffer(size, shape, module_of(_maker(known, one))))
    return total, sorted(buffers, key=lambda buffer: -buffer.bytes)


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
