"""CLIP's byte-pair tokenizer: the ids that published CLIP weights were trained on, exactly.

The vocabulary (arXiv 2103.00020 sec. 2.4: lower-cased, 49,152 tokens) comes with the package; its
origin and licence lie beside it. As in the published code, a text is first mended with `ftfy` (its
ids would differ without), HTML entities are unescaped twice, white space is collapsed and the rest
lower-cased. One thing differs on purpose: a text that spells a special token is text like any
other. (The published codes do not agree there: each has its own spelling.)

Legend: n texts, T text tokens.
"""

import gzip
import html
import os
from collections.abc import Sequence
from pathlib import Path

import ftfy
import numpy as np
import regex
import tokenizers

from mmx.core import storage
from mmx.core.errors import UserError

SOT, EOT = "<|startoftext|>", "<|endoftext|>"
PAD_ID = 0
CONTEXT = 77  # of all that OpenAI published: start, 75 tokens, end
_MERGES = Path(__file__).with_name("clip_bpe.txt.gz")
# The pieces that are merged by themselves: English contractions, runs of letters, single digits,
# runs of anything else that is not white space. Case is ignored as there (U+017F is an s to it),
# and by the same library: which signs are letters depends on whose table of Unicode one asks.
_PIECES = regex.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE
)


def clean(text: str) -> str:
    """What CLIP reads of a text: mended, unescaped, one space between words, in lower case."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


class ClipTokenizer:
    """Texts <-> ids. Immutable once made; safe to share between threads.

    Args:
      bpe: a byte-pair model with CLIP's end-of-word marks; how it cuts a text is set here.

    Raises:
      UserError: another kind of tokenizer.
    """

    def __init__(self, bpe: tokenizers.Tokenizer):
        self.sot_id, self.eot_id = bpe.token_to_id(SOT), bpe.token_to_id(EOT)
        if self.sot_id is None or self.eot_id is None:
            raise UserError(f"this tokenizer is not CLIP's: it has no {SOT} and {EOT}")
        bpe.normalizer = None
        bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
            add_prefix_space=False, use_regex=False
        )
        bpe.encode_special_tokens = True
        self._bpe = bpe
        self._bytes = {char: byte for byte, char in _byte_chars().items()}

    @classmethod
    def published(cls) -> "ClipTokenizer":
        """The one of all published CLIP weights: 49,408 ids."""
        return cls(_published_bpe())

    @classmethod
    def load(cls, path: str | os.PathLike) -> "ClipTokenizer":
        """Read a ``tokenizer.json``: of :meth:`to_str`, or of a published model.

        Raises:
          UserError: it is missing or not CLIP's.
        """
        file = storage.path(path)
        if not file.is_file():
            raise UserError(f"{path}: no tokenizer here")
        try:
            bpe = tokenizers.Tokenizer.from_str(storage.read_text(file))
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{path}: not a tokenizer file ({error})") from error
        return cls(bpe)

    def to_str(self) -> str:
        """What to write as ``.../tokenizer.json``, from which :meth:`load` gives the same ids."""
        return self._bpe.to_str()

    @property
    def vocab_size(self) -> int:
        """Number of ids; all ids are in [0, vocab_size), and the end of text is the largest."""
        return self._bpe.get_vocab_size()

    def encode(
        self, texts: Sequence[str], max_len: int = CONTEXT, strict: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids of texts between start and end of text, padded with 0 to ``max_len``.

        Args:
          texts: n strings.
          max_len: T, start and end included; at least 2.
          strict: what a prompt gets: an empty or over-long text is an error. Otherwise the tail of
            an over-long text is cut and its end of text kept, as CLIP was trained.

        Returns:
          text_ids int32 [n, T] and text_mask bool [n, T], True from start to end of text.

        Raises:
          UserError: ``strict`` and a text is empty or over-long; names the text.
        """
        text_ids = np.full((len(texts), max_len), PAD_ID, np.int32)
        text_mask = np.zeros((len(texts), max_len), bool)
        for row, text in enumerate(texts):
            pieces = _PIECES.findall(clean(text))
            ids = self._bpe.encode(pieces, is_pretokenized=True, add_special_tokens=False).ids
            if strict and not ids:
                raise UserError(f"prompt {text!r} is empty")
            if strict and len(ids) + 2 > max_len:
                raise UserError(
                    f"prompt {text!r} is too long: {len(ids)} tokens, at most {max_len - 2} fit"
                )
            ids = [self.sot_id, *ids[: max_len - 2], self.eot_id]
            text_ids[row, : len(ids)] = ids
            text_mask[row, : len(ids)] = True
        return text_ids, text_mask

    def decode(self, text_ids: Sequence[int]) -> str:
        """The (lower-case) text of one row of ids; stops at end of text."""
        ids = [int(i) for i in text_ids]
        ids = ids[: ids.index(self.eot_id)] if self.eot_id in ids else ids
        tokens = [self._bpe.id_to_token(i) for i in ids if i != self.sot_id]
        chars = "".join(tokens).replace("</w>", " ")
        data = b"".join(b" " if c == " " else bytes([self._bytes[c]]) for c in chars)
        return data.decode("utf-8", "replace").strip()


def _byte_chars() -> dict[int, str]:
    """Byte -> the printable character that stands for it in the vocabulary, as GPT-2 has it:
    itself where it is printable in Latin-1, else the next one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    chars = {byte: chr(byte) for byte in printable}
    return chars | {byte: chr(0x100 + n) for n, byte in enumerate(others)}


def _published_bpe() -> tokenizers.Tokenizer:
    """Ids in the published order: bytes, bytes that end a word, merges, the two special tokens."""
    lines = gzip.decompress(_MERGES.read_bytes()).decode().splitlines()
    merges = [tuple(line.split(" ")) for line in lines]
    chars = list(_byte_chars().values())
    tokens = [*chars, *(c + "</w>" for c in chars), *(a + b for a, b in merges), SOT, EOT]
    vocab = {token: number for number, token in enumerate(tokens)}
    model = tokenizers.models.BPE(vocab=vocab, merges=merges, end_of_word_suffix="</w>")
    return tokenizers.Tokenizer(model)
