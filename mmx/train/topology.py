"""Devices to compile for: TPU slices that are not here, fake CPUs, this machine's accelerators.

A topology is written ``v5e:16x16`` (Google's names: 16 x 16 chips), ``cpu:8`` or ``gpu``.
"""

import importlib.util
import math
import os
import re
from dataclasses import dataclass

from mmx.core.errors import UserError


@dataclass(frozen=True)
class Chip:
    """One chip of a TPU generation, which is one device of jax.

    Attributes:
      device_kind: what jax calls it.
      peak_flops: bf16 FLOP/s, dense; vendor's data sheet.
      clock_hz: of the compiler's cycles: peak_flops over the FLOPs of the matrix units per cycle.
      hbm_gib: what a program may use, by the compiler's own message; a little less than is sold.
      config_name: of libtpu; "megacore" is two cores as one device.
      dims: of its network.
      ring: an axis of a multiple of this many chips closes to a ring.
      most: chips of the largest slice.
    """

    device_kind: str
    peak_flops: float
    clock_hz: float
    hbm_gib: float
    config_name: str
    dims: int
    ring: int
    most: int


CHIPS = {
    "v4": Chip("TPU v4", 275e12, 1.05e9, 30.75, "megacore", 3, 4, 4096),
    "v5e": Chip("TPU v5 lite", 197e12, 1.5e9, 15.75, "default", 2, 16, 256),
    "v5p": Chip("TPU v5", 459e12, 1.75e9, 95.73, "megacore", 3, 4, 8960),
    "v6e": Chip("TPU v6 lite", 918e12, 1.75e9, 31.25, "default", 2, 16, 256),
}


_MOST_CPUS = 1024  # ours: fake devices, each with threads of its own


@dataclass(frozen=True)
class Topology:
    """A parsed ``--topology``.

    Attributes:
      name: as it was written.
      kind: a key of ``CHIPS``, "cpu" or "gpu".
      shape: chips along each axis of one slice; (N,) for cpu:N, () for gpu: all that are here.
    """

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def chip(self) -> Chip | None:
        return CHIPS.get(self.kind)


def parse_topology(name: str) -> Topology:
    """Read a ``--topology``; jax is not needed.

    Raises:
      UserError: no such kind or shape; says what there is.
    """
    kind, _, rest = name.partition(":")
    if name == "gpu":
        return Topology(name, kind, ())
    if kind not in CHIPS and kind != "cpu":
        raise UserError(
            f"--topology={name}: use {', '.join(f'{k}:SHAPE' for k in CHIPS)}, such as v5e:16x16 "
            "or v5p:4x4x4, or cpu:8, or gpu"
        )
    if not re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4})*", rest):
        raise UserError(f"--topology={name}: after {kind}: comes a shape such as {_example(kind)}")
    shape = tuple(map(int, rest.split("x")))
    if len(shape) != (CHIPS[kind].dims if kind in CHIPS else 1):
        raise UserError(f"--topology={name}: a shape of {kind} is such as {_example(kind)}")
    if kind in CHIPS and shape[0] * shape[1] % 4 and math.prod(shape) != 1:
        raise UserError(
            f"--topology={name}: a host of {kind} has 2x2 chips, so both first numbers are even"
        )
    most = CHIPS[kind].most if kind in CHIPS else _MOST_CPUS
    if math.prod(shape) > most:
        more = "; several slices are --config.mesh.slice" if kind in CHIPS else ""
        raise UserError(f"--topology={name}: {kind} has at most {most} devices a slice{more}")
    return Topology(name, kind, shape)


def _example(kind: str) -> str:
    return {"cpu": "cpu:8"}.get(kind) or (
        f"{kind}:4x4x4" if CHIPS[kind].dims == 3 else f"{kind}:16x16"
    )


def before_jax(topology: Topology) -> None:
    """Set what jax has to find when it starts: for preflight, which runs nothing on a TPU.

    Raises:
      UserError: a TPU topology without libtpu.
    """
    if topology.kind == "cpu":
        os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(topology.shape[0])}
    if topology.chip:
        if not importlib.util.find_spec("libtpu"):
            raise UserError(
                f"--topology={topology.name} needs the TPU compiler, which is not installed: "
                "pip install 'mmx[preflight]' (Linux x86-64)"
            )
        os.environ |= {
            "JAX_PLATFORMS": "cpu",
            "TPU_SKIP_MDS_QUERY": "1",  # there is no metadata server to wait for
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_ACCELERATOR_TYPE": "v5e-16",  # libtpu wants one; the topology decides
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # a training run on this machine may hold its lock
        }


def make_devices(topology: Topology, num_slices: int = 1) -> list:
    """The devices of a topology, ``num_slices`` times where it is a TPU slice.

    Raises:
      UserError: libtpu or jax does not know this shape, or has no such devices here.
    """
    import jax

    if topology.chip is None:
        try:
            devices = jax.devices(topology.kind)
        except RuntimeError as error:
            raise UserError(f"--topology={topology.name}: jax finds none here ({error})") from error
        return devices[: topology.shape[0]] if topology.shape else devices
    from jax.experimental import topologies

    chip, shape = topology.chip, topology.shape
    # Rings make collectives of another kind: without them libtpu gathers weights by all-reduce.
    whole = chip.dims == 2 or min(shape) >= chip.ring
    wrap = [whole and size % chip.ring == 0 for size in shape]
    kwargs = dict(
        chip_config_name=chip.config_name,
        chips_per_host_bounds=_host(shape),
        wrap=(*wrap, *[False] * (3 - len(wrap))),
    )
    if num_slices > 1:
        kwargs["num_slices"] = num_slices
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **kwargs)
    except Exception as error:  # jax raises whatever libtpu says
        raise UserError(f"--topology={topology.name}: {str(error).splitlines()[0]}") from error
    return list(found.devices)


def _host(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Chips of one host: 2x2, but for a single chip and the 2x4 of a v5e or v6e host."""
    if math.prod(shape) == 1:
        return (1, 1, 1)
    return (2, 4, 1) if shape == (2, 4) else (2, 2, 1)
