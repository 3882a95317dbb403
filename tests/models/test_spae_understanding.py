"""The study of understanding: commands of `mmx fewshot`, and a table of what is known."""

import argparse
import json
from pathlib import Path

import pytest
import studies

from mmx.cli import fewshot
from mmx.core.errors import UserError

report, run = studies.load("spae_understanding", "report", "run")
ARGS = argparse.Namespace(
    run="runs/a",
    baseline="runs/b",
    lm="some/lm",
    lm_dtype="bfloat16",
    data_dir="data",
    workdir=Path("out"),
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
        assert args.lm_dtype == "bfloat16" and args.write == run.WRITTEN
        assert args.out == f"out/{name}" and args.ways == int(name[-1])
        assert args.baseline == (None if args.ask else "runs/b")
        assert args.episodes == (25 if args.ways == 2 and not (args.ask or args.captions) else 6)
    assert {args.ask for args in by_name.values()} == {None, "colour", "kind", "count", "relation"}
    assert by_name["noto5"].queries == "tfds:noto/64" and by_name["captions2"].captions


def score(reading, budget, column, rule, value):
    return dict(reading=reading, budget=budget, column=column, rule=rule,
                value=value, low=value - 0.1, high=value + 0.1)  # fmt: skip


RECIPE = {"run": "a@2000 (x)", "baseline": "b@2000 (y)", "lm": "some/lm", "lm_weights": "w",
          "lm_dtype": "float32", "seed": 0,
          "trained_on": {"words": ["openmoji/32 train"], "baseline": []}}  # fmt: skip
RESULTS = {
    "recipe": RECIPE, "chance": 0.5, "queries": 14, "words": 5,
    "scores": [
        score("words", 5, report.MEAN, "sum", 0.7),
        score("words", 5, "1 shot", "sum", 0.6),
        score("words", 21, "1 shot", "sum", 0.65),
        score("words", 5, "1 shot", "overlap", 0.8),
        score("shuffled", 5, report.MEAN, "sum", 0.5),
    ],
    "differences": [
        score("shuffled", 5, report.MEAN, "sum", 0.2),
        score("shuffled", 5, report.MEAN, "mean", 0.1 + 1e-17),
    ],
    "written": {
        "scores": [
            score("words", 5, "", "exact", 0.3),
            score("words", 5, "", "meaning", -0.1),
            score("shuffled", 5, "", "repeated", 0.4),
        ],
        "differences": [score("shuffled", 5, "", "exact", 0.2)],
    },
}  # fmt: skip


def test_the_table_by_hand():
    found = {
        "one": {"title": "One", "results": RESULTS}, "two": {"title": "Two", "results": None},
    }  # fmt: skip
    lines = report.table(found).splitlines()
    assert lines[0] == "**Unfinished: Two.**"
    assert lines[2] == (
        "some/lm reads words of a@2000 (x); single layer: b@2000 (y). Trained on of what is asked: "
        "openmoji/32 train."
    )
    assert (
        "| One | 14 | 5 | 0.50 | 0.70 [0.60, 0.80] | - | 0.50 [0.40, 0.60] | - | - | - | - |"
        in lines
    )
    assert "| One | +0.20 [+0.10, +0.30] | +0.10 [+0.00, +0.20] | - | - | - |" in lines
    assert any("Of all 2 differences" in line and ", 1 have" in line for line in lines)
    at = lines.index("| One | 5 | 21 |")
    assert lines[at + 2 : at + 4] == [
        "| words | 0.60 [0.50, 0.70] | 0.65 [0.55, 0.75] |",
        "| words, no LM | 0.80 [0.70, 0.90] | - |",
    ]
    assert lines[-3:] == [
        "| One | words | 0.30 [0.20, 0.40] | - | -0.10 [-0.20, 0.00] |",
        "| One | words dealt anew | - | 0.40 [0.30, 0.50] | - |",
        "| One | words less words dealt anew | +0.20 [+0.10, +0.30] | - | - |",
    ]
    assert report.table({"one": found["one"]}).startswith("some/lm reads")


def test_the_table_is_of_its_results():
    folder = Path(report.__file__).resolve().parent
    results = json.loads((folder / "results.json").read_text())
    assert (folder / "table.md").read_text() == report.table(results)


@pytest.mark.parametrize("field", ["run", "baseline", "lm", "lm_weights", "lm_dtype", "seed"])
def test_one_table_is_of_one_run_and_model(field):
    of = lambda recipe: {"title": "", "results": RESULTS | {"recipe": recipe}}
    alone = of(RECIPE | {"baseline": None})
    report.check_alike({"one": of(RECIPE), "two": alone, "three": {"results": None}})
    older = of({key: value for key, value in RECIPE.items() if key != field})
    if field != "baseline":  # which some studies do without
        with pytest.raises(UserError, match=f"two has {field}=None"):
            report.check_alike({"one": of(RECIPE), "two": older})
    other = of(RECIPE | {field: "other"})
    unwritten = {"title": "", "results": {k: v for k, v in RESULTS.items() if k != "written"}}
    with pytest.raises(UserError, match=r"four has no written answers: delete its results\.json"):
        report.check_alike({"one": of(RECIPE), "four": unwritten})
    with pytest.raises(UserError, match=f"three has {field}=other, one has .*another --workdir"):
        report.check_alike({"one": of(RECIPE), "two": alone, "three": other})


def test_studies_that_were_done_are_told_when_one_stops(tmp_path, monkeypatch, capsys):
    """Each in its order; the code of the one that stopped; then the same command goes on."""
    asked = []

    def mmx(command):
        asked.append(command)
        out = Path(command[command.index("--out") + 1])
        if out.name == "noto2" and len(asked) == 2:
            return 75
        out.mkdir(parents=True, exist_ok=True)
        (out / "results.json").write_text(json.dumps(RESULTS))
        return 0

    monkeypatch.setattr(run, "mmx", mmx)
    flags = ["--workdir", str(tmp_path), "--studies", "fashion2", "noto2", "--baseline", "runs/b"]
    monkeypatch.setattr("sys.argv", ["run.py", "runs/a", *flags])
    assert run.main() == 75
    assert (
        "Unfinished: Fashion-MNIST, 5 ways; OpenMoji shown" in (tmp_path / "table.md").read_text()
    )
    assert run.main() == 0
    titles = [run.STUDIES[name].title for name in ("fashion2", "noto2")]
    table = (tmp_path / "table.md").read_text()
    assert all(f"| {title} | 14 |" in table for title in titles)
    found = json.loads((tmp_path / "results.json").read_text())
    assert list(found) == list(run.STUDIES)
    assert found["noto2"]["results"] == RESULTS and found["noto5"]["results"] is None
    monkeypatch.setattr("sys.argv", ["run.py", "runs/a", "--workdir", str(tmp_path)])
    with pytest.raises(SystemExit):
        run.main()
    assert "--baseline: fashion2, fashion5, noto2" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["run.py", *flags[:3], "count2", "--", "runs/a"])
    assert run.main() == 0 and "--baseline" not in asked[-1]
