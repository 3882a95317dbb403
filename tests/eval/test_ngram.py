"""The n-gram baseline: by hand, by the formulas read literally, and as a distribution."""

import collections
import itertools

import numpy as np
import pytest

from mmx.core.errors import UserError
from mmx.eval.ngram import FALLBACK, NGram, perplexity

END, A, B, C = range(4)


def test_by_hand():
    """Two documents, "a b" and "a c". Adjusted counts of words: 1, 1, 1 and 2 for the end, 5 in
    all; they give up 3 * 0.5 + 1 = 2.5, which is spread over 4 ids: 0.125 each."""
    model = NGram([[A, B, END], [A, C, END]], vocab_size=4, order=2)
    p_a, p_end = 0.5 / 5 + 0.125, 1 / 5 + 0.125
    first = (2 - 1) / 2 + 1 / 2 * p_a  # "a" begins both: its count is 2, not 1
    then_b = (1 - 0.5) / 2 + 2 * 0.5 / 2 * p_a
    then_end = (1 - 0.5) / 1 + 0.5 * p_end
    nats = model.nats([[A, B, END], [C], [B, B]])
    never = 1 / 2 * p_a  # no document begins with c: what "a" gives up
    b_b = never * (0.5 * p_a)
    np.testing.assert_allclose(np.exp(-nats), [first * then_b * then_end, never, b_b], rtol=1e-12)
    assert perplexity(nats[:1], [3]) == pytest.approx((first * then_b * then_end) ** (-1 / 3))


def literal(documents, vocab_size, order):
    """P(word | words before it in the document), by the formulas: dictionaries, no arrays."""
    begin = vocab_size
    counts = collections.Counter()
    for document in documents:
        words = (begin, *document)
        for end in range(1, len(words) + 1):
            counts.update(words[end - k : end] for k in range(1, min(order, end) + 1))

    def adjusted(gram):
        if len(gram) == order or gram[0] == begin:
            return counts[gram]
        return sum(counts[(left, *gram)] > 0 for left in range(vocab_size + 1))

    value = {gram: adjusted(gram) for gram in counts if gram != (begin,)}

    def discounts(k):
        n = [sum(len(g) == k and a == times for g, a in value.items()) for times in range(5)]
        if 0 in n[1:]:
            return (0, *FALLBACK)
        y = n[1] / (n[1] + 2 * n[2])
        return (0, *(times - (times + 1) * y * n[times + 1] / n[times] for times in (1, 2, 3)))

    given_up = {k: discounts(k) for k in range(1, order + 1)}

    def p(word, context):
        lower = p(word, context[1:]) if context else 1 / vocab_size
        of = {w: value.get((*context, w), 0) for w in range(vocab_size)}
        if not (total := sum(of.values())):
            return lower
        d = given_up[len(context) + 1]
        return (
            of[word] - d[min(of[word], 3)] + sum(d[min(a, 3)] for a in of.values()) * lower
        ) / total

    return lambda word, before: p(word, (begin, *before)[-(order - 1) :] if order > 1 else ())


@pytest.fixture(scope="module")
def texts():
    """Words that follow each other by rule, so that all counts from 1 to 4 occur."""
    rng = np.random.default_rng(0)
    chain = rng.dirichlet(np.full(7, 0.3), size=7)
    documents = []
    for _ in range(60):
        words = [int(rng.integers(1, 7))]
        while words[-1] != END and len(words) < 12:
            words.append(int(rng.choice(7, p=chain[words[-1]])))
        documents.append(words)
    return documents[:40], documents[40:]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_by_the_formulas_read_literally(texts, order):
    train, test = texts
    p = literal(train, 7, order)
    expected = [-sum(np.log(p(w, d[:i])) for i, w in enumerate(d)) for d in test]
    np.testing.assert_allclose(NGram(train, 7, order).nats(test), expected, rtol=1e-10)


def test_a_distribution_after_any_words(texts):
    model = NGram(texts[0], vocab_size=7, order=3)
    for before in itertools.product(range(7), repeat=2):
        nats = model.nats([[*before, word] for word in range(7)]) - model.nats([before])
        assert np.exp(-nats).sum() == pytest.approx(1)


def test_longer_grams_tell_more_where_the_text_has_order(texts):
    train, test = texts
    tokens = [len(d) for d in test]
    alone, pairs = (perplexity(NGram(train, 7, k).nats(test), tokens) for k in (1, 2))
    assert pairs < 0.8 * alone < 0.8 * 7


def test_errors():
    model = NGram([[A, END]], vocab_size=4)
    for make in (lambda: NGram([], 4), lambda: NGram([[]], 4)):
        with pytest.raises(UserError, match="no documents to learn from"):
            make()
    with pytest.raises(UserError, match="no documents to score"):
        model.nats([])
    with pytest.raises(UserError, match="no documents to score"):
        perplexity(np.zeros(0), [])
    for bad in (4, -1):
        with pytest.raises(UserError, match=f"the id {bad} is not in"):
            model.nats([[A, bad]])
    with pytest.raises(UserError, match="order=0"):
        NGram([[A]], 4, order=0)
