"""How good what a run writes is: captions, the likelihood of captions, the perplexity of texts.

Knows no model: it takes texts, and nats that a model gave to texts.
Q images, G captions, n texts.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from mmx.eval import captions, ranking, stats
from mmx.eval.evaluator import Scores, run

RANKED = 100  # ours: captions among which the true one is to be the likeliest


def caption_scores(said: Sequence[str], true: Sequence[str], seed: int = 0) -> Scores:
    """Captions that a run wrote beside the true ones.

    Args:
      said, true: n texts each, of the same images, at least two.
      seed: of the shuffling.

    Returns:
      ``exact`` the share of captions that are the true one, word by word, case and punctuation
      aside; ``exact_shuffled`` the same beside another image's: every caption moves, so what the
      images do not tell scores here too; `captions.evaluator`'s scores.
    """
    said_words, true_words = ([captions.words(text) for text in texts] for texts in (said, true))
    other = _moved(len(true), seed)
    equal = lambda order: np.array([a == true_words[i] for a, i in zip(said_words, order)])
    batch = {"caption": list(said), "references": [[text] for text in true]}
    return {
        "exact": stats.proportion(equal(range(len(true)))),
        "exact_shuffled": stats.proportion(equal(other)),
        **run([captions.evaluator()], [batch]),
    }


def new_words(texts: Sequence[str], known: Sequence[str]) -> Scores:
    """``new_words``: the share of the words of ``texts`` that no text of ``known`` has, and
    ``with_new_words``: of the texts with such a word, none of which can be written right but by
    luck."""
    have = {word for text in known for word in captions.words(text)}
    of = [[word not in have for word in captions.words(text)] for text in texts]
    flat = np.array([new for text in of for new in text])
    clusters = [i for i, text in enumerate(of) for _ in text]
    return {
        "new_words": stats.proportion(flat, clusters),
        "with_new_words": stats.proportion(np.array([any(text) for text in of])),
    }


def rank_scores(nll_QG: np.ndarray, prior_G: np.ndarray, true: Sequence[str]) -> Scores:
    """The place of the true caption among all, the likeliest first.

    Args:
      nll_QG: -ln p(caption g | image q), Q = G; caption q is that of image q.
      prior_G: -ln p(caption g) without any image.
      true: G captions. A caption that several images have is one, in its first place.

    Returns:
      ``r1``, ``r10``, ``median_rank`` by p(caption | image), which favours short and common
      captions; ``..._by_ratio`` by p(caption | image) / p(caption), which does not; and
      ``..._chance``.
    """
    numbers: dict[str, int] = {}
    of_Q = np.array([numbers.setdefault(text, len(numbers)) for text in true])
    first_G = np.unique(of_Q, return_index=True)[1]
    right_QG = of_Q[:, None] == np.arange(len(first_G))
    nll_QG, prior_G = np.asarray(nll_QG)[:, first_G], np.asarray(prior_G)[first_G]
    scores: Scores = {}
    for end, likeness_QG in (("", -nll_QG), ("_by_ratio", prior_G - nll_QG)):
        for k in (1, 10):
            scores[f"r{k}{end}"] = stats.proportion(ranking.hits_at(likeness_QG, right_QG, k))
        scores[f"median_rank{end}"] = stats.median(_ranks(likeness_QG, right_QG))
    count = len(first_G)
    chance = {"r1_chance": 1 / count, "r10_chance": min(1.0, 10 / count)}
    return scores | chance | {"median_rank_chance": (count + 1) / 2}


def _ranks(likeness_QG: np.ndarray, right_QG: np.ndarray) -> np.ndarray:
    """The place of the right one, from 1 on; the mean place of those that tie."""
    likeness_QG = np.where(np.isfinite(likeness_QG), likeness_QG, -np.inf)
    own_Q1 = np.where(right_QG, likeness_QG, -np.inf).max(1, keepdims=True)
    better_Q = (likeness_QG > own_Q1).sum(1)
    ties_Q = (likeness_QG == own_Q1).sum(1)
    return better_Q + (ties_Q + 1) / 2


def perplexity_scores(
    nll_n: np.ndarray, ngram_n: np.ndarray, tokens_n: np.ndarray, bytes_n: np.ndarray
) -> Scores:
    """Perplexities of texts, beside those of an n-gram model of the same tokens.

    Args:
      nll_n: -ln p of each text, its end included, by the run.
      ngram_n: the same by the n-gram model.
      tokens_n: of each text, with its end.
      bytes_n: of each text.

    Returns:
      ``perplexity_token``, ``perplexity_byte``, the same with ``_ngram``, and
      ``perplexity_token_of_ngram``, their ratio: below 1 the run is better.
    """
    values = np.stack([nll_n, ngram_n, tokens_n, bytes_n], 1)
    exp = lambda top, bottom: stats.bootstrap(
        lambda m: np.exp(m[..., top] / m[..., bottom]), values
    )
    return {
        "perplexity_token": exp(0, 2),
        "perplexity_token_ngram": exp(1, 2),
        "perplexity_token_of_ngram": stats.bootstrap(
            lambda m: np.exp((m[..., 0] - m[..., 1]) / m[..., 2]), values
        ),
        "perplexity_byte": exp(0, 3),
        "perplexity_byte_ngram": exp(1, 3),
    }


def _moved(count: int, seed: int) -> np.ndarray:
    """A permutation without a fixed point, where there are two or more."""
    order = np.random.default_rng(seed).permutation(count)
    other = np.empty(count, int)
    for place, follows in itertools.pairwise([*order, order[0]]):
        other[place] = follows
    return other
