"""Random rows of packed documents, and what may read what in them, by definition."""

import numpy as np


def random_layouts(rows: int, length: int, seed: int = 0, longest: int = 12):
    """(document, image) numbers, int32 [rows, length]: images of up to ``longest`` patches side by
    side or in text, at either end of a document; some rows end in padding, some are nothing else.
    """
    rng = np.random.default_rng(seed)
    document_BL = np.full((rows, length), -1, np.int32)
    image_BL = np.full((rows, length), -1, np.int32)
    for document_L, image_L in zip(document_BL, image_BL):
        used = rng.choice([length, rng.integers(0, length), 0], p=[0.5, 0.45, 0.05])
        at = number = image = 0
        image_share = rng.choice([0.0, 0.5, 0.9])
        while at < used:
            size = rng.integers(1, longest + 1)
            to = min(at + size, used)
            document_L[at:to] = number
            if rng.random() < image_share:
                image_L[at:to] = image
                image += 1
            if rng.random() < 0.3:  # a new document; numbers of images may begin anew
                number += 1
                image *= rng.integers(0, 2)
            at = to
    return document_BL, image_BL


def visible(document_L: np.ndarray, image_L: np.ndarray) -> np.ndarray:
    """bool [L, L]: what query (first axis) reads which key, said token by token."""
    query, key = np.arange(len(document_L))[:, None], np.arange(len(document_L))
    same_document = (document_L[:, None] == document_L) & (document_L >= 0)
    same_image = (image_L[:, None] == image_L) & (image_L >= 0)
    return same_document & ((key <= query) | same_image)
