"""CLIP score: how well pictures fit the captions that they were drawn to, as a CLIP sees it.

The number depends on the CLIP at least as much as on the pictures, so it is only read beside what
true pictures get (``/real``) and what the same pictures get with the captions of others
(``/shuffled``: chance). N pictures, D the CLIP's joint width.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmx.core.errors import UserError
from mmx.eval import evaluator
from mmx.eval.evaluator import Batch, Evaluator, Scores, rows
from mmx.eval.sets import Features

_WEIGHT = 2.5  # w of arXiv 2104.08718 eq. 1
_BLOCK = 1024  # pictures at a time beside all captions: ours


class Pairs(NamedTuple):
    """Texts, and the embeddings of each text, picture and true picture, row by row."""

    texts: tuple[str, ...]
    text: Features
    image: Features
    real: Features


def clip_score(
    name: str,
    features: Callable[[Batch, str], np.ndarray],
    embed_text: Callable[[Sequence[str]], np.ndarray],
) -> Evaluator:
    """2.5 max(cos, 0) of a picture and its caption, the mean over pictures.

    Source: arXiv 2104.08718 eq. 1. Its prompt is "A photo depicts" and the caption; here the text
    is the caption as it is. Many papers print 100 times the cosine instead.

    Args:
      name: of the score.
      features: (batch, field) -> embeddings of its pictures [B, D].
      embed_text: B texts -> [B, D].
    """

    def init() -> Pairs:
        return Pairs((), *(Features(f"{name} of {what}") for what in ("text", "image", "real")))

    def update(state: Pairs, batch: Batch) -> Pairs:
        texts = rows(batch, "text")
        if not texts:
            return state
        return Pairs(
            state.texts + tuple(texts),
            state.text.add(embed_text(texts)),
            state.image.add(features(batch, "image")),
            state.real.add(features(batch, "real")),
        )

    def merge(a: Pairs, b: Pairs) -> Pairs:
        merged = (getattr(a, of).merge(getattr(b, of)) for of in ("text", "image", "real"))
        return Pairs(a.texts + b.texts, *merged)

    def result(state: Pairs) -> Scores:
        if not state.texts:
            raise UserError(f"{name}: no row to measure")
        text_ND, image_ND, real_ND = (_unit(x.rows()) for x in state[1:])
        own = lambda x_ND: evaluator.mean(_score((x_ND * text_ND).sum(1)))
        scores: Scores = {name: own(image_ND), f"{name}/real": own(real_ND)}
        others = _of_others(image_ND, text_ND, state.texts)
        if len(others):
            scores[f"{name}/shuffled"] = evaluator.mean(others)
        return scores

    return Evaluator(name, ("text", "image", "real"), init, update, merge, result)


def _of_others(image_ND: np.ndarray, text_ND: np.ndarray, texts: Sequence[Any]) -> np.ndarray:
    """Of each picture the mean over all captions that are not its own, in whatever order they came:
    what shuffling gives on average. Pictures that have no other caption are left out."""
    _, text_N = np.unique(np.asarray(texts), return_inverse=True)
    means = []
    for start in range(0, len(image_ND), _BLOCK):
        block = slice(start, start + _BLOCK)
        is_other = text_N[block, None] != text_N[None, :]
        counted = is_other.sum(1)
        sums = np.where(is_other, _score(image_ND[block] @ text_ND.T), 0).sum(1)
        means.append(sums[counted > 0] / counted[counted > 0])
    return np.concatenate(means)


def _score(cosine: np.ndarray) -> np.ndarray:
    return _WEIGHT * cosine.clip(0)


def _unit(x_ND: np.ndarray) -> np.ndarray:
    return x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)
