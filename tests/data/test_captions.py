"""Which pictures may be mirrored without making their caption untrue."""

import pytest

from mmx.data.captions import flip_keeps_caption


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "red apple",
        "a photo of a dog",
        "a photo of a hot dog",
        "a dog on a beach",
        "A dog on a beach",
        "men's room",
        "men\u2019s room",
        "rock 'n' roll",
        "what i saw: a signpost, a brightness and a westerly",  # parts of words do not count
    ],
)
def test_ordinary_captions_may_be_mirrored(caption):
    assert flip_keeps_caption(caption)


@pytest.mark.parametrize(
    "caption",
    [
        "a hand that points left",
        "Right arrow",
        "flag of japan",
        "three o'clock",
        "three o\u2019clock",
        "a stop sign",
        "letter b button",
        "A button (blood type)",
        "blood type A",
        "grade: A",
        "A",
        "an x on a wall",
        "vitamin C",
        "keycap: 5",
        "a bus with a 7 on it",
        "2 dogs",
    ],
)
def test_sides_and_writing_stay_as_they_are(caption):
    assert not flip_keeps_caption(caption)
