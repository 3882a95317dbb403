"""Lengths that programs are compiled for."""

from mmx.core.lengths import bucket


def test_buckets_hold_and_are_few():
    lengths = (0, 1, 16, 17, 25, 33, 48, 49)
    assert [bucket(n, 16) for n in lengths] == [16, 16, 16, 24, 32, 48, 48, 64]
    sizes = [bucket(length, 4) for length in range(1, 257)]
    assert all(size >= length for length, size in enumerate(sizes, 1))
    assert sorted(set(sizes)) == [4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256]
    # A 2^n + 1 is rounded to 1.5 * 2^n, which is less than half more.
    assert max(size / length for length, size in enumerate(sizes, 1) if length >= 4) < 1.5
