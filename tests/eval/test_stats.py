"""Intervals: numbers worked out by hand, and coverage on data whose truth is known."""

import math

import numpy as np
import pytest

from mmx.eval import stats


def test_score_reads_as_value_and_interval():
    score = stats.Score(0.8349, 0.7812, 0.8651, 100)
    assert str(score) == "0.83 [0.78, 0.87]"
    assert f"{score:.1f}" == "0.8 [0.8, 0.9]"


def test_wilson_by_hand():
    # 81 of 263: p = 0.30798, z = 1.95996; Newcombe (1998), table I, method 3.
    assert stats.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    # k = 0: high = z^2 / (n + z^2), k = n its mirror.
    z2 = 1.959963985**2
    assert stats.wilson(0, 20) == (0.0, pytest.approx(z2 / (20 + z2)))
    assert stats.wilson(20, 20) == (pytest.approx(20 / (20 + z2)), 1.0)


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 5), (6, 5), (math.nan, 5)])
def test_wilson_refuses_what_is_no_proportion(successes, n):
    with pytest.raises(ValueError, match="Wilson"):
        stats.wilson(successes, n)


def test_clusters_of_equal_answers_count_once():
    # 40 clusters of 5 equal answers: the design effect is 5 * 40 / 39, so n is 200 / 5.128 = 39.
    hits = np.repeat(np.arange(40) % 2, 5)
    labels = np.repeat([f"concept {i}" for i in range(40)], 5)
    score = stats.proportion(hits, labels)
    assert (score.low, score.high) == pytest.approx(stats.wilson(19.5, 39))
    assert (score.value, score.n) == (0.5, 200)


def test_clusters_never_narrow_the_interval_and_plain_items_are_wilson():
    hits = np.array([1, 0] * 50)
    plain = stats.proportion(hits)
    assert (plain.low, plain.high) == stats.wilson(50, 100)
    # Each cluster holds one hit and one miss: less spread than chance, which must not raise n.
    balanced = stats.proportion(hits, np.repeat(np.arange(50), 2))
    assert (balanced.low, balanced.high) == pytest.approx((plain.low, plain.high))


def test_agreeing_items_count_one_a_cluster():
    score = stats.proportion(np.ones(60), np.repeat(np.arange(12), 5))
    assert (score.value, score.low, score.high) == (1.0, *stats.wilson(12, 12))


def test_mean_interval_is_that_of_the_normal_law_for_many_items():
    values = np.random.default_rng(1).normal(3, 2, 900)
    score = stats.mean(values)
    half = 1.96 * values.std() / 30
    assert score.value == pytest.approx(values.mean())
    assert (score.low, score.high) == pytest.approx(
        (score.value - half, score.value + half), abs=0.1 * half
    )
    assert score == stats.mean(values)
    assert score != stats.mean(values, seed=1)


def test_bootstrap_draws_whole_clusters():
    values = np.repeat(np.random.default_rng(0).normal(size=50), 8)
    width = np.ptp([stats.mean(values).low, stats.mean(values).high])
    clustered = stats.mean(values, np.repeat(np.arange(50), 8))
    assert (clustered.high - clustered.low) / width == pytest.approx(8**0.5, rel=0.12)


def test_clusters_of_any_size_weigh_their_items():
    score = stats.mean(np.ones(9), [0, 1, 1, 2, 2, 2, 2, 2, 2])
    assert (score.value, score.low, score.high) == (1, 1, 1)


def test_bootstrap_covers_the_truth_about_19_times_in_20():
    rng = np.random.default_rng(0)
    scores = [stats.mean(rng.normal(size=60)) for _ in range(200)]
    covered = np.mean([s.low <= 0 <= s.high for s in scores])
    assert 0.89 <= covered <= 0.99


def test_ratio_keeps_pairs():
    denominator = np.random.default_rng(0).uniform(1, 9, 80)
    score = stats.ratio(denominator / 2, denominator)
    assert (score.value, score.low, score.high) == pytest.approx((0.5, 0.5, 0.5))


def test_ratio_with_an_almost_empty_denominator_is_open_above():
    numerator, denominator = np.ones(10), np.eye(10)[0]
    score = stats.ratio(numerator, denominator)
    assert score.value == pytest.approx(10)
    assert score.low < 10 and score.high == math.inf  # a third of the resamples lack the one item
    with pytest.raises(ValueError, match="denominator"):
        stats.ratio(numerator, np.zeros(10))


def test_jackknife_of_a_mean_is_its_standard_error():
    values = np.array([1.0, 2.0, 4.0, 9.0])
    without = (values.sum() - values) / 3
    score = stats.jackknife(4.0, without, -100, 100)
    assert score.high - 4.0 == pytest.approx(1.959964 * values.std(ddof=1) / 2)
    assert stats.jackknife(4.0, without, 3.5, 4.1).high == 4.1


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [[1.0]]])
def test_scores_refuse_nothing_and_nan(values):
    with pytest.raises(ValueError, match="finite values"):
        stats.mean(np.array(values))
    with pytest.raises(ValueError, match="labels"):
        stats.mean(np.ones(3), ["a", "b"])


def test_where_a_curve_reaches_a_level():
    points = [(1.0, 0.2), (100.0, 0.6), (1000.0, 0.5), (10000.0, 0.9)]
    assert stats.reach(points, 0.4) == pytest.approx(10.0)  # half of the way, over log x
    assert stats.reach(points, 0.6) == pytest.approx(100.0)
    assert stats.reach(points, 0.7) == pytest.approx(1000 * 10**0.5)
    assert stats.reach(points, 0.1) == 0.0 and stats.reach(points, 0.95) == np.inf
