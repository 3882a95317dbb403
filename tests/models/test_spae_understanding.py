"""The study of understanding: commands of `mmx fewshot`, and a table of what is known."""

import argparse
from pathlib import Path

import studies

from mmx.cli import fewshot

report, run = studies.load("spae_understanding", "report", "run")
ARGS = argparse.Namespace(
    run="runs/a", baseline="runs/b", lm="some/lm", data_dir="data", out=Path("out")
)


def parsed(name):
    parser = argparse.ArgumentParser()
    fewshot.add_arguments(parser)
    verb, *flags = run.command(name, ARGS)
    assert verb == "fewshot"
    return parser.parse_args(flags)


def test_each_study_is_a_command():
    by_name = {name: parsed(name) for name in run.STUDIES}
    for name, args in by_name.items():
        assert (args.run_dir, args.lm, args.data_dir) == ("runs/a", "some/lm", "data")
        assert args.out == f"out/{name}" and args.ways == int(name[-1])
        assert args.baseline == (None if args.ask else "runs/b")
    assert {args.ask for args in by_name.values()} == {None, "colour", "kind", "count", "relation"}
    assert by_name["noto5"].queries == "tfds:noto/64" and by_name["captions2"].captions


def score(reading, budget, column, rule, value):
    return dict(reading=reading, budget=budget, column=column, rule=rule,
                value=value, low=value - 0.1, high=value + 0.1)  # fmt: skip


def test_the_table_by_hand():
    results = {
        "chance": 0.5, "queries": 14, "words": 5,
        "scores": [
            score("words", 5, report.MEAN, "sum", 0.7),
            score("words", 5, "1 shot", "sum", 0.6),
            score("words", 21, "1 shot", "sum", 0.65),
            score("words", 5, "1 shot", "overlap", 0.8),
            score("shuffled", 5, report.MEAN, "sum", 0.5),
        ],
        "differences": [score("shuffled", 5, report.MEAN, "sum", 0.2)],
    }  # fmt: skip
    found = {
        "one": {"title": "One", "results": results}, "two": {"title": "Two", "results": None},
    }  # fmt: skip
    lines = report.table(found).splitlines()
    assert lines[0] == "**Unfinished: Two.**"
    assert (
        "| One | 14 | 5 | 0.50 | 0.70 [0.60, 0.80] | - | 0.50 [0.40, 0.60] | - | - | - |" in lines
    )
    assert "| One | +0.20 [+0.10, +0.30] | - | - |" in lines
    at = lines.index("| One | 5 | 21 |")
    assert lines[at + 2 : at + 4] == [
        "| words | 0.60 [0.50, 0.70] | 0.65 [0.55, 0.75] |",
        "| words, no LM | 0.80 [0.70, 0.90] | - |",
    ]
    assert report.table({"one": found["one"]}).startswith("**Accuracy, mean")


def test_what_is_not_done_is_none(tmp_path):
    (tmp_path / "fashion2").mkdir()
    (tmp_path / "fashion2" / "results.json").write_text('{"chance": 0.5}')
    found = run.gather(tmp_path)
    assert list(found) == list(run.STUDIES)
    assert found["fashion2"]["results"] == {"chance": 0.5} and found["noto5"]["results"] is None
