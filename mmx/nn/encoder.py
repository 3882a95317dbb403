"""Transformer blocks as GPT-2 and ViT have them: layer norms and dense layers with biases.

What published towers (CLIP, SigLIP) are made of; their trees fit these exactly. No qk-norm.
Axis letters: B batch, L query length, M key length, N heads, K head size, D width, F MLP hidden.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmx.core.partition import constrain
from mmx.nn.attention import attend
from mmx.nn.linear import Dense
from mmx.nn.norm import LayerNorm
from mmx.nn.remat import keep, scan_layers
from mmx.nn.spans import attend_spans
from mmx.nn.transformer import ACTIVATIONS


class MultiHeadAttention(nn.Module):
    """Attention of ``x`` over itself or over a context, with biases.

    Attributes:
      heads: N; the width must be a multiple of it.
      features: width of the result; that of ``x`` when 0.
      causal: position i attends to positions up to i; of self-attention only.
      dtype: of the computation.
      out_std: deviation of the output kernel at the start; D^-1/2 when 0, as q, k and v (so
        OpenAI's code starts its ResNet's attention pooling).
    """

    heads: int
    features: int = 0
    causal: bool = False
    dtype: jnp.dtype = jnp.float32
    out_std: float = 0.0

    @nn.compact
    def __call__(self, x_BLD: jax.Array, context_BMD: jax.Array | None = None) -> jax.Array:
        """x [B, L, D], context [B, M, D] -> [B, L, features]."""
        width = x_BLD.shape[-1]
        context_BMD = x_BLD if context_BMD is None else context_BMD

        def dense(features, names, std, name):
            init = nn.initializers.normal(std)
            return Dense(features, names, True, self.dtype, kernel_init=init, name=name)

        def project(name, y):
            y = dense(width, ("embed", "heads"), width**-0.5, name)(y)
            y = y.reshape(*y.shape[:-1], self.heads, width // self.heads)
            return keep(constrain(y, "act_batch", "act_len", "act_heads", None), name)

        q_BLNK = project("q", x_BLD)
        k_BMNK, v_BMNK = project("k", context_BMD), project("v", context_BMD)
        if self.causal:
            out_BLNK = attend_spans(q_BLNK, k_BMNK, v_BMNK, None, "dense")
        else:
            out_BLNK = keep(attend(q_BLNK, k_BMNK, v_BMNK), "attention_out")
        out_BLD = out_BLNK.reshape(*x_BLD.shape[:-1], width)
        std = self.out_std or width**-0.5
        return dense(self.features or width, ("heads", "embed"), std, "out")(out_BLD)


class Mlp(nn.Module):
    """Dense, activation, dense; deviations at the start as CLIP's text tower has them."""

    hidden: int
    activation: str
    dtype: jnp.dtype = jnp.float32
    out_std: float = 0.0

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        """[B, L, D] -> [B, L, D]."""
        width = x_BLD.shape[-1]
        normal = nn.initializers.normal
        init = normal((2 * width) ** -0.5)
        h_BLF = Dense(self.hidden, ("embed", "mlp"), True, self.dtype, init, name="in")(x_BLD)
        h_BLF = keep(constrain(h_BLF, "act_batch", "act_len", "act_mlp"), "mlp")
        h_BLF = ACTIVATIONS[self.activation](h_BLF)
        init = normal(self.out_std or width**-0.5)
        return Dense(width, ("mlp", "embed"), True, self.dtype, init, name="out")(h_BLF)


class EncoderBlock(nn.Module):
    """Self-attention and MLP, each pre-normed and residual."""

    heads: int
    mlp: int
    activation: str
    causal: bool = False
    eps: float = 1e-5
    dtype: jnp.dtype = jnp.float32
    out_std: float = 0.0

    @nn.compact
    def __call__(self, x_BLD):
        """Shaped for ``nn.scan``: returns (x, None)."""
        norm = lambda name: LayerNorm(self.dtype, self.eps, use_bias=True, name=name)
        x_BLD = constrain(x_BLD, "act_batch", "act_len", "act_embed")
        x_BLD += MultiHeadAttention(
            self.heads,
            causal=self.causal,
            dtype=self.dtype,
            out_std=self.out_std,
            name="attention",
        )(norm("attention_norm")(x_BLD))
        x_BLD += Mlp(self.mlp, self.activation, self.dtype, self.out_std, name="mlp")(
            norm("mlp_norm")(x_BLD)
        )
        return constrain(x_BLD, "act_batch", "act_len", "act_embed"), None


class Encoder(nn.Module):
    """``depth`` blocks, scanned; no norm after the last: the towers differ in where they have it.

    Attributes:
      depth, heads, mlp: layers, attention heads, hidden width of the MLP.
      activation: a key of :data:`mmx.nn.transformer.ACTIVATIONS`.
      causal: each position sees itself and those before it alone.
      eps: of the layer norms: CLIP's 1e-5, SigLIP's 1e-6.
      remat: what the backward pass keeps of each block, a key of :data:`mmx.nn.remat.REMAT`.
      dtype: of the computation.
    """

    depth: int
    heads: int
    mlp: int
    activation: str
    causal: bool = False
    eps: float = 1e-5
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        """[B, L, D] -> [B, L, D]."""
        # OpenAI's code (initialize_parameters), for the text tower: what a branch adds shrinks with
        # the number of branches, 2 * depth. Its image tower is left at PyTorch's defaults; ours
        # starts as the text does.
        out_std = x_BLD.shape[-1] ** -0.5 * (2 * self.depth) ** -0.5
        stack = scan_layers(EncoderBlock, self.depth, self.remat)(
            self.heads,
            self.mlp,
            self.activation,
            self.causal,
            self.eps,
            self.dtype,
            out_std,
            name="blocks",
        )
        return stack(x_BLD)[0]
