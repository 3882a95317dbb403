"""Vision transformers of CLIP and of SigLIP: patches, blocks, one vector an image or all tokens.

Axis letters: B batch, H W pixels, L patches (and the class token), D width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmx.nn.conv import space_to_depth
from mmx.nn.encoder import Encoder, Mlp, MultiHeadAttention
from mmx.nn.linear import Dense
from mmx.nn.norm import LayerNorm


class VisionTransformer(nn.Module):
    """An image to one vector, or to one for each token.

    Attributes:
      patch: pixels of a side of a patch; must divide the image.
      width, depth, heads, mlp: of the blocks.
      pool: "cls" (CLIP, arXiv 2103.00020 sec. 2.4): a class token, whose state after the last block
        is normed; an extra norm before the first block; patches embedded without bias. "map"
        (SigLIP, after arXiv 2106.04560 sec. 3.4): all tokens normed, then attention pooling by a
        learned probe; patches with bias, no class token, no extra norm. "none": the tower of
        "cls" with all its tokens normed, for a decoder that attends to them.
      activation: a key of :data:`mmx.nn.transformer.ACTIVATIONS`.
      eps: of the layer norms.
      remat: a key of :data:`mmx.nn.remat.REMAT`.
      dtype: of the computation.
    """

    patch: int
    width: int
    depth: int
    heads: int
    mlp: int
    pool: str = "cls"
    activation: str = "quick_gelu"
    eps: float = 1e-5
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image_BHWC: jax.Array) -> jax.Array:
        """float [B, H, W, 3] -> [B, D]; [B, L, D] with pool "none"."""
        D = self.width
        by_cls = self.pool in ("cls", "none")
        normal = lambda name, shape, names: self.param(
            name,
            nn.with_logical_partitioning(nn.initializers.normal(D**-0.5), names),
            shape,
            jnp.float32,
        ).astype(self.dtype)
        norm = lambda name: LayerNorm(self.dtype, self.eps, use_bias=True, name=name)

        # A convolution whose stride is its size: a matmul over each patch's pixels, row by row.
        x = space_to_depth(image_BHWC.astype(self.dtype), self.patch)
        x_BLD = Dense(D, ("pixels", "embed"), not by_cls, self.dtype, name="patches")(
            x.reshape(x.shape[0], -1, x.shape[-1])
        )
        if by_cls:
            cls = normal("cls", (D,), ("embed",))
            cls_B1D = jnp.broadcast_to(cls, (x_BLD.shape[0], 1, D))
            x_BLD = jnp.concatenate([cls_B1D, x_BLD], axis=1)
        x_BLD += normal("positions", (x_BLD.shape[1], D), ("position", "embed"))
        if by_cls:
            x_BLD = norm("pre_norm")(x_BLD)
        x_BLD = Encoder(
            self.depth,
            self.heads,
            self.mlp,
            self.activation,
            eps=self.eps,
            remat=self.remat,
            dtype=self.dtype,
            name="encoder",
        )(x_BLD)
        if by_cls:
            return norm("post_norm")(x_BLD if self.pool == "none" else x_BLD[:, 0])
        return MapHead(self.heads, self.mlp, self.activation, self.eps, self.dtype, name="head")(
            norm("post_norm")(x_BLD)
        )


class MapHead(nn.Module):
    """Multi-head attention pooling: one learned query over all tokens, then an MLP.

    Big Vision's ``MAPHead``; arXiv 2106.04560 sec. 3.4.
    """

    heads: int
    mlp: int
    activation: str
    eps: float = 1e-6
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        """[B, L, D] -> [B, D]."""
        B, _, D = x_BLD.shape
        init = nn.with_logical_partitioning(nn.initializers.normal(D**-0.5), ("embed",))
        probe = self.param("probe", init, (D,), jnp.float32).astype(self.dtype)
        probe_B1D = jnp.broadcast_to(probe, (B, 1, D))
        y_B1D = MultiHeadAttention(self.heads, dtype=self.dtype, name="attention")(probe_B1D, x_BLD)
        normed = LayerNorm(self.dtype, self.eps, use_bias=True, name="norm")(y_B1D)
        y_B1D += Mlp(self.mlp, self.activation, self.dtype, name="mlp")(normed)
        return y_B1D[:, 0]
