"""Which features of a data set are its image, its text and its label, whatever they are called."""

from collections.abc import Mapping
from typing import Any

from mmx.core.errors import UserError

_TEXT_NAMES = ("text", "caption")  # which one is the caption where a data set has several texts


def of_type(features: Mapping[str, Any], *types: str) -> list[str]:
    """The names of the features of some types."""
    # By name: `Text` is a function-like class in some versions of TFDS and a subclass in others.
    return [key for key, feature in features.items() if type(feature).__name__ in types]


def roles_of(
    name: str, features: Mapping[str, Any], needs_image: bool
) -> tuple[str | None, str | None, str | None, list[str]]:
    """(image key, text key, label key, each None for none; keys of the other scalars and texts).

    Raises:
      UserError: no one image where one is needed, or no one text or label.
    """
    images = of_type(features, "Image")
    texts = of_type(features, "Text")
    scalars = [
        key
        for key, feature in features.items()
        if type(feature).__name__ in ("Scalar", "Tensor", "ClassLabel") and feature.shape == ()
    ]
    image = images[0] if len(images) == 1 else next((k for k in images if k == "image"), None)
    if image is None and (needs_image or images):
        raise UserError(
            f"data.source=tfds:{name}: has no one image feature; its features: {[*features]}"
        )
    text = texts[0] if len(texts) == 1 else next((k for k in _TEXT_NAMES if k in texts), None)
    label = label_of(features)
    # A single text beside a label is often an id or a file name: the caption has to be called one.
    if label is not None and text is not None and text not in _TEXT_NAMES:
        text = None
    if text is None and label is None:
        raise UserError(
            f"data.source=tfds:{name}: needs a text feature (called caption or text where there "
            f"are several) or a label; its features: {[*features]}"
        )
    kept = [key for key in (*texts, *scalars) if key not in ("image", "text")]
    return image, text, None if text is not None else label, kept


def label_of(features: Mapping[str, Any]) -> str | None:
    """The one label, or the one called so."""
    labels = of_type(features, "ClassLabel")
    return labels[0] if len(labels) == 1 else next((k for k in labels if k == "label"), None)
