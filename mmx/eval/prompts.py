"""What a language model reads of an episode: words of images between texts, in ids end to end.

    For each of the following input output pairs, output is one of ['bag' or 'coat']
    ###
    Input: wallet grip red
    Output: bag
    ###
    Input: sleeve wool winter
    Output:

The words of an image are put there by their ids, never written and read again; an answer's ids are
those that it has behind the text before it (`LmTokenizer.continuation`), in what is shown as in
what is scored. So the prompt and its answer are the ids that the whole would have.
"""

import dataclasses
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
      UserError: a token would hold some of an answer and some of the text beside it.
    """
    ids = list(tokenizer.start_ids)
    text = ""
    if listed:
        names = template.between.join(template.listed.format(name) for name in listed)
        text = template.induction.format(candidates=names)
    for block in shown:
        after = template.after.format(question=block.question)
        ids += tokenizer.encode(text + template.before) + _ints(block.words)
        ids += tokenizer.encode(after) + tokenizer.continuation(after, f" {block.answer}")
        text = template.end
    ids += tokenizer.encode(text + template.before) + _ints(query.words)
    return ids + tokenizer.encode(template.after.format(question=query.question))


def answer_ids(template: Template, tokenizer: LmTokenizer, block: Block) -> list[int]:
    """Ids of the block's answer, behind its prompt. Raises UserError as :func:`prompt`."""
    after = template.after.format(question=block.question)
    return tokenizer.continuation(after, f" {block.answer}")


def _ints(words: Sequence[int] | np.ndarray) -> list[int]:
    return [int(word) for word in words]
