"""Where the pictures of a verb go, and how they are written: the verbs that draw share it."""

from typing import TYPE_CHECKING

from mmx.cli import arguments
from mmx.core import storage
from mmx.core.errors import UserError

if TYPE_CHECKING:
    from etils.epath import Path


def add_arguments(parser) -> None:
    """The flags of a verb that draws."""
    parser.add_argument(
        "--guidance",
        type=arguments.scale,
        help="Muse: t in (1 + t) cond - t uncond, at the last step; Transfusion: w in uncond + w "
        "(cond - uncond) (default: the run's own)",
    )
    parser.add_argument(
        "--steps", type=arguments.count, help="of decoding or diffusion (default: the run's own)"
    )
    parser.add_argument("--seed", type=arguments.seed, default=0, help="default 0")
    parser.add_argument(
        "-n", type=arguments.count, default=1, help="pictures of each prompt (default 1)"
    )


def png_file(given: str | None, default: "Path") -> "Path":
    """The file that ``--out`` names, where one can be written. Raises UserError."""
    out = default
    if given:
        out = storage.path(given)
        if out.suffix.lower() != ".png":
            raise UserError(f"--out={out}: pictures are PNG, so the name has to end in .png")
        if out.is_dir():
            raise UserError(f"--out={out}: a folder is there; name a file")
    arguments.check_writable(f"--out={out}", out.parent)
    return out


def save(path: "Path", image, record: dict) -> "Path":
    """A picture with its metadata. Raises UserError: it cannot be written."""
    from mmx.eval.png import save_image

    try:
        return save_image(path, image, record)
    except OSError as error:
        raise UserError(f"{path}: not written ({error.strerror})") from error


def save_grid(path: "Path", images, texts, record: dict) -> "Path":
    """One picture as it is; several as a captioned grid."""
    import numpy as np

    from mmx.eval.grid import Section, draw_grid

    record = {"prompt": texts[0], "count": len(texts)} | record
    image = images[0]
    if len(images) > 1:
        grid = draw_grid([Section(np.stack(images), texts)], attribution=record["attribution"])
        image = np.asarray(grid)
    return save(path, image, record)
