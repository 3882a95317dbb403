"""Few-shot answers: prompts in ids, an oracle and a blind reader, and going on after a stop."""

import json
import re

import numpy as np
import pytest

from mmx.core.errors import UserError
from mmx.eval import episodes as eps
from mmx.eval import fewshot, fewshot_scores, prompts
from mmx.eval.episodes import COLUMNS, Column, Pool
from mmx.eval.prompts import TEMPLATES, Block
from tests.eval import reader

TEMPLATE = TEMPLATES["classes"]
POOL = Pool([reader.NAMES[i % 4] for i in range(400)])
EPISODES = eps.draw_classes(POOL, None, 0, 30, 2)


def words(seed=0):
    """Five of an image: two of its class, twice each, and one of no class, in any order."""
    rng, found = np.random.default_rng(seed), {}
    for i in range(400):
        own = [2 * (i % 4), 2 * (i % 4) + 1]
        rows = rng.permutation([*own, *own, rng.choice([8, 9])])
        found["shown", i] = found["asked", i] = reader.word_ids()[rows]
    return found


WORDS = words()
RECIPE = {"lm": "oracle"}


def ask(setting, episode):
    seen = WORDS
    if setting.reading == "shuffled":
        seen = fewshot.deal(WORDS, episode, 0)
    return fewshot.questions(
        episode, setting.column, seen, setting.budget, TEMPLATE, reader.tokenizer()
    )


def overlap(setting, episode):
    seen = WORDS if setting.reading == "words" else fewshot.deal(WORDS, episode, 0)
    return fewshot.overlap(episode, setting.column, seen, setting.budget)


def test_a_prompt_is_the_ids_of_its_text():
    red, wool, dog = reader.word_ids()[:3]
    shown = [Block([red, wool], answer="ankle boot"), Block([dog], answer="t-shirt")]
    ids = prompts.prompt(TEMPLATE, reader.tokenizer(), shown, Block([wool]), ("bag", "coat"))
    text = (
        "For each of the following input output pairs, output is one of ['bag' or 'coat']\n"
        "###\nInput: red wool\nOutput: ankle boot\n"
        "###\nInput: dog\nOutput: t-shirt\n"
        "###\nInput: wool\nOutput:"
    )
    assert ids == [0, *reader.tokenizer().encode(text)]
    bare = prompts.prompt(TEMPLATE, reader.tokenizer(), [], Block([wool]))
    assert bare == [0, *reader.tokenizer().encode("###\nInput: wool\nOutput:")]
    ids = prompts.prompt(
        TEMPLATES["questions"], reader.tokenizer(), [], Block([red], "How many?"), ("one",)
    )
    assert reader.tokenizer().decode(ids).endswith("Input: red\nQuestion: How many?\nAnswer:")
    ids = prompts.prompt(TEMPLATES["captions"], reader.tokenizer(), [], Block([red]), ("a", "b"))
    text = "Of the following captions the last is one of ['a' or 'b']\n###\nInput: red\nCaption:"
    assert reader.tokenizer().decode(ids[1:]) == text


@pytest.mark.parametrize("name", reader.NAMES)
def test_prefix_and_answer_are_the_ids_of_both(name):
    """Pitfall 17: the space before an answer is of the answer."""
    answer = prompts.answer_ids(TEMPLATE, reader.tokenizer(), Block([], answer=name))
    before = prompts.prompt(TEMPLATE, reader.tokenizer(), [], Block(reader.word_ids()[:2]))
    both = f"###\nInput: red wool\nOutput: {name}"
    assert [*before, *answer] == [0, *reader.tokenizer().encode(both)]


def test_words_are_never_read_anew():
    """Pitfall 15: ids that their own text would not have."""
    r, ed = reader.tokenizer().encode(" r")[-1], reader.tokenizer().encode("ed")
    assert reader.tokenizer().encode(reader.tokenizer().decode([r, *ed])) != [r, *ed]
    ids = prompts.prompt(TEMPLATE, reader.tokenizer(), [], Block([r, *ed]))
    assert ids[-len(ed) - 1 - len(reader.tokenizer().encode("\nOutput:")) :][: len(ed) + 1] == [
        r,
        *ed,
    ]


def scored(lm, settings, tmp_path):
    answers = fewshot.Answers(eps.Path(tmp_path / "answers.jsonl"), RECIPE)
    fewshot.complete(answers, settings, EPISODES, ask, lm, room=2000)
    found = fewshot_scores.summary(answers, settings, EPISODES, overlap)
    return found, {(s["reading"], s["budget"], s["column"], s["rule"]): s for s in found["scores"]}


def test_an_oracle_is_right_and_at_chance_without_its_words(tmp_path):
    settings = fewshot.plan((1, 5), 5, ("words", "shuffled"))
    assert len(settings) == len(set(settings)) == 2 * (len(COLUMNS) + 1)
    found, scores = scored(reader.Oracle(), settings, tmp_path)
    for column in (*map(str, COLUMNS), fewshot_scores.MEAN):
        for rule in ("sum", "mean", "overlap"):
            assert scores["words", 5, column, rule]["value"] == 1.0
            # Of 60 queries, 4 sigma.
            assert abs(scores["shuffled", 5, column, rule]["value"] - 0.5) < 4 * 0.5 / 60**0.5
    # Of one word: it is that of the right image by 2 * 0.4 * 0.4 + 0.2 * 0.1, of the wrong one by
    # 0.2 * 0.1, and where neither is its half is due: about 0.66.
    few = scores["words", 1, "1 shot", "overlap"]
    assert abs(few["value"] - 0.66) < 4 * 0.25 / 60**0.5 and few["low"] < few["value"] < few["high"]
    assert (found["chance"], found["queries"], found["classes"]) == (0.5, 60, 4)
    more = {(d["column"], d["rule"]): d for d in found["differences"]}
    shuffled = scores["shuffled", 5, "3 shots", "sum"]["value"]
    np.testing.assert_allclose(more["3 shots", "sum"]["value"], 1 - shuffled)
    told = "\n".join(fewshot_scores.table(found, 5))
    assert "chance 0.50" in told and re.search(r"mean of seven, 5 words +1\.00 \[", told)
    assert "words less shuffled, mean of seven, no LM: +0." in told and "1 shot, 1 word " in told


def test_who_reads_nothing_is_at_chance(tmp_path):
    """By the mean, which is the same for all candidates; by the sum the shortest always wins."""
    _, scores = scored(
        reader.Oracle(blind=True), [fewshot.Setting("words", 5, fewshot.FEW)], tmp_path
    )
    assert scores["words", 5, "1 shot", "mean"]["value"] == 0.5
    assert scores["words", 5, "1 shot", "sum"]["value"] == 0.5


def test_a_killed_run_goes_on_to_the_same_file(tmp_path):
    settings = fewshot.plan((5,), 5, ("words",))[:3]
    whole, parts = eps.Path(tmp_path / "whole"), eps.Path(tmp_path / "parts")
    lm = reader.Oracle()
    fewshot.complete(fewshot.Answers(whole, RECIPE), settings, EPISODES, ask, lm, room=2000)
    for lives in (5, 0, 4):
        with pytest.raises(KeyboardInterrupt):
            dying = reader.Oracle(lives=lives)
            fewshot.complete(
                fewshot.Answers(parts, RECIPE), settings, EPISODES, ask, dying, room=2000
            )
        assert whole.read_text().startswith(parts.read_text())
        assert 0 < len(parts.read_text()) < len(whole.read_text())
    rest = reader.Oracle()
    fewshot.complete(fewshot.Answers(parts, RECIPE), settings, EPISODES, ask, rest, room=2000)
    assert parts.read_bytes() == whole.read_bytes() and rest.asked < lm.asked
    with pytest.raises(UserError, match="made with lm=oracle, not other; name another --out"):
        fewshot.Answers(parts, {"lm": "other"})
    parts.write_text(f"{json.dumps(RECIPE)}\n{{}}\n")
    with pytest.raises(UserError, match=r"parts, line 2: not an answer"):
        fewshot.Answers(parts, RECIPE)


def test_a_prompt_without_room_is_said_before_anything_is_asked(tmp_path):
    lm, settings = reader.Oracle(), fewshot.plan((5,), 5, ("words",))
    answers = fewshot.Answers(eps.Path(tmp_path / "answers"), RECIPE)
    with pytest.raises(UserError, match=r"5 shots of 5 words: a prompt of \d+ tokens.* reads 300"):
        fewshot.complete(answers, settings, EPISODES, ask, lm, room=300)
    assert lm.asked == 0


def test_prompts_of_like_length_are_read_together(monkeypatch):
    monkeypatch.setattr(fewshot, "_TOKENS", 11)
    read = []

    class Lengths:
        def score(self, prompts, candidates):
            read.append([len(p) for p in prompts])
            return [[c[0] for c in row] for row in candidates]

    asked = [fewshot.Question([0] * n, [[n]]) for n in (6, 2, 20, 3, 4, 5)]
    assert fewshot.score(Lengths(), asked) == [[6], [2], [20], [3], [4], [5]]
    assert read == [[2, 3], [4, 5], [6], [20]]
    assert fewshot.score(Lengths(), asked[2:3]) == [[20]] and read[4:] == [[20]]


def test_overlap_by_hand():
    episode = eps.Episode(
        0, ("a", "b"), ((eps.Item(0, "b"), eps.Item(1, "a")), (eps.Item(2, "a"), eps.Item(3, "b"))),
        (eps.Item(4, "a"), eps.Item(5, "b")),
    )  # fmt: skip
    rows = {0: [7, 8], 1: [1, 1], 2: [1, 2], 3: [7, 2], 4: [1, 2, 9, 9], 5: [7, 1]}
    seen = {("shown" if i < 4 else "asked", i): np.array(row) for i, row in rows.items()}
    # a's bag: 1: 3/4, 2: 1/4. b's: 7: 1/2, 8: 1/4, 2: 1/4.
    got = fewshot.overlap(episode, Column(True, 3, 2), seen, 4)
    np.testing.assert_allclose(got, [[0.25 + 0.25, 0.25], [0.5, 0.5]])
    np.testing.assert_allclose(
        fewshot.overlap(episode, Column(True, 1, 0), seen, 1), [[1, 0], [0, 1]]
    )
    np.testing.assert_allclose(fewshot_scores.hits(got, episode), [1, 0.5])


def test_the_rules_by_hand(tmp_path):
    answers = fewshot.Answers(eps.Path(tmp_path / "answers"), RECIPE)
    setting, episode = fewshot.Setting("words", 5, fewshot.FEW), EPISODES[0]
    rows = [[reader.Scores(-6.0, 3), reader.Scores(-4.0, 1)]] * 2
    answers.add(setting, [episode], rows)
    np.testing.assert_array_equal(answers.scores(setting, episode, "sum"), [[-6, -4]] * 2)
    np.testing.assert_array_equal(answers.scores(setting, episode, "mean"), [[-2, -4]] * 2)


def test_dealing_keeps_the_words_and_forgets_their_images():
    episode = EPISODES[0]
    images = {("shown", i.image) for r in episode.rounds for i in r}
    images |= {("asked", i.image) for i in episode.queries}
    numbered = {image: np.array([n]) for n, image in enumerate(sorted(images))}
    dealt = [fewshot.deal(numbered, e._replace(number=n), 0) for n, e in enumerate([episode] * 60)]
    for one in dealt:
        assert sorted(int(w[0]) for w in one.values()) == [*range(12)]
    first = [int(one[min(images)][0]) for one in dealt]
    assert len(set(first)) > 8 and dealt[0] == fewshot.deal(numbered, episode, 0)
    assert fewshot.deal(numbered, episode, 1) != dealt[0]


def test_words_spelt_in_a_caption():
    episode = eps.Episode(0, ("a red dog", "the sun"), (), (eps.Item(0, "a red dog"),))
    seen = {("asked", 0): np.array([0, 3, 2, 2])}
    read = lambda rows: [reader.WORDS[row].title() for row in rows]
    np.testing.assert_allclose(fewshot.spelt(episode, seen, 4, read), [[0.75, 0.25]])
