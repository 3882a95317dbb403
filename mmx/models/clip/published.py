"""Published CLIP and SigLIP weights as a model of this family.

    repository = Repository("openai/clip-vit-base-patch32")     # or a folder
    model, params, extra = load_published(repository)
    image_BE = model.apply({"params": params, **extra}, image_BHWC, method="embed_image")

`mmx import` makes a run of them (:class:`PublishedClip`), which everything else of mmx takes.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmx.core import config as configs
from mmx.core import storage
from mmx.core.errors import UserError
from mmx.data.clip_bpe import ClipTokenizer
from mmx.data.siglip_text import SiglipTokenizer
from mmx.models.clip.model import Clip, make_model, misfit
from mmx.pretrained.clip import Published, read_config, read_weights
from mmx.pretrained.hub import Repository


def published_model(published: Published, dtype: jnp.dtype = jnp.float32) -> Clip:
    """The modules of a published config. Raises UserError for sizes that do not go together."""
    if problem := misfit(published.model, published.image_size):
        raise UserError(f"this published config makes no model: {problem[0]}: {problem[1]}")
    start = dict(scale_start=1 / 0.07)  # what the weights replace
    if published.kind == "siglip":
        start["bias_start"] = -10.0
    return make_model(
        {"remat": "none", **start, **published.model},
        image_size=published.image_size,
        vocab_size=published.vocab_size,
        eot_id=published.eot_id,
        dtype=dtype,
    )


def load_published(
    repository: Repository,
    shardings: Callable[[Any], Any] | None = None,
    dtype: jnp.dtype = jnp.float32,
) -> tuple[Clip, Any, Any]:
    """A published model, ready for ``apply``.

    Args:
      repository: of `transformers`' form (CLIP, SigLIP) or `open_clip`'s (ResNets).
      shardings: shapes whose leaves carry logical names -> shardings, for instance
        ``lambda boxed: infer_shardings(boxed, mesh)``; each device then reads its own part. None:
        arrays of the host.
      dtype: of the computation; parameters are float32.

    Returns:
      (model, params, extra).

    Raises:
      UserError: not such a repository; tensors that do not fit, all of them listed.
    """
    published = read_config(repository)
    model = published_model(published, dtype)
    size = published.image_size
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    text_ids = jax.ShapeDtypeStruct((1, published.max_len), jnp.int32)
    boxed = dict(jax.eval_shape(model.init, jax.random.key(0), image, text_ids))
    boxed = {"params": boxed.pop("params"), "extra": boxed}
    target = nn.unbox(boxed)
    if shardings is not None:
        place = lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s)
        target = jax.tree.map(place, target, shardings(boxed))
    return model, *read_weights(repository, published, target["params"], target["extra"])


# kind -> (the recipe that a run of such weights goes by, how they see an image)
_RECIPES = {
    "clip": ("clip/vit_b32", "short_side"),
    "siglip": ("clip/siglip_b16", "stretch"),
    "open_clip": ("clip/rn50", "short_side"),
}


class PublishedClip:
    """Published weights as the start of a run, see `mmx.models.protocols.PublishedWeights`."""

    def __init__(self, source: str):
        self.repository = Repository(source)
        self.published = read_config(self.repository)

    def config(self):
        """The recipe of the published kind, with the sizes and the pixels of these weights."""
        recipe, crop = _RECIPES[self.published.kind]
        config, published = configs.load_config(recipe), self.published
        with config.unlocked():
            for part in ("image", "text"):
                del config.model[part]
            config.model.update(published.model)
            config.text.update(
                tokenizer="siglip" if published.kind == "siglip" else "clip",
                vocab_size=published.vocab_size,
                max_len=published.max_len,
            )
            config.data.update(image_size=published.image_size, crop=crop)
            config.dtype = "float32"
            config.batch_size = 128  # ours: the recipe's is a pod's, and nothing is trained here
        return config

    def tokenizer_json(self) -> str:
        """SigLIP's is in its repository; CLIP's is always the same, and comes with mmx.

        Raises:
          UserError: a CLIP of another vocabulary or end of text; a SigLIP without tokenizer.json,
            or with another than SigLIP's: SigLIP 2 calls itself "siglip", and has Gemma's.
        """
        published = self.published
        if published.kind == "siglip":
            file = self.repository.get("tokenizer.json")
            SiglipTokenizer.load(file)  # its mistakes now
            return storage.read_text(file)
        tokenizer = ClipTokenizer.published()
        ids = (tokenizer.vocab_size, tokenizer.eot_id)
        if published.vocab_size != ids[0] or published.eot_id not in (None, ids[1]):
            raise UserError(
                f"{self.repository.source}: {published.vocab_size} ids and the end of text "
                f"{published.eot_id}: not CLIP's vocabulary of {ids[0]}, whose end of text is "
                f"{ids[1]}; mmx knows no other"
            )
        return tokenizer.to_str()

    def read(self, params: Any, extra: Any) -> tuple[Any, Any]:
        """See :func:`mmx.pretrained.clip.read_weights`."""
        return read_weights(self.repository, self.published, params, extra)
