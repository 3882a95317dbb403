"""Multi-head attention: self or cross, with qk-norm, key mask and a learned null slot.

Axis letters: B batch, L query length, M key length, N heads, K head size, D width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmx.core.partition import constrain
from mmx.nn.linear import Dense
from mmx.nn.norm import RMSNorm
from mmx.nn.remat import keep


def attend(
    q_BLNK: jax.Array, k_BMNK: jax.Array, v_BMNK: jax.Array, mask_BM: jax.Array | None = None
) -> jax.Array:
    """Softmax attention, scores and softmax in float32.

    Args:
      q_BLNK, k_BMNK, v_BMNK: queries, keys, values.
      mask_BM: bool, True = the key may be attended. A row needs at least one True.

    Returns:
      [B, L, N, K] in q's dtype.
    """
    scale = q_BLNK.shape[-1] ** -0.5
    scores_BNLM = jnp.einsum(
        "blnk,bmnk->bnlm", q_BLNK * scale, k_BMNK, preferred_element_type=jnp.float32
    )
    if mask_BM is not None:
        scores_BNLM = jnp.where(mask_BM[:, None, None, :], scores_BNLM, -1e30)
    weights_BNLM = jax.nn.softmax(scores_BNLM, axis=-1).astype(v_BMNK.dtype)
    return jnp.einsum("bnlm,bmnk->blnk", weights_BNLM, v_BMNK)


class Attention(nn.Module):
    """Attention of ``x`` over ``context`` (or over itself).

    Attributes:
      heads: N; the width must be a multiple of it.
      null_slot: adds one learned key and value that every query may attend, so that a fully masked
        context is well defined: "text dropped" is "only the null slot" (arXiv 2301.00704 sec. 2.7).
      dtype: of the computation.
      out_scale: of the variance of the output projection at the start.
    """

    heads: int
    null_slot: bool = False
    dtype: jnp.dtype = jnp.float32
    out_scale: float = 1.0

    @nn.compact
    def __call__(
        self,
        x_BLD: jax.Array,
        context_BMD: jax.Array | None = None,
        mask_BM: jax.Array | None = None,
    ) -> jax.Array:
        """x [B, L, D], context [B, M, any], mask bool [B, M] (True = attend) -> [B, L, D]."""
        width = x_BLD.shape[-1]
        head_size = width // self.heads
        context_BMD = x_BLD if context_BMD is None else context_BMD

        def project(name, y):
            y = Dense(width, ("embed", "heads"), dtype=self.dtype, name=name)(y)
            y = y.reshape(*y.shape[:-1], self.heads, head_size)
            return keep(constrain(y, "act_batch", "act_len", "act_heads", None), name)

        q_BLNK = RMSNorm(self.dtype, name="q_norm")(project("q", x_BLD))
        k_BMNK = RMSNorm(self.dtype, name="k_norm")(project("k", context_BMD))
        v_BMNK = project("v", context_BMD)
        if self.null_slot:
            k_BMNK, v_BMNK = (
                jnp.concatenate([self._null(f"null_{which}", y), y], axis=1)
                for which, y in (("k", k_BMNK), ("v", v_BMNK))
            )
            if mask_BM is not None:
                mask_BM = jnp.pad(mask_BM, ((0, 0), (1, 0)), constant_values=True)
        out_BLNK = keep(attend(q_BLNK, k_BMNK, v_BMNK, mask_BM), "attention_out")
        out_BLD = out_BLNK.reshape(*x_BLD.shape[:-1], width)
        init = nn.initializers.variance_scaling(self.out_scale, "fan_in", "truncated_normal")
        return Dense(width, ("heads", "embed"), dtype=self.dtype, kernel_init=init, name="out")(
            out_BLD
        )

    def _null(self, name: str, like_BMNK: jax.Array) -> jax.Array:
        batch, _, heads, head_size = like_BMNK.shape
        slot = self.param(
            name,
            nn.with_logical_partitioning(nn.initializers.normal(1.0), ("heads",)),
            (heads * head_size,),
            jnp.float32,
        )
        slot_NK = slot.reshape(heads, head_size).astype(self.dtype)
        return jnp.broadcast_to(slot_NK, (batch, 1, heads, head_size))
