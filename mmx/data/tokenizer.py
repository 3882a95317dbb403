"""A tokenizer for a data set that mmx did not build: ``mmx prepare tokenizer``."""

from collections.abc import Iterator
from pathlib import Path

from mmx.core.errors import UserError
from mmx.core.progress import Progress
from mmx.data.build import VOCAB_SIZE, local_data_dir, lock
from mmx.data.source import Source, open_source
from mmx.data.text import FILE_NAME, train_tokenizer

_MAX_CAPTIONS = 1_000_000  # ours: more of them hardly change 2,048 tokens


def prepare(spec: str, data_dir: str | Path | None = None) -> Path:
    """Train a tokenizer on the captions of the split ``train``; it appears whole or not at all.

    Args:
      spec: ``"tfds:NAME"`` or ``"tfds:NAME/CONFIG"``; its newest version gets the tokenizer.
      data_dir: where data sets lie; the TFDS default when None.

    Returns:
      The file, ``.../VERSION/tokenizer.json``.

    Raises:
      UserError: the data set has a tokenizer; it cannot be opened, see ``open_source``; the
        directory cannot be written.
    """
    root = local_data_dir(data_dir)
    source = open_source(spec, "train", data_dir)
    file = Path(source.info.directory) / FILE_NAME
    unfinished = file.with_name(f".{FILE_NAME}.tmp")
    try:
        with lock(root / source.info.name.partition("/")[0]):
            if file.exists():
                raise UserError(f"{spec}: {file} is there already; delete it to make another")
            unfinished.touch()  # a directory that cannot be written speaks before the reading
            try:
                train_tokenizer(_captions(source), VOCAB_SIZE, unfinished)
                unfinished.replace(file)
            finally:
                unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{spec}: cannot make its tokenizer in {file.parent} ({error})") from error
    return file


def _captions(source: Source) -> Iterator[str]:
    """The first ones, in the order of the files, with progress on stderr."""
    count = min(len(source), _MAX_CAPTIONS)
    progress = Progress(count, "reading captions", every=max(1, count // 5))
    for index in range(count):
        yield source.caption(index)
        progress.update(index + 1)
    progress.close()
