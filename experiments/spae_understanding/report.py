"""table.md: accuracies of all studies, beside their controls, and by the number of words."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmx.core.errors import UserError
from mmx.eval.fewshot import FEW
from mmx.eval.fewshot_scores import MEAN
from mmx.eval.fewshot_written import RULES

_ALIKE = ("run", "baseline", "lm", "lm_weights", "lm_dtype", "seed")  # of all studies of one table
_COLUMNS = (  # of the first table: (title, reading, rule)
    ("words", "words", "sum"),
    ("words, by mean", "words", "mean"),
    ("words dealt anew", "shuffled", "sum"),
    ("single layer", "baseline", "sum"),
    ("words, no LM", "words", "overlap"),
    ("words dealt anew, no LM", "shuffled", "overlap"),
    ("single layer, no LM", "baseline", "overlap"),
)
_LESS = (  # of the second: (title, reading that is taken off, rule)
    ("less words dealt anew", "shuffled", "sum"),
    ("less words dealt anew, by mean", "shuffled", "mean"),
    ("no LM: less words dealt anew", "shuffled", "overlap"),
    ("less single layer", "baseline", "sum"),
    ("no LM: less single layer", "baseline", "overlap"),
)
_WRITTEN = (  # of the last: (title, key of the results, reading)
    ("words", "scores", "words"),
    ("words dealt anew", "scores", "shuffled"),
    ("single layer", "scores", "baseline"),
    ("words less words dealt anew", "differences", "shuffled"),
    ("words less single layer", "differences", "baseline"),
)
_ROUNDING = 1e-9  # ours: an end of an interval so near to 0 is 0


def check_alike(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises UserError: two studies are of other runs, or asked another model; names the first. Or
    nothing is written in one."""
    known: dict[str, tuple[str, Any]] = {}
    done = {name: study["results"]["recipe"] for name, study in found.items() if study["results"]}
    for name in done:
        if "written" not in found[name]["results"]:
            raise UserError(f"{name} has no written answers: delete its results.json")
    for name, recipe in done.items():
        for field in _ALIKE:
            value = recipe.get(field)
            if field == "baseline" and value is None:
                continue
            first, wanted = known.setdefault(field, (name, value))
            if value != wanted:
                raise UserError(
                    f"{name} has {field}={value}, {first} has {wanted}: one table is of one; name "
                    "another --workdir"
                )


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown.

    Args:
      found: study -> {"title", "results": of `mmx fewshot`, or None where it is not done}.
    """
    done = {name: study for name, study in found.items() if study["results"]}
    left = [study["title"] for study in found.values() if not study["results"]]
    lines = [f"**Unfinished: {'; '.join(left)}.**", ""] if left else []
    if done:
        lines += [_told([study["results"]["recipe"] for study in done.values()]), ""]
    lines += ["**Accuracy, mean of the seven columns**", ""]
    head = ["study", "queries", "words an image", "chance", *(title for title, *_ in _COLUMNS)]
    lines += [_row(head), _row(["---"] * len(head))]
    for study in done.values():
        of = study["results"]
        cells = [_score(of, reading, of["words"], MEAN, rule) for _, reading, rule in _COLUMNS]
        chance = f"{of['chance']:.2f}"
        lines.append(_row([study["title"], of["queries"], of["words"], chance, *cells]))
    lines += ["", "**Words less a control, mean of the seven columns**", ""]
    head = ["study", *(title for title, *_ in _LESS)]
    lines += [_row(head), _row(["---"] * len(head))]
    differences = []
    for study in done.values():
        of = study["results"]
        differences += of["differences"]
        lines.append(_row([study["title"], *(_less(of, *control) for _, *control in _LESS)]))
    settled = sum(d["low"] > _ROUNDING or d["high"] < -_ROUNDING for d in differences)
    lines += [
        "",
        f"Of all {len(differences)} differences from the controls, of closed answers by every "
        f"column, rule and number of words, {settled} have an interval without 0.",
    ]
    lines += ["", "**Accuracy by words an image, one example of a class with the list of answers**"]
    for study in done.values():
        of = study["results"]
        budgets = sorted({s["budget"] for s in of["scores"]})
        if len(budgets) > 1:
            lines += ["", *_by_budget(study["title"], of, budgets)]
    lines += ["", "**Written in the model's own words, one example of a class without a list**", ""]
    head = ["study", "", "the truth", "an answer that was shown", "nearer to the truth"]
    lines += [_row(head), _row(["---"] * len(head))]
    for study in done.values():
        for told, kind, reading in _WRITTEN:
            form = ".2f" if kind == "scores" else "+.2f"
            wanted = [{"reading": reading, "rule": rule} for rule in RULES]
            cells = [_spell(study["results"]["written"][kind], one, form) for one in wanted]
            if cells != ["-"] * len(cells):
                lines.append(_row([study["title"], told, *cells]))
    return "\n".join(lines) + "\n"


def _told(recipes: Sequence[Mapping]) -> str:
    """Who was asked, by whose words; which queries were trained on."""
    first = recipes[0]
    baselines = [r["baseline"] for r in recipes if r["baseline"]]
    told = f"{first['lm']} reads words of {first['run']}"
    told += f"; single layer: {baselines[0]}" if baselines else ""
    seen = {split for r in recipes for splits in r["trained_on"].values() for split in splits}
    return f"{told}. Trained on of what is asked: {', '.join(sorted(seen)) or 'nothing'}."


def _by_budget(title: str, of: Mapping, budgets: Sequence[int]) -> list[str]:
    lines = [_row([title, *budgets]), _row(["---"] * (1 + len(budgets)))]
    for told, reading, rule in _COLUMNS:
        cells = [_score(of, reading, budget, str(FEW), rule) for budget in budgets]
        if cells != ["-"] * len(cells):
            lines.append(_row([told, *cells]))
    return lines


def _score(of: Mapping, reading: str, budget: int, column: str, rule: str) -> str:
    """ "value [low, high]", or "-" where nothing is known."""
    wanted = {"reading": reading, "budget": budget, "column": column, "rule": rule}
    return _spell(of["scores"], wanted, ".2f")


def _less(of: Mapping, reading: str, rule: str) -> str:
    wanted = {"reading": reading, "budget": of["words"], "column": MEAN, "rule": rule}
    return _spell(of["differences"], wanted, "+.2f")


def _spell(scores: Sequence[Mapping], wanted: Mapping, form: str) -> str:
    for score in scores:
        if wanted.items() <= score.items():
            return f"{score['value']:{form}} [{score['low']:{form}}, {score['high']:{form}}]"
    return "-"


def _row(cells: Sequence) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"
