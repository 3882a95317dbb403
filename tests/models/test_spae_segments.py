"""Noise of words, and the segments in which a language model writes them: counts and places."""

import numpy as np
import pytest

from mmx.core.errors import UserError
from mmx.core.rng import base_key
from mmx.models.spae.in_context import pictures
from mmx.models.spae.in_context.noise import SCHEDULES, falling, make_noise
from mmx.models.spae.in_context.segments import (
    Segment,
    Window,
    asked_words,
    places,
    segment_plan,
)
from mmx.ops.pyramid import Pyramid

KEY = base_key(3)
RNG = np.random.default_rng(0)
SMALL, DEMO = Pyramid((1, 2, 4, 4)), Pyramid((1, 2, 4, 8, 8))  # 37 and 149 words
ROWS = 50


def some_words(*shape):
    return RNG.integers(0, ROWS, shape).astype(np.int32)


# ---------------------------------------------------------------- noise


def test_schedules_are_those_of_the_sources():
    v2l = [0.50, 0.47, 0.44, 0.41, 0.38, 0.35, 0.32, 0.29, 0.26, 0.23]
    np.testing.assert_allclose(falling(SCHEDULES["v2l"], 10), v2l, atol=1e-12)
    spae = falling(SCHEDULES["spae"], 4)
    np.testing.assert_allclose(spae, [0.5, 0.4, 0.3, 0.2], atol=1e-12)


def test_noise_hits_the_exact_share_of_the_lower_words_alone():
    ratios = (0.5, 0.23, 0.0, 1.0)
    noise = make_noise(KEY, ratios, num_words=149, kept=21, num_rows=10**6)
    given, wanted = some_words(149), some_words(4, 149)
    for clean, noisy in ((given, noise.apply(given)), (wanted, noise.apply(wanted))):
        changed = noisy != clean
        assert changed.sum(1).tolist() == [64, 29, 0, 128]  # of 128: 29.44 is rounded
        np.testing.assert_array_equal(changed, noise.is_hit_NT)  # so both at the same places
        assert not changed[:, :21].any()
    np.testing.assert_array_equal(noise.apply(given)[3, 21:], noise.apply(wanted)[3, 21:])
    masked = make_noise(KEY, ratios, 149, 21, ROWS, mask_word=9)
    np.testing.assert_array_equal(masked.is_hit_NT, noise.is_hit_NT)
    assert (masked.apply(given)[masked.is_hit_NT] == 9).all()


def test_noise_is_even_over_places_and_words():
    """2,000 examples, 6 of 12 places each: counts have the law of draws without a favourite."""
    noise = make_noise(KEY, [0.5] * 2000, num_words=12, kept=0, num_rows=20)
    by_place = noise.is_hit_NT.sum(0)
    assert abs(by_place - 1000).max() < 4.5 * 500**0.5  # binomial(2000, 1/2)
    together = (noise.is_hit_NT[:, 0] & noise.is_hit_NT[:, 1]).mean()
    assert abs(together - 5 / 22) < 4.5 * (5 / 22 * 17 / 22 / 2000) ** 0.5
    counts = np.bincount(noise.words_NT[noise.is_hit_NT], minlength=20)
    assert ((counts - 600) ** 2 / 600).sum() < 50.8  # chi-square of 19 degrees, p = 1e-4


def test_noise_of_an_example_is_a_function_of_key_and_number():
    draw_noise = lambda key, n: make_noise(key, falling((0.5, 0.5), n), 37, 5, ROWS)
    three, five, other = draw_noise(KEY, 3), draw_noise(KEY, 5), draw_noise(base_key(4), 3)
    for few, many, else_ in zip(three, five, other):
        np.testing.assert_array_equal(few, many[:3])
        assert (few != else_).any() and (few[0] != few[1]).any()


@pytest.mark.parametrize(
    ("ratios", "mask_word", "told"), [((0.1, 1.2), None, "1.2"), ((0.1,), 50, "0..49")]
)
def test_bad_noise_is_refused(ratios, mask_word, told):
    with pytest.raises(UserError, match=told):
        make_noise(KEY, ratios, 37, 5, ROWS, mask_word)


# ---------------------------------------------------------------- segments


@pytest.mark.parametrize("block", [1, 5, 16, 32, 1000])
@pytest.mark.parametrize("pyramid", [SMALL, DEMO, Pyramid((4,)), Pyramid()])
def test_a_plan_has_every_word_once_in_order(pyramid, block):
    for is_asked in (None, RNG.random(pyramid.ends[-1]) < 0.4, RNG.random(pyramid.ends[-1]) < 2):
        plan = segment_plan(pyramid, block, is_asked)
        written = [place for s in plan for place in places(pyramid, s, Window())[2]]
        wanted = range(pyramid.ends[-1]) if is_asked is None else np.flatnonzero(is_asked)
        assert written == list(wanted)
        assert max(segment.length for segment in plan) <= block
        if is_asked is None:  # a layer that fits is written whole, others in few blocks
            assert len(plan) == sum(-(-(side**2) // block) for side in pyramid.sides)


def test_the_plan_of_the_demo():
    plan = [(0, 0, 1), (1, 0, 4), (2, 0, 16), (3, 0, 32), (3, 32, 32), (4, 0, 32), (4, 32, 32)]
    assert segment_plan(DEMO, 32) == plan
    middle = segment_plan(DEMO, 32, asked_words(DEMO, pictures.centre((8, 8))))
    rows = [(layer, 8 * row + 2, 4) for layer in (3, 4) for row in (2, 3, 4, 5)]
    assert middle == [(0, 0, 1), (1, 0, 1), (2, 5, 2), (2, 9, 2), *rows]
    with pytest.raises(UserError, match="at least 1"):
        segment_plan(DEMO, 0)
    with pytest.raises(UserError, match="no word"):
        segment_plan(DEMO, 8, np.zeros(149, bool))


def test_words_asked_for_are_those_of_the_cells():
    is_asked_hw = RNG.random((8, 8)) < 0.5
    wanted = []
    for side in DEMO.sides:
        step = 8 // side
        for i in range(side):
            wanted += [is_asked_hw[step * i + step // 2, step * j + step // 2] for j in range(side)]
    assert asked_words(DEMO, is_asked_hw).tolist() == wanted


@pytest.mark.parametrize(
    ("segment", "window", "given", "before"),
    [
        (Segment(0, 0, 1), Window(2, 3), [0, 1, 2, 3, 4], []),
        (Segment(1, 2, 2), Window(2, 1), [0, 1, 2, 3, 4], [0, 1, 2]),
        (Segment(2, 4, 2), Window(1, 3), [0, 9, 10], [0, 6, 7, 8]),
        (Segment(3, 0, 2), Window(2, 0), [0, 1, 2, 3, 4, 21, 22], [0, 1, 2, 3, 4]),
        (Segment(3, 0, 2), Window(0, 2), [21, 22], [19, 20]),
        (Segment(2, 1, 2), Window(2, 9), [0, 1, 2, 3, 4, 6, 7], [0, 1, 2, 3, 4, 5]),
    ],
)
def test_what_a_segment_shows(segment, window, given, before):
    begin = (0, *SMALL.ends)[segment.layer] + segment.start
    own = list(range(begin, begin + segment.length))
    assert places(SMALL, segment, window) == (given, before, own)
