"""Published CLIP and SigLIP weights as a model of this family.

    repository = Repository("openai/clip-vit-base-patch32")     # or a folder
    model, params, extra = load_published(repository)
    image_BE = model.apply({"params": params, **extra}, image_BHWC, method="embed_image")

`mmx import` makes a run of them, which is how everything else of mmx takes them.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from mmx.models.clip.model import Clip, make_model

from mmx.pretrained.clip import Published, read_config, read_weights
from mmx.pretrained.hub import Repository


def published_model(published: Published, dtype: jnp.dtype = jnp.float32) -> Clip:
    """The modules of a published config."""
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
