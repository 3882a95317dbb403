"""A small text encoder learned with the model; frozen ones (T5, CLIP) come through the same call.

Axis letters: B batch, T text tokens, D width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmx.nn.linear import Embed, round_up
from mmx.nn.transformer import Transformer


class TextEncoder(nn.Module):
    """Token and position embedding, then bidirectional self-attention over the real tokens.

    Attributes:
      vocab_size: ids lie in [0, vocab_size).
      width, depth, heads: of the transformer; depth 0 leaves the embeddings as they are.
      activation: of the MLP.
      dtype: of the computation.
    """

    vocab_size: int
    width: int
    depth: int
    heads: int
    activation: str = "gelu"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, text_ids_BT: jax.Array, text_mask_BT: jax.Array) -> jax.Array:
        """ids int [B, T], mask bool [B, T] (True = real) -> text_emb [B, T, D].

        Rows at padding are finite and mean nothing: whoever reads the result masks them.
        """
        x_BTD = Embed(round_up(self.vocab_size), self.width, dtype=self.dtype, name="tokens")(
            text_ids_BT
        )
        positions = self.param(
            "positions",
            nn.with_logical_partitioning(nn.initializers.normal(0.5), ("position", "embed")),
            (text_ids_BT.shape[1], self.width),
            jnp.float32,
        )
        x_BTD = x_BTD + positions.astype(self.dtype)
        if self.depth == 0:
            return x_BTD
        # Padding keys are masked; a row of padding alone attends evenly, which is finite.
        return Transformer(
            self.depth,
            self.heads,
            4 * self.width,
            self.activation,
            dtype=self.dtype,
            name="transformer",
        )(x_BTD, mask_BL=text_mask_BT)
