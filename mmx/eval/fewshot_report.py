"""A study of few-shot episodes: what is asked by whose words, and what is left on the disk."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils.epath import Path

from mmx.core import storage
from mmx.data.image import fit
from mmx.data.lm_text import LmTokenizer
from mmx.data.vocabulary import Vocabulary
from mmx.eval import fewshot, fewshot_scores, fewshot_written
from mmx.eval.episodes import Episode, Item
from mmx.eval.fewshot import FEW, RULES, Answers, Question, Setting, Words
from mmx.eval.fewshot_data import Sides
from mmx.eval.grid import Section, draw_grid
from mmx.eval.png import save_picture
from mmx.eval.prompts import Template, joins_end


class Reading:
    """The words of images as each reading has them.

    Args:
      words: reading -> words, ids of the language model; "words" is one of them.
      template, tokenizer: of the prompts.
      vocabulary: of "words".
      seed: by which "shuffled" deals those.
      task: "captions" has answers that no two images share.
    """

    def __init__(
        self,
        words: Mapping[str, Words],
        template: Template,
        tokenizer: LmTokenizer,
        vocabulary: Vocabulary,
        seed: int,
        task: str,
    ):
        self._words, self._template, self._tokenizer = words, template, tokenizer
        self._vocabulary, self._seed, self._task = vocabulary, seed, task

    def of(self, reading: str, episode: Episode) -> Words:
        if reading == "shuffled":
            return fewshot.deal(self._words["words"], episode, self._seed)
        return self._words[reading]

    def ask(self, setting: Setting, episode: Episode) -> list[Question]:
        """What a language model is asked."""
        words = self.of(setting.reading, episode)
        return fewshot.questions(
            episode, setting.column, words, setting.budget, self._template, self._tokenizer
        )

    def overlap(self, setting: Setting, episode: Episode) -> np.ndarray:
        """float [queries, candidates]: what the words tell with no language model."""
        words = self.of(setting.reading, episode)
        if self._task == "captions":
            spell = lambda ids: [self._tokenizer.string(i).strip() for i in ids]
            return fewshot.spelt(episode, words, setting.budget, spell)
        return fewshot.overlap(episode, setting.column, words, setting.budget)

    def joined(self, episodes: Sequence[Episode]) -> tuple[int, int]:
        """(answers of which `prompts.joins_end` is true, all different ones)."""
        items = [i for e in episodes for row in (*e.rounds, e.queries) for i in row]
        answers = {item.answer for item in items}
        return sum(joins_end(self._template, self._tokenizer, a) for a in answers), len(answers)

    def spell(self, role: str, item: Item, budget: int) -> str:
        """The first words of an image, as one reads them."""
        rows = self._vocabulary.rows(self._words["words"][role, item.image][:budget])
        return " ".join(self._vocabulary.words(rows))


def write(
    out: Path,
    recipe: Mapping[str, Any],
    answers: Answers,
    settings: Sequence[Setting],
    episodes: Sequence[Episode],
    reading: Reading,
    sides: Sides,
    words: int,
    attribution: str,
    written: Mapping[str, Any] | None = None,
) -> list[str]:
    """results.json and episode.png into a folder.

    Args:
      words: the budget of the seven columns.
      written: of `fewshot_written.summary`; None where nothing was written.

    Returns:
      Lines for a reader.
    """
    found = fewshot_scores.summary(answers, settings, episodes, reading.overlap)
    joined, all_answers = reading.joined(episodes)
    kept = {"recipe": recipe, "words": words, "answers_joined": joined, **found}
    if written:
        kept["written"] = written
    storage.write(out / "results.json", json.dumps(kept, indent=1) + "\n")
    asked = Setting("words", words, FEW)
    said = [
        episodes[0].candidates[best]
        for best in answers.scores(asked, episodes[0], RULES[0]).argmax(axis=1)
    ]
    texts = fewshot_written.first(written) if written else []
    picture = draw_episode(episodes[0], said, reading, sides, words, attribution, texts)
    record = {"recipe": recipe, "episode": 0, "attribution": attribution}
    save_picture(out / "episode.png", picture, record)
    lines = [*fewshot_scores.table(found, words), ""]
    if written:
        lines += [*fewshot_written.table(written), ""]
    for name, splits in recipe["trained_on"].items():
        lines += [f"{name}: some of what is asked about was trained on: {s}" for s in splits]
    if joined:
        lines.append(
            f"{joined} of {all_answers} answers end in a sign that this language model's tokenizer "
            "joins with the line's end; here the two are apart"
        )
    return [*lines, f"{out}"]


def draw_episode(
    episode: Episode,
    said: Sequence[str],
    reading: Reading,
    sides: Sides,
    budget: int,
    attribution: str = "",
    texts: Sequence[str] = (),
):
    """What is shown, then what is asked, each image above its answer and its words.

    Args:
      said: the answer to each query.
      texts: what was written of each, below all that; none where nothing was.
    """
    told = lambda item: f"{item.question} {item.answer}".strip()
    shown = [item for round_ in episode.rounds[: FEW.shots] for item in round_]
    captions = [f"{told(item)}: {reading.spell('shown', item, budget)}" for item in shown]
    asked = [
        f"{told(item)} (said: {answer}): {reading.spell('asked', item, budget)}"
        for item, answer in zip(episode.queries, said, strict=True)
    ]
    side = _side(sides)
    shown_BHWC = _images(sides, "shown", shown, side)
    asked_BHWC = _images(sides, "asked", episode.queries, side)
    sections = [Section(shown_BHWC, captions, "shown"), Section(asked_BHWC, asked, "asked")]
    if texts:
        sections.append(Section(asked_BHWC, texts, f"written, {fewshot_written.COLUMN}"))
    return draw_grid(
        sections,
        columns=len(episode.candidates),
        title=f"Episode {episode.number}, {FEW}",
        subtitle=f"The first {budget} words of each image.",
        attribution=attribution,
    )


def _side(sides: Sides) -> int:
    """Pixels of the smaller images: both are drawn alike."""
    return min(min(sides.of(role)[0]["image"].shape[:2]) for role in ("shown", "asked"))


def _images(sides: Sides, role: str, items: Sequence[Item], side: int) -> np.ndarray:
    return np.stack([fit(sides.of(role)[item.image]["image"], side) for item in items])
