"""Ranks in a gallery by likeness: image-text retrieval in both directions.

Axis letters: Q queries, G gallery, N pairs, E width of the embeddings.
"""

from collections.abc import Sequence

import numpy as np

from mmx.eval import stats

KS = (1, 5, 10)
TIE = 1e-6  # ours: products of unit vectors in float32 that are no further apart are equal
_AT_ONCE = 512  # ours: queries; a block of [512, 5000] is 10 MB


def hits_at(likeness_QG: np.ndarray, right_QG: np.ndarray, k: int) -> np.ndarray:
    """The share of a hit that each query earns: is a right one among the k most alike? [Q], 0..1.

    Ties are averaged: the chance that one is among the first k when ties are broken at random. So
    embeddings that are all the same, or nan, earn chance and no more.

    Args:
      likeness_QG: higher is nearer.
      right_QG: bool, at least one True a query.
    """
    likeness_QG = np.where(np.isfinite(likeness_QG), likeness_QG, -np.inf)
    if likeness_QG.shape != right_QG.shape or not right_QG.any(1).all():
        raise ValueError("every query needs one right answer or more in the gallery")
    best_Q1 = np.where(right_QG, likeness_QG, -np.inf).max(1, keepdims=True)
    nearer_QG = likeness_QG > best_Q1 + TIE  # none of them right
    tie_QG = ~nearer_QG & (likeness_QG + TIE >= best_Q1)
    slots_Q = k - nearer_QG.sum(1)
    ties_Q, right_Q = tie_QG.sum(1), (tie_QG & right_QG).sum(1)
    missed_Q = np.ones(len(likeness_QG))
    for slot in range(k):  # drawn one after another from those that tie
        drawn_Q = slot < np.minimum(slots_Q, ties_Q)
        left_Q = np.maximum(ties_Q - slot, 1)
        missed_Q *= np.where(drawn_Q, np.maximum(left_Q - right_Q, 0) / left_Q, 1.0)
    return 1.0 - missed_Q


def retrieval(
    image_NE: np.ndarray, text_NE: np.ndarray, captions: Sequence[str]
) -> dict[str, stats.Score | float]:
    """Recall at 1, 5 and 10 from images to captions and back, among the N pairs given.

    A caption that several images have is one caption, and each of these images is right for it.

    Args:
      image_NE, text_NE: embeddings of pair i in row i, of length 1.
      captions: N texts.

    Returns:
      ``image_to_text_r{k}`` and ``text_to_image_r{k}`` with intervals over queries, and beside each
      ``..._chance``, what embeddings that are all the same would earn.
    """
    numbers: dict[str, int] = {}
    of_N = np.array([numbers.setdefault(text, len(numbers)) for text in captions])
    first = np.unique(of_N, return_index=True)[1]
    directions = {
        "image_to_text": (image_NE, text_NE[first], of_N, np.arange(len(first))),
        "text_to_image": (text_NE[first], image_NE, np.arange(len(first)), of_N),
    }
    scores: dict[str, stats.Score | float] = {}
    for name, (query_QE, gallery_GE, query_Q, gallery_G) in directions.items():
        hits = {k: [] for k in KS}
        chance = {k: [] for k in KS}
        for start in range(0, len(query_QE), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            likeness_QG = query_QE[part] @ gallery_GE.T
            right_QG = query_Q[part, None] == gallery_G
            for k in KS:
                hits[k].append(hits_at(likeness_QG, right_QG, k))
                chance[k].append(hits_at(np.zeros_like(likeness_QG), right_QG, k))
        for k in KS:
            scores[f"{name}_r{k}"] = stats.proportion(np.concatenate(hits[k]))
            scores[f"{name}_r{k}_chance"] = float(np.concatenate(chance[k]).mean())
    return scores


def rerank(image_NE: np.ndarray, text_E: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images of one caption, the most alike first (arXiv 2102.12092 sec. 2.6).

    Args:
      image_NE, text_E: of length 1.

    Returns:
      (int [N] places in ``image_NE``, cosine [N] of each in that order); equals keep their order.
    """
    cosine_N = np.asarray(image_NE) @ np.asarray(text_E)
    order_N = np.argsort(-cosine_N, kind="stable")
    return order_N, cosine_N[order_N]
