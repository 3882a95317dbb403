"""What may be done to a picture without making its caption untrue."""

import re

# Words whose truth depends on which side is which; letters and digits would be mirrored too.
_SIDED = re.compile(
    r"\b(left|right|leftwards?|rightwards?|east|west|eastern|western|clockwise|counterclockwise|"
    r"anticlockwise|flag|button|letter|letters|number|numbers|input|keycap|sign|text|o.?clock|"
    r"[a-z0-9])\b",
    re.IGNORECASE,
)


def flip_keeps_caption(text: str) -> bool:
    """May the picture be mirrored? Not where the caption names a side, a flag or writing."""
    return _SIDED.search(text) is None
