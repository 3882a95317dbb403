"""A language model that cheats, by import: it reads the very ids of a prompt.

Its tokenizer is a byte-level BPE of this file's texts, in which each of `WORDS` is one token behind
its space.
"""

import functools
from typing import NamedTuple

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from mmx.data.lm_text import LmTokenizer

WORDS = ("red", "wool", "dog", "sun", "oak", "ink", "jam", "fog", "hen", "ice")
NAMES = ("bag", "coat", "ankle boot", "t-shirt")
_TEXTS = [f" {word}" for word in WORDS] * 40 + ["Input: Output: ###\n"] * 3


@functools.cache
def tokenizer():
    """Ids 0.. of bytes and merges; a text begins with id 0, as in Llama 3."""
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<|begin|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_TEXTS, trainer)
    bpe.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
    )
    return LmTokenizer(bpe.to_str(), 0)


@functools.cache
def word_ids():
    """int [len(WORDS)]: the id of each word behind a space."""
    ids = [tokenizer().encode(f" {word}") for word in WORDS]
    assert all(len(word) == 1 for word in ids)
    return np.array(ids)[:, 0]


class Scores(NamedTuple):
    sum: float
    count: int


class Drawn(NamedTuple):
    ids: np.ndarray
    log_prob: float
    ended: bool


class Oracle:
    """Answers as the shown image with most words in common, found in the prompt itself.

    Args:
      blind: knows the candidates only.
      lives: how often it answers before it dies.
    """

    def __init__(self, blind=False, lives=10**9):
        self.blind, self.lives, self.asked = blind, lives, 0

    def score(self, prompts, candidates):
        if self.lives == 0:
            raise KeyboardInterrupt
        self.lives -= 1
        self.asked += len(prompts)
        return [self._answer(*pair) for pair in zip(prompts, candidates, strict=True)]

    def _answer(self, prompt, candidates):
        text = tokenizer().decode(prompt).removeprefix("<|begin|>")
        assert tokenizer().encode(text) == [*prompt][1:]  # read again it is the same
        *shown, query = [self._block(part) for part in text.split("###\nInput:")[1:]]
        assert query[1] == ""
        names = [tokenizer().decode(candidate) for candidate in candidates]
        common = [max(len(w & query[0]) for w, answer in shown if answer == n) for n in names]
        right = [not self.blind and c == max(common) for c in common]
        return [Scores(-9.0 * len(c) * (not r), len(c)) for c, r in zip(candidates, right)]

    @staticmethod
    def _block(part):
        words, _, answer = part.partition("\nOutput:")
        return set(words.split()), answer.rstrip("\n")


class Copier:
    """Writes the answer of the last image shown, found in the prompt itself, then goes on.

    Args:
      lives: how often it writes before it dies.
    """

    def __init__(self, lives=10**9):
        self.lives, self.asked = lives, 0

    def generate(self, prompts, max_new, key, allow=None, sampling=None, stop_ids=(), first_row=0):
        if self.lives == 0:
            raise KeyboardInterrupt
        self.lives -= 1
        self.asked += len(prompts)
        return [self._write(prompt, max_new, {*stop_ids}) for prompt in prompts]

    def _write(self, prompt, max_new, stop_ids):
        text = tokenizer().decode(prompt).removeprefix("<|begin|>")
        assert text.startswith("###\nInput:")  # no list of answers
        answer = text.split("###\nInput:")[-2].rpartition(":")[2]
        return drawn(tokenizer().encode(f"{answer}###\nInput: red"), max_new, stop_ids)


def drawn(ids, max_new, stop_ids):
    """As a `FrozenLM` that writes these ids gives them back."""
    ends = [at for at, number in enumerate(ids[:max_new]) if number in stop_ids]
    ids = ids[: ends[0] if ends else max_new]
    return Drawn(np.array(ids, np.int32), 0.0, bool(ends))
