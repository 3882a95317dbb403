"""BERT's encoder (arXiv 1810.04805): what published sentence encoders are made of.

Forward alone: these weights are not trained here. Norms come after each sum, as in the first
transformer (arXiv 1706.03762). Axis letters: B batch, T tokens, N heads, K head size, D width, F
hidden. Layers come first: [depth, ...].
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmx.core.partition import constrain
from mmx.nn.attention import attend
from mmx.nn.linear import Dense, Embed, round_up
from mmx.nn.norm import LayerNorm
from mmx.nn.transformer import ACTIVATIONS


@dataclass(frozen=True)
class Architecture:
    """What the weights are of.

    Attributes:
      vocab_size, width, depth, heads, mlp: V, D, layers, N, F; heads divide the width.
      context: the most tokens.
      types: rows of the table of segments, of which a text alone has the first.
      eps: of the norms.
    """

    vocab_size: int
    width: int
    depth: int
    heads: int
    mlp: int
    context: int
    types: int
    eps: float


class Block(nn.Module):
    """Shaped for ``nn.scan``."""

    arch: Architecture
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BTD, mask_BT):
        arch = self.arch

        def dense(name, features, names, y):
            return Dense(features, names, use_bias=True, dtype=self.dtype, name=name)(y)

        def project(name):
            y = dense(name, arch.width, ("embed", "heads"), x_BTD)
            y = y.reshape(*y.shape[:-1], arch.heads, -1)
            return constrain(y, "act_batch", "act_len", "act_heads", None)

        norm = lambda name: LayerNorm(self.dtype, arch.eps, use_bias=True, name=name)
        x_BTD = constrain(x_BTD, "act_batch", "act_len", "act_embed")
        out_BTNK = attend(project("q"), project("k"), project("v"), mask_BT)
        out_BTD = dense("out", arch.width, ("heads", "embed"), out_BTNK.reshape(x_BTD.shape))
        x_BTD = norm("attention_norm")(x_BTD + out_BTD)
        h_BTF = ACTIVATIONS["gelu_erf"](dense("mlp_in", arch.mlp, ("embed", "mlp"), x_BTD))
        h_BTF = constrain(h_BTF, "act_batch", "act_len", "act_mlp")
        out_BTD = dense("mlp_out", arch.width, ("mlp", "embed"), h_BTF)
        return norm("mlp_norm")(x_BTD + out_BTD), None


class Bert(nn.Module):
    """Ids -> a vector for each token, of all that its text says.

    Attributes:
      arch: of the weights.
      dtype: of the computation.
    """

    arch: Architecture
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, ids_BT: jax.Array, mask_BT: jax.Array) -> jax.Array:
        """ids int [B, T], mask bool [B, T] (True = real) -> [B, T, D].

        T is at most the context. Rows at padding mean nothing.

        Raises:
          ValueError: more tokens than the table of positions has.
        """
        arch, T = self.arch, ids_BT.shape[1]
        if arch.context < T:
            raise ValueError(f"{T} tokens: the table of this model has {arch.context}")

        def embed(name, rows, names, ids):
            return Embed(rows, arch.width, names, self.dtype, name=name)(ids)

        x_BTD = embed("tokens", round_up(arch.vocab_size), ("vocab", "embed"), ids_BT)
        x_BTD += embed("types", arch.types, (None, "embed"), jnp.zeros(1, jnp.int32))
        x_BTD += embed("positions", arch.context, ("position", "embed"), jnp.arange(T))
        x_BTD = LayerNorm(self.dtype, arch.eps, use_bias=True, name="embed_norm")(x_BTD)
        scanned = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=arch.depth,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return scanned(arch, self.dtype, name="blocks")(x_BTD, mask_BT)[0]
