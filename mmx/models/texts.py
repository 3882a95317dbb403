"""Tokenizers, kept in the run: for every family that reads captions."""

from mmx.core import storage
from mmx.core.errors import UserError
from mmx.core.run_dir import copy_tokenizer
from mmx.data import mixture
from mmx.data.build import default_data_dir
from mmx.data.clip_bpe import ClipTokenizer
from mmx.data.siglip_text import SiglipTokenizer
from mmx.data.text import Tokenizer, train_tokenizer


def own_tokenizer(config, run) -> Tokenizer:
    """The tokenizer that lies beside ``config.data``, copied into the run at its first start.

    Of a mixture, one that is trained on its texts then, of at most ``config.text.vocab_size`` ids:
    each text counts as often as an epoch holds it.

    Raises:
      UserError: the data set has none; says how to make one.
    """
    data = config.data
    if not run.tokenizer_file.is_file() and data.get("mix"):
        with storage.staged(run.tokenizer_file) as file:
            train_tokenizer(mixture.texts(mixture.open_mixture(data)), config.text.vocab_size, file)
    elif not run.tokenizer_file.is_file():
        info = mixture.open_training(data).info
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
        storage.write(run.tokenizer_file, ClipTokenizer.published().to_str())
    return ClipTokenizer.load(run.tokenizer_file)


def siglip_tokenizer(config, run) -> SiglipTokenizer:
    """That of published SigLIP weights; the run keeps the file of ``config.text.tokenizer_file`` at
    its first start.

    Raises:
      UserError: no such file, or one of another tokenizer.
    """
    if not run.tokenizer_file.is_file():
        file = config.text.get("tokenizer_file", "")
        SiglipTokenizer.load(file)
        copy_tokenizer(run, storage.path(file))
    return SiglipTokenizer.load(run.tokenizer_file)


# name in a config -> (config, run) -> the tokenizer
TOKENIZERS = {"own": own_tokenizer, "clip": clip_tokenizer, "siglip": siglip_tokenizer}
