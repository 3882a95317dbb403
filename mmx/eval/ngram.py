"""An n-gram language model over token ids: what text perplexity is to be compared with.

Interpolated modified Kneser-Ney (Chen & Goodman 1998, "An Empirical Study of Smoothing Techniques
for Language Modeling", sec. 3), the strongest of the count models. Of a gram g w, words g then w:

    P(w | g) = (a(g w) - D(a(g w))) / a(g .) + gamma(g) P(w | g without its first word)
    gamma(g) = sum over the seen w of D(a(g w)) / a(g .)

a is how often a gram of the longest kind occurs; of a shorter one, after how many different words
it does (occurrences where it begins a document, before which there is no word, as KenLM has it).
The last of the chain is uniform. D, for a = 1, 2 and 3 or more, is estimated per length (eq. 26).

Everything is sorted arrays: 2 million tokens at order 5 take seconds. A gram of k words is a number
in the table of its length; its key there is (number of its first k - 1 words) * W + last word.

Legend: n documents, N tokens of all of them, W ids with the begin of a document, the last one.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from mmx.core.errors import UserError

# KenLM's where there are too few grams to estimate any.
FALLBACK = (0.5, 1.0, 1.5)


@dataclasses.dataclass(frozen=True)
class _Counted:
    """All grams of one length, by number.

    Attributes:
      keys: int64, ascending.
      counts: how often each occurs.
      begins: whether it begins with the begin of a document.
      suffix: its number, in the table of the next shorter length, without its first word.
    """

    keys: np.ndarray
    counts: np.ndarray
    begins: np.ndarray
    suffix: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Grams:
    """All grams of one length, by number; those of one context lie together.

    Attributes:
      keys: int64, ascending.
      kept: float64, a(g w) - D(a(g w)).
      total: float64, a(g .) by the number of the context g.
      taken: float64, the sum of D(a(g w)) by the number of the context.
    """

    keys: np.ndarray
    kept: np.ndarray
    total: np.ndarray
    taken: np.ndarray


class NGram:
    """A model of documents, trained at once.

    Args:
      documents: ids of each, in [0, vocab_size), the end of text among them: it is predicted like
        any other.
      vocab_size: how many ids there are.
      order: words of the longest grams, at least 1.

    Raises:
      UserError: no documents, or an id that is none.
    """

    def __init__(self, documents: Sequence[Sequence[int]], vocab_size: int, order: int = 5):
        if order < 1:
            raise UserError(f"order={order}: an n-gram has at least 1 word")
        self.vocab_size, self.order = vocab_size, order
        self._width = vocab_size + 1
        tokens_N, place_N = self._flat(documents, "to learn from")
        counted = _count(tokens_N, place_N, self._width, order)
        self._grams = []
        for k, grams in enumerate(counted, start=1):
            adjusted = grams.counts
            if k < order:
                after = np.bincount(counted[k].suffix, minlength=len(grams.keys))
                adjusted = np.where(grams.begins, grams.counts, after)
            if k == 1:  # nothing predicts the begin of a document
                adjusted = np.where(grams.begins, 0, adjusted)
            contexts = len(counted[k - 2].keys) if k > 1 else 1
            self._grams.append(_discounted(grams.keys, adjusted, contexts, self._width))

    def _flat(self, documents, what: str) -> tuple[np.ndarray, np.ndarray]:
        """All tokens with a begin before each document, and each one's place in its own."""
        if not len(documents) or not sum(map(len, documents)):
            raise UserError(f"n-gram: no documents {what}")
        begin = [self.vocab_size]
        tokens_N = np.concatenate([part for d in documents for part in (begin, d)])
        tokens_N = tokens_N.astype(np.int64)
        lengths = np.array([len(d) + 1 for d in documents])
        starts = np.cumsum(lengths) - lengths
        place_N = np.arange(len(tokens_N)) - np.repeat(starts, lengths)
        wrong = (tokens_N < 0) | (tokens_N >= self._width - (place_N > 0))
        if wrong.any():
            raise UserError(
                f"n-gram: the id {tokens_N[wrong][0]} is not in [0, vocab_size={self.vocab_size})"
            )
        return tokens_N, place_N

    def nats(self, documents: Sequence[Sequence[int]]) -> np.ndarray:
        """-ln P of each document [n], its end of text included.

        Raises:
          UserError: no documents, or an id that is none.
        """
        tokens_N, place_N = self._flat(documents, "to score")
        p_N = np.full(len(tokens_N), 1.0 / self.vocab_size)
        own_N = np.zeros(len(tokens_N), np.int64)  # of the gram that ends here; -1: never seen
        for k, grams in enumerate(self._grams, start=1):
            # The context's number: the one context of single words is 0, as is own_N at first.
            number_N = own_N if k == 1 else np.where(place_N >= k - 1, np.roll(own_N, 1), -1)
            seen = number_N >= 0
            key_N = number_N * self._width + tokens_N
            at_N = np.minimum(np.searchsorted(grams.keys, key_N), len(grams.keys) - 1)
            own_N = np.where(seen & (grams.keys[at_N] == key_N), at_N, -1)
            total_N = np.where(seen, grams.total[number_N], 0)
            known = total_N > 0
            kept_N = np.where(own_N >= 0, grams.kept[at_N], 0)[known]
            taken_N = grams.taken[number_N][known]
            p_N[known] = (kept_N + taken_N * p_N[known]) / total_N[known]
        nats_N = np.where(place_N > 0, -np.log(p_N), 0.0)
        return np.add.reduceat(nats_N, np.flatnonzero(place_N == 0))


def _count(tokens_N: np.ndarray, place_N: np.ndarray, width: int, order: int) -> list[_Counted]:
    """The grams of each length, 1 to ``order``; none reaches over the begin of its document."""
    words = np.arange(width)
    last = _Counted(
        words, np.bincount(tokens_N, minlength=width), words == width - 1, np.zeros_like(words)
    )
    number_N, found = tokens_N, [last]  # number_N: of the gram that ends at each token
    for k in range(2, order + 1):
        there = place_N >= k - 1
        key_N = np.roll(number_N, 1) * width + tokens_N
        keys, inverse, counts = np.unique(key_N[there], return_inverse=True, return_counts=True)
        number_N = np.full(len(tokens_N), -1)
        number_N[there] = inverse
        context, word = np.divmod(keys, width)
        shorter = last.suffix[context] * width + word  # of single words all suffixes are 0
        suffix = np.searchsorted(last.keys, shorter)
        last = _Counted(keys, counts, last.begins[context], suffix)
        found.append(last)
    return found


def _discounted(keys, adjusted, contexts: int, width: int) -> _Grams:
    discount = np.array([0.0, *_discounts(adjusted)])[np.minimum(adjusted, 3)]
    context = keys // width  # of single words 0
    return _Grams(
        keys,
        adjusted - discount,
        np.bincount(context, adjusted, contexts),
        np.bincount(context, discount, contexts),
    )


def _discounts(adjusted: np.ndarray) -> tuple[float, ...]:
    """D of 1, 2 and 3 or more (Chen & Goodman eq. 26)."""
    n1, n2, n3, n4 = (int((adjusted == times).sum()) for times in (1, 2, 3, 4))
    if 0 in (n1, n2, n3, n4):
        return FALLBACK
    y = n1 / (n1 + 2 * n2)
    found = 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3
    return found if min(found) >= 0 else FALLBACK


def perplexity(nats_n: np.ndarray, counts_n: Sequence[int]) -> float:
    """exp of the mean nats a unit.

    Args:
      nats_n: of each document.
      counts_n: its tokens with the end of text, or its bytes: what the perplexity is per.

    Raises:
      UserError: nothing to score.
    """
    if not (count := np.sum(counts_n)):
        raise UserError("perplexity: no documents to score")
    return float(np.exp(np.sum(nats_n) / count))
