"""Muse's base model: a transformer that fills in hidden image codes, given a text.

arXiv 2301.00704 sec. 2.3 and table 4: embedded codes plus learned 2-D positions; blocks of self-
attention, cross-attention to the text, MLP; a head to logits over the codebook. Not given there
and ours: pre-norm without biases, tanh GELU, qk-norm, heads, ``patch``, and a head tied to the
embeddings as MaskGIT's is.

Axis letters: B batch, S image codes (S = h*w), L positions of the trunk, T text tokens, D width,
V codebook (padded), Z width of one code's embedding.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmx.core.partition import constrain
from mmx.nn.conv import depth_to_space, space_to_depth
from mmx.nn.linear import Dense, Embed, round_up
from mmx.nn.norm import RMSNorm
from mmx.nn.transformer import Transformer


class MuseTransformer(nn.Module):
    """Logits of every image code, from the visible codes and the text.

    Attributes:
      num_codes: E of the codec; ids lie in [0, E], where E is the mask id.
      grid: codes along one side, h = w.
      depth, width, heads, mlp: of the trunk.
      patch: codes of a patch x patch square share one position of the trunk. 1 is the paper's; 2
        makes the trunk four times shorter, while each code is still hidden and drawn by itself.
      code_width: width of one code's embedding; the trunk's width where patch is 1.
      logit_scale: deviation of the logits at the start. Adam moves it slowly: small data is learned
        twice as fast from 2 as from 1, and hardly at all from 0.4.
      activation: of the MLPs.
      remat: what the backward pass keeps of a block, a key of :data:`mmx.nn.remat.REMAT`.
      dtype: of the computation; logits are float32.
    """

    num_codes: int
    grid: int
    depth: int
    width: int
    heads: int
    mlp: int
    patch: int = 1
    code_width: int = 0
    logit_scale: float = 1.0
    activation: str = "gelu"
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, ids_BS: jax.Array, text_emb_BTD: jax.Array, text_mask_BT: jax.Array
    ) -> jax.Array:
        """Codes or mask ids int [B, S]; text [B, T, any] and its mask bool [B, T] -> [B, S, E]."""
        B, S = ids_BS.shape
        h, p = self.grid, self.patch
        Z = self.code_width if p > 1 else self.width
        dense = lambda features, names, name: Dense(features, names, dtype=self.dtype, name=name)

        # One row more than there are codes: the mask id is E, never a negative index.
        codes = Embed(round_up(self.num_codes + 1), Z, dtype=self.dtype, name="codes")
        x = codes(ids_BS)
        if p > 1:
            x = space_to_depth(x.reshape(B, h, h, Z), p)
            x = dense(self.width, (None, "embed"), "patch_in")(x)
        x_BLD = x.reshape(B, S // p**2, self.width) + self._positions()
        x_BLD = constrain(x_BLD, "act_batch", "act_len", "act_embed")

        # Normalised after the projection, so that a frozen encoder's scale does not matter.
        text_BTD = dense(self.width, (None, "embed"), "text_in")(text_emb_BTD)
        text_BTD = RMSNorm(self.dtype, name="text_norm")(text_BTD)
        x_BLD = Transformer(
            self.depth,
            self.heads,
            self.mlp,
            self.activation,
            self.remat,
            self.dtype,
            name="trunk",
        )(x_BLD, context_BTD=text_BTD, context_mask_BT=text_mask_BT)

        y = dense(p**2 * Z, ("embed", None), "head")(x_BLD)
        if p > 1:
            y = depth_to_space(y.reshape(B, h // p, h // p, p**2 * Z), p)
        # Logits start with deviation logit_scale: the first loss is about ln E + logit_scale^2 / 2.
        y_BSZ = RMSNorm(self.dtype, scale_start=self.logit_scale, name="head_norm")(
            y.reshape(B, S, Z)
        )
        # Tied to the embeddings, as MaskGIT's head is.
        logits_BSV = codes.attend(y_BSZ)
        bias_V = self.param(
            "logits_bias",
            nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",)),
            (round_up(self.num_codes + 1),),
            jnp.float32,
        )
        logits_BSV = logits_BSV + bias_V.astype(self.dtype)
        logits_BSV = constrain(logits_BSV, "act_batch", "act_len", "act_vocab")
        return logits_BSV[..., : self.num_codes].astype(jnp.float32)

    def _positions(self) -> jax.Array:
        """Learned 2-D positions, a row's plus a column's: [L, D]."""
        side = self.grid // self.patch
        init = nn.with_logical_partitioning(nn.initializers.normal(0.5), ("position", "embed"))
        row_hD, column_wD = (
            self.param(f"position_{axis}", init, (side, self.width), jnp.float32)
            for axis in ("row", "column")
        )
        positions = row_hD[:, None] + column_wD[None]
        return positions.reshape(side * side, self.width).astype(self.dtype)
