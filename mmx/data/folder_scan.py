"""Find the images of a folder and their captions, and say what is wrong with the others.

One rule for the whole folder, the first that applies:
  1. files ``metadata.jsonl`` or ``metadata.csv`` with ``file_name`` (relative to the metadata
     file) and ``text``, the convention of the Hugging Face ImageFolder;
  2. ``NAME.txt`` beside ``NAME.jpg``;
  3. the name of the folder that an image lies in, as a class.
Hidden files and folders are not looked at.
"""

import csv
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path

from mmx.core.errors import UserError
from mmx.data.image import ImageError, normalise

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
_OTHER_IMAGES = {".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jxl", ".svg"}
_METADATA = ("metadata.jsonl", "metadata.csv")
_MAX_FILE_BYTES = 256 * 2**20  # ours: an image file above this is not one


@dataclasses.dataclass(frozen=True)
class Item:
    """An image with a caption.

    Attributes:
      name: path relative to the folder, with "/".
      path: where it lies.
      caption: its text; in rule 3 the class.
    """

    name: str
    path: Path
    caption: str


@dataclasses.dataclass(frozen=True)
class Problem:
    """A file (or a line of a metadata file) that cannot be used.

    Attributes:
      name: of the file, relative to the folder.
      reason: in a few words; what stands before a ":" is the kind, by which problems are counted.
    """

    name: str
    reason: str


@dataclasses.dataclass
class Scan:
    """What a folder holds.

    Attributes:
      items: usable so far (the image files are not opened yet), by name.
      problems: of the rest.
      has_classes: captions are class names (rule 3).
    """

    items: list[Item]
    problems: list[Problem]
    has_classes: bool


def scan(folder: Path) -> Scan:
    """List a folder.

    Raises:
      UserError: it is none, holds no image, or a metadata file of it is no such file.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    root = folder.resolve()
    images, metadata, problems = _walk(root)
    if not images:
        raise UserError(f"{folder}: no JPEG, PNG or WebP image in it")
    has_texts = any(path.with_suffix(".txt").is_file() for path in images.values())
    if metadata:
        captions = _from_metadata(root, metadata, images, problems)
        lacking = f"no caption: no row in {metadata[0].name}"
    elif has_texts:
        captions = _from_text_files(root, images, problems)
        lacking = "no caption: no .txt file beside it"
    else:
        captions = {
            name: path.parent.name.replace("_", " ").strip()
            for name, path in images.items()
            if path.parent != root
        }
        lacking = "no caption: no .txt, no metadata file, and not in a class folder"
    known = set(captions) | {problem.name for problem in problems}
    problems += [Problem(name, lacking) for name in images if name not in known]
    items = [Item(name, images[name], captions[name]) for name in sorted(captions)]
    return Scan(items, sorted(problems, key=lambda p: p.name), not metadata and not has_texts)


def read_image(item: Item, size: int | None) -> bytes | Problem:
    """The bytes to store for an item (see ``image.normalise``), or why there are none."""
    try:
        if item.path.stat().st_size > _MAX_FILE_BYTES:
            return Problem(item.name, f"too large: a file of more than {_MAX_FILE_BYTES:,} bytes")
        return normalise(item.path.read_bytes(), size)
    except ImageError as error:
        return Problem(item.name, str(error))
    except OSError as error:
        return Problem(item.name, f"unreadable: {error.strerror}")


def _walk(root: Path) -> tuple[dict[str, Path], list[Path], list[Problem]]:
    """(name -> image file, metadata files, problems)."""
    images, metadata, problems = {}, [], []
    for directory, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in sorted(name for name in files if not name.startswith(".")):
            path = Path(directory, file)
            suffix = path.suffix.lower()
            name = path.relative_to(root).as_posix()
            if file in _METADATA and path.is_file():
                metadata.append(path)
            elif suffix in _OTHER_IMAGES:
                problems.append(Problem(name, f"unsupported format: {suffix}"))
            elif suffix in IMAGE_SUFFIXES:
                reason = _unusable(root, path, name)
                if reason:
                    problems.append(Problem(_printable(name), reason))
                else:
                    images[name] = path
    return images, metadata, problems


def _unusable(root: Path, path: Path, name: str) -> str | None:
    if _printable(name) != name:
        return "bad file name: not UTF-8"
    if not path.is_file():  # a pipe would be read for ever
        return "unreadable: a broken link or not a regular file"
    if not path.resolve().is_relative_to(root):
        return "outside: a link that leads out of the folder"
    return None


def _printable(name: str) -> str:
    return name.encode("utf-8", "replace").decode()


def _from_text_files(
    root: Path, images: dict[str, Path], problems: list[Problem]
) -> dict[str, str]:
    captions = {}
    for name, path in images.items():
        text_path = path.with_suffix(".txt")
        if not text_path.is_file():
            continue
        if not text_path.resolve().is_relative_to(root):
            problems.append(Problem(name, "outside: its .txt is a link that leads elsewhere"))
            continue
        try:
            caption = _one_line(text_path.read_text("utf-8-sig"))
        except UnicodeDecodeError:
            problems.append(Problem(name, "no caption: its .txt is not UTF-8"))
            continue
        if caption:
            captions[name] = caption
        else:
            problems.append(Problem(name, "no caption: its .txt is empty"))
    return captions


def _from_metadata(
    root: Path, metadata: list[Path], images: dict[str, Path], problems: list[Problem]
) -> dict[str, str]:
    captions: dict[str, str] = {}
    bad_images = {problem.name for problem in problems}
    for path in metadata:
        if sum(other.parent == path.parent for other in metadata) > 1:
            raise UserError(f"{path.parent}: has {' and '.join(_METADATA)}; keep one of them")
        for line, row in _rows(path):
            where = f"{path.relative_to(root).as_posix()}:{line}"
            file_name, text = (row or {}).get("file_name"), (row or {}).get("text")
            if not isinstance(file_name, str) or not file_name or not isinstance(text, str):
                problems.append(Problem(where, "bad row: needs the texts file_name and text"))
                continue
            target = Path(os.path.normpath(path.parent / file_name))
            name = target.relative_to(root).as_posix() if target.is_relative_to(root) else None
            if name is None:
                problems.append(Problem(where, f"outside: {file_name!r} leads out of the folder"))
            elif name in captions:
                problems.append(Problem(where, f"bad row: a second row for {file_name!r}"))
            elif not _one_line(text):
                problems.append(Problem(name, f"no caption: empty text in {where}"))
            elif name in images:
                captions[name] = _one_line(text)
            elif name not in bad_images:  # what is wrong with that one is said already
                problems.append(Problem(where, f"row without image: {file_name!r}"))
    return captions


def _rows(path: Path) -> Iterator[tuple[int, dict | None]]:
    """(line number, row or None where it is not one)."""
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error})") from error
    if path.suffix == ".jsonl":
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError:
                    row = None
                yield number, row if isinstance(row, dict) else None
        return
    reader = csv.DictReader(text.splitlines(keepends=True))
    if not {"file_name", "text"} <= set(reader.fieldnames or ()):
        raise UserError(f"{path}: needs the columns file_name and text, has {reader.fieldnames}")
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise UserError(f"{path}: not a CSV file, line {reader.line_num} ({error})") from error


def _one_line(text: str) -> str:
    return " ".join(text.split())
