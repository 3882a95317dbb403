"""Prompts that show a language model examples and ask for words of an image, all in ids.

    Input: dog red ... So far: cat ... Output: blue ... Input: fox red ... So far: wolf ... Output:

What is wanted of a segment comes right behind "Output:" in every example, as in V2L's prompts
(arXiv 2403.07874): a small model that has to go on with words begun before repeats the last one.
A text that is cut into ids, joined and cut again may have other ids, so the pieces of a template
and the texts of examples are cut once, each as in the middle of a text (`LmTokenizer.inside`) but
for the first, and words are the ids that they are.
Legend: T words of an image.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mmx.data.lm_text import LmTokenizer
from mmx.models.spae.in_context.segments import Segment, Window, places
from mmx.ops.pyramid import Pyramid


@dataclasses.dataclass(frozen=True)
class Template:
    """The pieces of a prompt; words begin with the space that separates them.

    Attributes:
      instruction: once, before all; ``{count}`` is how many words are to be written.
      before_input, before_done, before_output, after_output: of an example; what is done is the
        words that come before the segment, where there are such.

    The shape is that of V2L (arXiv 2403.07874), whose prompts say too how many words to write.
    """

    instruction: str = "Learn from the examples and write the next {count} words.\n"
    before_input: str = "###\nInput:"
    before_done: str = "\nSo far:"
    before_output: str = "\nOutput:"
    after_output: str = "\n"


TEMPLATE = Template()


class Pair(NamedTuple):
    """An example.

    Attributes:
      given: int32 [T], rows of the vocabulary, or a text.
      wanted_T: int32 [T].
    """

    given: np.ndarray | str
    wanted_T: np.ndarray


class Request(NamedTuple):
    """An image to be written.

    Attributes:
      supports: the examples, in the order in which they are shown.
      given: what is given of the image, as in `Pair`.
      known_T: int32 [T], its words; those that are asked for have no meaning.
    """

    supports: Sequence[Pair]
    given: np.ndarray | str
    known_T: np.ndarray


class Prompter:
    """Makes the prompts of segments.

    Args:
      tokenizer: of the language model.
      vocabulary: `mmx.data.vocabulary.Vocabulary`: rows -> ids of the language model.
      pyramid: of the words.
      window: what a prompt shows of an image.
      template: its pieces.
    """

    def __init__(
        self,
        tokenizer: LmTokenizer,
        vocabulary,
        pyramid: Pyramid,
        window: Window,
        template: Template = TEMPLATE,
    ):
        self.vocabulary, self.pyramid, self.window = vocabulary, pyramid, window
        self._tokenizer, self._template = tokenizer, template
        self._inside = functools.cache(tokenizer.inside)

    def prompt(self, request: Request, segment: Segment, words_T: np.ndarray) -> list[int]:
        """Ids that the segment's words are to follow.

        Args:
          words_T: int32 [T], the words of the image so far; those of the segment and after it have
            no meaning.
        """
        given, before, own = places(self.pyramid, segment, self.window)
        instruction = self._template.instruction.format(count=segment.length)
        ids = [*self._tokenizer.start_ids, *self._tokenizer.encode(instruction)]
        for pair in request.supports:
            ids += self._example(pair.given, pair.wanted_T, given, before)
            ids += [*self._words(pair.wanted_T, own), *self._inside(self._template.after_output)]
        return [*ids, *self._example(request.given, words_T, given, before)]

    def _example(
        self, given: np.ndarray | str, words_T: np.ndarray, shown: list[int], before: list[int]
    ) -> list[int]:
        """Up to the output's first word."""
        template, is_text = self._template, isinstance(given, str)
        ids = [*self._inside(template.before_input)]
        ids += self._inside(f" {given}") if is_text else self._words(given, shown)
        if before:
            ids += [*self._inside(template.before_done), *self._words(words_T, before)]
        return [*ids, *self._inside(template.before_output)]

    def _words(self, words_T: np.ndarray, shown: list[int]) -> list[int]:
        return self.vocabulary.lm_ids(words_T[shown]).tolist()
