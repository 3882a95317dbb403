"""What is written after few-shot prompts: by one who copies, where a line ends, after a stop."""

import functools
import inspect
import json

import numpy as np
import pytest

from mmx.core.errors import UserError
from mmx.eval import episodes as eps
from mmx.eval import fewshot, fewshot_written, stats
from mmx.eval.episodes import Item, Pool
from mmx.eval.fewshot_scores import wider
from mmx.eval.fewshot_written import Written
from mmx.eval.prompts import TEMPLATES
from mmx.models.language_model import Drawn, FrozenLM
from tests import tokenizer_fakes
from tests.eval import reader

TEMPLATE = TEMPLATES["classes"]
EPISODES = eps.draw_classes(Pool([reader.NAMES[i % 4] for i in range(400)]), None, 0, 30, 2)
RECIPE = {"lm": "copier", "write": 20}
SETTINGS = fewshot_written.plan(5, ("words", "shuffled"))
SEEN = {(role, i): reader.word_ids()[np.arange(i, i + 5) % 10]
        for role in ("shown", "asked") for i in range(400)}  # fmt: skip
AXES = dict(zip([*reader.NAMES, "coat of wool"], np.eye(5), strict=True))


def ask(setting, episode):
    seen = SEEN if setting.reading == "words" else fewshot.deal(SEEN, episode, 0)
    tokenizer = reader.tokenizer()
    return fewshot.questions(episode, setting.column, seen, setting.budget, TEMPLATE, tokenizer)


def lines(file, most=20):
    return Written(eps.Path(file), RECIPE, reader.tokenizer(), TEMPLATE.end, most)


def embed(texts):
    assert "" not in texts
    return np.stack([AXES[text.casefold()] for text in texts])


def test_who_copies_is_right_once_an_episode_and_means_nothing(tmp_path):
    written = lines(tmp_path / "written")
    fewshot.complete(written, SETTINGS, EPISODES, ask, reader.Copier(), room=2000)
    found = fewshot_written.summary(written, SETTINGS, EPISODES, "reader", embed)
    scores = {(s["reading"], s["rule"]): s for s in found["scores"]}
    for reading in ("words", "shuffled"):
        values = [scores[reading, rule]["value"] for rule in ("exact", "repeated", "meaning")]
        assert values == [0.5, 1.0, 0.0]
        assert scores[reading, "exact"]["low"] < 0.5 < scores[reading, "exact"]["high"]
    assert len(found["differences"]) == 3
    assert {(d["reading"], d["value"]) for d in found["differences"]} == {("shuffled", 0.0)}
    rows = found["rows"]
    assert len(rows) == 2 * 60 and all(row["ended"] for row in rows)
    for row, episode in zip(rows[::2], EPISODES):
        assert row["text"] == episode.rounds[0][-1].answer and row["truth"] == episode.candidates[0]
    told = "\n".join(fewshot_written.table(found))
    assert "written: no induction, 1 shot, 5 words, up to 20 tokens; meaning: reader's" in told
    assert "words less shuffled  +0.000 [+0.000, +0.000]" in told and "cut at" not in told
    assert f"{rows[0]['truth']} (wrote: {rows[0]['text']})" in told
    json.dumps(found)


def test_differences_and_clusters_by_hand(tmp_path):
    """The words' texts are right, those of the others wrong; of one reading whole episodes are
    right or wrong, and an interval knows that its queries are no chances of their own."""
    written = lines(tmp_path / "written")
    for setting in SETTINGS:
        for episode in EPISODES:
            truths = [item.answer for item in episode.queries]
            right = setting.reading == "words" or episode.number % 2 == 0
            texts = truths if right else truths[::-1]
            written.add(setting, [episode], [{"text": t, "ended": True} for t in texts])
    found = fewshot_written.summary(written, SETTINGS, EPISODES, "reader", embed)
    found_of = lambda kind: {(s["reading"], s["rule"]): s for s in found[kind]}
    differences = found_of("differences")
    assert differences["shuffled", "exact"]["value"] == 0.5
    assert differences["shuffled", "meaning"]["value"] == 1.0  # 1 less the mean of 1 and -1
    shuffled = [row for row in found["rows"] if row["reading"] == "shuffled"]
    values = np.array([row["exact"] for row in shuffled], float)
    clusters = [row["truth"] for row in shuffled], [row["episode"] for row in shuffled]
    wanted = wider(stats.proportion, values, *clusters)
    score = found_of("scores")["shuffled", "exact"]
    assert {k: score[k] for k in wanted} == wanted
    alone = stats.proportion(values)
    assert score["high"] - score["low"] > 1.2 * (alone.high - alone.low)
    more = wider(stats.mean, 1 - values, *clusters)
    assert {k: differences["shuffled", "exact"][k] for k in more} == more


def fixed(texts, tmp_path, ended=True):
    """The summary of one episode in which these were written."""
    queries = (Item(0, "bag"), Item(1, "coat"), Item(2, "ankle boot"))
    shown = ((Item(3, "coat"), Item(4, "bag"), Item(5, "t-shirt")),)
    episode = eps.Episode(0, tuple(item.answer for item in queries), shown, queries)
    written = lines(tmp_path / "fixed")
    written.add(SETTINGS[0], [episode], [{"text": text, "ended": ended} for text in texts])
    return fewshot_written.summary(written, SETTINGS[:1], [episode], "reader", embed)


def test_the_rules_by_hand(tmp_path, monkeypatch):
    monkeypatch.setitem(AXES, "coat of wool", np.array([0.0, 0.8, 0.6, 0.0, 0.0]))
    found = fixed(["BAG", "coat of wool", ""], tmp_path)
    assert [row["exact"] for row in found["rows"]] == [True, False, False]
    assert [row["repeated"] for row in found["rows"]] == [True, False, False]
    # Of the second: 0.8 with its own truth, 0 and 0.6 with the two others.
    np.testing.assert_allclose([row["meaning"] for row in found["rows"]], [1, 0.8 - 0.3, 0])
    values = [score["value"] for score in found["scores"]]
    np.testing.assert_allclose(values, [1 / 3, 1 / 3, 0.5])
    assert found["differences"] == [] and found["budget"] == 5 and found["tokens"] == 20


def test_a_text_that_is_another_s_truth_is_below_chance(tmp_path):
    found = fixed(["coat", "t-shirt", "ankle boot"], tmp_path, ended=False)
    np.testing.assert_allclose([row["meaning"] for row in found["rows"]], [-0.5, 0, 1])
    assert [row["repeated"] for row in found["rows"]] == [True, True, False]
    assert "3 of 3 texts were cut at 20 tokens" in fewshot_written.table(found)


@functools.cache
def joined():
    """A tokenizer of which a token begins with a line's end, and one ends with it."""
    return tokenizer_fakes.byte_pairs(
        (" dog", "\n"), unmerged=(".\n", "\n\n"), special=("<|end|>",)
    )


def ids(*tokens):
    vocabulary = {joined().string(i): i for i in range(joined().vocab_size)}
    return [vocabulary[token] for token in tokens]


class Fixed:
    """Writes these ids of :func:`joined`."""

    def __init__(self, given):
        self.given = given

    def generate(self, prompts, max_new, key, stop_ids=()):
        return [reader.drawn(self.given, max_new, stop_ids) for _ in prompts]


@pytest.mark.parametrize(
    ("tokens", "text", "ended"),
    [
        ((" dog", "\n", " dog"), "dog", True),
        ((" dog", "\n\n", " dog"), "dog", True),  # the token begins with the end
        ((" dog", ".\n", " dog", "\n"), "dog.", True),  # it ends inside a token
        ((" dog", "<|end|>", " dog"), "dog", True),
        ((" dog", " dog", " dog", " dog", " dog"), "dog dog dog dog", False),
        ((" dog", ".\n", " dog", " dog", "\n"), "dog.", True),  # before the tokens were spent
        (("\n",), "", True),
    ],
)
def test_a_line_is_cut_where_it_ends(tokens, text, ended, tmp_path):
    written = Written(eps.Path(tmp_path / "w"), RECIPE, joined(), "\n", 4)
    question = fewshot.Question([1, 2], [])
    said = written.reply(Fixed(ids(*tokens)), [question, question])
    assert said == [{"text": text, "ended": ended}] * 2
    assert written.need(question) == 6


def test_what_ends_a_line():
    assert sorted(fewshot_written.stop_ids(joined(), "\n")) == sorted(ids("\n", "\n\n", "<|end|>"))


def test_a_killed_run_goes_on_to_the_same_file(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    lm, rest = reader.Copier(), reader.Copier()
    fewshot.complete(lines(whole), SETTINGS, EPISODES, ask, lm, room=2000)
    for lives in (3, 0, 2):
        with pytest.raises(KeyboardInterrupt):
            dying = reader.Copier(lives=lives)
            fewshot.complete(lines(parts), SETTINGS, EPISODES, ask, dying, room=2000)
        assert whole.read_text().startswith(parts.read_text())
        assert 0 < len(parts.read_text()) < len(whole.read_text())
    fewshot.complete(lines(parts), SETTINGS, EPISODES, ask, rest, room=2000)
    assert parts.read_bytes() == whole.read_bytes() and 0 < rest.asked < lm.asked
    with pytest.raises(UserError, match="made with write=20, not 9; name another --out"):
        Written(eps.Path(parts), {**RECIPE, "write": 9}, reader.tokenizer(), "\n", 9)


def test_too_much_to_write_is_said_before_anything_is_written(tmp_path):
    lm, written = reader.Copier(), lines(tmp_path / "written", most=1990)
    with pytest.raises(
        UserError, match=r"no induction, 1 shot .*2000; give fewer --write, --words"
    ):
        fewshot.complete(written, SETTINGS, EPISODES, ask, lm, room=2000)
    assert lm.asked == 0


def test_what_is_written_counts_in_a_batch(monkeypatch):
    monkeypatch.setattr(fewshot, "_TOKENS", 30)
    asked = [fewshot.Question([0] * 5, [])] * 5
    assert [len(some) for some in fewshot.batches(asked, 10)] == [2, 2, 1]
    assert [len(some) for some in fewshot.batches(asked)] == [5]


def test_the_copier_is_called_as_a_language_model_is():
    names = lambda function: [*inspect.signature(function).parameters]
    assert names(reader.Copier.generate) == names(FrozenLM.generate)
    assert reader.Drawn._fields == Drawn._fields
