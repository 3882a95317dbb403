"""Generated captions beside reference ones: BLEU-4 and CIDEr-D.

Words are runs of letters, digits and apostrophes, lower case: `words` below. The tokenizer of the
published scores (PTB's, in Java) splits some words otherwise, so compare numbers of one tokenizer.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mmx.core.errors import UserError
from mmx.eval import stats
from mmx.eval.evaluator import Batch, Evaluator, Scores, rows

_ORDERS = (1, 2, 3, 4)
_SIGMA = 6.0  # of CIDEr-D's penalty on lengths (arXiv 1411.5726 sec. 5.3)
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


def words(text: str) -> list[str]:
    """`"A dog's bone, 2."` -> a, dog's, bone, 2."""
    return _WORD.findall(text.lower())


class Said(NamedTuple):
    """What was said and what it is compared with; texts as lists of words."""

    captions: tuple[list[str], ...] = ()
    references: tuple[list[list[str]], ...] = ()


def evaluator() -> Evaluator:
    """`bleu_4` and `cider_d` of a corpus, from the rows `caption` and `references`.

    The state keeps the texts: CIDEr weighs words by how many rows' references hold them, which is
    known at the end.
    """

    def update(state: Said, batch: Batch) -> Said:
        captions = tuple(words(text) for text in rows(batch, "caption"))
        references = tuple([words(t) for t in texts] for texts in rows(batch, "references"))
        return Said(state.captions + captions, state.references + references)

    def merge(a: Said, b: Said) -> Said:
        return Said(a.captions + b.captions, a.references + b.references)

    def result(state: Said) -> Scores:
        cider_N = cider_d(state.captions, state.references)
        return {
            "bleu_4": bleu(state.captions, state.references)[-1],
            "cider_d": stats.mean(cider_N),
        }

    return Evaluator("captions", ("caption", "references"), Said, update, merge, result)


def bleu(
    captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> list[float]:
    """BLEU-1 ... BLEU-4 of a corpus, in [0, 1], not smoothed.

    The share of n-grams that some reference of the same row has (each as often as it has it), the
    geometric mean over n, times the penalty for a corpus shorter than its references; of those the
    one nearest in length counts, the shorter of two.

    Args:
      captions: N lists of words.
      references: for each, one or more lists of words.

    Source: Papineni et al. 2002, sec. 2.3. Raises UserError: no caption, or one without reference.
    """
    _check(captions, references)
    found, said, length, target = np.zeros(4), np.zeros(4), 0, 0
    for caption, texts in zip(captions, references):
        length += len(caption)
        target += min((abs(len(t) - len(caption)), len(t)) for t in texts)[1]
        for n in _ORDERS:
            grams = _grams(caption, n)
            most: Counter = Counter()
            for text in texts:
                most |= _grams(text, n)
            found[n - 1] += (grams & most).total()
            said[n - 1] += grams.total()
    if not length:
        return [0.0] * 4
    brevity = min(1.0, math.exp(1 - target / length))
    precision = found / np.maximum(said, 1)
    return [float(brevity * np.prod(precision[:n]) ** (1 / n)) for n in _ORDERS]


def cider_d(
    captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> np.ndarray:
    """CIDEr-D of each row, float64 [N], 0 to 10.

    For n of 1 to 4: the cosine of the vectors of n-gram counts, weighted by the log of N over the
    number of rows whose references hold the n-gram; counts of a caption are cut to those of the
    reference, and a difference of lengths is punished. The mean over n and over references, times
    10. (What pycocoevalcap prints as CIDEr.)

    Source: arXiv 1411.5726 eq. 2 and 6. Raises UserError as :func:`bleu`, and for fewer than two
    rows, where each n-gram is in all of them and weighs nothing.
    """
    _check(captions, references)
    if len(captions) < 2:
        raise UserError("CIDEr of one row is 0 / 0: n-grams weigh by how rare they are among rows")
    held: Counter = Counter()
    for texts in references:
        held.update({gram for text in texts for n in _ORDERS for gram in _grams(text, n)})

    def vectors(text):
        """Of each order: weighted counts, and their norm."""
        out = []
        for n in _ORDERS:
            weights = {
                gram: count * math.log(len(captions) / max(1, held[gram]))
                for gram, count in _grams(text, n).items()
            }
            out.append((weights, math.sqrt(sum(w * w for w in weights.values()))))
        return out

    scores = []
    for caption, texts in zip(captions, references):
        own, total = vectors(caption), 0.0
        for text in texts:
            penalty = math.exp(-((len(caption) - len(text)) ** 2) / (2 * _SIGMA**2))
            for (said, said_norm), (true, true_norm) in zip(own, vectors(text)):
                dot = sum(min(w, true[g]) * true[g] for g, w in said.items() if g in true)
                if said_norm and true_norm:
                    total += penalty * dot / (said_norm * true_norm)
        scores.append(10 * total / (len(_ORDERS) * len(texts)))
    return np.array(scores)


def _grams(text: Sequence[str], n: int) -> Counter:
    return Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1))


def _check(captions, references) -> None:
    if not captions or len(captions) != len(references) or not all(map(len, references)):
        raise UserError(
            f"{len(captions)} captions and {len(references)} lists of references: each caption "
            "needs a list of one or more"
        )
