"""SigLIP's tokenizer: a published ``tokenizer.json`` (sentencepiece), and how SigLIP uses it.

As Big Vision trained it (arXiv 2303.15343; github.com/google-research/big_vision): lower case, no
ASCII punctuation, one space between words; the end of text fills the row, and no mask: the last
position is read whatever the text's length.

Legend: n texts, T text tokens.
"""

import os
import re
import string
from collections.abc import Sequence

import numpy as np
import tokenizers

from mmx.core import storage
from mmx.core.errors import UserError

EOS, EOS_ID = "</s>", 1  # of SigLIP's vocabulary; SigLIP 2's is Gemma's, another
CONTEXT = 64
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def clean(text: str) -> str:
    """What SigLIP reads of a text: in lower case, without ASCII punctuation."""
    return re.sub(r"\s+", " ", text.lower().translate(_NO_PUNCTUATION)).strip()


class SiglipTokenizer:
    """Texts -> ids. Immutable once made; safe to share between threads.

    Raises:
      UserError: its end of text or its filler is not SigLIP's, as in SigLIP 2's tokenizer.
    """

    def __init__(self, pieces: tokenizers.Tokenizer):
        self.eot_id = pieces.token_to_id(EOS)
        padding = pieces.padding or {"pad_id": EOS_ID}
        if (self.eot_id, padding["pad_id"]) != (EOS_ID, EOS_ID):
            raise UserError(
                f"not SigLIP's tokenizer, whose {EOS} is id {EOS_ID} and fills the row (here {EOS} "
                f"is {self.eot_id}, the filler {padding['pad_id']}); SigLIP 2 and other "
                "vocabularies are not read: take a SigLIP, as google/siglip-base-patch16-224"
            )
        pieces.no_padding()
        pieces.no_truncation()
        pieces.encode_special_tokens = True  # a caption that spells "</s>" is text like any other
        self._pieces = pieces

    @classmethod
    def load(cls, path: str | os.PathLike) -> "SiglipTokenizer":
        """Read a ``tokenizer.json``. Raises UserError when it is missing or not SigLIP's."""
        file = storage.path(path)
        if not file.is_file():
            raise UserError(f"{path}: no tokenizer here")
        try:
            pieces = tokenizers.Tokenizer.from_str(storage.read_text(file))
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{path}: not a tokenizer file ({error})") from error
        try:
            return cls(pieces)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    @property
    def vocab_size(self) -> int:
        """Number of ids; all ids are in [0, vocab_size)."""
        return self._pieces.get_vocab_size()

    def encode(
        self, texts: Sequence[str], max_len: int = CONTEXT, strict: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids of texts, the end of text appended as often as it takes to fill ``max_len``.

        Args:
          texts: n strings.
          max_len: T, one end of text included; at least 1.
          strict: what a prompt gets: an empty or over-long text is an error. Otherwise the tail of
            an over-long text is cut before its end of text.

        Returns:
          text_ids int32 [n, T] and text_mask bool [n, T], True on the text and its first end.

        Raises:
          UserError: ``strict`` and a text is empty or over-long; names the text.
        """
        text_ids = np.full((len(texts), max_len), self.eot_id, np.int32)
        text_mask = np.zeros((len(texts), max_len), bool)
        for row, text in enumerate(texts):
            ids = self._pieces.encode(clean(text), add_special_tokens=False).ids
            if strict and not ids:
                raise UserError(f"prompt {text!r} is empty")
            if strict and len(ids) + 1 > max_len:
                raise UserError(
                    f"prompt {text!r} is too long: {len(ids)} tokens, at most {max_len - 1} fit"
                )
            ids = ids[: max_len - 1]
            text_ids[row, : len(ids)] = ids
            text_mask[row, : len(ids) + 1] = True
        return text_ids, text_mask
