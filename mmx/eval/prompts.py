"""What a language model reads of an episode: words of images between texts, in ids end to end.

    For each of the following input output pairs, output is one of ['bag' or 'coat']
    ###
    Input: wallet grip red
    Output: bag
    ###
    Input: sleeve wool winter
    Output:

The words of an image are put there by their ids, never written and read again. The texts between
have the ids that they have in the middle of a text (`LmTokenizer.inside`), and an answer those that
it has behind the text before it (`LmTokenizer.continuation`). So, of words that a reader of their
text finds again, the prompt and its answer are the ids that the whole would have, but at one place:
an answer has the same ids in what is shown as in what is scored, where nothing follows. It is cut
before the line's end even where a tokenizer would join the two (Llama 3's ".\n"); a study tells how
many answers those are (:func:`joins_end`).
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mmx.data.lm_text import LmTokenizer


@dataclasses.dataclass(frozen=True)
class Template:
    """The texts around words and answers.

    The form is that of V2L-Tokenizer's few-shot script (github.com/zh460045050/V2L-Tokenizer),
    after SPAE's figures.

    Attributes:
      induction: comes first where there is task induction; {candidates} are the answers to come.
      listed: how one of those is written.
      between: them.
      before: an image's words.
      after: them, before the answer; {question} is the image's.
      end: of an answer.
    """

    induction: str
    before: str
    after: str
    listed: str = "'{}'"
    between: str = " or "
    end: str = "\n"


TEMPLATES = {
    "classes": Template(
        "For each of the following input output pairs, output is one of [{candidates}]\n",
        "###\nInput:",
        "\nOutput:",
    ),
    "captions": Template(  # those shown are none of the candidates
        "Of the following captions the last is one of [{candidates}]\n",
        "###\nInput:",
        "\nCaption:",
    ),
    "questions": Template(
        "For each of the following inputs and questions, the answer is one of [{candidates}]\n",
        "###\nInput:",
        "\nQuestion: {question}\nAnswer:",
    ),
}


class Block(NamedTuple):
    """An image's words as ids of the language model, its question and, if shown, its answer."""

    words: Sequence[int] | np.ndarray
    question: str = ""
    answer: str = ""


def prompt(
    template: Template,
    tokenizer: LmTokenizer,
    shown: Sequence[Block],
    query: Block,
    listed: Sequence[str] = (),
) -> list[int]:
    """Ids up to where the answer to the query begins.

    Args:
      listed: the candidates of a task induction; none without.

    Raises:
      UserError: a token would hold some of an answer and some of the text before it.
    """
    ids = list(tokenizer.start_ids)
    cut = tokenizer.encode  # of what the whole text begins with
    text = ""
    if listed:
        names = template.between.join(template.listed.format(name) for name in listed)
        text = template.induction.format(candidates=names)
    for block in shown:
        after = template.after.format(question=block.question)
        ids += [*cut(text + template.before), *_ints(block.words)]
        ids += [*_inside(tokenizer, after), *_continuation(tokenizer, after, f" {block.answer}")]
        text, cut = template.end, functools.partial(_inside, tokenizer)
    ids += [*cut(text + template.before), *_ints(query.words)]
    return [*ids, *_inside(tokenizer, template.after.format(question=query.question))]


def answer_ids(template: Template, tokenizer: LmTokenizer, block: Block) -> list[int]:
    """Ids of the block's answer, behind its prompt. Raises UserError as :func:`prompt`."""
    after = template.after.format(question=block.question)
    return [*_continuation(tokenizer, after, f" {block.answer}")]


def joins_end(template: Template, tokenizer: LmTokenizer, answer: str) -> bool:
    """Would a reader of the whole text find other ids where an answer ends?"""
    apart = [*tokenizer.inside(f" {answer}"), *tokenizer.inside(template.end + template.before)]
    return tokenizer.inside(f" {answer}{template.end}{template.before}") != apart


# The same few texts are in all prompts of a study.
@functools.lru_cache(maxsize=4096)
def _inside(tokenizer: LmTokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.inside(text))


@functools.lru_cache(maxsize=4096)
def _continuation(tokenizer: LmTokenizer, before: str, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.continuation(before, text))


def _ints(words: Sequence[int] | np.ndarray) -> list[int]:
    return [int(word) for word in words]
