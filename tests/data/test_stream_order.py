"""Contract 4: the endless order of examples, before anything is loaded."""

import itertools

import numpy as np
import pytest

from mmx.core.errors import UserError
from mmx.data.pipeline import Stream

PINNED = {
    3061: [2240, 2640, 1650, 2181, 2141, 3001],
    100: [71, 32, 64, 86, 93, 32],
    1024: [727, 263, 742, 731, 867, 143],
    1025: [407, 753, 630, 537, 80, 79],
}


def transform(example, rng):
    raise AssertionError("the order needs no example")


def test_each_epoch_is_a_permutation_and_nothing_is_dropped():
    for size in (1, 2, 7, 64, 1024, 1025):
        stream = Stream(range(size), transform, seed=3)
        epochs = [[stream.index(e * size + i) for i in range(size)] for e in range(3)]
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
        if size > 7:
            assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


@pytest.mark.parametrize("size", [1000, 2000])
def test_seeds_give_other_orders_and_shuffle_well(size):
    orders = [[Stream(range(size), transform, s).index(i) for i in range(size)] for s in range(4)]
    for left, right in itertools.combinations([list(range(size)), *orders], 2):
        assert sum(a == b for a, b in zip(left, right)) < 12  # 1 is expected by chance
        assert abs(np.corrcoef(left, right)[0, 1]) < 0.15


def test_the_order_is_pinned():
    """A run started by an older mmx must go on with the same data: never change these numbers.

    If a new version of Grain changes them, write the permutation of the old one into mmx.
    """
    positions = (0, 1, 2, 3060, 3061, 10**9)
    for size, expected in PINNED.items():
        stream = Stream(range(size), transform, seed=0)
        assert [stream.index(p) for p in positions] == expected


def test_bad_streams():
    with pytest.raises(UserError, match="no examples"):
        Stream([], transform, 0)
    with pytest.raises(UserError, match="seed=-1"):
        Stream([1], transform, -1)
