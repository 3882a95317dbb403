"""PNG files that say how they were made: JSON in a text chunk, written whole or not at all."""

import io
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils.epath import Path
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from mmx.core import storage
from mmx.core.errors import UserError
from mmx.eval import images as im

KEY = "mmx"


def save_picture(path: str | os.PathLike, picture: Image.Image, metadata: Mapping) -> Path:
    """Write a PIL image as PNG with `metadata` (run, step, prompts, seed, settings ...) inside.

    The file appears under its name only when it is complete and on the disk: readers see the old
    one or the new one. Missing folders are made. The same picture and metadata give the same bytes.

    Args:
      path: must end in .png; metadata: what JSON can hold, numpy scalars and arrays too, no nan.
        Its "attribution", if any, also goes into the standard chunk "Copyright".
    Raises UserError on another suffix, or as a bucket refuses; OSError as the disk does (full, not
    allowed).
    """
    path = storage.path(path)
    if path.suffix.lower() != ".png":
        raise UserError(f"{path}: pictures are written as PNG, so the name has to end in .png")
    info = PngImagePlugin.PngInfo()
    # ASCII JSON (other letters escaped) fits the plain text chunk that every tool reads.
    info.add_text(KEY, json.dumps(metadata, sort_keys=True, allow_nan=False, default=_plain))
    info.add_text("Software", "mmx")
    if metadata.get("attribution"):
        info.add_itxt("Copyright", metadata["attribution"])
    path.parent.mkdir(parents=True, exist_ok=True)
    png = io.BytesIO()
    picture.save(png, format="PNG", pnginfo=info, optimize=True)
    storage.write(path, png.getvalue())
    return path


def save_image(path: str | os.PathLike, image: np.ndarray, metadata: Mapping) -> Path:
    """Write one image [H, W, 3], uint8 or float in [-1, 1], at its own size; see `save_picture`."""
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected an image [H, W, 3], got shape {image.shape}")
    image_u8 = image if image.dtype == np.uint8 else im.to_uint8(image)
    return save_picture(path, Image.fromarray(image_u8), metadata)


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """The metadata that `save_picture` wrote. Raises UserError if the file or they are missing."""
    try:
        with Image.open(io.BytesIO(storage.read_bytes(storage.path(path)))) as picture:
            picture.load()  # text may follow the pixels
            text = picture.info.get(KEY)
    except FileNotFoundError:
        raise UserError(f"{path}: no such picture") from None
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"{path}: not a whole picture ({error})") from None
    if text is None:
        raise UserError(f"{path}: holds no metadata of mmx; was it saved again by another program?")
    return json.loads(text)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"metadata cannot hold {type(value).__name__}")
