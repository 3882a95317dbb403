"""Tokenizers of published language models: texts <-> the ids that their weights know.

Ids are kept from end to end: a text that is cut into ids, joined and cut again may have others.
Nothing here adds a special token by itself, and a text that spells one is text like any other.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence

import tokenizers

from mmx.core.errors import UserError

_ANCHOR = "a"  # decoders treat the first token of a text in their own way


class LmTokenizer:
    """Texts <-> ids. Immutable once made; safe to share between threads.

    Args:
      text: of a ``tokenizer.json``.
      bos_id: what its weights know as the start of a text, or None.
      eos_ids: each of which ends a text.
      source: for messages.

    Raises:
      UserError: no such file, or special ids that it does not have.

    Attributes:
      start_ids: what precedes a text for these weights, none for some.
      special_ids: of no text.
      vocab_hash: of each id's token: equal where equal ids mean equal tokens.
    """

    def __init__(
        self, text: str, bos_id: int | None = None, eos_ids: Sequence[int] = (), source: str = ""
    ):
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{source}: not a tokenizer file ({error})") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = 1 + max(vocabulary.values(), default=-1)
        for given in (bos_id, *eos_ids):
            if given is not None and not 0 <= given < self.vocab_size:
                raise UserError(
                    f"{source}: the special id {given} is none of its {self.vocab_size}"
                )
        self.bos_id, self.eos_ids = bos_id, tuple(eos_ids)
        added = self._tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(number for number, token in added.items() if token.special)
        whole = self._tokenizer.encode(_ANCHOR, add_special_tokens=True).ids
        plain = self._tokenizer.encode(_ANCHOR, add_special_tokens=False).ids
        # After the question what a start is, for which specials have to be seen as such.
        self._tokenizer.encode_special_tokens = True
        self.start_ids = tuple(whole[: _place(whole, plain)])
        listed = sorted((number, token) for token, number in vocabulary.items())
        told = json.dumps(listed, ensure_ascii=False, separators=(",", ":"))
        self.vocab_hash = hashlib.sha256(told.encode()).hexdigest()[:16]

    def to_str(self) -> str:
        """What to write as ``tokenizer.json``."""
        return self._tokenizer.to_str()

    def encode(self, text: str) -> list[int]:
        """Without a start: ``[*tokenizer.start_ids, *tokenizer.encode(text)]`` is a whole text."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Special tokens are written as they are."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

    def token(self, number: int) -> str | None:
        """As the vocabulary writes it ("Ġdog", "▁dog"), None for an id without one."""
        return self._tokenizer.id_to_token(number)

    def string(self, number: int) -> str:
        """What an id adds to a text (" dog"); U+FFFD for bytes that are no text by themselves."""
        return self.decode([*self._anchor, number])[len(self.decode(self._anchor)) :]

    @functools.cached_property
    def _anchor(self) -> list[int]:
        return self.encode(_ANCHOR)

    def continuation(self, prefix: str, text: str) -> list[int]:
        """Ids of ``text`` where it follows ``prefix``: those of both, less those of the prefix.

        Raises:
          UserError: there they would be other ids of the prefix; says where to cut instead.
        """
        before, both = self.encode(prefix), self.encode(prefix + text)
        if both[: len(before)] != before or len(both) == len(before):
            raise UserError(
                f"{text!r} after {prefix[-20:]!r}: a token would hold some of both; begin it with "
                "the space before a word, and end the prefix without one"
            )
        return both[len(before) :]

    def inside(self, text: str) -> list[int]:
        """Ids of ``text`` in the middle of a longer one, without what stands at a text's beginning
        alone (Llama 2's "▁"): :meth:`continuation` of a word. Raises UserError as that."""
        return self.continuation(_ANCHOR, text)

    def is_stable(self, ids: Sequence[int]) -> bool:
        """Does a reader of the text find the same ids?"""
        return self.encode(self.decode(ids)) == [int(i) for i in ids]


def _place(whole: list[int], part: list[int]) -> int:
    """Where ``part`` begins in ``whole``."""
    at = range(len(whole) - len(part) + 1)
    return next((n for n in at if whole[n : n + len(part)] == part), 0)
