"""Pre-norm transformer stack, scanned over layers.

Scanning compiles one layer whatever the depth, and is 1.6 times faster to run on XLA:CPU.
Axis letters: B batch, L length, T text tokens, D width.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmx.core.partition import constrain
from mmx.nn.attention import Attention
from mmx.nn.linear import Dense
from mmx.nn.norm import LayerNorm
from mmx.nn.remat import keep, scan_layers

ACTIVATIONS = {
    # Tanh form. Its gradient keeps the input alone, not four arrays of that size a layer.
    "gelu": jax.checkpoint(jax.nn.gelu, prevent_cse=False),
    # What published towers were trained with: OpenAI's CLIP, and the exact form.
    "quick_gelu": jax.checkpoint(lambda x: x * jax.nn.sigmoid(1.702 * x), prevent_cse=False),
    "gelu_erf": jax.checkpoint(
        functools.partial(jax.nn.gelu, approximate=False), prevent_cse=False
    ),
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),  # arXiv 2109.08668: far cheaper on a CPU
}


class Block(nn.Module):
    """Self-attention, cross-attention if there is a context, MLP; each pre-normed and residual.

    What a branch adds starts small, variance ``out_scale``, so that the sum of all branches starts
    about as large as the embeddings (GPT-2's rule).
    """

    heads: int
    mlp: int
    activation: str = "gelu"
    dtype: jnp.dtype = jnp.float32
    out_scale: float = 1.0

    @nn.compact
    def __call__(self, x_BLD, mask_BL, context_BTD, context_mask_BT):
        """Shaped for ``nn.scan``: returns (x, None). Masks: True = attend; None = attend to all."""
        width = x_BLD.shape[-1]
        norm = lambda name: LayerNorm(self.dtype, name=name)
        x_BLD = constrain(x_BLD, "act_batch", "act_len", "act_embed")
        attention = functools.partial(
            Attention, self.heads, dtype=self.dtype, out_scale=self.out_scale
        )
        x_BLD += attention(name="self_attention")(norm("self_norm")(x_BLD), mask_BM=mask_BL)
        if context_BTD is not None:
            x_BLD += attention(null_slot=True, name="cross_attention")(
                norm("cross_norm")(x_BLD), context_BTD, context_mask_BT
            )
        h_BLF = Dense(self.mlp, ("embed", "mlp"), dtype=self.dtype, name="mlp_in")(
            norm("mlp_norm")(x_BLD)
        )
        h_BLF = keep(constrain(h_BLF, "act_batch", "act_len", "act_mlp"), "mlp")
        h_BLF = ACTIVATIONS[self.activation](h_BLF)
        init = nn.initializers.variance_scaling(self.out_scale, "fan_in", "truncated_normal")
        x_BLD += Dense(width, ("mlp", "embed"), dtype=self.dtype, kernel_init=init, name="mlp_out")(
            h_BLF
        )
        return x_BLD, None


class Transformer(nn.Module):
    """``depth`` blocks and a final norm.

    Attributes:
      depth, heads, mlp: layers, attention heads, hidden width of the MLP.
      activation: a key of ``ACTIVATIONS``.
      remat: what the backward pass keeps of each block, a key of :data:`mmx.nn.remat.REMAT`.
      dtype: of the computation.
    """

    depth: int
    heads: int
    mlp: int
    activation: str = "gelu"
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BLD, mask_BL=None, context_BTD=None, context_mask_BT=None):
        """x [B, L, D]; mask bool [B, L]; context [B, T, any] with its mask -> [B, L, D]."""
        stack = scan_layers(Block, self.depth, self.remat)(
            self.heads, self.mlp, self.activation, self.dtype, 0.5 / self.depth, name="blocks"
        )
        x_BLD, _ = stack(x_BLD, mask_BL, context_BTD, context_mask_BT)
        return LayerNorm(self.dtype, name="final_norm")(x_BLD)
