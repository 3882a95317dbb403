"""Do an image's words say what it shows: their likeness to its caption, against other captions.

Legend: N images, T words of an image, V words, E width of the judge's space.
"""

from collections.abc import Sequence

import numpy as np

from mmx.eval import stats
from mmx.eval.stats import Score

JUDGE = "wordllama"  # of what words and texts say of captions; guides nothing


def meaning_scores(
    ends: Sequence[int],
    words_NT: np.ndarray,
    meaning_VE: np.ndarray,
    caption_NE: np.ndarray,
    groups: Sequence[str],
) -> dict[str, Score]:
    """Scores by layers, with 95 % intervals over groups of images.

    The judge that embedded words and captions must not be the teacher that chose the words.

    Args:
      ends: how many words there are up to the end of each layer.
      words_NT: int, rows of the vocabulary.
      meaning_VE, caption_NE: float, rows of unit length.
      groups: of the images, what each shows: those of one are never each other's "other", and are
        drawn together for the interval.

    Returns:
      ``meaning_<k>``: mean cosine of an image's words of the first k layers with its caption, less
      that with the captions of all other groups: 0 by chance. ``meaning_rank_<k>``: the share of
      other groups' captions to which the words are less alike than to their own, ties half: 0.5 by
      chance. Nothing where all are of one group.
    """
    scores: dict[str, Score] = {}
    if len(set(groups)) < 2:
        return scores
    for layer, end in enumerate(ends):
        margin_N, rank_N = margins(words_NT[:, :end], meaning_VE, caption_NE, groups)
        scores[f"meaning_{layer + 1}"] = stats.mean(margin_N, groups)
        scores[f"meaning_rank_{layer + 1}"] = stats.mean(rank_N, groups)
    return scores


def margins(
    words_NT: np.ndarray, meaning_VE: np.ndarray, caption_NE: np.ndarray, groups: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Of each image what :func:`meaning_scores` is the mean of, by all of these words.

    Returns:
      (float [N], cosine with its own caption less that with others'; float [N], its rank). NaN
      where all are of one group.
    """
    _, group_N = np.unique(np.asarray(groups), return_inverse=True)
    other_NN = group_N[:, None] != group_N
    alike_NN = meaning_VE[words_NT].mean(1) @ caption_NE.T
    own_N1 = np.diagonal(alike_NN)[:, None]
    count_N = other_NN.sum(-1)
    margin_N = own_N1[:, 0] - (alike_NN * other_NN).sum(-1) / count_N
    below_NN = (alike_NN < own_N1) + 0.5 * (alike_NN == own_N1)
    return margin_N, (below_NN * other_NN).sum(-1) / count_N
