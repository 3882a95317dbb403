"""Captions to token ids: a byte-pair tokenizer trained on a data set's own captions.

Byte-level, so every string has ids and no id means "unknown"; case-folded, so "Red Heart" and "red
heart" are one prompt. Ids 0 and 1 are fixed: pad and end of text. One ``tokenizer.json`` (the file
format of the `tokenizers` library) lies beside the data and is copied into each run.

Legend: n texts, T text tokens.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers

from mmx.core import storage
from mmx.core.errors import UserError

PAD_ID = 0
EOS_ID = 1
FILE_NAME = "tokenizer.json"
_PAD, _EOS = "<pad>", "<eos>"
_MIN_VOCAB = 2 + 256  # the two above and one id a byte


def train_tokenizer(captions: Iterable[str], vocab_size: int, path: str | Path) -> "Tokenizer":
    """Train byte-pair merges on captions and write them to ``path``.

    The same captions give the same file, byte by byte. Pairs seen once are not merged, so small
    data end with a smaller vocabulary.

    Args:
      captions: the training texts.
      vocab_size: upper bound on the number of ids, at least 258 (pad, eos, 256 bytes).
      path: file to write, ``.../tokenizer.json``.

    Raises:
      UserError: ``vocab_size`` below 258.
    """
    if vocab_size < _MIN_VOCAB:
        raise UserError(
            f"vocab_size={vocab_size}: a byte-level tokenizer needs {_MIN_VOCAB} or more"
        )
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.normalizer = tokenizers.normalizers.Sequence(
        [
            tokenizers.normalizers.NFKC(),
            tokenizers.normalizers.Lowercase(),
            tokenizers.normalizers.Replace("\u2019", "'"),  # as a keyboard types it
            tokenizers.normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
            tokenizers.normalizers.Strip(),
        ]
    )
    # The prefix space makes the first word of a text the same tokens as in the middle of one.
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[_PAD, _EOS],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(captions, trainer)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(bpe.to_str(pretty=True), "utf-8")
    return Tokenizer(bpe)


class Tokenizer:
    """Texts <-> ids. Immutable once loaded; safe to share between threads."""

    def __init__(self, bpe: tokenizers.Tokenizer):
        if (bpe.token_to_id(_PAD), bpe.token_to_id(_EOS)) != (PAD_ID, EOS_ID):
            raise UserError(f"this tokenizer was not made by mmx: ids 0, 1 are not {_PAD}, {_EOS}")
        # A caption that spells "<pad>" is text like any other.
        bpe.encode_special_tokens = True
        self._bpe = bpe

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Tokenizer":
        """Read a ``tokenizer.json``. Raises UserError when it is missing or not one of ours."""
        file = storage.path(path)
        if not file.is_file():
            raise UserError(f"{path}: no tokenizer here; `mmx prepare` writes it beside the data")
        try:
            bpe = tokenizers.Tokenizer.from_str(storage.read_text(file))
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{path}: not a tokenizer file ({error})") from error
        return cls(bpe)

    @property
    def vocab_size(self) -> int:
        """Number of ids; all ids are in [0, vocab_size)."""
        return self._bpe.get_vocab_size()

    def encode(
        self, texts: Sequence[str], max_len: int, strict: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids of texts, end of text appended, padded with 0 to ``max_len``.

        Args:
          texts: n strings.
          max_len: T, end of text included; at least 1.
          strict: what a prompt gets: an empty or over-long text is an error. Otherwise (training)
            the tail of an over-long text is cut before its end of text.

        Returns:
          text_ids int32 [n, T] and text_mask bool [n, T], True on the text and its end.

        Raises:
          UserError: ``strict`` and a text is empty or over-long; names the text.
        """
        text_ids = np.full((len(texts), max_len), PAD_ID, np.int32)
        text_mask = np.zeros((len(texts), max_len), bool)
        for row, text in enumerate(texts):
            ids = self._bpe.encode(text, add_special_tokens=False).ids
            if strict and not ids:
                raise UserError(f"prompt {text!r} is empty")
            if strict and len(ids) + 1 > max_len:
                raise UserError(
                    f"prompt {text!r} is too long: {len(ids)} tokens, at most {max_len - 1} fit"
                )
            ids = [*ids[: max_len - 1], EOS_ID]
            text_ids[row, : len(ids)] = ids
            text_mask[row, : len(ids)] = True
        return text_ids, text_mask

    def decode(self, text_ids: Sequence[int]) -> str:
        """The (lower-case) text of one row of ids; stops at end of text."""
        ids = [int(i) for i in text_ids]
        ids = ids[: ids.index(EOS_ID)] if EOS_ID in ids else ids
        return self._bpe.decode([i for i in ids if i != PAD_ID]).strip()
