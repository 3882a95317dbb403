"""SVG files to PNG bytes. Imports nothing heavy: each worker process imports it anew."""

import io
from pathlib import Path


def rasterise(path: Path, size: int) -> bytes:
    """Draw an SVG file on white.

    Args:
      path: of the file.
      size: pixels of a side.

    Returns:
      The bytes of an RGB PNG of ``size`` x ``size``. The same on every machine with the same
      packages: no system font is looked at.
    """
    import resvg_py
    from PIL import Image

    drawn = resvg_py.svg_to_bytes(
        svg_path=str(path), width=size, height=size, background="#ffffff", skip_system_fonts=True
    )
    image = Image.open(io.BytesIO(drawn)).convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
