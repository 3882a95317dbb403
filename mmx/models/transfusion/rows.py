"""Documents of text and images to packed rows of tokens (arXiv 2408.11039 sec. 3.1, 3.3).

A document is ``<bos> part part ... <eos>``; an image part is ``<boi> patches <eoi>`` (table 1). All
draws of a row (which comes first, what is dropped) are made here, on the host, from the row's own
generator.

Axis letters: L length of a row, M images of a row, S patches of an image, H W pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np

from mmx.core.errors import UserError

NO_LABEL = -1
_PADDING = -1


@dataclass(frozen=True)
class Markers:
    """Ids of the markers, beyond those of the tokenizer (``vocab_size``) and its end of text."""

    eos: int
    bos: int
    boi: int
    eoi: int

    @classmethod
    def after(cls, vocab_size: int, eos: int) -> "Markers":
        """Three ids from ``vocab_size`` on."""
        return cls(eos, vocab_size, vocab_size + 1, vocab_size + 2)

    @property
    def count(self) -> int:
        """Of ids, the tokenizer's and these."""
        return self.eoi + 1


@dataclass(frozen=True)
class RowRules:
    """How documents become rows.

    Attributes:
      markers: their ids.
      encode: text -> ids, without an end.
      fit: image uint8 [any, any, 3] -> uint8 [H, W, 3].
      length: L.
      max_images: M.
      patches: S.
      image_size: H = W.
      image_first: the share of pairs in which the image precedes its caption (sec. 3.3: 0.2).
      noise_limit: the most noise of an image that something follows (sec. 3.3: 0.5). 0 gives it
        clean and without a loss: later text reads what it does at sampling, and an image is learned
        only where it is the last of a document.
      clean_copies: an image that something follows is there twice (arXiv 2505.14683), whatever
        ``noise_limit`` says: clean and without a loss where it is, and in full noise and learned at
        the end of a copy of the document up to it, of which nothing else is learned. So all is read
        as at sampling and all images are learned. (A second copy in the same document would read
        two intervals of keys: what is before its image, and itself.)
      drop: how often what precedes an image that ends its document is hidden from it, for guidance:
        the image, from its marker on, becomes a document of its own, and what is before it is not
        learned.
      latents: (h, w, Z) of the images of documents where those are stored latents; None where they
        are pixels, which ``fit`` makes ready.
    """

    markers: Markers
    encode: Callable[[str], list[int]]
    fit: Callable[[np.ndarray], np.ndarray]
    length: int
    max_images: int
    patches: int
    image_size: int
    image_first: float = 0.2
    noise_limit: float = 0.5
    drop: float = 0.1
    clean_copies: bool = False
    latents: tuple[int, int, int] | None = None

    @property
    def image(self) -> tuple[tuple[int, int, int], type]:
        """(shape, dtype) of an image in a row."""
        if self.latents:
            return self.latents, np.float16
        return (self.image_size, self.image_size, 3), np.uint8

    def spec(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Of so many rows of :func:`pack`, and their positions in the stream."""
        (shape, dtype), L, M = self.image, self.length, self.max_images
        spec = lambda dtype, *shape: jax.ShapeDtypeStruct((count, *shape), dtype)
        names = ("tokens", "document", "image", "labels")
        return {name: spec(np.int32, L) for name in names} | {
            "images": spec(dtype, M, *shape),
            "first": spec(np.int32, M),
            "noise_limit": spec(np.float32, M),
            "position": spec(np.uint32),
        }

    def count(self, example: dict) -> tuple[int, int]:
        """The most (tokens, images) that an example takes of a row, whatever is drawn."""
        parts, sizes = parts_of(example), []
        turned = is_pair(example) and self.clean_copies and self.image_first > 0
        for ordered in [parts, parts[::-1]] if turned else [parts]:
            tokens = images = 0
            for document, is_copy in self.documents(ordered):
                texts = [part for part in document if isinstance(part, str)]
                images += len(document) - len(texts)
                tokens += sum(len(self.encode(text)) for text in texts) + (0 if is_copy else 2)
                tokens += (len(document) - len(texts)) * (self.patches + 2)
            sizes.append((tokens, images))
        return max(sizes)

    def documents(self, parts: list) -> list[tuple[list, bool]]:
        """(parts, is it a copy that ends in an image) of each document that parts become."""
        ends = [n + 1 for n, part in enumerate(parts[:-1]) if not isinstance(part, str)]
        copies = [(parts[:end], True) for end in ends] if self.clean_copies else []
        return [(parts, False), *copies]


def check_config(config, patches: int) -> None:
    """Raises UserError: a row that cannot hold an image or is not whole chunks, a share."""
    data = config.data
    if data.row_len % config.loss.chunk:
        raise UserError(
            f"config.loss.chunk={config.loss.chunk} does not divide "
            f"config.data.row_len={data.row_len}"
        )
    if data.row_len < (least := patches + 4):
        raise UserError(
            f"config.data.row_len={data.row_len}: one image and its markers take {least}"
        )
    for name in ("image_first", "noise_limit", "drop"):
        if not 0 <= config.loss[name] <= 1:
            raise UserError(f"config.loss.{name}={config.loss[name]}: give a share from 0 to 1")


def parts_of(example: dict) -> list:
    """Of a pair the caption and the image, of a text the text; ``example["parts"]`` as it is."""
    if "parts" in example:
        return list(example["parts"])
    return [example["text"]] + ([example["image"]] if "image" in example else [])


def is_pair(example: dict) -> bool:
    """Is it one of which either part may come first?"""
    return "parts" not in example and "image" in example


def pack(examples: list[dict], rules: RowRules, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """One row.

    Args:
      examples: documents that fit it together.
      rules: how.
      rng: of this row.

    Returns:
      tokens, document (-1 padding), image (number of the image at its patches, else -1), labels
      (the next id where it counts, else -1): int32 [L]; images uint8 [M, H, W, 3], of latents
      float16 [M, h, w, Z]; first: int32 [M], each image's first patch, L for none; noise_limit:
      float32 [M], the most noise, 0 for an image without a loss or none.

    Raises:
      UserError: more tokens or images than fit.
    """
    L, M = rules.length, rules.max_images
    row = {
        "tokens": np.full(L, rules.markers.eos, np.int32),
        "document": np.full(L, _PADDING, np.int32),
        "image": np.full(L, -1, np.int32),
        "labels": np.full(L, NO_LABEL, np.int32),
        "first": np.full(M, L, np.int32),
        "noise_limit": np.zeros(M, np.float32),
    }
    images: list[np.ndarray] = []
    at, documents = 0, 0
    for example in examples:
        ordered = parts_of(example)
        if is_pair(example) and rng.random() < rules.image_first:
            ordered = ordered[::-1]
        for parts, is_copy in rules.documents(ordered):
            at, documents = _write(parts, is_copy, rules, rng, row, images, at, documents)
    shape, dtype = rules.image
    row["images"] = np.zeros((M, *shape), dtype)
    for slot, image in enumerate(images):
        row["images"][slot] = image
    return row


def prompt(parts: list, rules: RowRules, length: int) -> dict[str, np.ndarray]:
    """A document that is to be gone on with: one row, without an end.

    Args:
      parts: texts, and images uint8 [any, any, 3].
      rules: how; no draw is made.
      length: L of the row.

    Returns:
      tokens, image (as :func:`pack`): int32 [L]; first: int32 [M]; images: uint8 [M, H, W, 3];
      length: int32, how many tokens.

    Raises:
      UserError: a part that is neither, an empty text, or more tokens or images than fit.
    """
    markers = rules.markers
    tokens, image_of, first, images = [markers.bos], [-1], [], []
    for part in parts:
        if isinstance(part, str):
            ids = rules.encode(part)
            if not ids:
                raise UserError(f"prompt {part!r} is empty")
            tokens += ids
            image_of += [-1] * len(ids)
            continue
        shape, dtype = np.shape(part), getattr(part, "dtype", None)
        if dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or 0 in shape:
            raise UserError(
                f"an image of the prompt is {dtype} of shape {shape}: give uint8 [H, W, 3], RGB"
            )
        first.append(len(tokens) + 1)
        tokens += [markers.boi, *[markers.eos] * rules.patches, markers.eoi]
        image_of += [-1, *[len(images)] * rules.patches, -1]
        images.append(rules.fit(part))
    if len(images) > rules.max_images:
        raise UserError(
            f"{len(images)} images in the prompt, but this run reads at most "
            f"config.data.max_images={rules.max_images}"
        )
    if len(tokens) > length:
        raise UserError(f"the prompt is {len(tokens)} tokens, but at most {length} fit")
    pad = lambda ids, fill: np.array(ids + [fill] * (length - len(ids)), np.int32)
    size, missing = rules.image_size, rules.max_images - len(images)
    blank = np.zeros((size, size, 3), np.uint8)
    return {
        "tokens": pad(tokens, markers.eos),
        "image": pad(image_of, -1),
        "first": np.array(first + [length] * missing, np.int32),
        "images": np.stack(images + [blank] * missing),
        "length": np.int32(len(tokens)),
    }


def _write(parts, is_copy: bool, rules: RowRules, rng, row, images: list, at: int, documents: int):
    """A document at a place of the row -> (the place after it, documents so far)."""
    markers = rules.markers
    followed = 0.0 if rules.clean_copies else rules.noise_limit
    tokens, learned, image_of = [markers.bos], [False], [-1]
    starts = []  # of images: (place of its marker, is it learned, its limit)
    for n, part in enumerate(parts):
        if isinstance(part, str):
            ids = rules.encode(part)
            tokens += ids
            learned += [True] * len(ids)
            image_of += [-1] * len(ids)
            continue
        last = n == len(parts) - 1
        starts.append((len(tokens), 1.0 if last else followed))
        tokens += [markers.boi, *[markers.eos] * rules.patches, markers.eoi]
        learned += [True, *[False] * (rules.patches + 1)]
        image_of += [-1, *[len(images)] * rules.patches, -1]
        images.append(part if rules.latents else rules.fit(part))
    if is_copy:  # it ends with its last patch: of what follows, nothing is true of the whole
        tokens, image_of = tokens[:-1], image_of[:-1]
        learned = [False] * len(tokens)
    else:
        tokens, learned, image_of = [*tokens, markers.eos], [*learned, True], [*image_of, -1]
    end = at + len(tokens)
    if end > rules.length or len(images) > rules.max_images:
        raise UserError(
            f"{end} tokens and {len(images)} images do not fit a row of "
            f"config.data.row_len={rules.length}, config.data.max_images={rules.max_images}"
        )
    document = np.full(len(tokens), documents)
    # What is drawn does not depend on whether it is used: a row's later draws stay as they are.
    dropped = rng.random() < rules.drop
    if dropped and starts and starts[-1][0] > 1 and not isinstance(parts[-1], str):
        boundary = starts[-1][0]
        document[boundary:] += 1
        learned[: boundary + 1] = [False] * (boundary + 1)
    # The label of a position is the id after it, where that is learned and of the same document.
    labels = np.full(len(tokens), NO_LABEL)
    follows = np.array(learned[1:]) & (document[1:] == document[:-1])
    labels[:-1][follows] = np.array(tokens[1:])[follows]
    row["tokens"][at:end] = tokens
    row["document"][at:end] = document
    row["image"][at:end] = image_of
    row["labels"][at:end] = labels
    for slot, (start, limit) in enumerate(starts, start=len(images) - len(starts)):
        row["first"][slot] = at + start + 1
        row["noise_limit"][slot] = limit
    return end, int(document[-1]) + 1
