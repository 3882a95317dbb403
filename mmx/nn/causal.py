"""Causal attention, written once in plain JAX and once as a TPU kernel that never holds a score.

Axis letters: B batch, L length, M keys, N heads, K head size.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)

from mmx.core.flops import kernel_scope
from mmx.core.partition import spec_for

_NAMES = ("act_batch", "act_len", "act_heads", None)


def attend_causal(
    q_BLNK: jax.Array, k_BLNK: jax.Array, v_BLNK: jax.Array, impl: str, scaled: bool = False
) -> jax.Array:
    """Softmax attention in which a position attends to itself and to those before it.

    Args:
      q_BLNK, k_BLNK, v_BLNK: queries, keys, values.
      impl: a key of ``IMPLS``: "dense", the reference; "splash", for TPUs.
      scaled: the queries come divided by sqrt(K); else that is done here.

    Returns:
      [B, L, N, K] in q's dtype. Its name for remat is "attention_out".

    Raises:
      ValueError: "splash" with L or K not a multiple of 128.
    """
    if not scaled:
        # Here and in float32, so that no implementation rounds it in its own way.
        q_BLNK = (q_BLNK.astype(jnp.float32) * q_BLNK.shape[-1] ** -0.5).astype(q_BLNK.dtype)
    return IMPLS[impl](q_BLNK, k_BLNK, v_BLNK)


def causal_flops(batch: int, length: int, heads: int, head_size: int) -> float:
    """FLOPs of the two products of the splash kernel's forward pass, in its live blocks."""
    block = _block(length)
    blocks = length // block
    live = blocks * (blocks + 1) // 2
    return 2 * 2 * block**2 * head_size * live * heads * batch


def _dense(q_BLNK, k_BLNK, v_BLNK):
    scores_BNLM = jnp.einsum("blnk,bmnk->bnlm", q_BLNK, k_BLNK, preferred_element_type=jnp.float32)
    length = q_BLNK.shape[1]
    visible_LM = jnp.arange(length)[:, None] >= jnp.arange(length)
    weights_BNLM = jax.nn.softmax(jnp.where(visible_LM, scores_BNLM, -jnp.inf), axis=-1)
    out_BLNK = jnp.einsum("bnlm,bmnk->blnk", weights_BNLM.astype(v_BLNK.dtype), v_BLNK)
    return jax.ad_checkpoint.checkpoint_name(out_BLNK, "attention_out")


def _splash(q_BLNK, k_BLNK, v_BLNK):
    """Each device by itself: rows and heads are independent of one another (contract 5)."""
    _, length, _, head_size = q_BLNK.shape
    if head_size % 128:
        raise ValueError(
            f"splash attention needs a head size of a multiple of 128, not {head_size}"
        )

    def local(q_BLNK, k_BLNK, v_BLNK):
        batch, _, heads, _ = q_BLNK.shape
        kernel = _splash_kernel(length, heads)
        q_BNLK, k_BNLK, v_BNLK = (x.swapaxes(1, 2) for x in (q_BLNK, k_BLNK, v_BLNK))
        with kernel_scope(causal_flops(batch, length, heads, head_size)):
            return jax.vmap(kernel)(q_BNLK, k_BNLK, v_BNLK).swapaxes(1, 2)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return local(q_BLNK, k_BLNK, v_BLNK)
    spec = spec_for("attention", q_BLNK.shape, _NAMES, dict(mesh.shape))
    # No check of what varies over devices: the kernel's outputs do not say.
    sharded = jax.shard_map(local, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)
    return sharded(q_BLNK, k_BLNK, v_BLNK)


def _splash_kernel(length: int, heads: int):
    """[N, L, K] three times -> [N, L, K]; what its gradient needs is named for remat."""
    block = _block(length)
    sizes = {name: block for name in (
        "block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv",
        "block_kv_dkv_compute", "block_q_dq", "block_kv_dq",
    )}  # fmt: skip
    mask = splash_attention_mask.CausalMask((length, length))
    return splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([mask] * heads),
        block_sizes=splash_attention_kernel.BlockSizes(**sizes),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name="attention_out",
    )


def _block(length: int) -> int:
    """Side of the square blocks that are computed or left out. 512 at most: ours, as MaxText's."""
    block = math.gcd(length, 512)
    if block % 128:
        raise ValueError(f"splash attention needs a length of a multiple of 128, not {length}")
    return block


IMPLS: dict[str, Callable] = {"dense": _dense, "splash": _splash}
