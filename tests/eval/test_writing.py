"""Scores of what is written, against counts by hand."""

import numpy as np
import pytest

from mmx.eval import stats, writing
from mmx.eval.captions import bleu


def test_captions_by_hand():
    true = ["Red heart", "dog face", "a tree", "red apple"]
    said = ["red  heart!", "dog", "a tree", "red heart"]
    scores = writing.caption_scores(said, true)
    assert (scores["exact"].value, scores["exact"].n) == (0.5, 4)
    words = lambda texts: [text.lower().strip("!").split() for text in texts]
    assert scores["bleu_4"] == bleu(words(said), [[text] for text in words(true)])[3]
    assert scores["cider_d"].n == 4


def test_shuffled_captions_all_move():
    """Of texts that all differ none is right in another's place; of one text all are."""
    texts = [f"caption {i}" for i in range(7)]
    for seed in range(20):
        assert writing.caption_scores(texts, texts, seed)["exact_shuffled"].value == 0
    assert writing.caption_scores(["x"] * 7, ["x"] * 7)["exact_shuffled"].value == 1


def test_new_words_by_hand():
    scores = writing.new_words(["a red fox", "dog", "Red dog"], ["a red heart", "the dog's face"])
    assert scores["new_words"].value == pytest.approx(3 / 6)  # fox, dog, dog; not dog's
    assert scores["with_new_words"].value == 1.0
    assert writing.new_words(["red heart"], ["a red heart"])["with_new_words"].value == 0


def test_ranks_by_hand():
    """Two images share a caption, which is one; a likely caption comes first until its prior is
    taken off."""
    nll = np.array(
        [[2.0, 9.0, 3.0, 1.0], [7.0, 2.0, 2.5, 1.0], [4.0, 5.0, 3.0, 2.0], [2, 9, 3, 1.0]]
    )
    prior = np.array([6.0, 6.0, 6.0, 1.5])
    scores = writing.rank_scores(nll, prior, ["heart", "dog", "tree", "heart"])
    # The fourth column falls away. By likelihood: right is 1st, 1st, 1st and 1st of three.
    assert scores["r1"].value == 1 and scores["r1_chance"] == pytest.approx(1 / 3)
    scores = writing.rank_scores(nll, prior, ["heart", "dog", "tree", "a"])
    # Ranks by likelihood 2, 2, 2, 1; by ratio (4, 4, 3, .5 in its own place) 1, 1, 1, 3.
    assert scores["r1"].value == 0.25 and scores["median_rank"].value == 2
    assert scores["r1_by_ratio"].value == 0.75 and scores["median_rank_by_ratio"].value == 1
    assert scores["median_rank_chance"] == 2.5 and scores["r10"].value == 1
    same = writing.rank_scores(np.zeros((4, 4)), np.zeros(4), list("abcd"))
    assert same["median_rank"].value == 2.5 and same["r1"].value == 0.25


def test_a_model_of_even_odds_has_the_perplexity_of_its_choices():
    tokens, length = np.array([3, 5, 2]), np.array([9, 15, 6])
    scores = writing.perplexity_scores(tokens * np.log(7), tokens * np.log(14), tokens, length)
    assert scores["perplexity_token"].value == pytest.approx(7)
    assert scores["perplexity_token"].high == pytest.approx(7)
    assert scores["perplexity_token_ngram"].value == pytest.approx(14)
    assert scores["perplexity_token_of_ngram"].value == pytest.approx(0.5)
    assert scores["perplexity_byte"].value == pytest.approx(7 ** (1 / 3))


def test_the_interval_of_a_median():
    """Of ten values the second and the ninth; the true median is inside as often as is said."""
    score = stats.median(np.arange(10.0)[::-1])
    assert (score.value, score.low, score.high, score.n) == (4.5, 1.0, 8.0, 10)
    assert (stats.median([3.0]).low, stats.median([3.0]).high) == (3.0, 3.0)
    rng = np.random.default_rng(0)
    found = [stats.median(rng.exponential(size=41)) for _ in range(1000)]
    held = np.mean([s.low <= np.log(2) <= s.high for s in found])
    assert 0.94 < held < 0.985
