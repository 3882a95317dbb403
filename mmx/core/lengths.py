"""Lengths that programs are compiled for: few, and not much longer than what is in them."""


def bucket(length: int, least: int) -> int:
    """A number of tokens rounded up to 2^n or 1.5 * 2^n, at least ``least``; from there on it grows
    by less than a half.

    Args:
      least: a power of two, at least 2.
    """
    size = least
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size
