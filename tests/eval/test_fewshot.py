"""Few-shot answers: prompts in ids, an oracle and a blind reader, and going on after a stop."""

import json
import re

import numpy as np
import pytest
import tokenizers
from tokenizers import pre_tokenizers

from mmx.core.errors import UserError
from mmx.data.lm_text import LmTokenizer
from mmx.eval import episodes as eps
from mmx.eval import fewshot, fewshot_scores, prompts, stats
from mmx.eval.episodes import COLUMNS, Column, Pool
from mmx.eval.prompts import TEMPLATES, Block
from tests.eval import reader
from tests.tokenizer_fakes import byte_level, with_byte_fallback

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


def test_pieces_of_a_prompt_have_no_beginning_of_their_own():
    """Of a tokenizer that puts a "▁" before each text."""
    tokenizer = with_byte_fallback()
    word = tokenizer.encode("dog")  # "▁dog"
    shown = [Block(word, answer="a"), Block(word * 2, answer="dog a")]
    ids = prompts.prompt(TEMPLATE, tokenizer, shown, Block(word))
    text = "###\nInput: dog\nOutput: a\n###\nInput: dog dog\nOutput: dog a\n"
    text += "###\nInput: dog\nOutput:"
    assert ids == tokenizer.encode(text)
    answer = prompts.answer_ids(TEMPLATE, tokenizer, Block([], answer="dog"))
    assert ids + answer == tokenizer.encode(f"{text} dog")
    assert not prompts.joins_end(TEMPLATE, tokenizer, "dog")


def test_an_answer_is_the_same_ids_where_a_tokenizer_joins_its_end():
    """As Llama 3's and Qwen's: a sign and the line's end behind it are one token."""
    bpe = tokenizers.Tokenizer.from_str(byte_level().to_str())
    joined = pre_tokenizers.Split(tokenizers.Regex(r" ?\pL+| ?[^\s\pL]+[\r\n]*|\s"), "isolated")
    bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([joined, bytes_alone])
    described = json.loads(bpe.to_str())
    described["model"]["vocab"][".Ċ"] = len(described["model"]["vocab"])
    described["model"]["merges"].append([".", "Ċ"])
    tokenizer = LmTokenizer(json.dumps(described))
    assert len(tokenizer.encode(".\n")) == 1
    shown = [Block([5], answer="dog.")]
    ids = prompts.prompt(TEMPLATE, tokenizer, shown, Block([5]))
    answer = prompts.answer_ids(TEMPLATE, tokenizer, Block([], answer="dog."))
    at = 1 + len(tokenizer.encode("###\nInput:") + tokenizer.encode("\nOutput:"))
    at += len(tokenizer.start_ids)
    assert ids[at:][: len(answer)] == answer and tokenizer.decode(answer) == " dog."
    told = [prompts.joins_end(TEMPLATE, tokenizer, name) for name in ("dog.", "dog")]
    assert told == [True, False]
    assert not prompts.joins_end(TEMPLATE, byte_level(), "dog.")


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
    assert "intervals, the wider of by class and by episode" in told
    assert re.search(r"5 words less 1, 1 shot  by sum: \+0\.\d+ \[\+0\.\d+, \+0\.\d+\]", told)
    pairs = {(d["reading"], d["rule"]): d for d in found["budgets"]}
    assert len(pairs) == len(found["budgets"]) == 2 * 3
    assert (pairs["words", "overlap"]["budget"], pairs["words", "overlap"]["fewer"]) == (5, 1)
    np.testing.assert_allclose(pairs["words", "overlap"]["value"], 1 - few["value"])


class Fixed:
    """Answers that are right in all columns, or in none, as a rule says of an episode's query."""

    def __init__(self, right):
        self.right = right

    def scores(self, setting, episode, rule):
        rows = [[1.0, 0.0], [0.0, 1.0]]
        return np.array([r if self.right(episode, q) else r[::-1] for q, r in enumerate(rows)])


@pytest.mark.parametrize("right", [
    lambda episode, q: episode.number % 2,  # a whole episode is right or wrong
    lambda episode, q: episode.candidates[q] in reader.NAMES[:2],  # a whole class is
])  # fmt: skip
def test_an_interval_is_the_wider_of_by_class_and_by_episode(right):
    settings = fewshot.plan((5,), 5, ("words",))
    found = fewshot_scores.summary(Fixed(right), settings, EPISODES, overlap)
    classes = [name for e in EPISODES for name in e.candidates]
    numbers = [e.number for e in EPISODES for _ in e.candidates]
    hits = np.array([bool(right(e, q)) for e in EPISODES for q in range(2)], float)
    by = [stats.proportion(hits, clusters) for clusters in (classes, numbers)]
    wider = max(by, key=lambda score: score.high - score.low)
    for score in found["scores"]:
        if score["rule"] == "sum":
            assert (score["low"], score["high"]) == (wider.low, wider.high)
    assert abs((by[0].high - by[0].low) - (by[1].high - by[1].low)) > 0.05


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


def test_one_later_episode_without_room_is_said_too(tmp_path):
    def grown(setting, episode):
        asked = ask(setting, episode)
        return [q._replace(prompt=q.prompt * (1 + 9 * (episode.number == 17))) for q in asked]

    lm, settings = reader.Oracle(), [fewshot.Setting("words", 5, fewshot.FEW)]
    answers = fewshot.Answers(eps.Path(tmp_path / "answers"), RECIPE)
    with pytest.raises(UserError, match=r"1 shot of 5 words: a prompt of \d+ tokens.* reads 300"):
        fewshot.complete(answers, settings, EPISODES, grown, lm, room=300)
    assert lm.asked == 0


def test_a_part_of_an_episode_is_asked_anew(tmp_path):
    """One line of an episode is lost, and another is there twice: each is one line in the end."""
    settings, lm = [fewshot.Setting("words", 5, fewshot.FEW)], reader.Oracle()
    file = eps.Path(tmp_path / "answers")
    fewshot.complete(fewshot.Answers(file, RECIPE), settings, EPISODES[:10], ask, lm, room=2000)
    whole = file.read_text()
    lines = whole.splitlines(keepends=True)
    for some in (lines[:-1], lines[:4] + lines[3:], lines[:3] + lines[4:]):
        file.write_text("".join(some))
        answers = fewshot.Answers(file, RECIPE)
        assert sum(answers.has(settings[0], e) for e in EPISODES[:10]) == 9
        fewshot.complete(answers, settings, EPISODES[:10], ask, lm, room=2000)
        assert file.read_text() == whole
        assert all(answers.scores(settings[0], e, "sum").shape == (2, 2) for e in EPISODES[:10])


def test_prompts_that_follow_each_other_are_read_together(monkeypatch):
    monkeypatch.setattr(fewshot, "_TOKENS", 11)
    read = []

    class Lengths:
        def score(self, prompts, candidates):
            read.append([len(p) for p in prompts])
            return [[c[0] for c in row] for row in candidates]

    asked = [fewshot.Question([0] * n, [[n]]) for n in (6, 2, 20, 3, 4, 5)]
    assert fewshot.score(Lengths(), asked) == [[6], [2], [20], [3], [4], [5]]
    assert read == [[6], [2], [20], [3, 4], [5]]
    assert fewshot.score(Lengths(), asked[2:3]) == [[20]] and read[5:] == [[20]]


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


def test_equal_shares_are_a_tie():
    """Three images of a class, each a third: 0.1 of a word thrice is 0.3 of it once."""
    rounds = tuple((eps.Item(2 * n, "a"), eps.Item(2 * n + 1, "b")) for n in range(3))
    episode = eps.Episode(0, ("a", "b"), rounds, (eps.Item(6, "a"), eps.Item(7, "b")))
    ten = lambda times: np.array([1] * times + [2] * (10 - times))
    seen = {("shown", 2 * n): ten(1) for n in range(3)}
    seen |= {("shown", 2 * n + 1): ten(3 * (n == 0)) for n in range(3)}
    seen |= {("asked", 6): np.array([1] * 10), ("asked", 7): np.array([2] * 10)}
    got = fewshot.overlap(episode, Column(True, 3, 0), seen, 10)
    np.testing.assert_allclose(got, [[0.1, 0.1], [0.9, 0.9]])
    np.testing.assert_array_equal(fewshot_scores.hits(got, episode), [0.5, 0.5])


def test_the_rules_by_hand(tmp_path):
    answers = fewshot.Answers(eps.Path(tmp_path / "answers"), RECIPE)
    setting, episode = fewshot.Setting("words", 5, fewshot.FEW), EPISODES[0]
    answers.add(setting, [episode], [{"sum": [-6.0, -4.0], "count": [3, 1]}] * 2)
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
