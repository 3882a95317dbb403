"""How published weights see an image: as transformers' processors, whose output lies in goldens."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mmx.data.image import fit, resize_crop, stretch

GOLDEN = load_file(Path(__file__).parents[1] / "goldens/pretrained/pictures.safetensors")
COUNT = sum(name.startswith("image_") for name in GOLDEN)
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIGLIP = (0.5,) * 3, (0.5,) * 3


@pytest.mark.parametrize("index", range(COUNT))
def test_pixels_equal_the_published_processors(index):
    image = GOLDEN[f"image_{index}"]
    for name, resized, (mean, std) in (
        ("clip", resize_crop(image, 16), CLIP),
        ("siglip", stretch(image, 16), SIGLIP),
    ):
        assert resized.shape == (16, 16, 3) and resized.dtype == np.uint8
        pixels = (resized / 255 - np.array(mean)) / np.array(std)
        np.testing.assert_allclose(pixels, GOLDEN[f"{name}_{index}"], atol=1e-6)


def test_the_goldens_tell_the_ways_apart():
    """`fit` crops first: near, and not the same."""
    image = GOLDEN["image_0"]
    by_fit, by_clip, by_siglip = fit(image, 16), resize_crop(image, 16), stretch(image, 16)
    for a, b in ((by_fit, by_clip), (by_clip, by_siglip)):
        assert np.abs(a.astype(int) - b).max() > 20
