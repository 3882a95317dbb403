"""Few-shot episodes answered by a frozen language model that reads the words of their images.

    settings = plan(budgets=(1, 5, 21, 85), words=5, readings=("words", "shuffled"))
    answers = Answers(file, recipe)
    complete(answers, settings, episodes, ask, lm, room=8192)
    print(fewshot_scores.table(fewshot_scores.summary(answers, settings, episodes, ...)))

The answers are closed: each candidate is scored whole, and the likeliest is the answer (Frozen's
and SPAE's are written freely, so that theirs without induction are near 0 and chance is 0; here
chance is one in `ways` in every column). By the sum of a candidate's log-probabilities, and by
their mean, which knows no length. What the model writes freely is of `mmx.eval.fewshot_written`.

Controls: "shuffled" are the words of the images of an episode, dealt anew among them; "overlap" is
no language model at all (see :func:`overlap`). What it comes to is `mmx.eval.fewshot_scores`.
"""

import abc
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils.epath import Path

from mmx.core import preemption, storage
from mmx.core.errors import UserError
from mmx.core.progress import Progress
from mmx.data.lm_text import LmTokenizer
from mmx.eval.episodes import COLUMNS, Column, Episode, check_recipe, supports
from mmx.eval.prompts import Block, Template, answer_ids, prompt

RULES = ("sum", "mean")
FEW = Column(True, 1, 0)  # at which token budgets are compared
_EPISODES = 8  # ours: the most that are asked at once, and kept at once
_TOKENS = 4096  # ours: of the prompts that the model keeps at once, each as long as the longest

# (role, image) -> words; the role is "shown" or "asked", as the two may be of different data sets.
Words = Mapping[tuple[str, int], np.ndarray]


class Setting(NamedTuple):
    """What is asked of all episodes at once.

    Attributes:
      reading: which words of an image are read: "words", "shuffled", "baseline".
      budget: how many of them, the first.
      column: how the episode is shown.
    """

    reading: str
    budget: int
    column: Column

    @property
    def key(self) -> str:
        return f"{self.reading} {self.budget} {int(self.column.induction)}" + (
            f" {self.column.shots} {self.column.repeats}"
        )


def plan(budgets: Sequence[int], words: int, readings: Sequence[str]) -> list[Setting]:
    """All columns at `words` for each reading, and for each one column at the other budgets."""
    settings = [Setting(r, words, column) for r in readings for column in COLUMNS]
    for budget in budgets:
        settings += [Setting(r, budget, FEW) for r in readings if budget != words]
    return settings


# ---------------------------------------------------------------- one episode


def deal(words: Words, episode: Episode, seed: int) -> dict[tuple[str, int], np.ndarray]:
    """The words of an episode's images, dealt anew among them: a uniform permutation.

    What is asked and what is shown keep their answers, so that words tell nothing of those.
    """
    images = sorted({("shown", item.image) for round_ in episode.rounds for item in round_})
    images += sorted({("asked", item.image) for item in episode.queries})
    order = np.random.default_rng([seed, episode.number, 1]).permutation(len(images))
    return {image: words[images[other]] for image, other in zip(images, order, strict=True)}


class Question(NamedTuple):
    """One query as a language model is asked it.

    Attributes:
      prompt: ids.
      candidates: ids of each.
    """

    prompt: list[int]
    candidates: list[list[int]]


def questions(
    episode: Episode,
    column: Column,
    words: Words,
    budget: int,
    template: Template,
    tokenizer: LmTokenizer,
) -> list[Question]:
    """One a query. Words are ids of the language model."""
    shown = [
        Block(words["shown", item.image][:budget], item.question, item.answer)
        for item in supports(episode, column)
    ]
    listed = episode.candidates if column.induction else ()
    asked = []
    for item in episode.queries:
        query = Block(words["asked", item.image][:budget], item.question)
        candidates = [
            answer_ids(template, tokenizer, query._replace(answer=answer))
            for answer in episode.candidates
        ]
        asked.append(Question(prompt(template, tokenizer, shown, query, listed), candidates))
    return asked


def overlap(episode: Episode, column: Column, words: Words, budget: int) -> np.ndarray:
    """float [queries, candidates]: how many of a query's words are those of a candidate's images.

    A bag of words, each image's of weight 1, in which all depths count alike; of two bags the
    smaller share of each word. A candidate's bag is the mean of its shown images'.
    """
    shown = [(item.answer, words["shown", item.image][:budget])
             for item in supports(episode, column)]  # fmt: skip
    asked = [words["asked", item.image][:budget] for item in episode.queries]
    of = [[some for answer, some in shown if answer == c] for c in episode.candidates]
    # Whole numbers of a common denominator: by fractions, rounding would decide what is a tie.
    lengths = {len(some) for some in (*asked, *(some for _, some in shown))}
    whole = math.lcm(*lengths) * math.lcm(*map(len, of))
    bags = [_bag(one, whole) for one in asked]
    out = np.zeros((len(asked), len(of)), np.int64)
    for c, some in enumerate(of):
        mean: Counter[int] = Counter()
        for one in some:
            mean += _bag(one, whole // len(some))
        out[:, c] = [(bag & mean).total() for bag in bags]
    return out / whole


def spelt(episode: Episode, words: Words, budget: int, read: Callable) -> np.ndarray:
    """float [queries, candidates]: how many of a query's words stand in a candidate's text.

    For captions, which no shown image shares.

    Args:
      read: ids -> the words as one reads them.
    """
    texts = [set(re.findall(r"\w+", candidate.lower())) for candidate in episode.candidates]
    seen = [read(words["asked", query.image][:budget]) for query in episode.queries]
    return np.array([[np.mean([w.lower() in text for w in some]) for text in texts]
                     for some in seen])  # fmt: skip


def _bag(words: np.ndarray, weight: int) -> Counter[int]:
    """Each word's share of a weight that they divide."""
    each = weight // len(words)
    return Counter({w: n * each for w, n in Counter(np.asarray(words).tolist()).items()})


# ---------------------------------------------------------------- all episodes


class Lines(abc.ABC):
    """What was said, a line for each query of each setting; whole blocks of episodes.

    The first line is the recipe, the others say ``{"setting": "words 5 1 3 0", "episode": 4,
    "query": 0}`` and more, which is of the two kinds: :class:`Answers` and
    `mmx.eval.fewshot_written.Written`.

    Attributes:
      what: is done, for a reader.
      flags: by which a prompt gets shorter.

    Args:
      file: JSON lines, which need not be there yet.
      recipe: all that the lines depend on besides their settings and episodes.

    Raises:
      UserError: a line that is none of ours, or another recipe.
    """

    what: str
    flags: str

    @abc.abstractmethod
    def need(self, question: Question) -> int:
        """Tokens that a language model has to hold for it."""

    @abc.abstractmethod
    def reply(self, lm: Any, asked: Sequence[Question]) -> list[dict[str, Any]]:
        """What it says to each question."""

    def __init__(self, file: Path, recipe: Mapping[str, Any]):
        self.file = file
        self._recipe = recipe = json.loads(json.dumps(recipe))
        self._known: dict[tuple[str, int], list[dict[str, Any]]] = {}
        if file.is_file():
            for number, text in enumerate(storage.read_text(file).splitlines(), 1):
                try:
                    line = json.loads(text)
                    if number == 1:
                        check_recipe(file, line, recipe)
                    else:
                        self._add(line)
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise UserError(
                        f"{file}, line {number}: not an answer; delete the file to ask again"
                    ) from error

    def _add(self, line: dict[str, Any]) -> None:
        self._known.setdefault((line["setting"], line["episode"]), []).append(line)

    def has(self, setting: Setting, episode: Episode) -> bool:
        """Whether all queries of an episode are answered, each once."""
        lines = self._known.get((setting.key, episode.number), [])
        return sorted(line["query"] for line in lines) == [*range(len(episode.queries))]

    def add(
        self, setting: Setting, episodes: Sequence[Episode], said: Sequence[Mapping[str, Any]]
    ) -> None:
        """Of each query of the episodes, one after another, what its line says besides; in the
        place of what there was of these episodes, which may be a part."""
        for episode in episodes:
            self._known[setting.key, episode.number] = []
        places = [
            {"setting": setting.key, "episode": episode.number, "query": query}
            for episode in episodes
            for query in range(len(episode.queries))
        ]
        for place, more in zip(places, said, strict=True):
            self._add({**place, **more})
        lines = [self._recipe, *(line for some in self._known.values() for line in some)]
        storage.write(self.file, "".join(f"{json.dumps(line)}\n" for line in lines))

    def of(self, setting: Setting, episode: Episode) -> list[dict[str, Any]]:
        """The lines of an episode, by query."""
        lines = self._known[setting.key, episode.number]
        return sorted(lines, key=lambda line: line["query"])


class Answers(Lines):
    """Of each query the scores of its candidates: ``{..., "sum": [-3.1, -2.0], "count": [1, 2]}``.

    Args and raises as :class:`Lines`.
    """

    what, flags = "ask", "--words, --budgets or --ways"

    def need(self, question: Question) -> int:
        return len(question.prompt) + max(map(len, question.candidates))

    def reply(self, lm: Any, asked: Sequence[Question]) -> list[dict[str, Any]]:
        return [
            {"sum": [s.sum for s in row], "count": [s.count for s in row]}
            for row in score(lm, asked)
        ]

    def scores(self, setting: Setting, episode: Episode, rule: str) -> np.ndarray:
        """float [queries, candidates] by a rule of `RULES`."""
        lines = self.of(setting, episode)
        sums = np.array([line["sum"] for line in lines])
        return sums if rule == "sum" else sums / np.array([line["count"] for line in lines])


def complete(
    lines: Lines,
    settings: Sequence[Setting],
    episodes: Sequence[Episode],
    ask: Callable[[Setting, Episode], list[Question]],
    lm: Any,
    room: int,
) -> None:
    """Have the language model say what is not said yet.

    The same prompts are read together whether or not this goes on from an earlier call: so the
    answers are the same, too.

    Args:
      lines: where they are kept, block by block.
      ask: of one episode, its questions.
      lm: a `FrozenLM`, or what has the method of it that `lines` use.
      room: the most tokens that it reads.

    Raises:
      UserError: a prompt that it has no room for; nothing was asked then.
      Interrupted: between two blocks, where `mmx.core.preemption` watches.
    """
    blocks = []  # (setting, episodes, how many tokens they are)
    for setting, tokens in check_room(lines, settings, episodes, ask, room).items():
        size = min(max(1, 2 * _TOKENS // max(tokens)), _EPISODES)
        for at in range(0, len(episodes), size):
            end = at + size
            blocks.append((setting, episodes[at:end], sum(tokens[at:end])))
    left = [b for b in blocks if not all(lines.has(b[0], episode) for episode in b[1])]
    total = sum(tokens for *_, tokens in blocks)
    done = total - sum(tokens for *_, tokens in left)
    progress = Progress(total, f"{lines.what} (tokens)", start=done, every=1)
    for setting, some, tokens in left:
        preemption.check()
        asked = [question for episode in some for question in ask(setting, episode)]
        lines.add(setting, some, lines.reply(lm, asked))
        done += tokens
        progress.update(done, f"{setting.reading} ({setting.budget}), {setting.column}")
    progress.close()


def check_room(
    lines: Lines,
    settings: Sequence[Setting],
    episodes: Sequence[Episode],
    ask: Callable[[Setting, Episode], list[Question]],
    room: int,
) -> dict[Setting, list[int]]:
    """The tokens of each episode's prompts, by setting. Args and raises UserError as
    :func:`complete`."""
    tokens = {}
    for setting in settings:
        asked = [ask(setting, episode) for episode in episodes]
        longest = max(lines.need(question) for some in asked for question in some)
        if longest > room:
            raise UserError(
                f"{setting.column} of {setting.budget} words: a prompt of {longest} tokens, but "
                f"this language model reads {room}; give fewer {lines.flags}"
            )
        tokens[setting] = [sum(len(question.prompt) for question in some) for some in asked]
    return tokens


def score(lm: Any, asked: Sequence[Question]) -> list[Sequence]:
    """Of each question, the scores of its candidates: as many prompts at once as `_TOKENS` hold.

    In their order: an episode's questions begin alike, and the model reads what neighbours share
    once.
    """
    out: list[Sequence] = []
    for some in batches(asked):
        out += lm.score([q.prompt for q in some], [q.candidates for q in some])
    return out


def batches(asked: Sequence[Question], more: int = 0) -> Iterator[list[Question]]:
    """Questions that a model reads at once, in their order.

    Args:
      more: tokens that it keeps for each besides its prompt.
    """
    batch: list[Question] = []
    longest = 0
    for question in asked:
        longest = max(longest, len(question.prompt) + more)
        if batch and (len(batch) + 1) * longest > _TOKENS:
            yield batch
            batch, longest = [], len(question.prompt) + more
        batch.append(question)
    yield batch
