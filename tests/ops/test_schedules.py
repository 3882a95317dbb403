"""Schedules against closed forms (spec section 7; invariants 8 and 9, the ramp)."""

import math

import numpy as np
import pytest

from mmx.core.errors import UserError
from mmx.ops import schedules


def test_cosine_counts_where_float32_would_round_down():
    # (t + 1) / R = 2 / 3 is the one inner step where the cosine is rational: exactly one half.
    for n in range(1, 4097):
        assert schedules.hidden_counts("cosine", 3, n)[1, n] == n // 2
    table = schedules.hidden_counts("cosine", 24, 300)
    for t in range(23):
        share = math.cos(math.pi / 2 * (t + 1) / 24)
        assert table[t, 256] == math.floor(256 * share + 1e-9)
    assert (table[-1] == 0).all()


def test_linear_counts_are_whole_numbers_where_they_should_be():
    for steps in (3, 7, 10, 12, 24):
        table = schedules.hidden_counts("linear", steps, 4096)
        n = np.arange(4097)
        for t in range(steps):
            np.testing.assert_array_equal(table[t], n * (steps - t - 1) // steps)


def test_arccos_reveals_far_more_at_first():
    hidden = schedules.hidden_counts("arccos", 12, 256)[:, 256]
    assert 256 - hidden[0] in (13, 14)  # spec section 5.1; the cosine reveals 3
    expected = [math.floor(256 * 2 / math.pi * math.acos((t + 1) / 12)) for t in range(12)]
    np.testing.assert_array_equal(hidden, expected)


@pytest.mark.parametrize("name", schedules.HIDDEN_SHARE)
def test_counts_never_rise(name):
    table = schedules.hidden_counts(name, 8, 64)
    assert (np.diff(table, axis=0) <= 0).all()
    assert (table <= np.arange(65)).all() and (table >= 0).all()


def test_bad_names_say_what_to_choose():
    with pytest.raises(UserError, match=r"'cosin'.*cosine, arccos, linear"):
        schedules.hidden_counts("cosin", 8, 4)
    with pytest.raises(UserError, match="num_steps = 0"):
        schedules.hidden_counts("cosine", 0, 4)


def check_choice_temperature(temperature_at):
    got = [float(temperature_at(t, 12, 4.5)) for t in range(12)]
    np.testing.assert_allclose(got, [4.5 * (1 - (t + 1) / 12) for t in range(12)], atol=1e-6)


def compounding(step, num_steps, temperature):
    """Spec P7: the temperature is multiplied by the remaining share at every step."""
    for t in range(step + 1):
        temperature *= 1 - (t + 1) / num_steps
    return temperature


def test_choice_temperature_falls_on_a_line():
    check_choice_temperature(schedules.choice_temperature_at)
    with pytest.raises(AssertionError):
        check_choice_temperature(compounding)


def test_guidance_ramp_goes_from_zero_to_the_scale():
    ramp = [float(schedules.guidance_ramp(t, 5, 3.0)) for t in range(5)]
    np.testing.assert_allclose(ramp, [0, 0.75, 1.5, 2.25, 3])
    assert schedules.guidance_ramp(0, 1, 3.0) == 3.0


@pytest.mark.parametrize("grid", [(1, 1), (4, 4), (8, 8), (3, 5), (16, 16)])
def test_halton_order_visits_every_cell_once(grid):
    place = schedules.halton_order(grid)
    np.testing.assert_array_equal(np.sort(place), np.arange(grid[0] * grid[1]))


def test_halton_order_is_the_halton_sequence_and_spreads_out():
    # First points (1/2, 1/3), (1/4, 2/3), (3/4, 1/9), (1/8, 4/9) on 8 rows of 9.
    place = schedules.halton_order((8, 9))
    first = [int(np.argmax(place == i)) for i in range(4)]
    assert first == [4 * 9 + 3, 2 * 9 + 6, 6 * 9 + 1, 1 * 9 + 4]
    # After a quarter of the cells, every 4 x 4 quarter of the grid has about a quarter of them.
    shown = (schedules.halton_order((8, 8)) < 16).reshape(2, 4, 2, 4).sum((1, 3))
    assert shown.min() >= 3 and shown.max() <= 5
