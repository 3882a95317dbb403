"""What may be done to a picture without making its caption untrue."""

import re

# Words whose truth depends on which side is which, or that go with something written.
_SIDED = re.compile(
    r"\b(left|right|leftwards?|rightwards?|east|west|eastern|western|clockwise|counterclockwise|"
    r"anticlockwise|flag|button|letter|letters|number|numbers|input|keycap|sign|text|o.?clock)\b",
    re.IGNORECASE,
)
# A letter or digit by itself is drawn as such, and would be mirrored. Not so the words "a" and "i",
# an "A" that begins a longer caption, and what follows an apostrophe ("men's").
_DRAWN = re.compile(r"(?<!['\u2019])\b(?!\AA\s+\w)[A-Zb-hj-z0-9]\b")


def flip_keeps_caption(text: str) -> bool:
    """May the picture be mirrored? Not where the caption names a side, a flag or writing."""
    return _SIDED.search(text) is None and _DRAWN.search(text) is None
