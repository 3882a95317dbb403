"""Published causal language models: one decoder, told by switches which of them it is.

GPT-2; Llama 2 and 3, SmolLM2; Qwen 2 and 3; Gemma 1 to 3. Forward alone, whole rows or piece by
piece with a cache: these weights are not trained here.

Axis letters: B batch, T positions of a piece, M keys, N heads, G key heads, R queries a key head, K
head size, D width, V vocabulary. Layers come first: [depth, ...].
"""

from dataclasses import dataclass
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmx.core.partition import constrain
from mmx.nn.cache import Cache
from mmx.nn.linear import Dense, Embed, round_up
from mmx.nn.norm import LayerNorm, RMSNorm
from mmx.nn.rope import Rope, rotate_by

ACTIVATIONS = {"silu": jax.nn.silu, "gelu": jax.nn.gelu}  # gelu in its tanh form
_FAR = 2**30  # the window of a layer that reads all
_NEVER = -1e30  # finite: what reads nothing has no NaN to pass on


@dataclass(frozen=True)
class Architecture:
    """What the weights are of. A field that most share has their value.

    Attributes:
      vocab_size, width, depth, heads, kv_heads, head_size, mlp: V, D, layers, N, G, K, hidden.
      context: the most positions.
      eps: of the norms.
      windows: of each layer, how many positions a query reads, itself included; 0: all.
      ropes: of each layer; none where positions have a table of their own ("learned").
      layer_norm: LayerNorm with bias instead of RMSNorm.
      norm_offset: added to the norms' scales.
      post_norms: what attention and MLP give is normed too, before it is added.
      qk_norm: queries and keys are normed, before they are rotated.
      qkv_bias, out_bias, mlp_bias: which dense layers have one.
      gated: the MLP is ``(act(x gate) * x up) down``, else ``act(x up) down``.
      activation: a key of ``ACTIVATIONS``.
      tied: logits are products with the embeddings, else of a head of its own.
      embed_scale: of the embeddings, before the first layer.
      query_scale: of the scores.
      attention_cap, logit_cap: c of ``c tanh(x / c)`` over scores and logits; 0: none.
    """

    vocab_size: int
    width: int
    depth: int
    heads: int
    kv_heads: int
    head_size: int
    mlp: int
    context: int
    eps: float
    windows: tuple[int, ...]
    ropes: tuple[Rope, ...]
    query_scale: float
    layer_norm: bool = False
    norm_offset: float = 0.0
    post_norms: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    gated: bool = True
    activation: str = "silu"
    tied: bool = True
    embed_scale: float = 1.0
    attention_cap: float = 0.0
    logit_cap: float = 0.0


class Piece(NamedTuple):
    """Where the positions of a piece are.

    Attributes:
      position_BT: int, in their text.
      document_BT: int: only positions of one number read one another; -1 for padding.
      length_B: int, how much of the cache each row reads.
    """

    position_BT: jax.Array
    document_BT: jax.Array
    length_B: jax.Array


def _norm(arch: Architecture, dtype) -> nn.Module:
    if arch.layer_norm:
        return LayerNorm(dtype, arch.eps, use_bias=True)
    return RMSNorm(dtype, arch.eps, offset=arch.norm_offset)


def _cap(x: jax.Array, cap: float) -> jax.Array:
    return cap * jnp.tanh(x / cap) if cap else x


class Attention(nn.Module):
    """Grouped queries (arXiv 2305.13245) over the piece's own keys and those of the cache."""

    arch: Architecture
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BTD, piece: Piece, window, speed_k, before):
        """-> ([B, T, D], (keys, values) of the piece [B, G, T, K]); ``before``: of the cache."""
        arch = self.arch

        def project(name, heads):
            names = ("embed", "heads")
            dense = Dense(heads * arch.head_size, names, arch.qkv_bias, self.dtype, name=name)
            return dense(x_BTD).reshape(*x_BTD.shape[:2], heads, arch.head_size)

        q_BTNK, k_BTGK = project("q", arch.heads), project("k", arch.kv_heads)
        q_BTNK = constrain(q_BTNK, "act_batch", "act_len", "act_heads", None)
        v_BTGK = project("v", arch.kv_heads)
        if arch.qk_norm:
            norm = lambda name: RMSNorm(self.dtype, arch.eps, offset=arch.norm_offset, name=name)
            q_BTNK, k_BTGK = norm("q_norm")(q_BTNK), norm("k_norm")(k_BTGK)
        if arch.ropes:
            q_BTNK = rotate_by(q_BTNK, speed_k, arch.query_scale, piece.position_BT)
            k_BTGK = rotate_by(k_BTGK, speed_k, 1.0, piece.position_BT)
        else:
            q_BTNK = q_BTNK * arch.query_scale
        own = k_BTGK.swapaxes(1, 2), v_BTGK.swapaxes(1, 2)
        out_BTNK = attend_grouped(q_BTNK, own, piece, window, before, arch.attention_cap)
        out_BTD = out_BTNK.reshape(*x_BTD.shape[:2], -1)
        out = Dense(arch.width, ("heads", "embed"), arch.out_bias, self.dtype, name="out")
        return out(out_BTD), own


def attend_grouped(q_BTNK, own, piece: Piece, window, before, cap: float) -> jax.Array:
    """Causal softmax attention, scores in float32.

    Args:
      q_BTNK: scaled queries.
      own: (keys, values) of the piece, [B, G, T, K]; G divides N.
      piece: where its positions are.
      window: how many positions a query reads.
      before: (keys, values) [B, G, M, K] whose place is their position, or None.
      cap: of the scores.

    Returns:
      [B, T, N, K].
    """
    B, T, N, K = q_BTNK.shape
    q_BTGRK = q_BTNK.reshape(B, T, own[0].shape[1], -1, K)
    position_BT1 = piece.position_BT[:, :, None]

    def score(keys, key_position_BM, known):
        scores = jnp.einsum("btgrk,bgmk->bgrtm", q_BTGRK, keys, preferred_element_type=jnp.float32)
        distance_BTM = position_BT1 - key_position_BM[:, None]
        seen_BTM = known & (distance_BTM >= 0) & (distance_BTM < window)
        return jnp.where(seen_BTM[:, None, None], _cap(scores, cap), _NEVER)

    same_BTT = piece.document_BT[:, :, None] == piece.document_BT[:, None]
    scores, values = [score(own[0], piece.position_BT, same_BTT)], [own[1]]
    if before is not None:
        place_1M = jnp.arange(before[0].shape[2])[None]
        known_B1M = (place_1M < piece.length_B[:, None])[:, None]
        scores.append(score(before[0], place_1M, known_B1M))
        values.append(before[1])
    weights = jax.nn.softmax(jnp.concatenate(scores, -1), -1).astype(q_BTNK.dtype)
    split = jnp.split(weights, [T], axis=-1)
    out = sum(jnp.einsum("bgrtm,bgmk->btgrk", w, v) for w, v in zip(split, values))
    return out.reshape(B, T, N, K)


class Mlp(nn.Module):
    arch: Architecture
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BTD):
        arch = self.arch
        dense = lambda name: Dense(arch.mlp, ("embed", "mlp"), arch.mlp_bias, self.dtype, name=name)
        act, up_BTF = ACTIVATIONS[arch.activation], dense("up")(x_BTD)
        h_BTF = act(dense("gate")(x_BTD)) * up_BTF if arch.gated else act(up_BTF)
        h_BTF = constrain(h_BTF, "act_batch", "act_len", "act_mlp")
        return Dense(arch.width, ("mlp", "embed"), arch.mlp_bias, self.dtype, name="down")(h_BTF)


class Block(nn.Module):
    """Shaped for ``nn.scan``; ``layer`` is one layer's (window, speeds, cache)."""

    arch: Architecture
    dtype: jnp.dtype

    def setup(self):
        norm = lambda: _norm(self.arch, self.dtype)
        self.attention_norm, self.mlp_norm = norm(), norm()
        if self.arch.post_norms:
            self.attention_post_norm, self.mlp_post_norm = norm(), norm()
        self.attention = Attention(self.arch, self.dtype)
        self.mlp = Mlp(self.arch, self.dtype)

    def __call__(self, x_BTD, piece: Piece, layer):
        x_BTD = constrain(x_BTD, "act_batch", "act_len", "act_embed")
        out_BTD, own = self.attention(self.attention_norm(x_BTD), piece, *layer)
        x_BTD += self.attention_post_norm(out_BTD) if self.arch.post_norms else out_BTD
        out_BTD = self.mlp(self.mlp_norm(x_BTD))
        x_BTD += self.mlp_post_norm(out_BTD) if self.arch.post_norms else out_BTD
        return x_BTD, own


class CausalLM(nn.Module):
    """Ids -> logits of the next one.

    Attributes:
      arch: of the weights.
      dtype: of the computation.
    """

    arch: Architecture
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        arch = self.arch
        rows = round_up(arch.vocab_size)
        self.tokens = Embed(rows, arch.width, dtype=self.dtype)
        if not arch.ropes:
            self.positions = Embed(arch.context, arch.width, ("position", "embed"), self.dtype)
        scanned = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, 0),
            length=arch.depth,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        self.blocks = scanned(arch, self.dtype)
        self.final_norm = _norm(arch, self.dtype)
        if not arch.tied:
            self.head = Embed(rows, arch.width, dtype=self.dtype)

    def __call__(self, ids_BT: jax.Array) -> jax.Array:
        """Whole rows: ids int [B, T], T at most the context -> float32 logits [B, T, V]."""
        return self.logits(self.hidden(ids_BT)[0])

    def hidden(self, ids_BT, position_BT=None, document_BT=None, cache: Cache | None = None):
        """What the head reads.

        Args:
          ids_BT: int, of the next positions of each row.
          position_BT: int, of each in its text; those that follow the cache where None.
          document_BT: int, see :class:`Piece`; one text a row where None. All of a row's texts read
            its cache.
          cache: of the positions before, all of which are read; None: there are none.

        Returns:
          (x [B, T, D], the piece's keys, its values [depth, B, G, T, K]: what goes to
          :func:`mmx.nn.cache.write`).

        Raises:
          ValueError: more positions than a learned table has.
        """
        arch, (B, T) = self.arch, ids_BT.shape
        length_B = jnp.zeros(B, jnp.int32) if cache is None else cache.length_B
        if position_BT is None:
            if not arch.ropes and arch.context < T:
                raise ValueError(f"{T} positions: the table of this model has {arch.context}")
            position_BT = length_B[:, None] + jnp.arange(T)
        if document_BT is None:
            document_BT = jnp.zeros((B, T), jnp.int32)
        x_BTD = self.tokens(ids_BT)
        if arch.embed_scale != 1.0:
            x_BTD = x_BTD * jnp.asarray(arch.embed_scale, self.dtype)  # rounded first, as there
        if not arch.ropes:
            x_BTD = x_BTD + self.positions(position_BT)
        windows = jnp.array([window or _FAR for window in arch.windows])
        speeds = np.stack([r.speeds(arch.head_size) for r in arch.ropes]) if arch.ropes else None
        kept = None if cache is None else (cache.k, cache.v)
        piece = Piece(position_BT, document_BT, length_B)
        x_BTD, (k, v) = self.blocks(x_BTD, piece, (windows, speeds, kept))
        return self.final_norm(x_BTD), k, v

    def logits(self, x: jax.Array) -> jax.Array:
        """[..., D] -> float32 [..., V]: products of whichever dtype, of which no sum is rounded."""
        table_VD = (self.tokens if self.arch.tied else self.head).embedding.astype(self.dtype)
        flat = x.reshape(-1, x.shape[-1])
        y = jnp.matmul(flat, table_VD.T, preferred_element_type=jnp.float32)
        y = y.reshape(*x.shape[:-1], -1)[..., : self.arch.vocab_size]
        return _cap(y, self.arch.logit_cap)


def empty_cache(arch: Architecture, batch: int, places: int, dtype=jnp.float32) -> Cache:
    """Of no position, with room for ``places``."""
    zeros = jnp.zeros((arch.depth, batch, arch.kv_heads, places, arch.head_size), dtype)
    return Cache(zeros, zeros, jnp.zeros(batch, jnp.int32))
