"""Distances between sets of features: closed forms, laws of their estimators, other libraries."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from experiments.parity import metric_inputs as inputs
from mmx.core.errors import UserError
from mmx.eval.frechet import frechet, frechet_of_features
from mmx.eval.kernels import cmmd, kid
from mmx.eval.manifold import density_coverage, nearest, precision_recall
from mmx.eval.sets import Features, Moments, no_moments

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens/metrics.json").read_text())


def kept(rows, recipe="net"):
    return Features(recipe).add(np.asarray(rows))


def gaussian(mean_D, cov_DD, n=100):
    """The moments that n rows of a gaussian have in the mean."""
    return Moments("net", n, np.asarray(mean_D, float), np.asarray(cov_DD, float) * (n - 1))


@pytest.fixture(scope="module")
def pair():
    return tuple(kept(x) for x in inputs.features())


def test_equal_to_other_libraries(pair):
    a, b = pair
    assert frechet_of_features(a, b) == pytest.approx(GOLDEN["fid"], rel=1e-9)
    assert kid(a, b).value == pytest.approx(GOLDEN["kid"], rel=1e-9)
    precision, recall = precision_recall(a, b)
    density, coverage = density_coverage(a, b)
    got = [precision.value, recall.value, density, coverage.value]
    expected = [GOLDEN[k] for k in ("precision", "recall", "density", "coverage")]
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_shards_merge_to_the_moments_of_all_rows():
    rng = np.random.default_rng(0)
    # A mean far from 0: sums of squares in float32 would be off by 0.003 of the covariance.
    rows = rng.normal(5, 0.1, (400, 6)).astype(np.float32)
    cuts = [0, 1, 97, 97, 250, 400]
    shards = [no_moments("net").add(rows[i:j]) for i, j in itertools.pairwise(cuts)]
    one_by_one = no_moments("net")
    for row in rows:
        one_by_one = one_by_one.add(row[None])
    for order in (shards, shards[::-1], [one_by_one]):
        whole = no_moments("net")
        for shard in order:
            whole = whole.merge(shard)
        assert whole.n == 400
        np.testing.assert_allclose(whole.mean_D, rows.astype(float).mean(0), rtol=1e-12)
        np.testing.assert_allclose(whole.covariance(), np.cov(rows.astype(float).T), rtol=1e-10)


def test_frechet_of_gaussians_in_closed_form():
    rng = np.random.default_rng(1)
    one = np.eye(5)
    shift = rng.normal(size=5)
    base = gaussian(np.zeros(5), one)
    assert frechet(base, gaussian(shift, one)) == pytest.approx(shift @ shift, rel=1e-12)
    a, b = rng.uniform(0.1, 4, (2, 5))
    expected = ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    turn = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    for q in (one, turn):  # nothing depends on the axes
        of = lambda d, q=q: gaussian(np.zeros(5), q @ np.diag(d) @ q.T)
        assert frechet(of(a), of(b)) == pytest.approx(expected, rel=1e-10)
    x = gaussian(np.zeros(5), turn @ np.diag(a) @ turn.T)
    y = gaussian(shift, np.diag(b))
    assert frechet(x, y) == pytest.approx(frechet(y, x), rel=1e-10)
    assert abs(frechet(x, x)) < 1e-6 * np.trace(x.covariance())


def test_fewer_images_than_features_by_either_way():
    rng = np.random.default_rng(2)
    a, b = kept(rng.normal(size=(20, 64))), kept(rng.normal(0.2, 1.5, (20, 64)))
    both = frechet_of_features(a, b), frechet(a.moments(), b.moments())
    assert both[0] == pytest.approx(both[1], abs=1e-4)  # the second of singular matrices
    assert abs(frechet_of_features(a, a)) < 1e-9


def test_kid_is_the_definition_unbiased_and_its_interval_tells_its_spread():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(2, 7, 4))
    k = lambda a, b: (a @ b / 4 + 1) ** 3
    off = lambda s: np.mean([k(a, b) for i, a in enumerate(s) for j, b in enumerate(s) if i != j])

    def estimate(x, y):
        return off(x) + off(y) - 2 * np.mean([[k(a, b) for b in y] for a in x])

    score = kid(kept(x), kept(y))
    assert score.value == pytest.approx(estimate(x, y), rel=1e-12)
    # Efron & Tibshirani 1993, eq. 11.5, for each set with the other as it is.
    without = np.array([[estimate(np.delete(x, i, 0), y) for i in range(7)],
                        [estimate(x, np.delete(y, i, 0)) for i in range(7)]])  # fmt: skip
    variance = 6 / 7 * ((without - without.mean(1, keepdims=True)) ** 2).sum()
    assert score.high - score.value == pytest.approx(1.959963984540054 * variance**0.5, rel=1e-9)

    same = [kid(*(kept(s) for s in rng.normal(size=(2, 40, 4)))) for _ in range(200)]
    values = np.array([s.value for s in same])
    assert abs(values.mean()) < 4 * values.std() / 200**0.5
    assert (values < 0).any()
    apart = [kid(kept(rng.normal(size=(40, 4))), kept(rng.normal(0.7, 1, (40, 4))))
             for _ in range(200)]  # fmt: skip
    truth = np.mean([s.value for s in apart])
    inside = np.mean([s.low <= truth <= s.high for s in apart])
    assert 0.9 <= inside <= 0.99
    # At equal distributions the interval is too wide by the root of two, as is said there.
    half = np.mean([(s.high - s.low) / 2 for s in same]) / 1.96
    assert 1.2 < half / values.std() < 1.7


def test_kid_in_blocks(monkeypatch, pair):
    whole = kid(*pair)
    monkeypatch.setattr("mmx.eval.kernels._BLOCK", 7)
    parts = kid(*pair)
    assert parts.value == pytest.approx(whole.value, rel=1e-12)
    assert parts.low == pytest.approx(whole.low, rel=1e-9)


def test_cmmd_of_point_masses():
    a = np.tile([1.0, 0, 0], (5, 1))
    # Far apart, and where 1 - exp(-x) would have lost its digits.
    for angle, tolerance in ((np.pi / 2, 1e-12), (3.15e-7, 1e-2)):
        b = np.tile([np.cos(angle), np.sin(angle), 0], (5, 1))
        expected = 1000 * 2 * -np.expm1(-((2 * np.sin(angle / 2)) ** 2) / 200)
        assert cmmd(kept(a), kept(7 * b)) == pytest.approx(expected, rel=tolerance, abs=0)
    rows = np.random.default_rng(4).normal(size=(30, 8))
    assert cmmd(kept(rows), kept(rows)) == 0


def test_balls_of_points_on_a_line():
    real, generated = np.arange(6.0)[:, None], np.array([0.2, 0.4, 2.5, 40, 41, 42])[:, None]
    # A ball reaches two neighbours: 2 at the ends of the line, 1 within.
    precision, recall = precision_recall(kept(generated), kept(real), neighbours=2)
    assert precision.value == 0.5
    # Balls of 0.2, 0.4, 2.5: radii 2.3, 2.1, 2.3.
    assert recall.value == pytest.approx(5 / 6)
    density, coverage = density_coverage(kept(generated), kept(real), neighbours=2)
    assert density == pytest.approx((2 + 2 + 2) / (2 * 6))
    assert coverage.value == pytest.approx(4 / 6)


def test_balls_of_equal_distributions_follow_the_published_law():
    rng = np.random.default_rng(5)
    n, k, both = 300, 5, []
    for _ in range(8):
        a, b = (kept(x) for x in rng.normal(size=(2, n, 16)))
        density, coverage = density_coverage(a, b)
        both.append((density, coverage.value))
    steps = np.arange(1, k + 1)
    expected = 1 - np.prod((n - steps) / (2 * n - steps))  # arXiv 2002.09797 eq. 9
    density, coverage = np.mean(both, 0)
    assert coverage == pytest.approx(expected, abs=0.01)
    assert density == pytest.approx(1, abs=0.08)
    assert precision_recall(a, a)[0].value == precision_recall(a, a)[1].value == 1


def test_nearest_finds_a_copy(pair):
    a, b = pair
    among = b.add(a.rows()[:1])
    distances = nearest(a, among)
    assert distances[0] == pytest.approx(0, abs=1e-6) and (distances[1:] > 0.1).all()
    brute = np.linalg.norm(a.rows()[5] - b.rows(), axis=1).min()
    assert nearest(a, b)[5] == pytest.approx(brute, rel=1e-9)


def test_sets_of_other_size_or_recipe_are_not_compared(pair):
    a, b = pair
    fewer = kept(b.rows()[:-1])
    other = kept(b.rows(), "another")
    for measure in (kid, cmmd, frechet_of_features, precision_recall, density_coverage):
        with pytest.raises(UserError, match="net: a set of 60 and one of 59 images"):
            measure(a, fewer)
        with pytest.raises(UserError, match="'net' and 'another' cannot be compared"):
            measure(a, other)
    with pytest.raises(UserError, match="'net' and 'another'"):
        a.merge(other)
    with pytest.raises(UserError, match="60 and one of 59"):
        frechet(a.moments(), fewer.moments())
    one = kept(a.rows()[:1])
    for measure in (kid, frechet_of_features, precision_recall):
        with pytest.raises(UserError, match="1 images"):
            measure(one, one)
    with pytest.raises(UserError, match="no image to measure"):
        kid(Features("net"), Features("net"))
