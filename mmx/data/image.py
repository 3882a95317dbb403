"""Image files to arrays, and the two augmentations that keep a caption true.

Legend: H W height and width in pixels.
"""

import io
import warnings

import numpy as np
from PIL import ExifTags, Image, ImageOps

from mmx.core.errors import UserError

MAX_PIXELS = 64_000_000  # ours: 8000 x 8000; a decoded image of 192 MB
_FORMATS = ("PNG", "JPEG", "WEBP")
_WIDE_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # 16-bit grey, by the version of Pillow


class ImageError(ValueError):
    """An image that cannot be used; the message is the reason, in a few words."""


def decode(data: bytes) -> np.ndarray:
    """Decode a PNG, JPEG or WebP file.

    Transparent parts show white; the EXIF rotation is applied; CMYK, palette, grey and 16-bit
    images become 8-bit RGB (16-bit: the high byte). Of an animation, the first frame.

    Args:
      data: the bytes of the file.

    Returns:
      uint8 [H, W, 3].

    Raises:
      ImageError: empty, corrupt or truncated file, another format, or more than 64 million pixels.
    """
    if not data:
        raise ImageError("empty file")
    try:
        with warnings.catch_warnings():
            # Pillow only warns of a decompression bomb up to twice its limit; we have our own.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ImageError(f"too large: {width}x{height}, more than {MAX_PIXELS:,} pixels")
        image.load()
        return np.asarray(_to_rgb(image))
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"too large: more than {MAX_PIXELS:,} pixels") from error
    except Image.UnidentifiedImageError as error:
        raise ImageError("not a PNG, JPEG or WebP image") from error
    except Exception as error:  # Pillow's decoders raise many types on broken files
        raise ImageError(f"corrupt or truncated: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not image.info:  # the usual case, and the fast one
        return image
    image = ImageOps.exif_transpose(image)
    if image.mode in _WIDE_MODES:
        wide = np.asarray(image).astype(np.int64)
        return Image.fromarray((np.clip(wide, 0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def normalise(data: bytes, size: int | None) -> bytes:
    """The bytes of an image file as a data set stores them: readable by all as 8-bit RGB.

    Args:
      data: the bytes of a PNG, JPEG or WebP file.
      size: pixels of a side after ``fit``; None keeps the image's own size.

    Returns:
      ``data`` itself where it is a plain RGB PNG or JPEG and keeps its size, else a PNG.

    Raises:
      ImageError: as ``decode``.
    """
    image = decode(data)
    if size is None and _is_plain(data):
        return data
    return encode_png(image if size is None else fit(image, size))


def _is_plain(data: bytes) -> bool:
    image = Image.open(io.BytesIO(data), formats=_FORMATS)
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    return (
        image.format in ("PNG", "JPEG")
        and image.mode == "RGB"
        and orientation == 1
        and not image.has_transparency_data
    )


def encode_png(image: np.ndarray) -> bytes:
    """uint8 [H, W, 3] -> the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def fit(image: np.ndarray, size: int) -> np.ndarray:
    """Centre crop to a square, then resize with antialiasing.

    Args:
      image: uint8 [H, W, 3].
      size: pixels of a side.

    Returns:
      uint8 [size, size, 3]; ``image`` itself when it has that shape already.
    """
    height, width = image.shape[:2]
    if height == width == size:
        return image
    side = min(height, width)
    return _resized(image, size, (width - side) // 2, (height - side) // 2, side)


def fit_video(video: np.ndarray, size: int) -> np.ndarray:
    """:func:`fit` of each frame: uint8 [T, H, W, 3] -> [T, size, size, 3]."""
    return np.stack([fit(frame, size) for frame in video])


def join_frames(video: np.ndarray) -> np.ndarray:
    """A video as one image, a strip: [..., T, H, W, 3] -> [..., H, T * W, 3], left to right."""
    *lead, T, H, W, C = video.shape
    return np.moveaxis(video, -4, -3).reshape(*lead, H, T * W, C)


def split_frames(strip: np.ndarray, frames: int) -> np.ndarray:
    """[T, H, W, 3] of a strip: the inverse of :func:`join_frames`.

    Raises:
      UserError: its width is not that of so many frames.
    """
    height, width = strip.shape[:2]
    if width % frames:
        raise UserError(
            f"{width}x{height} pixels: a video is a strip of {frames} frames beside each other, so "
            f"its width has to be a multiple of {frames}"
        )
    return np.moveaxis(strip.reshape(height, frames, width // frames, -1), 1, 0)


def random_fit(image: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    """As :func:`fit`, but the largest square is taken at a random place along the longer side.

    CLIP's only augmentation (arXiv 2103.00020 sec. 2.5). Always makes the same number of draws.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (int(rng.integers(0, length - side + 1)) for length in (height, width))
    return image if height == width == size else _resized(image, size, left, top, side)


def _resized(image: np.ndarray, size: int, left: int, top: int, side: int) -> np.ndarray:
    box = (left, top, left + side, top + side)
    # Pillow's filters widen with the scale, so a reduction averages over the pixels it drops.
    resized = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC, box=box)
    return np.asarray(resized)


def shift_flip(image: np.ndarray, rng: np.random.Generator, shift: int, flip: bool) -> np.ndarray:
    """Move an image by up to ``shift`` pixels each way, and mirror it half of the time.

    What moves in takes the colour of the nearest border pixel. Always makes the same number of
    draws.

    Args:
      image: uint8 [H, W, 3].
      rng: the row's generator.
      shift: largest move in pixels, 0 for none.
      flip: whether to mirror; only where a mirrored image keeps its caption true (no text, no left
        or right).

    Returns:
      uint8 [H, W, 3].
    """
    down, right = (int(d) for d in rng.integers(-shift, shift + 1, size=2))
    mirror = rng.random() < 0.5
    if down or right:
        height, width = image.shape[:2]
        rows = np.clip(np.arange(height) - down, 0, height - 1)
        columns = np.clip(np.arange(width) - right, 0, width - 1)
        image = image.take(rows, axis=0).take(columns, axis=1)
    return image[:, ::-1] if flip and mirror else image


def resize_crop(image: np.ndarray, size: int) -> np.ndarray:
    """As published CLIP weights see an image: its short side resized, then the centre.

    Bicubic, antialiased and rounded to whole numbers before the crop, as Pillow does it. Of the two
    published codes, which differ by a pixel where what is cut is odd, transformers'.

    Args:
      image: uint8 [H, W, 3].
      size: pixels of a side.

    Returns:
      uint8 [size, size, 3].
    """
    height, width = image.shape[:2]
    short = min(height, width)
    height, width = size * height // short, size * width // short
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    top, left = (height - size) // 2, (width - size) // 2
    return np.asarray(resized)[top : top + size, left : left + size]


def stretch(image: np.ndarray, size: int) -> np.ndarray:
    """As published SigLIP weights see an image: both sides resized, whatever their ratio.

    Args:
      image: uint8 [H, W, 3].
      size: pixels of a side.

    Returns:
      uint8 [size, size, 3].
    """
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))
