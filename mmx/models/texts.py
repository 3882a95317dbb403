"""The tokenizer of a run's own data, kept in the run: for every family that reads captions."""

from mmx.core.errors import UserError
from mmx.core.run_dir import copy_tokenizer
from mmx.data.build import default_data_dir
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
