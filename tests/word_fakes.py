"""Words of images without weights: a vocabulary, a tokenizer, a codec, a model that knows."""

from types import SimpleNamespace

import numpy as np

from mmx.data.vocabulary import Vocabulary
from mmx.models.spae.in_context.prompts import Prompter, Template
from mmx.models.spae.in_context.segments import Window
from mmx.ops.pyramid import Pyramid

SMALL = Pyramid((1, 2, 4, 4))  # ends at 1, 5, 21, 37 words
ROWS, FIRST_ID, LM_V = 50, 7, 64  # words, the id of the first of them, ids of the language model


# Rows lie backwards among the ids, so that one is never taken for the other.
WORDS = Vocabulary(
    np.arange(FIRST_ID + ROWS - 1, FIRST_ID - 1, -1), tuple(f" w{n}" for n in range(ROWS)), "fake"
)


class Tokens:
    """A tokenizer of few pieces."""

    start_ids = (60,)

    def encode(self, text):
        return [61] * int(text.removeprefix("n"))

    def inside(self, text):
        return {"in": [2], "out": [3], "end": [4], "done": [1]}.get(text, [5, 6])


TEMPLATE, WINDOW = Template("n{count}", "in", "done", "out", "end"), Window(2, 3)


def prompter(pyramid=SMALL):
    return Prompter(Tokens(), WORDS, pyramid, WINDOW, TEMPLATE)


SIDE = 16


def to_words(images):
    """Greys of cells in 50 steps, each layer at its cells: a codec without weights."""
    images = np.asarray(images)
    cells = images.reshape(len(images), 4, 4, 4, 4, 3).mean((2, 4, 5))
    words = (cells * ROWS / 256).astype(np.int32)
    at = [SMALL.cells(layer) for layer in range(4)]
    return np.concatenate([words[:, a, a].reshape(len(images), -1) for a in at], 1)


def from_words(words):
    grey = (np.asarray(words)[:, -16:].reshape(-1, 4, 4) + 0.5) * (256 / ROWS)
    image = np.kron(grey, np.ones((4, 4)))[..., None] / 127.5 - 1
    return np.repeat(image, 3, -1).astype(np.float32)


class VideoCodec:
    """Greys of cells of a video, each layer at its cells; two frames and two pixels a cell."""

    def __init__(self, pyramid):
        self.pyramid = pyramid

    def to_words(self, videos):
        t, h, w = self.pyramid.shape
        cells = np.asarray(videos).reshape(len(videos), t, 2, h, 2, w, 2, 3).mean((2, 4, 6, 7))
        words = (cells * ROWS / 256).astype(np.int32)
        at = [self.pyramid.places(layer) for layer in range(self.pyramid.num_layers)]
        return np.concatenate(
            [np.stack([x[a] for x in words]).reshape(len(words), -1) for a in at], 1
        )

    def from_words(self, words):
        shape = self.pyramid.shape
        last = np.asarray(words)[:, -int(np.prod(shape)) :].reshape(-1, *shape)
        grey = np.kron((last + 0.5) * (256 / ROWS), np.ones((2, 2, 2)))[..., None] / 127.5 - 1
        return np.repeat(grey, 3, -1).astype(np.float32)


class Oracle:
    """Writes what a function of (its number, prompt, how many) says; nothing is computed."""

    arch = SimpleNamespace(vocab_size=LM_V, context=10**6)

    def __init__(self, answer, rows=ROWS):
        self.answer, self.rows, self.calls = answer, rows, 0

    def generate(self, prompts, max_new, key, allow, first_row=0):
        self.calls += 1
        assert allow.sum() == self.rows
        rows = enumerate(prompts, first_row)
        return [SimpleNamespace(ids=self.answer(b, prompt, max_new)) for b, prompt in rows]


def last_output(number, prompt, count):
    """The end of the last example's output, which "end" follows, before the query's input."""
    end = len(prompt) - 1 - prompt[::-1].index(4)
    return prompt[end - count : end]
