"""What the verbs share: checks of arguments that need neither jax nor a model."""

import argparse
import json
import math
import os
import re
import tempfile
from pathlib import Path

from mmx.core import storage
from mmx.core.errors import UserError
from mmx.core.run_dir import RunDir


def count(text: str) -> int:
    """A whole number of at least 1."""
    return _whole(text, 1, 2**31 - 1, "at least 1")


def seed(text: str) -> int:
    """A whole number that all random generators take as it is."""
    return _whole(text, 0, 2**32 - 1, "from 0 to 2**32 - 1")


def _whole(text: str, low: int, high: int, which: str) -> int:
    try:
        value = int(text)
        if low <= value <= high:
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r}: give a whole number {which}")


def scale(text: str) -> float:
    """A finite number of at least 0."""
    try:
        value = float(text)
        if math.isfinite(value) and value >= 0:
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r}: give a number of at least 0")


def add_lm(parser) -> None:
    """``--lm`` and ``--lm_dtype``, of who asks a frozen language model."""
    parser.add_argument(
        "--lm",
        default="smollm2-135m-instruct",
        help="as `mmx prepare lm` named it, a folder, or an id of the Hugging Face hub; of the "
        "vocabulary that the run's words are of (default: %(default)s)",
    )
    parser.add_argument(
        "--lm_dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of its weights, which lie spread over the devices (default: %(default)s)",
    )


def add_metrics(parser) -> None:
    """``--metrics`` and ``--scorer``, of the verbs that score."""
    parser.add_argument(
        "--metrics",
        metavar="NAME,NAME",
        type=lambda text: [name for name in text.split(",") if name],
        help="beside the report (default: config.eval.metrics)",
    )
    parser.add_argument(
        "--scorer",
        metavar="CLIP_RUN[@STEP]",
        help="the CLIP of clip_score and cmmd (default: config.eval.scorer)",
    )


def prompts(file: str) -> list[str]:
    """The lines of the file that ``--prompts`` names, without empty ones.

    Raises:
      UserError: it cannot be read, is no text, or holds none.
    """
    lines = read_text("--prompts", file).splitlines()
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise UserError(f"--prompts={storage.path(file)}: no prompt in it")
    return found


def read_text(flag: str, file: str) -> str:
    """What is in the file that a flag names. Raises UserError: it cannot be read, or is no text."""
    where = storage.path(file)
    try:
        return storage.read_bytes(where).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{flag}={where}: not a text file in UTF-8") from error
    except OSError as error:
        raise UserError(f"{flag}={where}: {error.strerror}") from error


def check_prompts(run_dir: RunDir, prompts: list[str], negative: str = "") -> None:
    """Can the run draw, and does it take these texts? Needs its config and tokenizer only.

    Raises:
      UserError: it cannot, or a text is too long.
    """
    config = run_dir.config()
    if "sample" not in config:
        raise UserError(
            f"{run_dir.path}: a run of the family {config.family!r}, which draws nothing from "
            "prompts; name a run that learned from captions"
        )
    if config.data.get("max_images") == 0:
        raise UserError(
            f"{run_dir.path}: config.data.max_images=0, so it learned from texts alone and draws "
            "nothing"
        )
    from mmx.data.text import Tokenizer

    tokenizer = Tokenizer.load(run_dir.tokenizer_file)
    # A text that is part of a packed row has no end of its own.
    room = config.text.max_len + ("row_len" in config.data)
    tokenizer.encode(prompts, room, strict=True)
    if negative:
        try:
            tokenizer.encode([negative], room, strict=True)
        except UserError as error:
            raise UserError(f"--negative: {error}") from error


def read_image(file: str | os.PathLike):
    """uint8 [H, W, 3] of a PNG, JPEG or WebP file of any size and mode.

    Raises:
      UserError: no such file, or no image.
    """
    from mmx.data.image import ImageError, decode

    where = storage.path(file)
    try:
        return decode(storage.read_bytes(where))
    except ImageError as error:
        raise UserError(f"{where}: {error}") from error
    except OSError as error:
        raise UserError(f"{where}: {error.strerror or 'no such image'}") from error


def profiled_steps(spec: str, steps: int) -> range:
    """``FIRST:LAST`` -> those steps, both included; a run counts its steps from 1 to ``steps``.

    Raises:
      UserError: anything else.
    """
    match = re.fullmatch(r"([0-9]+):([0-9]+)", spec)
    first, last = map(int, match.groups()) if match else (0, 0)
    if not 1 <= first <= last <= steps:
        raise UserError(
            f"--profile={spec}: name the first and the last step to trace, as in 10:15, "
            f"from 1 to config.steps={steps}"
        )
    return range(first, last + 1)


def check_writable(flag: str, folder: os.PathLike) -> None:
    """Find out now, not after minutes of drawing, whether files can be made in a folder.

    Args:
      flag: how the user named it, for the message.
      folder: may be missing; it is not made.

    Raises:
      UserError: it is a file, below a file, or the system refuses; of a bucket, see
        :func:`mmx.core.storage.check_bucket`.
    """
    if storage.is_remote(folder):
        storage.check_bucket(flag, folder)
        return
    there = Path(os.path.abspath(folder))
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        raise UserError(f"{flag}: {there} is not a folder")
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise UserError(f"{flag}: cannot write in {there} ({error.strerror})") from error


def write_json(flag: str, where: str, value) -> None:
    """A value as JSON into the file that a flag names, or to stdout where that is "-".

    Raises:
      UserError: it cannot be written.
    """
    text = json.dumps(value, indent=2)
    if where == "-":
        print(text)
        return
    try:
        Path(where).write_text(text + "\n")
    except OSError as error:
        raise UserError(f"{flag}={where}: not written ({error.strerror})") from error
