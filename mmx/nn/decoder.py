"""A causal decoder as Llama 2 has it (arXiv 2307.09288 sec. 2.2): RMSNorm, RoPE, SwiGLU, no biases.

Axis letters: B batch, L length, D width, F MLP hidden, N heads, K head size, V vocabulary (padded).
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmx.core.partition import constrain
from mmx.nn.linear import Dense, Embed, round_up
from mmx.nn.norm import RMSNorm
from mmx.nn.remat import keep, scan_layers
from mmx.nn.rope import rotate
from mmx.nn.spans import attend_spans

EPS = 1e-5  # of the norms; Llama 2's code


class Layout(NamedTuple):
    """What each position of a row is, where a row is more than one text.

    Attributes:
      position_BL: int, its place in its own document.
      bounds: the keys that it reads, as of :func:`mmx.nn.spans.attend_spans`.
      patch_BQ: int, where the rows' image patches are, L for none; None where no weights are of a
        modality.
    """

    position_BL: jax.Array
    bounds: tuple[jax.Array, jax.Array] | None = None
    patch_BQ: jax.Array | None = None


class Kernel(nn.Module):
    """The weights of a dense layer alone: whoever multiplies says which axes the product has."""

    names: tuple[str, str]
    init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, rows: int, columns: int) -> jax.Array:
        init = nn.with_logical_partitioning(self.init, self.names)
        return self.param("kernel", init, (rows, columns), jnp.float32)


class SelfAttention(nn.Module):
    """Queries, keys and values with RoPE, and the projection of what attention made of them.

    Products have heads as an axis of their own, so that the compiler writes q, k and v as a kernel
    reads them: flat ones cost a narrow v5p step 4 % in copies, by the compiler's cycles.

    Attributes:
      heads: N; the width must be a multiple of it.
      dtype: of the computation.
      out_scale: of the variance of the output projection at the start.
      qk_norm: queries and keys are normed before they are rotated (arXiv 2302.05442).
    """

    heads: int
    dtype: jnp.dtype = jnp.float32
    out_scale: float = 1.0
    qk_norm: bool = False

    def setup(self):
        self.q, self.k, self.v = (Kernel(("embed", "heads")) for _ in range(3))
        self.out = Kernel(("heads", "embed"), _small(self.out_scale))
        if self.qk_norm:
            self.q_norm, self.k_norm = (RMSNorm(self.dtype, EPS) for _ in range(2))

    def qkv(self, x_BLD: jax.Array, position_BL: jax.Array | None = None):
        """[B, L, D] -> q, k, v, each [B, L, N, K]; q is divided by sqrt(K)."""
        width = x_BLD.shape[-1]

        def project(kernel):
            kernel_DNK = kernel(width, width).astype(self.dtype).reshape(width, self.heads, -1)
            y_BLNK = jnp.einsum("bld,dnk->blnk", x_BLD, kernel_DNK)
            return constrain(y_BLNK, "act_batch", "act_len", "act_heads", None)

        q_BLNK, k_BLNK = project(self.q), project(self.k)
        if self.qk_norm:
            q_BLNK, k_BLNK = self.q_norm(q_BLNK), self.k_norm(k_BLNK)
        # Divided by sqrt(K) where they are rotated, which is one reading and writing less.
        scale = (width // self.heads) ** -0.5
        q_BLNK = rotate(q_BLNK, scale=scale, position_BL=position_BL)
        return q_BLNK, rotate(k_BLNK, position_BL=position_BL), project(self.v)

    def merge(self, out_BLNK: jax.Array) -> jax.Array:
        """[B, L, N, K] -> [B, L, D]."""
        width = self.heads * out_BLNK.shape[-1]
        kernel_NKD = self.out(width, width).astype(self.dtype).reshape(self.heads, -1, width)
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
    """Attention and MLP, each pre-normed and residual.

    A caller that holds keys of its own (a cache) takes :meth:`qkv`, attends, and gives the result
    to :meth:`finish`; those two are what ``__call__`` does before and after.

    Attributes:
      heads, mlp, impl, dtype, out_scale, qk_norm, max_span, by_modality: as of :class:`Decoder`.
    """

    heads: int
    mlp: int
    impl: str = "dense"
    dtype: jnp.dtype = jnp.float32
    out_scale: float = 1.0
    qk_norm: bool = False
    max_span: int = 1
    by_modality: bool = False

    def setup(self):
        norm = lambda: RMSNorm(self.dtype, EPS)
        attention = lambda: SelfAttention(self.heads, self.dtype, self.out_scale, self.qk_norm)
        mlp = lambda: SwiGLU(self.mlp, self.dtype, self.out_scale)
        self.attention_norm, self.attention = norm(), attention()
        self.mlp_norm, self.swiglu = norm(), mlp()
        if self.by_modality:
            self.image_attention_norm, self.image_attention = norm(), attention()
            self.image_mlp_norm, self.image_swiglu = norm(), mlp()

    def __call__(self, x_BLD: jax.Array, layout: Layout | None = None):
        """Shaped for ``nn.scan``: returns (x, None). Without a layout a row is one causal text."""
        x_BLD = constrain(x_BLD, "act_batch", "act_len", "act_embed")
        q_BLNK, k_BLNK, v_BLNK = self.qkv(x_BLD, layout)
        q_BLNK, k_BLNK, v_BLNK = keep(q_BLNK, "q"), keep(k_BLNK, "k"), keep(v_BLNK, "v")
        bounds = None if layout is None else layout.bounds
        out_BLNK = attend_spans(
            q_BLNK, k_BLNK, v_BLNK, bounds, self.impl, self.max_span, scaled=True
        )
        return self.finish(x_BLD, out_BLNK, layout), None

    def qkv(self, x_BLD: jax.Array, layout: Layout | None = None):
        """[B, L, D] -> q, k, v, each [B, L, N, K]; q is divided by sqrt(K)."""

        def project(x_BLD, position_BL, image=""):
            normed_BLD = getattr(self, f"{image}attention_norm")(x_BLD)
            return getattr(self, f"{image}attention").qkv(normed_BLD, position_BL)

        return self._routed(project, layout, x_BLD, layout and layout.position_BL)

    def finish(self, x_BLD: jax.Array, out_BLNK: jax.Array, layout: Layout | None = None):
        """The rest of the block: its input and what attention gave -> [B, L, D]."""

        def add(x_BLD, out_BLNK, image=""):
            x_BLD = x_BLD + getattr(self, f"{image}attention").merge(out_BLNK)
            normed_BLD = getattr(self, f"{image}mlp_norm")(x_BLD)
            return x_BLD + getattr(self, f"{image}swiglu")(normed_BLD)

        x_BLD = self._routed(add, layout, x_BLD, out_BLNK)
        return constrain(x_BLD, "act_batch", "act_len", "act_embed")

    def _routed(self, fn, layout: Layout | None, *inputs):
        """``fn`` with the text's weights, and where the patches are with the images' (arXiv
        2411.04996 sec. 2.2: all weights of a layer are of a modality, attention is over all).

        The text's are applied to all positions, of which the patches' results are thrown away: how
        many there are differs from row to row.
        """
        whole = fn(*inputs)
        if not self.by_modality:
            return whole
        take = jax.vmap(lambda x, at: jnp.take(x, at, axis=0, mode="clip"))
        put = jax.vmap(lambda x, at, new: x.at[at].set(new, mode="drop"))
        patch_BQ = layout.patch_BQ
        parts = fn(*(take(x, patch_BQ) for x in inputs), image="image_")
        return jax.tree.map(lambda x, new: put(x, patch_BQ, new), whole, parts)


class Decoder(nn.Module):
    """``depth`` blocks and a final norm.

    Attributes:
      depth, heads, mlp: layers, attention heads, hidden width of the MLP.
      impl: of attention, "auto" or a key of :data:`mmx.nn.spans.IMPLS`.
      remat: what the backward pass keeps of each block, a key of :data:`mmx.nn.remat.REMAT`.
      dtype: of the computation.
      qk_norm: queries and keys are normed.
      max_span: with a layout, the most positions that read one another both ways.
      by_modality: image patches have weights of their own in every layer.
    """

    depth: int
    heads: int
    mlp: int
    impl: str = "dense"
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32
    qk_norm: bool = False
    max_span: int = 1
    by_modality: bool = False

    def setup(self):
        self.blocks = scan_layers(DecoderBlock, self.depth, self.remat)(*self.block_fields())
        self.final_norm = RMSNorm(self.dtype, EPS)

    def __call__(self, x_BLD: jax.Array, layout: Layout | None = None) -> jax.Array:
        """[B, L, D] -> [B, L, D]."""
        x_BLD, _ = self.blocks(x_BLD, layout)
        return self.final_norm(x_BLD)

    def norm(self, x_BLD: jax.Array) -> jax.Array:
        """The final norm alone, for a caller that runs the blocks itself."""
        return self.final_norm(x_BLD)

    def block_fields(self) -> tuple:
        """The arguments of a :class:`DecoderBlock` of this stack."""
        return (
            self.heads,
            self.mlp,
            self.impl,
            self.dtype,
            0.5 / self.depth,
            self.qk_norm,
            self.max_span,
            self.by_modality,
        )


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
