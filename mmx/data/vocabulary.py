"""The words that images are made of: a part of a frozen language model's vocabulary.

    usable = distinct_rows(table_VZ)  # of mmx.ops.lookup
    vocabulary = make_vocabulary(tokenizer, usable, tuple(FILTERS), min_letters=3, size=4096)

An image's words are rows of this part, from 0, and never ids of the language model:
:meth:`Vocabulary.lm_ids` and :meth:`Vocabulary.rows` lead from one to the other, and the hash of
both vocabularies says which those are.
Legend: V words.
"""

import dataclasses
import difflib
import functools
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

from mmx.core import storage
from mmx.core.errors import UserError, choose
from mmx.data.lm_text import LmTokenizer

_MARKS = '"#|'  # what begins a quoted word, a comment, the next row of a grid
_NAMED = 3  # unknown words that a message names


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """Words of a language model, in rows. Equal where the hashes are.

    Args:
      ids: int32 [V], each row's id of the language model.
      strings: what each adds to a text, " dog".
      lm_hash: :attr:`LmTokenizer.vocab_hash` of the language model.

    Raises:
      UserError: fewer than 2 words, or two of one id or one string.
    """

    ids: np.ndarray
    strings: tuple[str, ...]
    lm_hash: str

    def __post_init__(self):
        ids = np.array(self.ids, np.int32)
        ids.flags.writeable = False
        object.__setattr__(self, "ids", ids)
        if len(ids) < 2 or len(ids) != len(self.strings):
            raise UserError(f"a vocabulary of {len(ids)} ids and {len(self.strings)} strings")
        for what, values in (("id", ids.tolist()), ("string", self.strings)):
            if again := _repeated(values):
                raise UserError(
                    f"a vocabulary with the {what} {again[0]!r} twice: name the filters valid and "
                    "round_trip"
                )

    def __len__(self) -> int:
        return len(self.ids)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.hash == other.hash

    def __hash__(self) -> int:
        return hash(self.hash)

    @functools.cached_property
    def hash(self) -> str:
        """Of the ids, their strings and the language model's hash: 16 hex digits."""
        told = json.dumps([self.lm_hash, self.ids.tolist(), self.strings])
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    # Rows <-> text

    @functools.cached_property
    def _names(self) -> dict[str, int]:
        """Row of each word as it is written: no two alike, none with white space."""
        strings = set(self.strings)
        return {_name(s, strings): row for row, s in enumerate(self.strings)}

    @functools.cached_property
    def _row_of_string(self) -> dict[str, int]:
        return {s: row for row, s in enumerate(self.strings)}

    @functools.cached_property
    def _written(self) -> tuple[str, ...]:
        return tuple(self._names)

    def words(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """Rows [n] as they are read, " dog" as "dog": :meth:`find` finds each again.

        What would be taken for something else is written in quotes: "dog" within a word, where
        " dog" is a word too, or what holds white space.
        """
        return [self._written[row] for row in self._checked(rows)]

    def find(self, words: Sequence[str]) -> np.ndarray:
        """int32 [n]: rows of words, written as :meth:`words` does or with the space in front.

        So where both " dog" and "dog" are words, "dog" is the first, which begins a word, and
        '"dog"' in quotes the second.

        Raises:
          UserError: words that are not in it; names the nearest that are.
        """
        rows = [self._find(word) for word in words]
        unknown = list(dict.fromkeys(w for w, row in zip(words, rows) if row is None))
        if unknown:
            told = []
            for word in unknown[:_NAMED]:
                near = difflib.get_close_matches(word.strip(), self._written, n=1)
                told.append(f"{word!r}" + (f" (near it is {near[0]!r})" if near else ""))
            more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
            raise UserError(f"not among the {len(self)} words: {', '.join(told)}{more}")
        return np.array(rows, np.int32)

    def _find(self, word: str) -> int | None:
        exact = self._row_of_string.get(word)
        if word[:1] == " " and exact is not None:
            return exact
        return self._names.get(word.strip(), exact)

    # Rows <-> ids of the language model

    def lm_ids(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """int32 [...]: the language model's ids of rows [...]."""
        return self.ids[self._checked(rows)]

    def rows(self, lm_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """int32 [...]: inverse of :meth:`lm_ids`.

        Raises:
          UserError: ids that are none of its words.
        """
        lm_ids = np.asarray(lm_ids)
        order = self._by_id
        at = np.searchsorted(self.ids, lm_ids, sorter=order)
        row = order[np.minimum(at, len(self) - 1)]
        strange = lm_ids[self.ids[row] != lm_ids]
        if strange.size:
            raise UserError(f"id {strange.flat[0]} is none of the {len(self)} words' ids")
        return row.astype(np.int32)

    @functools.cached_property
    def _by_id(self) -> np.ndarray:
        return np.argsort(self.ids)

    def allow(self, lm_vocab_size: int) -> np.ndarray:
        """bool [lm_vocab_size]: which ids of the language model are words.

        Raises:
          UserError: the language model has fewer ids.
        """
        if self.ids.max() >= lm_vocab_size:
            raise UserError(
                f"a vocabulary with the id {self.ids.max()}: this language model has "
                f"{lm_vocab_size}; load the one that it was made of"
            )
        allowed = np.zeros(lm_vocab_size, bool)
        allowed[self.ids] = True
        return allowed

    def check_lm(self, tokenizer: LmTokenizer) -> None:
        """Raises UserError: the vocabulary was made of another language model's."""
        if tokenizer.vocab_hash != self.lm_hash:
            raise UserError(
                f"the language model's vocabulary has the hash {tokenizer.vocab_hash}, that of "
                f"which these words are a part {self.lm_hash}: name the language model that the "
                "run was trained with, or one with the same vocabulary"
            )

    def _checked(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """A negative row would count from the end."""
        rows = np.asarray(rows, np.int64)
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows {rows.min()}..{rows.max()} of {len(self)} words")
        return rows

    # Storing

    def to_json(self) -> str:
        told = {"hash": self.hash, "lm_hash": self.lm_hash}
        told |= {"ids": self.ids.tolist(), "strings": self.strings}
        return json.dumps(told, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "Vocabulary":
        """Inverse of :meth:`to_json`.

        Raises:
          UserError: it is none, or was changed since.
        """
        try:
            told = json.loads(text)
            ids, strings = told["ids"], tuple(told["strings"])
            vocabulary, written = cls(ids, strings, told["lm_hash"]), told["hash"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"not the vocabulary of a run ({error!r})") from error
        if vocabulary.hash != written:
            raise UserError(
                f"a vocabulary of the hash {vocabulary.hash} that was written as {written}: "
                "it was changed since; take the file of the run as it was"
            )
        return vocabulary


def _repeated(values: Sequence) -> list:
    seen: set = set()
    return [v for v in values if v in seen or seen.add(v)]


def _name(string: str, strings: set[str]) -> str:
    word = string.removeprefix(" ")
    inside = word == string and f" {word}" in strings
    if word and word.isprintable() and " " not in word and word[0] not in _MARKS and not inside:
        return word
    return json.dumps(string).replace(" ", "\\u0020")


# ---------------------------------------------------------------- which ids are words


def _is_ordinary(tokenizer: LmTokenizer, number: int, string: str) -> bool:
    token = tokenizer.token(number)
    is_byte = token != string and re.fullmatch("<0x[0-9A-F]{2}>", token)
    return number not in tokenizer.special_ids and not is_byte


def _has_letters(tokenizer: LmTokenizer, number: int, string: str) -> bool:
    # Marks, too: a vowel of Hindi is one, which str.isalpha refuses.
    kinds = [unicodedata.category(c)[0] for c in string.removeprefix(" ")]
    return kinds[:1] == ["L"] and set(kinds) <= {"L", "M"}


@functools.lru_cache(1)
def _around(tokenizer: LmTokenizer) -> tuple[list[int], list[int]]:
    """Ids of a word before, and of one after."""
    before = tokenizer.encode("a")
    return before, tokenizer.encode("a a")[len(before) :]


def _is_found_again(tokenizer: LmTokenizer, number: int, string: str) -> bool:
    before, after = _around(tokenizer)
    at_the_end, between = tokenizer.encode(f"a{string}{string}"), tokenizer.encode(f"a{string} a")
    return at_the_end == [*before, number, number] and between == [*before, number, *after]


# Name -> (tokenizer, id, what it adds to a text) -> may it be a word?
FILTERS: dict[str, Callable[[LmTokenizer, int, str], bool]] = {
    # Neither a special token nor a byte that stands for itself ("<0x64>" adds a "d").
    "ordinary": _is_ordinary,
    # Whole UTF-8 characters.
    "valid": lambda tokenizer, number, string: bool(string) and "\ufffd" not in string,
    "printable": lambda tokenizer, number, string: string.isprintable(),
    # Begins with the space that starts a word. Not for scripts without spaces.
    "word_initial": lambda tokenizer, number, string: (
        string[:1] == " " and not string[1:2].isspace() and len(string) > 1
    ),
    # Letters of any script, and their marks, after a space if there is one.
    "letters": _has_letters,
    "lowercase": lambda tokenizer, number, string: string == string.lower(),
    # Behind a text, beside itself at a text's end and between two words the same id is found.
    "round_trip": _is_found_again,
}


def make_vocabulary(
    tokenizer: LmTokenizer,
    usable: Sequence[int] | np.ndarray,
    filters: Sequence[str],
    min_letters: int = 0,
    size: int | None = None,
    words: Sequence[str] | None = None,
) -> Vocabulary:
    """The ids that pass all filters, the most frequent first.

    An id's number stands for its frequency: byte-pair encoding numbers its merges in the order in
    which they were made, each of the pair that was then the most frequent (arXiv 1508.07909 sec.
    3.2), and SentencePiece its pieces by their score.

    Args:
      usable: ids whose rows of the embedding table may be words:
        :func:`mmx.ops.lookup.distinct_rows`. Those of no token are left out.
      filters: of :data:`FILTERS`, applied in this order.
      min_letters: that a word has at least.
      size: so many of them; None: all.
      words: of :func:`read_words`, an own list, the most frequent first. With a size: the first so
        many that are one token and pass the filters, as a list of frequencies knows of neither.
        Without: all, and each has to.

    Raises:
      UserError: an unknown filter; fewer than 2 words left, or than size; listed words that are
        none; words that the filter round_trip let pass one by one and that are read as others when
        they stand side by side.
    """
    tests = {name: choose("vocabulary.filters", FILTERS, name) for name in filters}
    if min_letters < 0 or (size is not None and size < 2):
        raise UserError(
            f"vocabulary.min_letters={min_letters}, vocabulary.size={size}: at least 0 and 2"
        )
    ids = [int(i) for i in usable if tokenizer.token(int(i)) is not None]
    left = {i: tokenizer.string(i) for i in ids}
    counts = [f"{len(left)} ids"]
    for name, test in tests.items():
        left = {i: s for i, s in left.items() if test(tokenizer, i, s)}
        counts.append(f"{name} {len(left)}")
    left = {i: s for i, s in left.items() if sum(map(str.isalpha, s)) >= min_letters}
    counts.append(f"min_letters={min_letters} {len(left)}")
    chosen = sorted(left) if words is None else _listed(tokenizer, left, words, size is None)
    if words is not None:
        counts.append(f"listed {len(chosen)}")
    if len(chosen) < (size or 2):
        raise UserError(
            f"vocabulary.size={size}: the filters leave {len(chosen)} words, "
            f"{size or 2} are needed ({', '.join(counts)})"
        )
    chosen = chosen[:size]
    if "round_trip" in tests:
        _check_joined(tokenizer, chosen)
    return Vocabulary(np.array(chosen), tuple(left[i] for i in chosen), tokenizer.vocab_hash)


def _listed(
    tokenizer: LmTokenizer, left: dict[int, str], words: Sequence[str], all_of_them: bool
) -> list[int]:
    """Ids of listed words, each once, " dog" before "dog"."""
    id_of = {string: i for i, string in left.items()}
    found = [id_of.get(f" {word}", id_of.get(word)) for word in words]
    missing = [word for word, i in zip(words, found) if i is None]
    if missing and all_of_them:
        count = len(tokenizer.continuation("a", f" {missing[0]}"))
        why = f"is {count} tokens" if count > 1 else "does not pass the filters"
        raise UserError(
            f"vocabulary.words: {missing[0]!r} {why}, so it is no word here, as are {len(missing)} "
            "in all: take them out, or set vocabulary.size to take the first that are"
        )
    return list(dict.fromkeys(i for i in found if i is not None))


def _check_joined(tokenizer: LmTokenizer, chosen: list[int]) -> None:
    """Each word beside others, four times: what no look at one id can tell."""
    rng, start = np.random.default_rng(0), tokenizer.encode("a")
    for _ in range(4):
        order = rng.permutation(chosen).tolist()
        for at in range(0, len(order), 16):
            ids = [*start, *order[at : at + 16]]
            if not tokenizer.is_stable(ids):
                raise UserError(
                    f"vocabulary.filters: a reader of {tokenizer.decode(ids)!r} finds other words "
                    "than were written; add word_initial, or leave out round_trip where the text "
                    "is never read again"
                )


def read_words(path: str | os.PathLike) -> list[str]:
    """A list of words, one a line; blank lines and those that begin with # are passed over.

    Raises:
      UserError: no such file, it is not UTF-8, or a line has more than a word.
    """
    file = storage.path(path)
    if not file.is_file():
        raise UserError(f"{path}: no such file; it lists words, one a line")
    try:
        lines = storage.read_text(file).removeprefix("\ufeff").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text in UTF-8 ({error})") from error
    words = []
    for number, line in enumerate(lines, 1):
        if not (word := line.strip()) or word.startswith("#"):
            continue
        if len(word.split()) > 1:
            raise UserError(f"{path} line {number}: {word!r}: one word a line, nothing behind it")
        words.append(word)
    return words
