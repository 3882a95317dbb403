"""One transformer over text tokens and image patches (arXiv 2408.11039 sec. 3).

Axis letters: B batch, L length of a row, M images of a row, h w latent grid, Z latent channels, S
patches of an image, D width, V vocabulary (padded).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmx.core import tree
from mmx.core.errors import UserError, choose
from mmx.core.flops import matmul_flops
from mmx.core.partition import constrain
from mmx.models.transfusion.patches import PATCHES, LinearPatches, UNetPatches
from mmx.nn.decoder import Decoder, Layout
from mmx.nn.dtypes import DTYPES
from mmx.nn.linear import Dense, Embed, round_up
from mmx.nn.remat import REMAT
from mmx.nn.spans import IMPLS


class TransfusionModel(nn.Module):
    """Embeddings and a head for text, a patch codec for images, and one decoder for both.

    Attributes:
      vocab_size: ids lie in [0, vocab_size), markers among them.
      decoder: the transformer, as a module without parameters yet.
      patches: of :data:`mmx.models.transfusion.patches.PATCHES`, likewise.
    """

    vocab_size: int
    decoder: Decoder
    patches: LinearPatches | UNetPatches

    def setup(self):
        width, dtype = self.patches.width, self.decoder.dtype
        rows = round_up(self.vocab_size)
        self.tokens = Embed(rows, width, dtype=dtype)
        self.head = Dense(rows, ("embed", "vocab"), dtype=dtype)

    def __call__(
        self,
        tokens_BL: jax.Array,
        image_BL: jax.Array,
        first_BM: jax.Array,
        z_BMhwZ: jax.Array,
        t_BM: jax.Array,
        layout: Layout,
    ) -> tuple[jax.Array, jax.Array]:
        """A row of text and noised images.

        Args:
          tokens_BL: int ids; those at patches are not read.
          image_BL: int, which image of the row a position is a patch of; -1: none.
          first_BM: int, the place of each image's first patch; L for an image that is not there.
          z_BMhwZ: noised latents.
          t_BM: their times.
          layout: of the rows.

        Returns:
          (what the head reads [B, L, D], what the patches predict, float32 [B, M, h, w, Z]).
        """
        patches_BQD, kept = self.embed_patches(z_BMhwZ, t_BM)
        x_BLD = self.embed_text(tokens_BL)
        S = patches_BQD.shape[1] // first_BM.shape[1]
        # Each position takes its own: a gather, whose gradient is a sum over no two.
        slot_BL = jnp.maximum(image_BL, 0)
        start_BL = jnp.take_along_axis(first_BM, slot_BL, axis=1)
        which_BL = slot_BL * S + jnp.arange(tokens_BL.shape[1]) - start_BL
        own_BLD = jnp.take_along_axis(patches_BQD, which_BL[..., None], axis=1, mode="clip")
        x_BLD = jnp.where(image_BL[..., None] >= 0, own_BLD, x_BLD)
        hidden_BLD = self.decoder(constrain(x_BLD, "act_batch", "act_len", "act_embed"), layout)
        at_BQ = patch_places(first_BM, S)
        h_BQD = jnp.take_along_axis(hidden_BLD, at_BQ[..., None], axis=1, mode="clip")
        return hidden_BLD, self.predict_patches(h_BQD, kept, z_BMhwZ.shape)

    def embed_text(self, tokens_BL: jax.Array) -> jax.Array:
        """int [B, L] -> [B, L, D]."""
        return constrain(self.tokens(tokens_BL), "act_batch", "act_len", "act_embed")

    def embed_patches(self, z_BMhwZ: jax.Array, t_BM: jax.Array) -> tuple[jax.Array, tuple]:
        """Noised latents and times -> (the rows' patches [B, M * S, D], what predict needs)."""
        B, M = t_BM.shape
        z_IhwZ = z_BMhwZ.reshape(B * M, *z_BMhwZ.shape[2:])
        x_ISD, kept = self.patches.encode(z_IhwZ, t_BM.reshape(-1))
        return x_ISD.reshape(B, -1, x_ISD.shape[-1]), kept

    def predict_patches(self, h_BQD: jax.Array, kept: tuple, shape: tuple) -> jax.Array:
        """The decoder's output at the patches -> predictions, float32 of the latents' shape."""
        B, M = shape[:2]
        h_ISD = h_BQD.reshape(B * M, -1, h_BQD.shape[-1])
        return self.patches.decode(h_ISD, kept).reshape(shape)

    def logits(self, hidden_BLD: jax.Array) -> jax.Array:
        """[B, L, D] -> float32 logits [B, L, vocab_size]."""
        logits_BLV = constrain(self.head(hidden_BLD), "act_batch", "act_len", "act_vocab")
        return logits_BLV[..., : self.vocab_size].astype(jnp.float32)

    def norm(self, x_BLD: jax.Array) -> jax.Array:
        """The decoder's final norm, for a caller that runs its blocks itself."""
        return self.decoder.norm(x_BLD)

    def whole(self, *inputs):
        """Every part once, for init."""
        hidden_BLD, out = self(*inputs)
        return self.logits(hidden_BLD), out


def make_model(config, vocab_size: int, grid: int, latent_dim: int) -> TransfusionModel:
    """Of ``config.model``.

    Args:
      config: of the family.
      vocab_size: with the markers.
      grid, latent_dim: h = w and Z of the codec.

    Raises:
      UserError: sizes that do not fit, an unknown choice.
    """
    m = config.model
    dtype = choose("config.dtype", DTYPES, config.dtype)
    choose("config.model.remat", REMAT, m.remat)
    choose("config.model.attention", dict.fromkeys(("auto", *IMPLS)), m.attention)
    make_patches = choose("config.model.patches", PATCHES, m.patches)
    if m.width % m.heads:
        raise UserError(
            f"config.model.heads={m.heads} does not divide config.model.width={m.width}"
        )
    if grid % m.patch:
        raise UserError(f"config.model.patch={m.patch} does not divide the codec's grid of {grid}")
    if m.patches == "unet" and m.patch & (m.patch - 1):
        raise UserError(f"config.model.patch={m.patch}: a U-Net halves; take 1, 2, 4 or 8")
    decoder = Decoder(
        m.depth,
        m.heads,
        m.mlp,
        m.attention,
        m.remat,
        dtype,
        qk_norm=m.qk_norm,
        max_span=(grid // m.patch) ** 2,
        by_modality=m.by_modality,
    )
    more = dict(channels=m.channels, blocks=m.blocks) if m.patches == "unet" else {}
    patches = make_patches(
        patch=m.patch,
        width=m.width,
        grid=grid,
        latent_dim=latent_dim,
        positions=m.positions,
        dtype=dtype,
        **more,
    )
    return TransfusionModel(vocab_size, decoder, patches)


def patch_places(first_BM: jax.Array, num_patches: int) -> jax.Array:
    """Where the patches of all images lie in their rows: int [B, M * S], L and more for none."""
    at_BMS = first_BM[..., None] + jnp.arange(num_patches)
    return at_BMS.reshape(first_BM.shape[0], -1)


def train_flops(model: TransfusionModel, params, row_len: int, images: tuple) -> float:
    """Of a row's step, three times the forward pass: of each position the weights of one modality
    and the head, of attention the half that a row of one text reads, and the patches' maps.

    Args:
      model, params: the network; shapes of its parameters.
      row_len: L.
      images: (how many at the mean, h, w, Z); a place without one has no FLOPs of the model's.
    """
    flat = tree.flatten(params)
    used = lambda path: path.startswith(("decoder/", "head/")) and "/image_" not in path
    weights = sum(leaf.size for path, leaf in flat.items() if used(path) and "/kernel" in path)
    decoder, width = model.decoder, model.patches.width
    attention = 4 * decoder.depth * width * row_len * (row_len + 1) / 2

    def maps(params, z_BMhwZ, t_BM):
        x_BQD, kept = model.apply({"params": params}, z_BMhwZ, t_BM, method="embed_patches")
        shape = z_BMhwZ.shape
        return model.apply({"params": params}, x_BQD, kept, shape, method="predict_patches")

    z = jax.ShapeDtypeStruct((1, 1, *images[1:]), jnp.float32)
    t = jax.ShapeDtypeStruct((1, 1), jnp.float32)
    patches = images[0] * matmul_flops(maps, params, z, t)
    return 3.0 * (2 * weights * row_len + attention + patches)
