"""The words of an image as a text to read and to write: a line a layer, its rows parted by ``|``.

    dog
    red white | round soft
    ...

A video's layers go frame by frame; their frames are parted as rows are.
Legend: p, q rows and columns of a layer (of a video o, p, q), T words.
"""

from collections.abc import Sequence

import numpy as np

from mmx.core.errors import UserError
from mmx.data.vocabulary import Vocabulary

_NEXT_ROW = "|"


def lines(vocabulary: Vocabulary, words_by_layer: Sequence[np.ndarray]) -> list[str]:
    """A line for each layer.

    Args:
      words_by_layer: int [p, q], rows of the vocabulary, of the first layers.
    """
    grids = [np.asarray(layer_pq).reshape(-1, layer_pq.shape[-1]) for layer_pq in words_by_layer]
    return [
        f" {_NEXT_ROW} ".join(" ".join(vocabulary.words(row_q)) for row_q in grid) for grid in grids
    ]


def parse(
    vocabulary: Vocabulary,
    text: str,
    sides: Sequence[int],
    source: str = "words",
    frames: Sequence[int] = (),
) -> np.ndarray:
    """int32 [T]: rows of the vocabulary, layer by layer: inverse of :func:`lines`.

    Args:
      text: a line for each of the first layers; blank lines and those that begin with # are passed
        over. The rows of a layer need not be parted.
      sides: of the pyramid's layers, which are square.
      source: for messages.
      frames: of a video, those of each layer.

    Raises:
      UserError: no words, more layers than sides, a layer with another number of words, or a word
        that is none; names the line and the layer.
    """
    layers: list[np.ndarray] = []
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where = f"{source} line {number}: layer {len(layers) + 1}"
        if len(layers) == len(sides):
            raise UserError(f"{where}: there are only {len(sides)}; take the line out")
        side = sides[len(layers)]
        count = frames[len(layers)] if frames else 1
        size = f"{count} x {side} x {side}" if frames else f"{side} x {side}"
        # A word that is the mark itself stands in quotes.
        rows = [part.split() for part in f" {line} ".split(f" {_NEXT_ROW} ")]
        words = [word for row in rows for word in row]
        if len(words) != count * side**2:
            raise UserError(f"{where} has {len(words)} words: it takes {size} = {count * side**2}")
        lengths = [len(row) for row in rows]
        if len(rows) > 1 and lengths != [side] * (count * side):
            raise UserError(
                f"{where} has rows of {lengths} words: it takes {count * side} of {side}"
            )
        try:
            layers.append(vocabulary.find(words))
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    if not layers:
        raise UserError(f"{source}: no words in it; write a line for each of the first layers")
    return np.concatenate(layers)
