"""Ranks with ties, and retrieval both ways, against slow direct ones."""

import itertools

import numpy as np
import pytest

from mmx.eval import ranking


def by_trial(likeness_G, right_G, k):
    """The share of all orders that agree with the likeness whose first k hold a right one."""
    hits = []
    for order in itertools.permutations(range(len(likeness_G))):
        if all(likeness_G[a] >= likeness_G[b] for a, b in itertools.pairwise(order)):
            hits.append(any(right_G[i] for i in order[:k]))
    return np.mean(hits)


@pytest.mark.parametrize("k", [1, 2, 4, 9])
def test_ties_are_averaged(k):
    rng = np.random.default_rng(k)
    likeness_QG = rng.integers(0, 3, (30, 6)).astype(np.float32)
    right_QG = rng.random((30, 6)) < 0.3
    right_QG[np.arange(30), rng.integers(0, 6, 30)] = True
    want = [by_trial(likeness, right, k) for likeness, right in zip(likeness_QG, right_QG)]
    np.testing.assert_allclose(ranking.hits_at(likeness_QG, right_QG, k), want, atol=1e-12)


def test_what_is_no_embedding_earns_chance():
    right_QG = np.eye(20, dtype=bool)
    for likeness in (np.zeros((20, 20)), np.full((20, 20), np.nan)):
        np.testing.assert_allclose(ranking.hits_at(likeness, right_QG, 5), 0.25)
    with pytest.raises(ValueError, match="one right answer"):
        ranking.hits_at(np.zeros((1, 3)), np.zeros((1, 3), bool), 1)


def test_retrieval_both_ways_with_a_caption_that_two_images_have():
    eye = np.eye(4)
    captions = ["heart", "dog", "heart", "cat"]
    image_NE = eye[[0, 1, 0, 3]]
    text_NE = eye[[0, 1, 0, 1]]  # "cat" lies where the dog does
    scores = ranking.retrieval(image_NE, text_NE, captions)
    # Images: hearts and dog find theirs or tie: heart 1, 1; dog ties with cat's text, 1/2; the cat
    # is nothing like any of the three texts, 1/3.
    assert scores["image_to_text_r1"].value == pytest.approx((1 + 1 + 0.5 + 1 / 3) / 4)
    assert scores["image_to_text_r1"].n == 4
    # Three texts: heart finds either heart, the dog its dog; the cat's nearest is the dog, and of
    # the three that are all equally far its own is one.
    assert scores["text_to_image_r1"].value == pytest.approx(2 / 3)
    assert scores["text_to_image_r1"].n == 3
    assert scores["text_to_image_r5"].value == scores["image_to_text_r5"].value == 1
    assert scores["image_to_text_r1_chance"] == pytest.approx(1 / 3)
    assert scores["text_to_image_r1_chance"] == pytest.approx((1 / 2 + 1 / 4 + 1 / 4) / 3)
    low, high = scores["text_to_image_r1"].low, scores["text_to_image_r1"].high
    assert 0 < low < 2 / 3 < high < 1


def test_the_queries_are_many_and_the_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    image_NE, text_NE = rng.normal(size=(2, 30, 4))
    captions = [str(i % 25) for i in range(30)]
    whole = ranking.retrieval(image_NE, text_NE, captions)
    monkeypatch.setattr(ranking, "_AT_ONCE", 7)
    assert ranking.retrieval(image_NE, text_NE, captions) == whole
