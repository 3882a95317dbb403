"""Build a TFDS data set whole or not at all: in a folder aside, renamed at the end.

A process killed half-way leaves only ``.incomplete-*`` folders, which no reader looks at and the
next build removes. TFDS itself renames before our tokenizer file is there, hence the second folder.
"""

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from mmx.core import storage
from mmx.core.errors import UserError
from mmx.data.text import FILE_NAME, train_tokenizer

VOCAB_SIZE = 2048  # ours: upper bound; small data end below it
_ASIDE = ".incomplete-"


def default_data_dir(data_dir: str | os.PathLike | None = None) -> os.PathLike:
    """``data_dir``, else $TFDS_DATA_DIR, else ~/tensorflow_datasets, as TFDS has it."""
    chosen = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    if storage.is_remote(chosen):
        return storage.path(chosen)
    return Path(chosen).expanduser().absolute()


def local_data_dir(data_dir: str | os.PathLike | None = None) -> Path:
    """:func:`default_data_dir`, to write to. Raises UserError when that is a bucket."""
    chosen = default_data_dir(data_dir)
    if storage.is_remote(chosen):
        raise UserError(
            f"--data_dir={chosen}: data is prepared in a local folder; then copy that: "
            f"gcloud storage cp --recursive FOLDER/* {chosen}"
        )
    return chosen


def is_prepared(directory: Path) -> bool:
    return (directory / "dataset_info.json").is_file() and (directory / FILE_NAME).is_file()


def prepare(
    builder: Any,
    data_dir: str | os.PathLike | None,
    read: Callable[[], tuple[dict[str, Any], Iterable[str]]],
    config: str | None = None,
) -> tuple[Path, bool]:
    """Have a data set of a TFDS builder and its tokenizer, unless they are there.

    Args:
      builder: a class with ``name`` and ``VERSION``.
      data_dir: where data sets lie; the TFDS default when None.
      read: -> (its arguments beside those of TFDS, training captions); called if there is need.
      config: one of the builder's, where it has some.

    Returns:
      (directory of the data set, whether this call built it).

    Raises:
      UserError: as :func:`build`, or what ``read`` raises.
    """
    root = local_data_dir(data_dir)
    parts = (builder.name, config, str(builder.VERSION))
    relative = "/".join(part for part in parts if part is not None)
    if is_prepared(root / relative):
        return root / relative, False
    fields, captions = read()

    def make(aside: str) -> Any:
        return builder(config=config, data_dir=aside, file_format="array_record", **fields)

    return root / relative, build(root, relative, make, captions)


def build(
    data_dir: Path, relative: str, make_builder: Callable[[str], Any], captions: Iterable[str]
) -> bool:
    """Run a TFDS builder and train the tokenizer; both appear at once, complete.

    Args:
      data_dir: where data sets lie.
      relative: ``NAME/VERSION`` or ``NAME/CONFIG/VERSION`` inside it.
      make_builder: data directory -> tfds builder that writes to ``relative`` in it.
      captions: training captions; read after the builder ran.

    Returns:
      False when the data set was there already, built by this call's rival.

    Raises:
      UserError: the disk is full, the directory cannot be written, or something else lies there.
    """

    def make(aside: Path) -> None:
        with _plain_tfds():
            make_builder(str(aside)).download_and_prepare()
        train_tokenizer(captions, VOCAB_SIZE, aside / relative / FILE_NAME)

    return make_aside(data_dir, relative, make)


def make_aside(data_dir: Path, relative: str, make: Callable[[Path], None]) -> bool:
    """Have ``relative`` made in a folder aside, given to ``make``, and put it in its place.

    Returns and raises as :func:`build`.
    """
    target = data_dir / relative
    try:
        root = data_dir / relative.split("/")[0]
        root.mkdir(parents=True, exist_ok=True)
        with lock(root) as aside_root:
            if is_prepared(target):
                return False
            if target.exists():
                raise UserError(f"{target} is there and mmx did not make it; move it away first")
            aside = Path(tempfile.mkdtemp(prefix=_ASIDE, dir=aside_root))
            try:
                make(aside)
                target.parent.mkdir(exist_ok=True)
                (aside / relative).rename(target)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
    except (OSError, RuntimeError) as error:
        # ArrayRecord's writer has no type of its own for a full disk.
        if not isinstance(error, OSError) and "write() failed" not in str(error):
            raise
        raise UserError(f"--data_dir={data_dir}: cannot write there ({error})") from error
    return True


@contextlib.contextmanager
def lock(root: Path) -> Iterator[Path]:
    """One build at a time in ``root``; what lies aside when we hold the lock is a dead build's."""
    import fcntl

    with (root / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for stale in root.glob(f"{_ASIDE}*"):
            shutil.rmtree(stale, ignore_errors=True)
        yield root


@contextlib.contextmanager
def _plain_tfds() -> Iterator[None]:
    """TFDS without its own bars and notices, with the same bytes on each run, and little memory.

    TFDS leaves the order of an example's features to protobuf, which draws it anew in each process.
    It shuffles up to 1 GB of a split in memory; what is beyond needs tensorflow.
    """
    import tensorflow_datasets as tfds
    from absl import logging
    from tensorflow_datasets.core import shuffle
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    class Spooled(shuffle.Shuffler):
        """In the same order, with the keys in memory and the records in a nameless file."""

        def __init__(self, dirpath: os.PathLike, *args: Any, **kwargs: Any):
            super().__init__(dirpath, *args, **kwargs)
            self._spool = tempfile.TemporaryFile(dir=dirpath)  # noqa: SIM115  closed when read

        def _add_to_mem_buffer(self, hkey: int, data: bytes) -> None:
            self._mem_buffer.append((hkey, self._spool.tell(), len(data)))
            self._spool.write(data)

        def _iter_mem(self) -> Iterator[tuple[int, bytes]]:
            with self._spool:
                for hkey, offset, length in sorted(self._mem_buffer):
                    self._spool.seek(offset)
                    yield hkey, self._spool.read(length)

    def serialize(self: ExampleSerializer, example: Any) -> bytes:
        return self.get_tf_example(example).SerializeToString(deterministic=True)

    tfds.disable_progress_bar()
    verbosity, original = logging.get_verbosity(), ExampleSerializer.serialize_example
    shuffler = shuffle.Shuffler
    logging.set_verbosity(logging.ERROR)
    ExampleSerializer.serialize_example = serialize
    shuffle.Shuffler = Spooled
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        ExampleSerializer.serialize_example = original
        shuffle.Shuffler = shuffler
        logging.set_verbosity(verbosity)
