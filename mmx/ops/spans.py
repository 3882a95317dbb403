"""Which keys a query reads, as two numbers: the mask of text and images packed in one row.

Causal over a document, both ways inside each image, nothing between documents: such a mask is one
interval of keys for each query, so a row of length L needs 2 L integers and no L x L array.
Source: the mask of Transfusion (arXiv 2408.11039 sec. 3), several documents a row.
Axis letters: B batch, L length.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmx.core.errors import UserError


class Bounds(NamedTuple):
    """Query q reads the keys start[q] <= k < end[q]; none where they are equal.

    Attributes:
      start_BL, end_BL: int32 in [0, L].
    """

    start_BL: jax.Array
    end_BL: jax.Array


def bounds_of(document_BL: jax.Array, image_BL: jax.Array) -> Bounds:
    """The bounds of rows that hold documents one after another.

    A text token reads its document up to itself, a patch up to the last patch of its own image.
    Padding reads nothing, and is read by nothing.

    Args:
      document_BL: int, the number of the document, -1 for padding. Neighbours of one number are one
        document; a number may come again further on, for another one.
      image_BL: int, the number of the image for a patch, else -1. The patches of an image lie side
        by side; images that touch differ in number.
    """
    position_L = jnp.arange(document_BL.shape[1], dtype=jnp.int32)
    first_BL = _differs_from_last(document_BL)
    start_BL = jax.lax.cummax(jnp.where(first_BL, position_L, 0), axis=1)
    # The last of an image, or of what is no image, is followed by the first of something else.
    last_BL = jnp.roll(first_BL | _differs_from_last(image_BL), -1, axis=1)
    end = jnp.where(last_BL, position_L + 1, document_BL.shape[1])
    end_BL = jax.lax.cummin(end, axis=1, reverse=True)
    end_BL = jnp.where(image_BL >= 0, end_BL, position_L + 1)
    padding_BL = document_BL < 0
    return Bounds(
        jnp.where(padding_BL, position_L, start_BL), jnp.where(padding_BL, position_L, end_BL)
    )


def _differs_from_last(x_BL):
    """True at the first position too."""
    return jnp.diff(x_BL, axis=1, prepend=x_BL[:, :1] - 1) != 0


def check_spans(document_BL: np.ndarray, image_BL: np.ndarray, max_span: int) -> None:
    """Refuse an image that a kernel with a band of ``max_span`` would cut short. For the pipeline.

    Args:
      document_BL, image_BL: as in :func:`bounds_of`, on the host.
      max_span: the most patches that an image may have.

    Raises:
      UserError: an image is longer.
    """
    for row, (document_L, image_L) in enumerate(zip(document_BL, image_BL)):
        edges = (np.diff(document_L) != 0) | (np.diff(image_L) != 0)
        first = np.concatenate([[0], np.flatnonzero(edges) + 1])
        length = np.diff(np.append(first, len(image_L)))
        longest = length[image_L[first] >= 0].max(initial=0)
        if longest > max_span:
            raise UserError(
                f"row {row}: an image of {longest} patches, but max_span={max_span}: set max_span "
                "to the patches of the largest image"
            )
