"""Decoding of every kind of image file, and the augmentations."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from mmx.data import image as image_lib
from mmx.data.image import ImageError, decode, encode_png, fit, normalise, shift_flip

RED, GREEN = (255, 0, 0), (0, 255, 0)


def _bytes(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _gradient(height=24, width=40):
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 6, y * 10, (x + y) * 3], -1).astype(np.uint8)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_formats(format):
    pixels = _gradient()
    options = {"lossless": True} if format == "WEBP" else {}
    decoded = decode(_bytes(Image.fromarray(pixels), format, **options))
    assert decoded.shape == (24, 40, 3) and decoded.dtype == np.uint8
    tolerance = 12 if format == "JPEG" else 0
    assert np.abs(decoded.astype(int) - pixels).max() <= tolerance


def test_alpha_lies_over_white():
    half = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    half.putpixel((1, 0), (0, 0, 0, 128))
    np.testing.assert_array_equal(decode(_bytes(half))[0, 0], [255, 255, 255])
    assert np.abs(decode(_bytes(half))[0, 1].astype(int) - 127).max() <= 1
    grey = Image.new("LA", (1, 1), (0, 0))
    np.testing.assert_array_equal(decode(_bytes(grey))[0, 0], [255, 255, 255])
    webp = _bytes(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), "WEBP", lossless=True)
    assert (decode(webp) == 255).all()


def test_palette_and_colour_key_transparency():
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, *GREEN])
    palette.putpixel((1, 0), 1)
    np.testing.assert_array_equal(decode(_bytes(palette))[0], [RED, GREEN])
    np.testing.assert_array_equal(
        decode(_bytes(palette, transparency=1))[0], [RED, (255, 255, 255)]
    )
    keyed = Image.new("RGB", (2, 1), RED)
    keyed.putpixel((1, 0), GREEN)
    np.testing.assert_array_equal(
        decode(_bytes(keyed, transparency=GREEN))[0], [RED, (255, 255, 255)]
    )


def test_grey_and_bilevel():
    np.testing.assert_array_equal(
        decode(_bytes(Image.new("L", (3, 2), 77))), np.full((2, 3, 3), 77)
    )
    np.testing.assert_array_equal(
        decode(_bytes(Image.new("1", (3, 2), 1))), np.full((2, 3, 3), 255)
    )


def test_sixteen_bit_keeps_its_greys():
    values = np.array([[0, 256 * 100 + 5, 65535]], np.uint16)
    np.testing.assert_array_equal(decode(_bytes(Image.fromarray(values)))[0, :, 0], [0, 100, 255])


def test_cmyk():
    inked = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert np.abs(decode(_bytes(inked, "JPEG")).astype(int) - RED).max() < 8


def test_exif_rotation():
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255  # left half white
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # shown turned clockwise: the left becomes the top
    decoded = decode(_bytes(Image.fromarray(pixels), "PNG", exif=exif))
    assert decoded.shape == (16, 8, 3)
    assert (decoded[:8] == 255).all() and (decoded[8:] == 0).all()


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN)]
    data = _bytes(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    np.testing.assert_array_equal(decode(data)[0, 0], RED)


def _noise():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.9])
def test_truncated_files_are_errors(format, share):
    data = _bytes(_noise(), format)
    with pytest.raises(ImageError):
        decode(data[: int(len(data) * share)])


def test_a_damaged_checksum_is_an_error():
    data = bytearray(_bytes(_noise()))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(ImageError, match="corrupt"):
        decode(bytes(data))


def test_empty_foreign_and_other_formats():
    with pytest.raises(ImageError, match="empty"):
        decode(b"")
    for data in (b"hello", _bytes(Image.new("RGB", (4, 4)), "GIF")):
        with pytest.raises(ImageError, match="not a PNG, JPEG or WebP"):
            decode(data)


@pytest.mark.parametrize("side", [8_100, 60_000])  # over our limit, and over Pillow's hard one
def test_decompression_bombs_are_refused_unread(side, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("pixels were read"))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = b""
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")):
        chunks += struct.pack(">I", len(body)) + kind + body
        chunks += struct.pack(">I", zlib.crc32(kind + body))
    with pytest.raises(ImageError, match="too large"):
        decode(b"\x89PNG\r\n\x1a\n" + chunks)


def test_normalise_keeps_plain_files_and_rewrites_the_others():
    jpeg = _bytes(Image.fromarray(_gradient()), "JPEG")
    assert normalise(jpeg, None) is jpeg
    for other in (
        _bytes(Image.fromarray(_gradient()), "WEBP"),
        _bytes(Image.new("L", (4, 4))),
        _bytes(Image.new("RGBA", (4, 4))),
    ):
        stored = normalise(other, None)
        assert Image.open(io.BytesIO(stored)).format == "PNG"
        assert Image.open(io.BytesIO(stored)).mode == "RGB"
        np.testing.assert_array_equal(decode(stored), decode(other))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned = _bytes(Image.fromarray(_gradient()), "JPEG", exif=exif)
    assert np.asarray(Image.open(io.BytesIO(normalise(turned, None)))).shape == (40, 24, 3)
    assert decode(normalise(jpeg, 16)).shape == (16, 16, 3)


def test_fit_crops_the_centre():
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 255
    assert (fit(pixels, 10) == 255).all() and fit(pixels, 10).shape == (10, 10, 3)
    assert (fit(pixels.transpose(1, 0, 2), 10) == 255).all()
    square = pixels[:, :10]
    assert fit(square, 10) is square


def test_fit_antialiases():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(fit(stripes, 8).astype(int) - 127).max() < 20


def test_shift_moves_whole_pixels_and_repeats_the_border():
    pixels = _gradient(8, 8)
    seen = set()
    for seed in range(200):
        moved = shift_flip(pixels, np.random.default_rng(seed), 2, False)
        down, right = np.random.default_rng(seed).integers(-2, 3, size=2)
        padded = np.pad(pixels, ((2, 2), (2, 2), (0, 0)), mode="edge")
        expected = padded[2 - down : 10 - down, 2 - right : 10 - right]
        np.testing.assert_array_equal(moved, expected)
        seen.add((int(down), int(right)))
    assert len(seen) == 25


def test_flip_mirrors_half_and_only_on_request():
    pixels = _gradient(4, 6)
    results = [shift_flip(pixels, np.random.default_rng(s), 0, True) for s in range(100)]
    mirrored = sum(np.array_equal(result, pixels[:, ::-1]) for result in results)
    assert mirrored + sum(np.array_equal(result, pixels) for result in results) == 100
    assert 30 < mirrored < 70
    for seed in range(20):
        assert shift_flip(pixels, np.random.default_rng(seed), 0, False) is pixels


def test_augmentations_make_the_same_draws_whatever_is_on():
    after = []
    for shift, flip in ((0, False), (2, False), (0, True), (3, True)):
        rng = np.random.default_rng(5)
        shift_flip(_gradient(), rng, shift, flip)
        after.append(rng.bit_generator.state["state"])
    assert after[0] == after[2] and after[1] == after[3]


def test_encode_png_is_lossless():
    np.testing.assert_array_equal(decode(encode_png(_gradient())), _gradient())
    assert image_lib.MAX_PIXELS >= 4096 * 4096
