"""What families may know of each other: a codec and a text encoder, by shape and by call.

A family that needs an earlier stage takes any object of these protocols; `registry` finds which.
Axis letters: B batch, h w latent grid, H W pixels, T text tokens, D width.
"""

from typing import Any, Protocol

import jax


class Codec(Protocol):
    """image <-> grid of codes. Weights are passed in, so that they can be sharded and donated.

    Attributes:
      num_codes: E; codes lie in [0, E). A model's mask id lies outside.
      scale: f, pixels a code along one side.
    """

    num_codes: int
    scale: int

    def grid(self, image_size: int) -> int:
        """Codes along one side. Raises UserError when f does not divide the size."""
        ...

    def encode(self, weights: Any, image_BHWC: jax.Array) -> jax.Array:
        """float32 [B, H, W, 3] in [-1, 1] -> int32 [B, h, w]."""
        ...

    def decode(self, weights: Any, codes_Bhw: jax.Array) -> jax.Array:
        """int32 [B, h, w] -> float32 [B, H, W, 3], about [-1, 1], not clipped."""
        ...


class FrozenTextEncoder(Protocol):
    """Ids -> embeddings, never trained. Its output may be cached with the data: a batch that has
    ``text_emb`` [B, T, D] beside ``text_mask`` skips the call.

    Attributes:
      width: D of the embeddings.
      name: of model and revision: part of the cache's identity, as is its dtype.
    """

    width: int
    name: str

    def encode(self, weights: Any, text_ids_BT: jax.Array, text_mask_BT: jax.Array) -> jax.Array:
        """int32 [B, T], bool [B, T] (True = real) -> float [B, T, D]; padding rows are zeroed."""
        ...
