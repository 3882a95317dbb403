"""The file of scores: what is in it, once; what is damaged is said."""

import json

import pytest
from etils.epath import Path

from mmx.core.errors import UserError
from mmx.eval.ledger import Ledger, spell
from mmx.eval.stats import Score

SCORES = {"test/psnr": Score(21.5, 21.0, 22.0, 180), "use": 0.25}


@pytest.fixture
def file(tmp_path):
    return Path(tmp_path / "evals.jsonl")


def test_a_line_for_each_score(file):
    ledger = Ledger(file)
    assert not ledger.has(300, 0, "report", "data 1")
    ledger.add(300, 0, "report", "data 1", SCORES)
    key = {"evaluator": "report", "recipe": "data 1", "seed": 0}
    psnr = {"step": 300, "metric": "test/psnr", "value": 21.5, "low": 21.0, "high": 22.0, "n": 180}
    use = {"step": 300, "metric": "use", "value": 0.25}
    assert [json.loads(line) for line in file.read_text().splitlines()] == [psnr | key, use | key]
    again = Ledger(file)
    assert again.scores(300, 0, {"report": "data 1"}) == {"test/psnr": psnr | key, "use": use | key}
    # Another step, seed, evaluator or recipe is another score.
    assert again.has(300, 0, "report", "data 1") and not again.has(400, 0, "report", "data 1")
    assert not again.has(300, 1, "report", "data 1") and not again.has(300, 0, "kid", "data 1")
    assert not again.has(300, 0, "report", "data 2")
    assert again.scores(300, 0, {"report": "data 2", "kid": "data 1"}) == {}


def test_an_evaluator_added_later_leaves_the_others(file):
    ledger = Ledger(file)
    ledger.add(300, 0, "report", "data 1", SCORES)
    ledger.add(300, 0, "kid", "mobilenet", {"kid": 0.5})
    ledger.add(300, 0, "report", "data 1", {"use": 0.5})  # again: takes the first one's place
    both = ledger.scores(300, 0, {"report": "data 1", "kid": "mobilenet"})
    assert {name: line["value"] for name, line in both.items()} == {"use": 0.5, "kid": 0.5}
    assert len(file.read_text().splitlines()) == 2


def test_each_score_says_of_how_many_it_is(file):
    Ledger(file).add(1, 0, "fd", "r", {"fd": 3.0, "own": Score(1.0, 0.5, 1.5, 7)}, n=12)
    assert {line["metric"]: line["n"] for line in Ledger(file).lines} == {"fd": 12, "own": 7}


def test_two_writers_lose_nothing(file):
    first, second = Ledger(file), Ledger(file)
    first.add(1, 0, "report", "r", {"a": 1.0})
    second.add(2, 0, "report", "r", {"a": 2.0})
    assert [line["step"] for line in Ledger(file).lines] == [1, 2]


def test_no_number_that_json_does_not_know(file):
    Ledger(file).add(1, 0, "report", "r", {"ratio": Score(2.0, 1.0, float("inf"), 3)})
    text = file.read_text()
    assert '"high": null' in text
    line = Ledger(file).lines[0]
    assert spell(line) == "2 [1, not finite]" and spell({"value": 0.123456}) == "0.1235"


@pytest.mark.parametrize("text", ["{", "[]", '{"step": 1}', '"step"', '{"step": 1, "metric": "a"'])
def test_a_damaged_line_is_named(file, text):
    Ledger(file).add(1, 0, "report", "r", {"a": 1.0})
    file.write_text(file.read_text() + text + "\n")
    with pytest.raises(UserError, match="line 2: not a score"):
        Ledger(file)
