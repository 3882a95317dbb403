"""Words of an image made noisy: what a language model is shown so that it does not merely copy.

    ratios = falling(SCHEDULES["v2l"], 10)               # 0.50, 0.47, ... 0.23
    noise = make_noise(key, ratios, num_words=149, kept=21, num_rows=len(vocabulary))
    given_NT, wanted_NT = noise.apply(given_NT), noise.apply(wanted_NT)

Examples get less noisy along a prompt; what is asked for is the next, clean one (arXiv 2306.17842
sec. 4, in-context denoising, as recalled). Input and output of one example are hit at the same
places by the same words.
Legend: N examples, T words of an image.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmx.core.errors import UserError
from mmx.core.rng import row_keys

# Ratios of the first and of the last example of a prompt. SPAE's is as recalled: 50 % to
# 20 %. V2L's (arXiv 2403.07874, its evaluation script) has ten examples, each 3 % less noisy.
SCHEDULES: dict[str, tuple[float, float]] = {
    "spae": (0.50, 0.20),
    "v2l": (0.50, 0.23),
    "clean": (0.0, 0.0),
}


class Noise(NamedTuple):
    """Which words of N examples are replaced, and by what.

    Attributes:
      is_hit_NT: bool [N, T].
      words_NT: int32 [N, T], rows of the vocabulary; of no meaning where nothing is hit.
    """

    is_hit_NT: np.ndarray
    words_NT: np.ndarray

    def apply(self, words_NT: np.ndarray) -> np.ndarray:
        """int32 [N, T]: the words of N examples, or [T] the same words as N of them."""
        return np.where(self.is_hit_NT, self.words_NT, words_NT)


def falling(schedule: tuple[float, float], count: int) -> tuple[float, ...]:
    """The ratios of `count` examples, from a schedule's first to its last in even steps."""
    return tuple(np.linspace(*schedule, count).tolist())


def make_noise(
    key: jax.Array,
    ratios: Sequence[float],
    num_words: int,
    kept: int,
    num_rows: int,
    mask_word: int | None = None,
) -> Noise:
    """Draws the noise of the examples of one prompt, a pure function of the key.

    Example n has exactly floor(ratio * (num_words - kept) + 1/2) hit words (V2L counts the ratio of
    all words), any set of which is as likely as any other; it is the same however many examples
    there are.

    Args:
      key: of the prompt; its streams "hit" and "word" are read.
      ratios: N numbers in [0, 1].
      num_words: T.
      kept: the first so many words, those of the upper layers, are never hit.
      num_rows: of the vocabulary; a word is replaced by any of its rows, all equally likely (its
        own too).
      mask_word: replace by this row instead.

    Raises:
      UserError: a ratio out of range, a mask word out of the vocabulary.
    """
    if bad := [ratio for ratio in ratios if not 0 <= ratio <= 1]:
        raise UserError(f"noise ratio {bad[0]}: a share of the words, from 0 to 1")
    if mask_word is not None and not 0 <= mask_word < num_rows:
        raise UserError(f"mask_word={mask_word}: rows of this vocabulary are 0..{num_rows - 1}")
    free = num_words - kept
    numbers_N = jnp.arange(len(ratios))
    rank_NT, drawn_NT = _draw(key, numbers_N, free=free, num_words=num_words, num_rows=num_rows)
    hits_N = np.floor(np.asarray(ratios) * free + 0.5)
    is_hit_NT = np.zeros((len(ratios), num_words), bool)
    is_hit_NT[:, kept:] = np.asarray(rank_NT) < hits_N[:, None]
    words_NT = np.asarray(drawn_NT) if mask_word is None else np.full_like(drawn_NT, mask_word)
    return Noise(is_hit_NT, words_NT)


@functools.partial(jax.jit, static_argnames=("free", "num_words", "num_rows"))
def _draw(key, numbers_N, *, free: int, num_words: int, num_rows: int):
    """(a random order of the places that may be hit, a random word for every place)."""
    order = jax.vmap(lambda k: jax.random.permutation(k, free))
    word = jax.vmap(lambda k: jax.random.randint(k, (num_words,), 0, num_rows))
    return order(row_keys(key, "hit", numbers_N)), word(row_keys(key, "word", numbers_N))
