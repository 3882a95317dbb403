"""Drawings that move: where, how far, what their captions say, that they open as a data set."""

import numpy as np
import pytest
import tiny_tfds

from mmx.core.errors import UserError
from mmx.data.image import encode_png, join_frames, split_frames
from mmx.data.moving import MOTIONS, SIDES, SPEEDS, move
from mmx.data.source import open_source


def middles(video):
    """[16, 2]: the middle row and column of what is not white in each frame."""
    dark = (video != 255).all(-1)
    return np.array([np.argwhere(frame).mean(0) for frame in dark])


@pytest.mark.parametrize(("side", "step"), [("left", (0, -1)), ("right", (0, 1)), ("up", (-1, 0)),
                                            ("down", (1, 0))])  # fmt: skip
def test_a_drawing_goes_where_it_is_told(side, step):
    image = np.full((32, 32, 3), 40, np.uint8)
    fast, slow = (middles(move(image, speed, side, 3)) for speed in ("", "slowly "))
    step, axis = np.array(step), int(step[0] == 0)
    # Steps of 0, 1 or 2 pixels along the way, none aside; a whole room of 16 pixels, or half of it.
    for way, length in ((fast, 16), (slow, 8)):
        assert way.shape == (16, 2)
        along = np.diff(way, axis=0) @ step
        assert along.min() >= 0 and along.max() <= 2 and along.sum() == length
        assert (way[:, 1 - axis] == 3 + 7.5).all()
    np.testing.assert_allclose(fast.mean(0)[axis], 15.5, atol=0.5)
    assert (move(image, "", side)[0] == 40).all(-1).sum() == 16 * 16
    np.testing.assert_array_equal(move(image, "", side, 2), move(image, "", side, 2 + 17))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    random = np.random.default_rng(0)
    drawings = [
        {"image": encode_png(random.integers(0, 200, (8, 8, 3), np.uint8)), "text": text}
        for text in ("red heart", "violin", "dog")
    ]
    features = {"image": tiny_tfds.IMAGE, "text": tiny_tfds.TEXT}
    path = tiny_tfds.build(tmp_path_factory.mktemp("data"), "drawings", features, drawings)
    wide = [{"image": tiny_tfds.png(9), "text": "wide"}]
    return tiny_tfds.build(path, "wide", features, wide)


def test_each_drawing_moves_to_each_side_at_each_speed(root):
    drawings, videos = (
        open_source(f"{kind}:drawings", "train", root) for kind in ("tfds", "moving")
    )
    assert len(videos) == videos.info.splits["train"] == 3 * len(SIDES) * len(SPEEDS) == 24
    assert videos[0]["text"] == f"{drawings[0]['text']} moves left"
    texts = [videos[i]["text"] for i in range(24)]
    assert len(set(texts)) == 24 and "dog moves slowly up" in texts
    outlines = list(videos.outlines())
    assert [e["text"] for e in outlines] == texts and outlines[0]["image"] is None
    for i in (0, 13, 23):
        drawing, (speed, side) = drawings[i % 3]["image"], MOTIONS[(i // 3 + i % 3) % 8]
        assert videos[i]["motion"] == speed + side
        np.testing.assert_array_equal(videos[i]["image"], move(drawing, speed, side, 7 * (i % 3)))
    assert [videos[i]["motion"] for i in range(4)] == ["left", "right", "up", "right"]
    again = open_source("moving:drawings", "train[:2]*2", root)
    np.testing.assert_array_equal(again[16 + 1]["image"], videos[1]["image"])
    assert videos.info.fingerprint == again.info.fingerprint != drawings.info.fingerprint


def test_what_cannot_move_is_refused(root):
    with pytest.raises(UserError, match="its images are 8x6; what moves has to be square"):
        open_source("moving:wide", "train", root)
    with pytest.raises(UserError, match="splits train"):
        open_source("moving:drawings", "test", root)


def test_a_strip_is_a_video_and_back():
    video = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), np.uint8)
    strip = join_frames(video)
    assert strip.shape == (4, 15, 3)
    np.testing.assert_array_equal(strip[:, 5:10], video[1])
    np.testing.assert_array_equal(split_frames(strip, 3), video)
    np.testing.assert_array_equal(join_frames(np.stack([video] * 2))[1], strip)
    with pytest.raises(UserError, match="15x4 pixels: a video is a strip of 4 frames"):
        split_frames(strip, 4)
