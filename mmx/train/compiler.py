"""Flags of the TPU compiler: one table by generation and version of libtpu.

They go with each compile, so that nothing of the process is changed and preflight compiles what the
pod runs. A test compiles every entry. Sources: ours, by preflight, unless an entry says otherwise.
"""

import importlib.metadata
from dataclasses import dataclass, field, replace

from mmx.train.topology import CHIPS


@dataclass(frozen=True)
class Entry:
    """Options for one generation and a range of libtpu.

    Attributes:
      kind: of :data:`mmx.train.topology.CHIPS`.
      since, before: of libtpu; "" for no limit.
      options: of ``jax.jit(compiler_options=...)``.
      why: what they are for.
    """

    kind: str
    since: str = ""
    before: str = ""
    options: dict[str, str | bool | int] = field(default_factory=dict)
    why: str = ""


_NO_WINDOWED = Entry(
    "",
    options={"xla_jf_spmd_threshold_for_windowed_einsum_mib": 1_000_000},
    why="a product of sharded weights becomes a loop of small ones by default: twice the "
    "cycles of muse/base_632m with fsdp=16 on v5e:4x4; AXLearn turns it off on v6e too",
)
_GATHER = Entry(
    "",
    options={"xla_tpu_prefer_async_allgather_to_allreduce": True},
    why="shards of fewer rows than a tile (2048 wide over 256 chips: 8 of bf16's 16) are padded "
    "with zeros and summed by default: twice the traffic of a gather, twice the cycles",
)
TABLE: tuple[Entry, ...] = tuple(
    replace(entry, kind=kind) for kind in CHIPS for entry in (_NO_WINDOWED, _GATHER)
)


def options_for(kind: str, version: str | None = None) -> dict[str, str | bool | int]:
    """The options of a TPU generation with a libtpu; none for a CPU or GPU.

    Args:
      kind: of a topology.
      version: of libtpu; the installed one when None.
    """
    found = {}
    for entry in TABLE:
        if entry.kind == kind and _applies(entry, version or _installed()):
            found |= entry.options
    return found


def options_of(device) -> dict[str, str | bool | int]:
    """The options for a device of jax, real or to compile for; none for a CPU or GPU."""
    kinds = {chip.device_kind: kind for kind, chip in CHIPS.items()}
    return options_for(kinds.get(device.device_kind, ""))


def _installed() -> str:
    return importlib.metadata.version("libtpu")


def _applies(entry: Entry, version: str) -> bool:
    number = lambda text: tuple(int(part) for part in text.split(".") if part.isdecimal())
    since = not entry.since or number(entry.since) <= number(version)
    return since and (not entry.before or number(version) < number(entry.before))
