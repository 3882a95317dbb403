"""What a compiled step costs, read from its scheduled HLO with loops multiplied out.

XLA's own ``cost_analysis`` counts the body of a loop once and a kernel not at all, so it is useless
for a scanned model. Here each computation counts as often as it runs: a loop as often as the bound
in its condition says, as ``lax.scan`` writes it.
"""

import re
from collections import Counter
from dataclasses import dataclass, field

_BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4,
    "s64": 8, "u64": 8, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "f8e4m3fn": 1,
    "f8e5m2": 1,
}  # fmt: skip
_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_COLLECTIVE = re.compile(rf"(ragged-)?({'|'.join(_KINDS)})(-start)?$")
_HEAD = re.compile(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_CALLED = re.compile(r"(?:calls|to_apply|body|called_computations)=\{?%?([\w.\-]+)")
_BRANCHES = re.compile(
    r"branch_computations=\{([^}]*)\}|true_computation=%?([\w.\-]+), false_computation=%?([\w.\-]+)"
)


@dataclass
class Instruction:
    """One line of HLO: ``%name = shape opcode(operands), attributes``."""

    name: str
    shape: str
    opcode: str
    operands: str
    text: str

    @property
    def cycles(self) -> int:
        found = _CYCLES.search(self.text)
        return int(found[1]) if found else 0

    @property
    def op_name(self) -> str:
        """Where in the model it comes from, as jax names it; "" when the compiler made it."""
        found = re.search(r'op_name="([^"]*)"', self.text)
        return found[1] if found else ""


@dataclass
class Cost:
    """Of one run of a program, on one device.

    Attributes:
      cycles: that the compiler expects of all operations but kernels, loops multiplied out.
      kernels: op_name of a Pallas kernel -> how often it runs.
      collective_bytes: kind -> bytes of its larger side.
      overlapped_bytes: kind -> those of them between whose start and done something is computed.
      collective_counts: kind -> how often.
      by_module: op_name -> cycles.
    """

    cycles: float = 0.0
    kernels: Counter = field(default_factory=Counter)
    collective_bytes: Counter = field(default_factory=Counter)
    overlapped_bytes: Counter = field(default_factory=Counter)
    collective_counts: Counter = field(default_factory=Counter)
    by_module: Counter = field(default_factory=Counter)


def shape_bytes(shape: str) -> int:
    """``"(bf16[8,128]{1,0}, f32[])"`` -> 2052. Unknown element types (tokens) count nothing."""
    total = 0.0
    for kind, dims in re.findall(r"\b([a-z][a-z0-9]*)\[([0-9,]*)\]", shape):
        size = _BYTES.get(kind, 0)
        for dim in filter(None, dims.split(",")):
            size *= int(dim)
        total += size
    return int(total)


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """(computation -> its instructions in scheduled order, name of the entry)."""
    computations: dict[str, list[Instruction]] = {}
    current, entry = None, ""
    # A kernel's metadata is written over several lines.
    for line in text.replace("={\n", "={").replace("\n}}", "}}").splitlines():
        if line and not line[0].isspace():
            head = _HEAD.match(line)
            if head:
                current = computations.setdefault(head[1], [])
                entry = head[1] if line.startswith("ENTRY") else entry
            elif line.startswith("}"):
                current = None
        elif current is not None and " = " in line:
            current.append(_instruction(line.strip()))
    return computations, entry


def _instruction(line: str) -> Instruction:
    name, _, rest = line.removeprefix("ROOT ").partition(" = ")
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    paren = rest.index("(")
    stop = _closing(rest, paren)
    return Instruction(name.lstrip("%"), shape, rest[:paren], rest[paren + 1 : stop - 1], line)


def _closing(text: str, start: int) -> int:
    """Just behind the parenthesis that closes the one at ``start``."""
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] == "(") - (text[at] == ")")
        if depth == 0:
            return at + 1
    return len(text)


def cost(text: str) -> Cost:
    """Of a scheduled module: ``compiled.as_text()``.

    Raises:
      ValueError: a loop whose number of turns cannot be read.
    """
    computations, entry = parse(text)
    out = Cost()
    _walk(computations, entry, 1, out)
    return out


def _walk(computations, name: str, times: float, out: Cost) -> None:
    instructions = computations.get(name, [])
    moved: dict[str, _Move] = {}  # by channel: a collective spread over many fusions is one
    for at, one in enumerate(instructions):
        cycles = one.cycles
        out.cycles += times * cycles
        if cycles:
            out.by_module[one.op_name] += times * cycles
        if 'custom_call_target="tpu_custom_call"' in one.text:
            out.kernels[one.op_name] += times
        if move := _move(computations, instructions, at):
            known = moved.setdefault(move.channel or one.name, move)
            known.overlapped |= move.overlapped
        elif one.opcode == "while":
            turns = times * trip_count(computations, one)
            _walk(computations, _CALLED.search(one.text)[1], turns, out)
        elif one.opcode == "call":
            _walk(computations, _CALLED.search(one.text)[1], times, out)
        elif one.opcode == "conditional":
            _walk_dearest(computations, one, times, out)
    for move in moved.values():
        out.collective_counts[move.kind] += times
        out.collective_bytes[move.kind] += times * move.size
        out.overlapped_bytes[move.kind] += times * move.size * move.overlapped


def _walk_dearest(computations, one: Instruction, times: float, out: Cost) -> None:
    """Of a conditional's branches, the one with the most cycles counts."""
    found = _BRANCHES.search(one.text)
    names = found[1].split(",") if found[1] else found.groups()[1:]
    costs = []
    for name in names:
        branch = Cost()
        _walk(computations, name.strip().lstrip("%"), times, branch)
        costs.append(branch)
    size = lambda branch: (branch.cycles, branch.kernels.total(), branch.collective_bytes.total())
    dearest = max(costs, key=size)
    out.cycles += dearest.cycles
    for name in (
        "kernels",
        "collective_bytes",
        "overlapped_bytes",
        "collective_counts",
        "by_module",
    ):
        getattr(out, name).update(getattr(dearest, name))


def trip_count(computations, loop: Instruction) -> int:
    """How often a loop's body runs: from its counter's start, by its step, to the constant that its
    condition compares it to.

    Raises:
      ValueError: another form of loop than ``lax.scan``, ``fori_loop`` and the compiler make.
    """
    known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.text)
    if known:
        return int(known[1])
    attribute = lambda name: computations[re.search(rf"{name}=%?([\w.\-]+)", loop.text)[1]]
    condition, body = attribute("condition"), attribute("body")
    root = _root(condition)
    operands = _names(root.operands)
    if root.opcode == "compare" and "direction=LT" in root.text and len(operands) == 2:
        by_name = {one.name: one for one in condition}
        count, bound = (by_name.get(name) for name in operands)
        index = re.search(r"index=(\d+)", count.text) if count is not None else None
        if index and bound is not None and bound.opcode == "constant":
            start, step = _start_and_step(computations, loop, body, int(index[1]))
            if step > 0:
                return max(0, -(-(int(bound.operands) - start) // step))
    raise ValueError(f"the turns of the loop {loop.name} cannot be read: {root.text[:200]}")


def _start_and_step(computations, loop: Instruction, body, index: int) -> tuple[int, int]:
    """Of a loop's counter; 0 and 1, as ``lax.scan`` has them, where the compiler passes its
    constants through copies and arguments."""
    found = {one.name: one for inside in computations.values() for one in inside}
    constant = lambda one, other: (
        int(one.operands) if one is not None and one.opcode == "constant" else other
    )
    start = found.get((_names(loop.operands) or [""])[0])
    if start is not None and start.opcode == "tuple":
        start = found.get(_names(start.operands)[index])
    inside = {one.name: one for one in body}
    results = _names(_root(body).operands)
    add = inside.get(results[index]) if index < len(results) else None
    step = 1
    if add is not None and add.opcode == "add":
        step = max((constant(inside.get(name), 1) for name in _names(add.operands)), default=1)
    return constant(start, 0), step


def _root(computation: list[Instruction]) -> Instruction:
    return next(one for one in computation if one.text.startswith("ROOT"))


def _names(operands: str) -> list[str]:
    return re.findall(r"%([\w.\-]+)", operands)


@dataclass
class _Move:
    """A collective, or the part of one that an instruction holds."""

    kind: str
    size: int
    overlapped: bool
    channel: str


def _move(computations, instructions, at: int) -> _Move | None:
    """The collective that an instruction is, starts or holds a part of."""
    one = instructions[at]
    channel = re.search(r"channel_id=(\d+)", one.text)
    channel = channel[1] if channel else ""
    found = _COLLECTIVE.match(one.opcode)
    if found:
        size = shape_bytes(one.shape)
        if found[2] == "reduce-scatter":
            size = max(size, _operand_bytes(instructions, one))
        if found[3] and found[2] != "all-reduce":  # a start's shape holds its input and its output
            size = max(map(shape_bytes, parts(one.shape)))
        return _Move(found[2], size, bool(found[3]) and _busy_until_done(instructions, at), channel)
    called = _CALLED.search(one.text)
    if one.opcode not in ("fusion", "async-start") or called is None:
        return None
    inner, what = computations.get(called[1], []), f"{one.name} {called[1]}"
    for i in range(len(inner)):
        if move := _move({}, inner, i):
            # How a TPU writes a reduce-scatter: a fusion of all-reduce and slice.
            if "all-reduce-scatter" in what:
                move.kind = "reduce-scatter"
            if one.opcode == "async-start":
                move.overlapped = _busy_until_done(instructions, at)
            else:  # a TPU hides a part of a collective in the fusion that computes meanwhile
                move.overlapped = "async_collective_fusion" in what and one.cycles > 0
            return move
    return None


def _operand_bytes(instructions, one: Instruction) -> int:
    names = set(_names(one.operands))
    return sum(shape_bytes(other.shape) for other in instructions if other.name in names)


def parts(shape: str) -> list[str]:
    """The elements of a tuple's shape, one level deep."""
    found, depth, start = [], 0, 1
    for at, char in enumerate(shape):
        depth += (char in "([{") - (char in ")]}")
        if (char == "," and depth == 1) or (at == len(shape) - 1 and depth == 0):
            found.append(shape[start:at])
            start = at + 1
    return found or [shape]


def _busy_until_done(instructions, start: int) -> bool:
    """Is something computed between a start and its done?"""
    name = instructions[start].name
    for other in instructions[start + 1 :]:
        if "-done" in other.opcode and re.search(rf"%{re.escape(name)}\b", other.operands):
            return False
        if other.cycles and not other.opcode.endswith(("-start", "-done")):
            return True
    return False
