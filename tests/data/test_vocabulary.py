"""Words of a language model: which ids they are, how they are written and found, what is refused.

The tokenizer is byte-level as GPT-2's, with merges that are written down, so what each filter lets
pass is known.
"""

import json

import numpy as np
import pytest

from mmx.core.errors import UserError
from mmx.data.lm_text import LmTokenizer
from mmx.data.vocabulary import FILTERS, Vocabulary, make_vocabulary, read_words
from tests.tokenizer_fakes import UNREACHABLE, known_tokens, with_byte_fallback

WORDS = tuple(FILTERS)  # all: what a reader of an alphabet with spaces takes for words


def number_of(text):
    ids = [n for n in range(known_tokens().vocab_size) if known_tokens().string(n) == text]
    assert len(ids) == 1, text
    return ids[0]


def all_ids():
    return np.arange(known_tokens().vocab_size)


def words_of(*filters, **options):
    return make_vocabulary(known_tokens(), all_ids(), filters, **options)


@pytest.mark.parametrize(
    ("name", "passes", "fails"),
    [
        ("ordinary", (" dog", "\n", "<tool>", "<0x41>"), ("<|end|>",)),
        ("valid", (" dog", "日", "<|end|>"), ()),
        ("printable", (" dog", " #", " हिन्दी"), ("\n",)),
        ("word_initial", (" dog", " d", " हिन्दी", " #", " 12"), ("dog", "日", " ", "\n", "d")),
        ("letters", (" dog", "dog", "日本", " да", " हिन्दी"), (" 12", " #", "\n", " ", "<tool>")),
        ("lowercase", (" dog", "日", " हिन्दी", " 12"), (" Red", " R", "R")),
        # GPT-2's pattern cuts a word at its marks.
        ("round_trip", (" dog", "日", " кот"), (UNREACHABLE, " हिन्दी", "<|end|>", "ha")),
    ],
)
def test_what_each_filter_lets_pass(name, passes, fails):
    passed = {s for s in passes + fails if FILTERS[name](known_tokens(), number_of(s), s)}
    assert passed == set(passes)


def test_bytes_are_no_words():
    half = known_tokens().encode("☃")[0]
    assert not FILTERS["valid"](known_tokens(), half, known_tokens().string(half))
    assert not FILTERS["valid"](known_tokens(), half, "")  # as an id that adds nothing to a text
    # Llama 2's token of a byte reads as the letter that it is the byte of.
    llama = with_byte_fallback()
    byte = 3 + ord("d")
    assert llama.string(byte) == "d" and not FILTERS["ordinary"](llama, byte, "d")
    vocabulary = make_vocabulary(llama, range(llama.vocab_size), WORDS)
    assert vocabulary.strings == (" dog", " a")
    for ids in np.random.default_rng(0).choice(vocabulary.ids, (100, 5)):
        assert llama.is_stable(ids) and llama.is_stable([*llama.encode("a"), *ids])


def test_a_word_that_joins_the_next_is_not_found_again():
    """A tokenizer that does not cut at spaces may hold two words in one token."""
    file = json.loads(with_byte_fallback().to_str())
    file["model"]["vocab"]["▁dog▁a"] = len(file["model"]["vocab"])
    file["model"]["merges"].append(["▁dog", "▁a"])
    joining = LmTokenizer(json.dumps(file), 1, [2])
    dog = joining.encode("dog")[0]
    assert joining.encode("a dog dog")[1:] == [dog, dog]
    assert not FILTERS["round_trip"](joining, dog, " dog")


def test_the_most_frequent_come_first():
    """By the numbers of their ids, whatever the order of what is usable."""
    vocabulary = words_of(*WORDS, min_letters=3)
    assert vocabulary.strings == (" cat", " dog", " кот")
    assert (np.diff(vocabulary.ids) > 0).all()
    usable = [i for i in all_ids()[::-1] if i != number_of(" cat")] + [10_000]
    assert make_vocabulary(known_tokens(), usable, WORDS, 3).strings == (" dog", " кот")
    assert words_of(*WORDS, min_letters=3, size=2).strings == (" cat", " dog")
    short = words_of(*WORDS).strings
    assert {" c", " ca", " cat", " д", " да"} < set(short) and " Red" not in short


def test_a_reader_of_the_text_finds_the_words():
    """Pitfall 15: random sequences, alone and behind a text; of words that may be inside, not."""
    vocabulary = words_of(*WORDS)
    inside = words_of("ordinary", "valid", "letters")
    rng = np.random.default_rng(1)
    prefix = known_tokens().encode("Input:")
    for _ in range(10_000):
        ids = rng.choice(vocabulary.ids, 7).tolist()
        assert known_tokens().is_stable(ids)
        text = "Input:" + "".join(vocabulary.strings[row] for row in vocabulary.rows(ids))
        assert known_tokens().encode(text) == prefix + ids
    assert not all(known_tokens().is_stable(ids) for ids in rng.choice(inside.ids, (50, 7)))


def test_words_that_join_are_not_promised():
    """Each alone is found again, and beside itself; 日 and 本 are read as 日本."""
    chosen = [number_of(s) for s in ("日", "本")]
    assert all(FILTERS["round_trip"](known_tokens(), i, known_tokens().string(i)) for i in chosen)
    with pytest.raises(UserError, match=r"a reader of 'a.*finds other words.*add word_initial"):
        make_vocabulary(known_tokens(), chosen, ["round_trip"])
    assert make_vocabulary(known_tokens(), chosen, ["letters"]).strings == ("日", "本")


def test_an_own_list_of_words(tmp_path):
    file = tmp_path / "words.txt"
    file.write_text("\ufeff# by frequency\nelephant\n кот\n\nRed\ndog\ndog\ncat\n", "utf-8")
    listed = read_words(file)
    assert listed == ["elephant", "кот", "Red", "dog", "dog", "cat"]
    # So many of the list as there are; the list says what is frequent.
    assert words_of(*WORDS, size=3, words=listed).strings == (" кот", " dog", " cat")
    assert words_of(size=2, words=["日本", "dog"]).strings == ("日本", " dog")
    # Without a size each has to be one.
    assert words_of(*WORDS, words=listed[3:]).strings == (" dog", " cat")
    with pytest.raises(UserError, match=r"'elephant' is \d tokens, so .* as are 2 in all"):
        words_of(*WORDS, words=listed)
    with pytest.raises(UserError, match="'Red' does not pass the filters, so it is no word"):
        words_of(*WORDS, words=["dog", "Red"])
    with pytest.raises(UserError, match=r"leave 3 words, 4 are needed.*listed 3\)"):
        words_of(*WORDS, size=4, words=listed)
    file.write_text("dog\nthe 22761659\n")
    with pytest.raises(UserError, match="line 2: 'the 22761659': one word a line"):
        read_words(file)
    file.write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match="not a text in UTF-8"):
        read_words(file)
    with pytest.raises(UserError, match="no such file"):
        read_words(tmp_path / "none")


def test_words_are_found_as_they_are_written():
    vocabulary = words_of("valid")
    rows = np.arange(len(vocabulary))
    written = vocabulary.words(rows)
    assert {" ", "\n", " #", "#", " |", '"', "<|end|>", "dog", " dog"} <= set(vocabulary.strings)
    assert len(set(written)) == len(written)
    assert not any(set(word) & set(" \n") or word[0] in "#|" for word in written)
    np.testing.assert_array_equal(vocabulary.find(written), rows)
    # And as they are, but for one that only a quoted word is.
    alike = vocabulary.find(vocabulary.strings) != rows
    assert [vocabulary.strings[row] for row in rows[alike]] == ["1", "R", "c", "d", "do", "dog"]


def test_a_word_at_its_start_goes_before_one_inside():
    both = Vocabulary(np.array([5, 3, 9]), ("dog", " dog", "cat"), "0")
    assert both.words([1, 0, 2]) == ["dog", '"dog"', "cat"]
    assert both.find(["dog", " dog", '"dog"', "cat", " cat"]).tolist() == [1, 1, 0, 2, 2]
    with pytest.raises(UserError) as raised:
        both.find(["dgo", "cat", "x", "dgo", "y", "z"])
    assert (
        str(raised.value) == "not among the 3 words: 'dgo' (near it is 'dog'), 'x', 'y' and 1 more"
    )


def test_rows_and_ids_of_the_language_model():
    """Pitfall 27: a bijection, and no id is taken for a row."""
    vocabulary = Vocabulary(np.array([5, 3, 900]), ("a", "b", "c"), "0")
    rows = np.array([[2, 0], [1, 1]])
    np.testing.assert_array_equal(vocabulary.lm_ids(rows), [[900, 5], [3, 3]])
    np.testing.assert_array_equal(vocabulary.rows(vocabulary.lm_ids(rows)), rows)
    assert vocabulary.rows([]).shape == (0,)
    for strange in (0, 4, 901):
        with pytest.raises(UserError, match=f"id {strange} is none of the 3 words' ids"):
            vocabulary.rows([5, strange])
    for strange in (-1, 3):
        with pytest.raises(IndexError):
            vocabulary.lm_ids([0, strange])
    assert np.flatnonzero(vocabulary.allow(901)).tolist() == [3, 5, 900]
    with pytest.raises(UserError, match="the id 900: this language model has 900"):
        vocabulary.allow(900)
    with pytest.raises(ValueError):  # frozen
        vocabulary.ids[0] = 1


def test_a_vocabulary_knows_itself_and_its_language_model():
    vocabulary = words_of(*WORDS)
    again = Vocabulary.from_json(vocabulary.to_json())
    assert (
        again == vocabulary and again.strings == vocabulary.strings and len(vocabulary.hash) == 16
    )
    np.testing.assert_array_equal(again.ids, vocabulary.ids)
    vocabulary.check_lm(known_tokens())
    with pytest.raises(UserError, match=f"part {vocabulary.lm_hash}: name the language model"):
        vocabulary.check_lm(with_byte_fallback())
    told = json.loads(vocabulary.to_json())
    for field in ("ids", "strings", "lm_hash"):
        value = told[field][::-1]
        with pytest.raises(UserError, match="it was changed since"):
            Vocabulary.from_json(json.dumps(told | {field: value}))
    for text in ("{", "[]", '{"ids": [1, 2]}'):
        with pytest.raises(UserError, match="not the vocabulary of a run"):
            Vocabulary.from_json(text)


def test_what_is_refused():
    with pytest.raises(UserError, match="filters='letter': use one of ordinary, valid"):
        words_of("valid", "letter")
    with pytest.raises(UserError, match="at least 0 and 2"):
        words_of(size=1)
    with pytest.raises(UserError, match="at least 0 and 2"):
        words_of(min_letters=-1)
    with pytest.raises(UserError, match=r"leave 3 words, 4 are.*\(\d+ ids.* min_letters=3 3\)"):
        words_of(*WORDS, min_letters=3, size=4)
    with pytest.raises(UserError, match="leave 0 words, 2 are needed"):
        words_of(*WORDS, min_letters=9)
    with pytest.raises(UserError, match="the string '\ufffd' twice: name the filters valid"):
        words_of()
    with pytest.raises(UserError, match="a vocabulary of 1 ids"):
        Vocabulary(np.array([1]), ("a",), "0")
    with pytest.raises(UserError, match="the id 1 twice"):
        Vocabulary(np.array([1, 1]), ("a", "b"), "0")
