"""An image's words as a text: written, read, and what a text may not be."""

import re

import numpy as np
import pytest

from mmx.core.errors import UserError
from mmx.data.vocabulary import Vocabulary
from mmx.data.word_text import lines, parse

SIDES = (1, 2, 4, 8, 8)
ENDS = np.cumsum(np.square(SIDES))
VOCABULARY = Vocabulary(np.array([7, 3, 9, 11, 20]), (" dog", " red", "dog", " |", " #"), "0")


def layers_of(words):
    parts = np.split(words, ENDS[:-1])[: 1 + np.searchsorted(ENDS, len(words))]
    return [part.reshape(side, side) for part, side in zip(parts, SIDES)]


def test_a_line_a_layer():
    written = lines(VOCABULARY, layers_of(np.array([0, 1, 0, 2, 3])))
    assert written == ["dog", 'red dog | "dog" "\\u0020|"']


def test_a_text_is_read_as_it_was_written():
    words = np.random.default_rng(0).integers(0, 5, ENDS[-1])
    for end in ENDS:
        text = "\n".join(lines(VOCABULARY, layers_of(words[:end])))
        read = parse(VOCABULARY, text, SIDES)
        np.testing.assert_array_equal(read, words[:end])
        assert read.dtype == np.int32
    by_hand = "\ufeff# mine\n\n  dog \n\t# the second layer\nred red dog red\n"
    assert parse(VOCABULARY, by_hand, SIDES).tolist() == [0, 1, 1, 0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# none\n\n", "f.txt: no words in it; write a line for each of the first layers"),
        ("dog\n\nred dog red", "f.txt line 3: layer 2 has 3 words: it takes 2 x 2 = 4"),
        ("dog red", "f.txt line 1: layer 1 has 2 words: it takes 1 x 1 = 1"),
        (
            "dog\nred | dog red dog",
            "f.txt line 2: layer 2 has rows of [1, 3] words: it takes 2 of 2",
        ),
        (
            "dog\nred red | dog dgo",
            "f.txt line 2: layer 2: not among the 5 words: 'dgo' (near it is ",
        ),
        ("dog\ndog red red red\nred", "f.txt line 3: layer 3: there are only 2; take the line out"),
    ],
)
def test_one_line_says_what_is_wrong(text, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        parse(VOCABULARY, text, (1, 2), "f.txt")
