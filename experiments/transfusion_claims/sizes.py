"""How large the study is: so that its arms take minutes of one core, or of a GPU."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Size:
    """One of ``SIZES``.

    Attributes:
      every: one of so many of the 48 kinds of objects takes part.
      width, mlp: of the decoder.
      channels: of the U-Net codec, at the first of its levels.
      tokens: of a batch, about.
      steps: of base; what they cost is the budget of every arm.
      reads: what the network reads of the noised latents (``config.diffusion.input``).
      rates: each for a quarter of the budget, by seed 0; the best one goes on.
      drawn: tested scenes that are drawn: reading a picture costs a tenth of a second.
    """

    every: int
    width: int
    mlp: int
    channels: int
    tokens: int
    steps: int
    reads: str
    rates: tuple[float, ...]
    drawn: int


SIZES = {
    "cpu": Size(8, 128, 352, 14, 600, 2400, "z", (2e-3, 4e-3), 120),
    "gpu": Size(4, 256, 704, 28, 2400, 5000, "mean", (1e-3, 2e-3, 4e-3), 240),
}
