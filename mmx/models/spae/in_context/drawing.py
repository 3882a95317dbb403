"""Images written word by word by a frozen language model that reads examples in its prompt.

    plan = segment_plan(pyramid, block=32)
    for done, words_BT in draw(lm, prompter, requests, plan, key):
        keep(done, words_BT)        # draw(..., words_BT=words_BT, done=done) goes on from here

The language model is any object with `generate` of `mmx.models.language_model.FrozenLM` and its
`arch.context`; nothing of it is trained.
Legend: B images, T words of an image, V ids of the language model.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from mmx.core.errors import UserError
from mmx.core.rng import stream
from mmx.models.spae.in_context.prompts import Prompter, Request
from mmx.models.spae.in_context.segments import Segment


def draw(
    lm: Any,
    prompter: Prompter,
    requests: Sequence[Request],
    plan: Sequence[Segment],
    key: jax.Array,
    first_row: int = 0,
    words_BT: np.ndarray | None = None,
    done: int = 0,
    **options: Any,
) -> Iterator[tuple[int, np.ndarray]]:
    """Writes images together, segment by segment, each word one of the vocabulary's.

    What is drawn for an image hangs on (key, its number, the segment) alone: not on its neighbours,
    nor on where the work was taken up again.

    Args:
      lm: a `FrozenLM`.
      requests: B images.
      plan: the segments, in order.
      first_row: the number of the first image.
      words_BT: int32 [B, T], the words after `done` segments; None: those known at the start.
      options: of the language model's `generate`, such as ``sampling``.

    Returns:
      After each segment (segments done, int32 [B, T]).

    Raises:
      UserError: before anything is computed, a prompt that is too long for the language model.
    """
    if words_BT is None:
        words_BT = np.stack([request.known_T for request in requests]).astype(np.int32)
    _check_context(lm.arch.context, prompter, requests, plan)
    return _segments(lm, prompter, requests, plan, key, first_row, words_BT, done, options)


def _segments(lm, prompter, requests, plan, key, first_row, words_BT, done, options):
    vocabulary = prompter.vocabulary
    allow_V = vocabulary.allow(lm.arch.vocab_size)
    ends = (0, *prompter.pyramid.ends)
    for number, segment in enumerate(plan[done:], done):
        prompts = [prompter.prompt(r, segment, w) for r, w in zip(requests, words_BT, strict=True)]
        drawn = lm.generate(
            prompts,
            segment.length,
            jax.random.fold_in(stream(key, "segment"), number),
            allow_V,
            first_row=first_row,
            **options,
        )
        begin = ends[segment.layer] + segment.start
        words_BT = words_BT.copy()
        for words_T, row in zip(words_BT, drawn, strict=True):
            words_T[begin : begin + segment.length] = vocabulary.rows(row.ids)
        yield number + 1, words_BT


def _check_context(context: int, prompter: Prompter, requests, plan) -> None:
    """Prompts have a length that does not hang on which words were drawn."""
    for request in requests:
        for segment in plan:
            length = len(prompter.prompt(request, segment, request.known_T))
            if length + segment.length > context:
                raise UserError(
                    f"{segment}: a prompt of {length} ids ({len(request.supports)} examples) and "
                    f"{segment.length} words to write: this language model reads {context}; take "
                    "fewer examples, smaller blocks or a shorter window"
                )
