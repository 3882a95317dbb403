"""The shift-forgiving distance against a slow direct one, and ranks with ties."""

import math

import numpy as np
import pytest

from mmx.eval import images, retrieval


def gallery_of(n: int, seed: int = 0) -> np.ndarray:
    """n pictures of a few coloured boxes on white, uint8 [n, 32, 32, 3]."""
    rng = np.random.default_rng(seed)
    pictures = np.full((n, 32, 32, 3), 255, np.uint8)
    for picture in pictures:
        for _ in range(3):
            y, x, size = rng.integers(4, 18, 3)
            picture[y : y + size // 2, x : x + size // 2] = rng.integers(0, 256, 3)
    return pictures


def shift(pictures: np.ndarray, dy: int, dx: int) -> np.ndarray:
    """Shifted on a white page; only for pictures with that much white at their edges."""
    return np.roll(pictures, (dy, dx), (1, 2))


def slow_distance(a_u8: np.ndarray, b_u8: np.ndarray) -> float:
    """The definition, word by word, in float64: paste on a large page, blur both, subtract."""
    x = np.arange(-4, 5)
    kernel = np.exp(-(x**2) / 2)
    kernel /= kernel.sum()

    def page(picture, dy, dx):
        out = np.ones((60, 60, 3))
        out[14 + dy : 46 + dy, 14 + dx : 46 + dx] = picture / 127.5 - 1
        for axis in (0, 1):
            padded = np.pad(out, [(4, 4) if i == axis else (0, 0) for i in range(3)], mode="edge")
            out = sum(k * np.take(padded, np.arange(60) + i, axis) for i, k in enumerate(kernel))
        return out

    target = page(b_u8, 0, 0)
    shifts = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)]
    return min(((page(a_u8, *s) - target) ** 2).sum() for s in shifts) / (32 * 32 * 3)


def test_distances_are_those_of_the_definition():
    gallery = gallery_of(4)
    # The second query reaches the edge, where cropping, wrapping and white padding differ.
    queries = np.stack([gallery[1] // 2 + 60, np.roll(gallery[2], 9, 0), gallery[3]])
    expected = [[slow_distance(a, b) for b in gallery] for a in queries]
    np.testing.assert_allclose(retrieval.distances(queries, gallery), expected, atol=1e-6)


def test_distances_are_symmetric_and_zero_for_the_same_picture():
    gallery = gallery_of(6)
    distance = retrieval.distances(gallery, gallery)
    np.testing.assert_allclose(distance, distance.T, atol=1e-6)
    assert np.diag(distance).max() < 1e-6 < 1e-2 < (distance + np.eye(6)).min()


@pytest.mark.parametrize("move", [(2, -2), (-2, 2), (0, 1)])
def test_a_shift_of_two_pixels_is_forgiven(move):
    gallery = gallery_of(3)
    assert np.diag(retrieval.distances(shift(gallery, *move), gallery)).max() < 1e-6


def test_a_shift_of_three_pixels_is_not_forgiven():
    gallery = gallery_of(3)
    for move in ((3, 0), (0, -3)):
        assert np.diag(retrieval.distances(shift(gallery, *move), gallery)).min() > 1e-4


def test_float_and_larger_images_mean_the_same():
    gallery = gallery_of(3)
    large = images.from_uint8(gallery).repeat(3, 1).repeat(2, 2)  # 96x64
    np.testing.assert_allclose(
        retrieval.distances(large, gallery), retrieval.distances(gallery, gallery), atol=1e-6
    )


def test_shrunken_images_are_as_far_apart_as_the_whole_ones():
    gallery = gallery_of(4).repeat(2, 1).repeat(2, 2)  # 64x64
    small = retrieval.shrink(gallery)
    assert small.shape == (4, 32, 32, 3) and small.dtype == np.float32
    whole = retrieval.distances(gallery, gallery)
    np.testing.assert_array_equal(retrieval.distances(small, small), whole)


def test_area_resize_by_hand():
    row = np.array([0.0, 3.0, 6.0], np.float32).reshape(1, 1, 3, 1).repeat(3, 1)
    # 3 -> 2: a new pixel covers one and a half old ones: (0 + 1.5) / 1.5 and (1.5 + 6) / 1.5.
    np.testing.assert_allclose(retrieval.area_resize(row, 2)[0, :, :, 0], [[1, 5], [1, 5]])
    with pytest.raises(ValueError, match="16x16"):
        retrieval.distances(np.zeros((1, 16, 16, 3)), gallery_of(1))


def test_ties_share_the_hit():
    distance = np.array([[0.1, 0.1, 0.1, 0.5], [0.1, 0.3, 0.2, 0.5], [0.1, 0.3, 0.2, 0.3]])
    true = np.array([1, 2, 3])
    # Row 0: true among three nearest. Row 1: second. Row 2: shares places three and four.
    np.testing.assert_allclose(retrieval.hits_at(distance, true, 1), [1 / 3, 0, 0])
    np.testing.assert_allclose(retrieval.hits_at(distance, true, 2), [2 / 3, 1, 0])
    np.testing.assert_allclose(retrieval.hits_at(distance, true, 3), [1, 1, 0.5])
    np.testing.assert_allclose(retrieval.hits_at(distance, true, 4), [1, 1, 1])
    with pytest.raises(ValueError, match="index"):
        retrieval.hits_at(distance, true[:2], 1)
    with pytest.raises(ValueError, match="index"):
        retrieval.hits_at(distance, np.array([1, 2, -1]), 1)


def test_equal_gallery_pictures_tie_whatever_the_rounding():
    gallery = gallery_of(40)
    gallery[17] = gallery[3]  # as the flags of Norway and of Svalbard are
    noisy = images.from_uint8(gallery[[3, 17, 5]]) + 0.1
    distance = retrieval.distances(noisy, gallery)
    distance[:, 17] += 4e-7  # the rounding seen on the whole of OpenMoji
    np.testing.assert_allclose(retrieval.hits_at(distance, np.array([3, 17, 5]), 1), [0.5, 0.5, 1])


def test_nan_and_one_picture_for_all_earn_no_more_than_chance():
    gallery = gallery_of(8)
    true = np.arange(8)
    nan = np.full(gallery.shape, math.nan)
    scores = retrieval.caption_recall(nan, gallery, true, gallery, ks=(1,))
    assert scores["training_caption_recall/r1"].value == pytest.approx(1 / 8)
    same = np.repeat(gallery[:1], 8, 0)
    scores = retrieval.caption_recall(same, gallery, true, gallery, ks=(1, 3))
    assert scores["training_caption_recall/r1"].value == pytest.approx(1 / 8)
    assert scores["training_caption_recall/r3"].value == pytest.approx(3 / 8)
    with pytest.raises(ValueError, match="gallery image"):
        retrieval.distances(gallery, nan)


def test_caption_recall_beside_ceiling_and_chance():
    gallery = gallery_of(40)
    true = np.arange(20)
    right = shift(gallery[:20], 1, -2)
    wrong = np.concatenate([right[:12], gallery[20:28]])  # 12 of 20 right
    codec = np.concatenate([gallery[:16], gallery[30:34]])  # 16 of 20 right, those 12 among them
    scores = retrieval.caption_recall(wrong, codec, true, gallery)
    assert {name.removeprefix("training_caption_recall/") for name in scores} == {
        *("r1", "r1_ceiling", "r1_of_ceiling", "r1_chance"),
        *("r10", "r10_ceiling", "r10_of_ceiling", "r10_chance"),
    }
    assert scores["training_caption_recall/r1"].value == pytest.approx(12 / 20)
    assert scores["training_caption_recall/r1_ceiling"].value == pytest.approx(16 / 20)
    assert scores["training_caption_recall/r1_chance"] == 1 / 40
    share = scores["training_caption_recall/r1_of_ceiling"]
    assert share.value == pytest.approx(12 / 16)
    # Paired: 12 of the 16 that the codec gets right, so no resample is above 1.
    assert 0.5 < share.low < 0.75 < share.high <= 1


def test_nearest_finds_copies_and_the_reference_passes_over_them():
    training = gallery_of(12)
    training[7] = training[2]
    copies = shift(training[[4, 9]], -1, 2)
    rms, index = retrieval.nearest(copies, training)
    assert rms.max() < 2e-3 and index.tolist() == [4, 9]
    rms, index = retrieval.nearest(training, training, distinct=True)
    own = np.array([[slow_distance(training[2], b) for b in training]])
    assert rms[2] == pytest.approx(np.sqrt(np.where(own > 1e-5, own, 9).min()), rel=1e-3)
    assert index[2] not in (2, 7)
