"""What a frozen language model writes of images after the prompts of few-shot episodes.

    settings = plan(words=5, readings=("words", "shuffled"))
    written = Written(file, recipe, tokenizer, TEMPLATES["captions"].end, most=12)
    fewshot.complete(written, settings, episodes, ask, lm, room=8192)
    print(table(summary(written, settings, episodes, "wordllama", judge.embed)))

The open form of SPAE's captions and answers (arXiv 2306.17842), in which Frozen and SPAE score
their classes, too. One image of each class is shown, and no list of answers: so that nothing but
what is shown gives an answer away. Greedy, one line.

Three rules: "exact" is the truth, but for case; "repeated" is an answer of an image that is shown,
but for case (the truth itself may be one, never of captions); "meaning" is the judge's cosine with
the truth less that with the other truths of the episode: 0 by chance, also of who repeats. What is
empty is like nothing, so 0.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils.epath import Path

from mmx.core.rng import base_key
from mmx.data.lm_text import LmTokenizer
from mmx.eval import fewshot, stats
from mmx.eval.episodes import COLUMNS, Episode, supports
from mmx.eval.fewshot import Question, Setting
from mmx.eval.fewshot_scores import aligned, spell, wider

COLUMN = COLUMNS[0]  # one shot, no list of answers
RULES = {"exact": stats.proportion, "repeated": stats.proportion, "meaning": stats.mean}


def plan(words: int, readings: Sequence[str]) -> list[Setting]:
    """What is written: of each reading, after one prompt."""
    return [Setting(reading, words, COLUMN) for reading in readings]


class Written(fewshot.Lines):
    """Of each query one line of text: ``{..., "text": "a red dog", "ended": true}``; not ended is
    what more tokens would have gone on with.

    Args:
      file, recipe: see `fewshot.Lines`; the recipe says how ``end`` and ``most`` are, too.
      tokenizer: of the language model.
      end: of an answer.
      most: tokens that are written.

    Raises:
      UserError: as `fewshot.Lines`.
    """

    what, flags = "write", "--write, --words or --ways"

    def __init__(self, file: Path, recipe: Any, tokenizer: LmTokenizer, end: str, most: int):
        super().__init__(file, recipe)
        self.most, self._tokenizer, self._end = most, tokenizer, end
        self._stops: list[int] | None = None

    def need(self, question: Question) -> int:
        return len(question.prompt) + self.most

    def reply(self, lm: Any, asked: Sequence[Question]) -> list[dict[str, Any]]:
        if self._stops is None:  # it reads the whole vocabulary
            self._stops = stop_ids(self._tokenizer, self._end)
        said = []
        for some in fewshot.batches(asked, self.most):
            prompts = [question.prompt for question in some]
            for drawn in lm.generate(prompts, self.most, base_key(0), stop_ids=self._stops):
                text, end, _ = self._tokenizer.decode(drawn.ids).partition(self._end)
                said.append({"text": text.strip(), "ended": bool(end) or drawn.ended})
        return said


def stop_ids(tokenizer: LmTokenizer, end: str) -> list[int]:
    """The ids after which nothing of a line is left to write: they begin with its end, or are no
    text. A token that holds the end behind a sign (".\\n") is none of them: the sign counts."""
    special = tokenizer.special_ids | {*tokenizer.eos_ids}
    ids = range(tokenizer.vocab_size)
    return [i for i in ids if i in special or tokenizer.string(i).startswith(end)]


def summary(
    written: Written,
    settings: Sequence[Setting],
    episodes: Sequence[Episode],
    judge: str,
    embed: Callable[[Sequence[str]], np.ndarray],
) -> dict[str, Any]:
    """Each text beside its truth, and what they come to, with the intervals of `fewshot_scores`.

    Args:
      judge: its name; never the words' teacher.
      embed: its: texts, none empty -> unit rows [n, E].

    Returns:
      What JSON can hold: "tokens", "column", "budget", "judge"; "rows", a dict for each query of
      each reading; "scores" and "differences", lists of {"reading", "rule", "value", "low",
      "high"}. A difference is of the reading "words" and another, on the same queries.
    """
    said = {(s, e.number): written.of(s, e) for s in settings for e in episodes}
    texts = {line["text"] for lines in said.values() for line in lines}
    texts = sorted((texts | {item.answer for e in episodes for item in e.queries}) - {""})
    vectors = dict(zip(texts, np.asarray(embed(texts), np.float64), strict=True))
    vectors[""] = np.zeros_like(vectors[texts[0]])
    rows = []
    for setting in settings:
        for episode in episodes:
            lines = said[setting, episode.number]
            meaning_Q = _margins([line["text"] for line in lines], episode, vectors)
            shown = {item.answer.strip().casefold() for item in supports(episode, setting.column)}
            for line, item, meaning in zip(lines, episode.queries, meaning_Q, strict=True):
                text = line["text"].casefold()
                rows.append({
                    "reading": setting.reading, "episode": episode.number,
                    "question": item.question, "truth": item.answer,
                    "text": line["text"], "ended": line["ended"],
                    "exact": text == item.answer.strip().casefold(),
                    "repeated": text in shown, "meaning": float(meaning),
                })  # fmt: skip
    readings = [setting.reading for setting in settings]
    of = lambda reading, field: [row[field] for row in rows if row["reading"] == reading]
    clusters = of(readings[0], "truth"), of(readings[0], "episode")
    scores, differences = [], []
    for reading in readings:
        for rule, kind in RULES.items():
            name, values = {"reading": reading, "rule": rule}, np.array(of(reading, rule), float)
            scores.append(name | wider(kind, values, *clusters))
            if reading != "words":
                more = np.array(of("words", rule), float) - values
                differences.append(name | wider(stats.mean, more, *clusters))
    return {
        "tokens": written.most, "column": str(COLUMN), "budget": settings[0].budget,
        "judge": judge, "scores": scores, "differences": differences, "rows": rows,
    }  # fmt: skip


def _margins(said: Sequence[str], episode: Episode, vectors: dict[str, np.ndarray]) -> np.ndarray:
    """float [queries]: cosine with the own truth less the mean of those with the others'."""
    said_QE = np.stack([vectors[text] for text in said])
    truth_QE = np.stack([vectors[item.answer] for item in episode.queries])
    alike_QQ = said_QE @ truth_QE.T
    own_Q = np.diagonal(alike_QQ)
    return own_Q - (alike_QQ.sum(1) - own_Q) / (len(said) - 1)


def table(found: dict[str, Any]) -> list[str]:
    """Lines for a reader: the scores, and what was written in the first episode.

    Args:
      found: of :func:`summary`.
    """
    lines = [
        f"written: {found['column']}, {found['budget']} words, up to {found['tokens']} tokens; "
        f"meaning: {found['judge']}'s cosine with the truth less that with the others'"
    ]
    rows = [("", *RULES)]
    for kind, before, form in (("scores", "", ".2f"), ("differences", "words less ", "+.3f")):
        for reading in dict.fromkeys(score["reading"] for score in found[kind]):
            cells = [spell(s, form) for s in found[kind] if s["reading"] == reading]
            rows.append((before + reading, *cells))
    lines += aligned(rows)
    cut = sum(not row["ended"] for row in found["rows"])
    if cut:
        lines.append(f"{cut} of {len(found['rows'])} texts were cut at {found['tokens']} tokens")
    return lines + first(found)


def first(found: dict[str, Any]) -> list[str]:
    """The truth and what was written of each query of the first episode.

    Args:
      found: of :func:`summary`.
    """
    rows = found["rows"]
    place = lambda row: (row["reading"], row["episode"])
    asked = [row for row in rows if place(row) == place(rows[0])]
    return [f"{row['question']} {row['truth']} (wrote: {row['text']})".strip() for row in asked]
