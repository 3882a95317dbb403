"""8-bit conversion, PSNR and codebook use against numbers worked out by hand."""

import json
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from experiments.parity import metric_inputs as inputs
from mmx.eval import images


def test_all_256_levels_survive_the_round_trip():
    levels = np.arange(256, dtype=np.uint8)
    floats = images.from_uint8(levels)
    assert floats.dtype == np.float32 and floats[0] == -1 and floats[255] == 1
    np.testing.assert_array_equal(images.to_uint8(floats), levels)
    np.testing.assert_array_equal(floats, (levels / 127.5 - 1).astype(np.float32))


def test_no_image_becomes_float64_on_its_way():
    """5,000 images of 256x256 are 3.9 GB in float32; a float64 copy would be 7.9 GB more."""
    image_u8 = np.zeros((16, 128, 128, 3), np.uint8)
    tracemalloc.start()
    try:
        images.as_float(image_u8)
        assert tracemalloc.get_traced_memory()[1] < 4.5 * image_u8.nbytes
    finally:
        tracemalloc.stop()


def test_rounding_is_to_the_nearest_level_with_halves_up():
    step = 1 / 127.5
    x = np.array([-1.3, -1 + 0.49 * step, -1 + 0.51 * step, 0.0, 1 - 0.51 * step, 1.3])
    # 0 lies between 127 and 128.
    np.testing.assert_array_equal(images.to_uint8(x), [0, 0, 1, 128, 254, 255])


def test_to_uint8_refuses_nan():
    with pytest.raises(ValueError, match="1 values"):
        images.to_uint8(np.array([0.0, math.nan]))
    with pytest.raises(ValueError, match="uint8"):
        images.from_uint8(np.zeros(3))


def test_psnr_by_hand_and_image_by_image():
    truth = np.zeros((3, 4, 4, 3), np.float32)
    recon = truth.copy()
    recon[0] += 0.2  # mse 0.04: 10 log10(4 / 0.04) = 20 dB
    recon[1] += 0.02  # 40 dB
    np.testing.assert_allclose(images.psnr(truth, recon), [20, 40, images.MAX_PSNR], atol=1e-4)


def test_psnr_takes_both_kinds_and_clips_as_a_viewer_does():
    white = np.full((1, 4, 4, 3), 255, np.uint8)
    assert images.psnr(white, np.full(white.shape, 1.5))[0] == images.MAX_PSNR
    assert images.psnr(white, np.full(white.shape, 0.8)) == pytest.approx(20)
    assert math.isnan(images.psnr(white, np.full(white.shape, math.nan))[0])
    with pytest.raises(ValueError, match="two batches"):
        images.psnr(white, white[:, :2])


def test_perplexity_of_known_laws():
    assert images.perplexity(np.array([5, 5, 5, 5, 0])) == pytest.approx(4)
    assert images.perplexity(np.array([0, 9])) == pytest.approx(1)
    # p = 1/2, 1/4, 1/4: entropy 1.5 bits.
    assert images.perplexity(np.array([2, 1, 1])) == pytest.approx(2**1.5)
    with pytest.raises(ValueError, match="counts"):
        images.perplexity(np.zeros(4))


def test_codebook_use_by_hand():
    codes = np.array([[[0, 0]], [[1, 1]], [[1, 2]], [[1, 1]]])  # [4 images, 1, 2]
    use, perplexity = images.codebook_use(codes, 8)
    assert use.value == 3 / 8 and use.n == 4
    assert perplexity.value == pytest.approx(images.perplexity(np.array([2, 5, 1])))
    # Without image 0, 1, 2, 3 there are 2, 3, 2, 3 codes: jackknife variance 3/4 * 4 * (1/2)^2.
    half = 1.959964 * (3 / 4) ** 0.5 / 8
    assert (use.low, use.high) == pytest.approx((3 / 8 - half, 3 / 8 + half))
    without = [images.perplexity(np.array(c)) for c in ([5, 1], [2, 3, 1], [2, 4], [2, 3, 1])]
    spread = (3 / 4 * ((np.array(without) - np.mean(without)) ** 2).sum()) ** 0.5
    assert perplexity.high == pytest.approx(perplexity.value + 1.959964 * spread)


def test_codebook_use_refuses_codes_outside():
    for bad in (np.array([[0, 8], [1, 1]]), np.array([[-1, 0], [1, 1]])):
        with pytest.raises(ValueError, match=r"\[0, 8\)"):
            images.codebook_use(bad, 8)


def test_of_one_image_the_use_of_codes_says_nothing_about_others():
    use, perplexity = images.codebook_use(np.array([[1, 2]]), 8)
    assert (use.value, use.low, use.high, use.n) == (0.25, 0.0, 1.0, 1)
    assert (perplexity.low, perplexity.high) == (1.0, 8.0)
    assert perplexity.value == pytest.approx(2.0)


def test_ssim_is_that_of_another_library_and_1_of_equal_images():
    golden = json.loads((Path(__file__).parents[1] / "goldens/metrics.json").read_text())
    image = inputs.images()
    np.testing.assert_allclose(images.ssim(image, inputs.noisy(image)), golden["ssim"], rtol=1e-5)
    np.testing.assert_allclose(images.ssim(image, image), 1, rtol=1e-12)
