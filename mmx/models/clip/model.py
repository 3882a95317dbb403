"""CLIP and SigLIP: an image tower and a text tower into one space, and a learned temperature.

CLIP: arXiv 2103.00020 sec. 2.4 and the authors' code; SigLIP: arXiv 2303.15343 and Big Vision.

The tree that published weights are written into; every ``dense`` is {kernel [in, out], bias [out]},
every ``norm`` {scale, bias}; leaves of ``blocks`` have all layers stacked in front:

    logit_scale []                          log of the scale
    logit_bias []                           where the config's model has one (SigLIP)
    image/tower                             a ViT:
      patches: kernel [patch*patch*3, D]    of a convolution [D, 3, patch, patch] in the order
                                            (row, column, channel); bias [D] where pool is "map"
      cls [D]                               where pool is "cls"
      positions [L, D]                      L = patches, and the class token first of all
      pre_norm                              where pool is "cls"
      encoder/blocks: attention_norm, attention/{q,k,v,out} dense, mlp_norm, mlp/{in,out} dense
      post_norm
      head: probe [D], attention/{q,k,v,out}, norm, mlp/{in,out}      where pool is "map"
    image/tower                             a ResNet: conv_{1,2,3}/kernel [h, w, in, out],
      norm_{1,2,3}; stage_S_block_I (S from 1, I from 0): conv_{1,2,3}, norm_{1,2,3} and, where the
      shape changes, shortcut, shortcut_norm; pool: positions [L, C], attention/{q,k,v,out}
    image/projection/kernel [D, E]          of a ViT with pool "cls" alone
    text/tokens/embedding [V, D]            V: the vocabulary, padded to a multiple of 128
    text/positions [T, D]
    text/encoder/blocks                     as above
    text/final_norm
    text/projection: kernel [D, E]          and bias [E] where pool is "last"

Heads of q, k, v lie one after another in their out axis, as in PyTorch. A ResNet's running
statistics are ``extra["batch_stats"]["image"]["tower"][...]["norm_1"]{mean, var}``.

Axis letters: B batch, H W pixels, T text tokens, L positions, D width, E joint width, V vocabulary.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmx.nn.encoder import Encoder
from mmx.nn.linear import Dense, Embed, round_up
from mmx.nn.norm import LayerNorm
from mmx.nn.resnet import ModifiedResNet
from mmx.nn.vit import VisionTransformer
from mmx.ops.contrastive import unit

# What is taken off an image in 0..1, and what divides it: of OpenAI's CLIP (its code), of SigLIP.
PIXELS = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
TEXT_POOLS = ("eot", "last")
IMAGE_KINDS = ("vit", "resnet")


class TextTower(nn.Module):
    """Ids to one vector of the joint width.

    Attributes:
      vocab_size: ids lie in [0, vocab_size).
      features: E.
      width, depth, heads, mlp: of the blocks.
      pool: "eot" (CLIP): causal, the state at the end of text, projected without bias. "last"
        (SigLIP): every position sees all, padding too, as it was trained; the last position,
        projected with bias.
      eot_id: of the end of text, whose first place counts; None is OpenAI's rule, the first place
        of the row's largest id.
      activation, eps, remat, dtype: see :class:`mmx.nn.encoder.Encoder`.
    """

    vocab_size: int
    features: int
    width: int
    depth: int
    heads: int
    mlp: int
    pool: str = "eot"
    eot_id: int | None = None
    activation: str = "quick_gelu"
    eps: float = 1e-5
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, text_ids_BT: jax.Array) -> jax.Array:
        """int [B, T] -> [B, E]."""
        by_eot = self.pool == "eot"
        rows = round_up(self.vocab_size)
        x_BTD = Embed(rows, self.width, dtype=self.dtype, std=0.02, name="tokens")(text_ids_BT)
        init = nn.with_logical_partitioning(nn.initializers.normal(0.01), ("position", "embed"))
        shape = (text_ids_BT.shape[1], self.width)
        x_BTD += self.param("positions", init, shape, jnp.float32).astype(self.dtype)
        x_BTD = Encoder(
            self.depth,
            self.heads,
            self.mlp,
            self.activation,
            causal=by_eot,
            eps=self.eps,
            remat=self.remat,
            dtype=self.dtype,
            name="encoder",
        )(x_BTD)
        if by_eot:
            found_BT = text_ids_BT if self.eot_id is None else text_ids_BT == self.eot_id
            place_B = jnp.argmax(found_BT, axis=1)  # the first of equals
        else:
            place_B = jnp.full(len(text_ids_BT), text_ids_BT.shape[1] - 1)
        x_BD = jnp.take_along_axis(x_BTD, place_B[:, None, None], axis=1)[:, 0]
        x_BD = LayerNorm(self.dtype, self.eps, use_bias=True, name="final_norm")(x_BD)
        init = nn.initializers.normal(self.width**-0.5)
        return Dense(
            self.features, ("embed", "joint"), not by_eot, self.dtype, init, name="projection"
        )(x_BD)


class ImageTower(nn.Module):
    """An image to one vector of the joint width: a tower and, after CLIP's ViT, a matrix.

    Attributes:
      tower: a module, image -> [B, D].
      features: E.
      pixels: a key of ``PIXELS``, how the tower wants its input.
      projects: whether the matrix is there.
    """

    tower: nn.Module
    features: int
    pixels: str
    projects: bool
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image_BHWC: jax.Array, train: bool = False, project: bool = True):
        """float32 [B, H, W, 3] in [-1, 1] -> [B, E]; without projection the tower's own [B, D]."""
        mean, std = (np.asarray(x, np.float32) for x in PIXELS[self.pixels])
        x_BHWC = (image_BHWC * 0.5 + 0.5 - mean) / std
        takes_train = isinstance(self.tower, ModifiedResNet)
        x_BD = self.tower(x_BHWC, train) if takes_train else self.tower(x_BHWC)
        if self.projects:
            init = nn.initializers.normal(x_BD.shape[-1] ** -0.5)
            dense = Dense(
                self.features, ("embed", "joint"), False, self.dtype, init, name="projection"
            )
            return dense(x_BD) if project or self.is_initializing() else x_BD
        return x_BD


class Clip(nn.Module):
    """Both towers and the temperature.

    Attributes:
      image, text: modules to the joint width.
      scale_start: of the scale, whose log is learned.
      bias_start: of the bias of all logits; None for none.
    """

    image: nn.Module
    text: nn.Module
    scale_start: float
    bias_start: float | None = None

    def setup(self):
        scalar = lambda name, value: self.param(
            name,
            nn.with_logical_partitioning(nn.initializers.constant(value), ()),
            (),
            jnp.float32,
        )
        self.logit_scale = scalar("logit_scale", float(np.log(self.scale_start)))
        if self.bias_start is not None:
            self.logit_bias = scalar("logit_bias", self.bias_start)

    def __call__(self, image_BHWC: jax.Array, text_ids_BT: jax.Array, train: bool = False):
        """(image [B, E], text [B, E], log scale [], bias []), embeddings of length 1 in float32."""
        image_BE, text_BE = self.embed_image(image_BHWC, train), self.embed_text(text_ids_BT)
        return image_BE, text_BE, self.logit_scale, self.bias()

    def embed_image(self, image_BHWC: jax.Array, train: bool = False) -> jax.Array:
        """float32 [B, H, W, 3] in [-1, 1] -> [B, E] of length 1, float32."""
        return unit(self.image(image_BHWC, train))

    def embed_text(self, text_ids_BT: jax.Array) -> jax.Array:
        """int [B, T] -> [B, E] of length 1, float32."""
        return unit(self.text(text_ids_BT))

    def features(self, image_BHWC: jax.Array) -> jax.Array:
        """float32 [B, H, W, 3] in [-1, 1] -> [B, D], before the joint space: what a linear probe
        reads (arXiv 2103.00020 app. A)."""
        return self.image(image_BHWC, False, project=False).astype(jnp.float32)

    def bias(self) -> jax.Array:
        """Of all logits; 0 where the model has none."""
        return jnp.zeros(()) if self.bias_start is None else self.logit_bias


def make_model(
    model,
    *,
    image_size: int,
    vocab_size: int,
    eot_id: int | None = None,
    dtype: jnp.dtype = jnp.float32,
) -> Clip:
    """The model of ``config.model``, a ConfigDict or a plain dict of dicts.

    Args:
      model: features (E), activation, eps, remat, scale_start and, for SigLIP, bias_start; image:
        kind "vit" with patch, width, depth, heads, mlp, pool, or kind "resnet" with blocks and
        width, either with pixels; text: width, depth, heads, mlp, pool.
      image_size: pixels of a side; only checked here.
      vocab_size: of the tokenizer.
      eot_id: see :class:`TextTower`.
      dtype: of the computation.

    Raises:
      ValueError: a size that does not fit, or an unknown choice; tasks check their config first.
    """
    image, text = dict(model["image"]), dict(model["text"])
    kind, pixels = image.pop("kind"), image.pop("pixels")
    shared = dict(
        activation=model["activation"], eps=model["eps"], remat=model["remat"], dtype=dtype
    )
    if problem := misfit(model, image_size):
        raise ValueError(": ".join(problem))
    if kind == "resnet":
        tower = ModifiedResNet(
            tuple(image["blocks"]), image["width"], model["features"], model["remat"], dtype
        )
    else:
        tower = VisionTransformer(**image, **shared)
    projects = kind == "vit" and image["pool"] == "cls"
    return Clip(
        ImageTower(tower, model["features"], pixels, projects, dtype),
        TextTower(vocab_size, model["features"], **text, eot_id=eot_id, **shared),
        model["scale_start"],
        model.get("bias_start"),
    )


def misfit(model, image_size: int) -> tuple[str, str] | None:
    """(field below ``config.model``, what to do) of the first thing that cannot work, or None."""
    image, text = model["image"], model["text"]
    for field, value, known in (
        ("image.kind", image["kind"], IMAGE_KINDS),
        ("image.pixels", image["pixels"], tuple(PIXELS)),
        ("image.pool", image.get("pool", "cls"), ("cls", "map")),
        ("text.pool", text["pool"], TEXT_POOLS),
    ):
        if value not in known:
            return f"{field}={value!r}", f"use one of {', '.join(known)}"
    for field, part in (("image", image), ("text", text)):
        if "heads" in part and part["width"] % part["heads"]:
            return f"{field}.heads={part['heads']}", f"does not divide width={part['width']}"
    if image["kind"] == "resnet":
        if image_size % 32:
            return "image.kind='resnet'", f"needs images of a multiple of 32, not {image_size}"
        if len(image["blocks"]) != 4 or image["width"] % 2:
            return "image.blocks", "four stages, and an even width"
    elif image_size % image["patch"]:
        return f"image.patch={image['patch']}", f"does not divide the image's {image_size} pixels"
    if image.get("pool") == "map" and image["width"] != model["features"]:
        return f"features={model['features']}", f"is image.width={image['width']} with pool 'map'"
    return None
