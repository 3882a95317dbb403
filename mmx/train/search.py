"""Which mesh, remat policy and microbatch: compile what may be best, skip what cannot be.

Pure: what to try next and what a result rules out. `mmx preflight --search` compiles.
"""

import itertools
from dataclasses import dataclass

from mmx.nn.remat import REMAT

_ACCUM = (1, 2, 4, 8)  # ours: microbatches a step
_TENSOR = (1, 2, 4, 8)  # ours: beyond one host's chips the activations' collectives dominate
_REMAT = tuple(reversed(REMAT))  # from what recomputes nothing to what recomputes all


@dataclass(frozen=True)
class Candidate:
    """One setting to compile.

    Attributes:
      data, fsdp, tensor: of the mesh of one slice.
      remat: a key of :data:`mmx.nn.remat.REMAT`; None where the family has no such choice.
      accum: microbatches a step.
    """

    data: int
    fsdp: int
    tensor: int
    remat: str | None
    accum: int

    @property
    def overrides(self) -> list[str]:
        """The flags that set it."""
        flags = [
            f"--config.mesh.{axis}={getattr(self, axis)}" for axis in ("data", "fsdp", "tensor")
        ]
        if self.remat is not None:
            flags.append(f"--config.model.remat={self.remat}")
        return [*flags, f"--config.optim.accum={self.accum}"]


def candidates(config, chips: int, batch_coupled: bool) -> list[Candidate]:
    """All settings of a config on a slice, in the order to try them: simple meshes first, then what
    recomputes and divides the least.

    Args:
      config: of the run; its batch stays as it is.
      chips: of one slice.
      batch_coupled: of the task: then a step cannot be divided.
    """
    rematerializes = "remat" in config.get("model", {})
    found = []
    for tensor, accum, remat in itertools.product(
        (t for t in _TENSOR if chips % t == 0),
        (1,) if batch_coupled else _ACCUM,
        _REMAT if rematerializes else (None,),
    ):
        for data in _powers(chips // tensor):
            ways = config.mesh.slice * chips // tensor * accum
            if config.batch_size % ways == 0:
                found.append(Candidate(data, chips // tensor // data, tensor, remat, accum))
    return sorted(found, key=lambda c: (c.tensor, c.data, c.accum, _REMAT.index(c.remat or "none")))


def _powers(size: int) -> list[int]:
    return [2**n for n in range(size.bit_length()) if size % 2**n == 0]


def rules_out(tried: Candidate, fits: bool, other: Candidate) -> bool:
    """Whether a result makes trying another setting of the same mesh pointless.

    What does not fit does not fit with more kept alive; what fits is not made faster by smaller
    microbatches. Recomputing more may: what is kept of a scanned stack goes through the memory
    (muse/base_632m on v5e:4x4: 0.64 s with "dots" on 1 x 16, 0.52 s with "full" on 2 x 8).
    """
    same = (tried.data, tried.fsdp, tried.tensor) == (other.data, other.fsdp, other.tensor)
    saves = _REMAT.index(other.remat or "none") - _REMAT.index(tried.remat or "none")
    divides = other.accum - tried.accum
    return same and ((saves == 0 and divides >= 0) if fits else (saves <= 0 and divides <= 0))
