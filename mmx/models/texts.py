"""Tokenizers, kept in the run: for every family that reads captions."""

from mmx.core.errors import UserError
from mmx.core.run_dir import copy_tokenizer
from mmx.data.build import default_data_dir
from mmx.data.clip_bpe import ClipTokenizer
from mmx.data.source import open_source
from mmx.data.text import Tokenizer


def own_tokenizer(config, run) -> Tokenizer:
    """The tokenizer that lies beside ``config.data``, copied into the run at its first start.

    Raises:
      UserError: the data set has none; says how to make one.
    """
    if not run.tokenizer_file.is_file():
        data = config.data
        info = open_source(data.source, data.split, data.data_dir).info
        if info.tokenizer_path is None:
            raise UserError(
                f"config.data.source={data.source!r} has no tokenizer.json beside it; run: "
                f"mmx prepare tokenizer {data.source} "
                f"--data_dir {default_data_dir(data.data_dir)}"
            )
        copy_tokenizer(run, info.tokenizer_path)
    return Tokenizer.load(run.tokenizer_file)


def clip_tokenizer(config, run) -> ClipTokenizer:
    """CLIP's published byte pairs; the run keeps them at its first start.

    Raises:
      UserError: the run holds another tokenizer.
    """
    del config
    if not run.tokenizer_file.is_file():
        ClipTokenizer.published().save(run.tokenizer_file)
    return ClipTokenizer.load(run.tokenizer_file)


# name in a config -> (config, run) -> the tokenizer
TOKENIZERS = {"own": own_tokenizer, "clip": clip_tokenizer}
