"""The order in which a language model writes the words of an image: segments of a few words each.

No model writes all words of an image out of a few examples. The upper layers are written whole, the
lower ones by blocks, and each segment gets a prompt of its own that shows of every image only what
the segment needs (arXiv 2306.17842 sec. 4, progressive in-context decoding, as recalled).
Words count from 0 over all layers, one layer after another, as `mmx.ops.pyramid.flatten` has them.
Legend: h w latent grid (of a video t h w), p q grid of one layer, T words of all layers.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from mmx.core.errors import UserError
from mmx.ops.pyramid import Pyramid


class Segment(NamedTuple):
    """Words that are written in one go.

    Attributes:
      layer: from 0.
      start: of its words, row by row.
      length: at least 1.
    """

    layer: int
    start: int
    length: int

    def __str__(self) -> str:
        last = self.start + self.length - 1
        return f"layer {self.layer + 1}, words {self.start}-{last}"


@dataclasses.dataclass(frozen=True)
class Window:
    """What a segment's prompt shows of an image beside the segment's own words.

    upper: the words of so many layers from the top, of what is given and of what is wanted (as far
      as they come before the segment).
    lookback: so many words just before the segment, of what is wanted (16 in V2L's evaluation
      script, arXiv 2403.07874).
    """

    upper: int = 2
    lookback: int = 16


def segment_plan(
    pyramid: Pyramid, block: int, is_asked_T: np.ndarray | None = None
) -> list[Segment]:
    """Every word that is asked for, once, the upper layers first.

    Args:
      block: the most words in one go: a layer of no more is written whole.
      is_asked_T: bool [T]; the others are known. None: all are asked for.

    Raises:
      UserError: a block below 1, nothing asked for.
    """
    if block < 1:
        raise UserError(f"block={block}: the most words to write in one go, at least 1")
    is_asked_T = np.ones(pyramid.ends[-1], bool) if is_asked_T is None else is_asked_T
    plan, begin = [], 0
    for layer, end in enumerate(pyramid.ends):
        edges = np.flatnonzero(np.diff(is_asked_T[begin:end], prepend=False, append=False))
        for first, last in edges.reshape(-1, 2).tolist():
            for start in range(first, last, block):
                plan.append(Segment(layer, start, min(block, last - start)))
        begin = end
    if not plan:
        raise UserError("no word is asked for: hide at least one cell that has words")
    return plan


def asked_words(pyramid: Pyramid, is_asked_hw: np.ndarray) -> np.ndarray:
    """bool [T]: the words whose cell is asked for (with "area": whose block's centre is)."""
    cells = [pyramid.places(layer) for layer in range(pyramid.num_layers)]
    return np.concatenate([is_asked_hw[at].ravel() for at in cells])


def places(pyramid: Pyramid, segment: Segment, window: Window) -> tuple[list[int], ...]:
    """Which words a segment's prompt shows.

    Returns:
      (of what is given, of what is wanted before the segment, the segment itself): places in
      [0, T), each list rising.
    """
    ends = (0, *pyramid.ends)
    begin = ends[segment.layer] + segment.start
    own = set(range(begin, begin + segment.length))
    upper = set(range(ends[min(window.upper, pyramid.num_layers)]))
    back = set(range(max(begin - window.lookback, 0), begin))
    before = back | {place for place in upper if place < begin}
    return sorted(upper | own), sorted(before), sorted(own)
