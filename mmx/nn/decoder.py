"""A causal decoder as Llama 2 has it (arXiv 2307.09288 sec. 2.2): RMSNorm, RoPE, SwiGLU, no biases.

Axis letters: B batch, L length, D width, F MLP hidden, N heads, K head size, V vocabulary (padded).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmx.core.partition import constrain
from mmx.nn.causal import attend_causal
from mmx.nn.linear import Dense, Embed, round_up
from mmx.nn.norm import RMSNorm
from mmx.nn.remat import keep, scan_layers
from mmx.nn.rope import rotate

EPS = 1e-5  # of the norms; Llama 2's code


class Kernel(nn.Module):
    """The weights of a dense layer alone: whoever multiplies says which axes the product has."""

    shape: tuple[int, int]
    names: tuple[str, str]
    init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self) -> jax.Array:
        init = nn.with_logical_partitioning(self.init, self.names)
        return self.param("kernel", init, self.shape, jnp.float32)


class CausalAttention(nn.Module):
    """Multi-head attention of each position over itself and those before it, with RoPE.

    Products have heads as an axis of their own, so that the compiler writes q, k and v as a kernel
    reads them: flat ones cost a narrow v5p step 4 % in copies, by the compiler's cycles.

    Attributes:
      heads: N; the width must be a multiple of it.
      impl: a key of :data:`mmx.nn.causal.IMPLS`.
      dtype: of the computation.
      out_scale: of the variance of the output projection at the start.
    """

    heads: int
    impl: str = "dense"
    dtype: jnp.dtype = jnp.float32
    out_scale: float = 1.0

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        """[B, L, D] -> [B, L, D]."""
        width = x_BLD.shape[-1]

        def project(name):
            kernel = Kernel((width, width), ("embed", "heads"), name=name)()
            kernel_DNK = kernel.astype(self.dtype).reshape(width, self.heads, -1)
            y_BLNK = jnp.einsum("bld,dnk->blnk", x_BLD, kernel_DNK)
            return constrain(y_BLNK, "act_batch", "act_len", "act_heads", None)

        # Divided by sqrt(K) where they are rotated, which is one reading and writing less.
        q_BLNK = keep(rotate(project("q"), scale=(width // self.heads) ** -0.5), "q")
        k_BLNK = keep(rotate(project("k")), "k")
        out_BLNK = attend_causal(q_BLNK, k_BLNK, keep(project("v"), "v"), self.impl, scaled=True)
        init = _small(self.out_scale)
        kernel = Kernel((width, width), ("heads", "embed"), init, name="out")()
        kernel_NKD = kernel.astype(self.dtype).reshape(self.heads, -1, width)
        return jnp.einsum("blnk,nkd->bld", out_BLNK, kernel_NKD)


class SwiGLU(nn.Module):
    """``(silu(x gate) * x up) down`` (arXiv 2002.05202 eq. 6)."""

    hidden: int
    dtype: jnp.dtype = jnp.float32
    out_scale: float = 1.0

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        """[B, L, D] -> [B, L, D]."""
        gate_BLF, up_BLF = (
            constrain(
                Dense(self.hidden, ("embed", "mlp"), dtype=self.dtype, name=name)(x_BLD),
                "act_batch",
                "act_len",
                "act_mlp",
            )
            for name in ("gate", "up")
        )
        gate_BLF = keep(gate_BLF, "mlp")
        down = Dense(
            x_BLD.shape[-1],
            ("mlp", "embed"),
            dtype=self.dtype,
            kernel_init=_small(self.out_scale),
            name="down",
        )
        return down(jax.nn.silu(gate_BLF) * up_BLF)


def _small(scale: float) -> nn.initializers.Initializer:
    return nn.initializers.variance_scaling(scale, "fan_in", "truncated_normal")


class DecoderBlock(nn.Module):
    """Attention and MLP, each pre-normed and residual."""

    heads: int
    mlp: int
    impl: str = "dense"
    dtype: jnp.dtype = jnp.float32
    out_scale: float = 1.0

    @nn.compact
    def __call__(self, x_BLD):
        """Shaped for ``nn.scan``: returns (x, None)."""
        norm = lambda name: RMSNorm(self.dtype, EPS, name=name)
        x_BLD = constrain(x_BLD, "act_batch", "act_len", "act_embed")
        attention = CausalAttention(
            self.heads, self.impl, self.dtype, self.out_scale, name="attention"
        )
        x_BLD += attention(norm("attention_norm")(x_BLD))
        x_BLD += SwiGLU(self.mlp, self.dtype, self.out_scale, name="mlp")(norm("mlp_norm")(x_BLD))
        return constrain(x_BLD, "act_batch", "act_len", "act_embed"), None


class Decoder(nn.Module):
    """``depth`` blocks and a final norm.

    Attributes:
      depth, heads, mlp: layers, attention heads, hidden width of the MLP.
      impl: of attention, a key of :data:`mmx.nn.causal.IMPLS`.
      remat: what the backward pass keeps of each block, a key of :data:`mmx.nn.remat.REMAT`.
      dtype: of the computation.
    """

    depth: int
    heads: int
    mlp: int
    impl: str = "dense"
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        """[B, L, D] -> [B, L, D]."""
        stack = scan_layers(DecoderBlock, self.depth, self.remat)(
            self.heads, self.mlp, self.impl, self.dtype, 0.5 / self.depth, name="blocks"
        )
        x_BLD, _ = stack(x_BLD)
        return RMSNorm(self.dtype, EPS, name="final_norm")(x_BLD)


class LanguageModel(nn.Module):
    """Logits of the next token: embeddings, a decoder and a head of its own.

    Attributes:
      vocab_size: ids lie in [0, vocab_size).
      width, depth, heads, mlp, impl, remat, dtype: of the decoder.
    """

    vocab_size: int
    width: int
    depth: int
    heads: int
    mlp: int
    impl: str = "dense"
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        rows = round_up(self.vocab_size)
        self.tokens = Embed(rows, self.width, dtype=self.dtype)
        self.decoder = Decoder(self.depth, self.heads, self.mlp, self.impl, self.remat, self.dtype)
        self.head = Dense(rows, ("embed", "vocab"), dtype=self.dtype)

    def __call__(self, ids_BL: jax.Array) -> jax.Array:
        """ids int [B, L] -> float32 logits [B, L, vocab_size]."""
        logits_BLV = self.head(self.hidden(ids_BL))
        logits_BLV = constrain(logits_BLV, "act_batch", "act_len", "act_vocab")
        return logits_BLV[..., : self.vocab_size].astype(jnp.float32)

    def hidden(self, ids_BL: jax.Array) -> jax.Array:
        """ids int [B, L] -> what the head reads, [B, L, width]."""
        x_BLD = constrain(self.tokens(ids_BL), "act_batch", "act_len", "act_embed")
        return self.decoder(x_BLD)
