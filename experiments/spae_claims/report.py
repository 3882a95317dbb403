"""results.json, table.md and claims.png of the runs that run.py finished.

pip install matplotlib
python experiments/spae_claims/report.py
"""

import argparse
import json
from pathlib import Path

import numpy as np
import paper
from arms import ARMS, CHANNELS, SEEDS, STEPS, settings
from jobs import read_records, spent
from scoring import RECIPE, WAYS
from statistic import estimate

from mmx.eval.stats import Score

HERE = Path(__file__).resolve().parent
FEW = 1  # layer of the paper's few-shot budget, 5 words, counted from 0


def values(results: dict, arm: str, what: str, layer: int) -> dict[int, np.ndarray]:
    """Seed -> of each image or query; ``what``: "psnr", "mse", "margin", "2" or "5" (ways)."""
    found = {}
    for run in results["runs"]:
        if run["arm"] == arm:
            source = run["hits"] if what in run["hits"] else run
            row = np.array(source["psnr" if what == "mse" else what][layer])
            # Of pixels in [-1, 1], clipped: the peak is 2.
            found[run["seed"]] = 4 * 10 ** (-row / 10) if what == "mse" else row
    return found


def value(results: dict, arm: str, what: str, layer: int) -> Score | None:
    """Of an arm; None where no seed is there."""
    return _estimate(results, what, values(results, arm, what, layer))


def difference(results: dict, one: tuple[str, int], other: tuple[str, int], what: str):
    """Of (arm, layer) less another, paired by seed and image; None where they share no seed."""
    a, b = (values(results, arm, what, layer) for arm, layer in (one, other))
    return _estimate(results, what, {seed: a[seed] - b[seed] for seed in a if seed in b})


def _estimate(results: dict, what: str, rows: dict[int, np.ndarray]) -> Score | None:
    if not rows:
        return None
    test = results["test"]
    groups = test["classes"].get(what, test["groups"])
    return estimate(np.stack([rows[seed] for seed in sorted(rows)]), np.array(groups))


def count(results: dict, *arms: str) -> int:
    """Seeds that all these arms have."""
    return len(set.intersection(*({*values(results, arm, "psnr", 0)} for arm in arms)))


def state(results: dict, *arms: str) -> str:
    """The same in words."""
    there = count(results, *arms)
    return f"{there}" if there == len(SEEDS) else f"unfinished: {there} of {len(SEEDS)}"


def cell(score: Score | None, digits: str) -> str:
    """Empty where there is none."""
    return "" if score is None else f"{score:{digits}}"


def grid(head, rows) -> list[str]:
    """Lines of a Markdown table."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in (head, *rows)]
    return [lines[0], "|---" * len(head) + "|", *lines[1:], ""]


def claims(results: dict) -> list[tuple[str, Score | None, str, tuple[str, ...]]]:
    """(what the paper says as a difference above 0, ours, its digits, the arms that it takes)."""
    last = len(results["ends"]) - 1
    ends = results["ends"]
    of = lambda one, other, what: difference(results, one, other, what)
    base, rq, unguided = ("base", last), ("rq", last), ("unguided", last)
    top = lambda arm: (arm, 0)
    few, all_words = ("base", FEW), f"{ends[last]} words"
    lines = [
        (f"(a) MSE by {all_words}: RQ above SAQ", of(rq, base, "mse"), ".4f", ("base", "rq")),
        ("(a) margin of layer 1: SAQ above RQ", of(top("base"), top("rq"), "margin"), ".3f",
         ("base", "rq")),
        ("(b) margin of layer 1: guided above unguided",
         of(top("base"), top("unguided"), "margin"), ".3f", ("base", "unguided")),
        (f"(b) PSNR by {all_words}, dB: unguided above guided", of(unguided, base, "psnr"), ".2f",
         ("base", "unguided")),
        (f"(c) PSNR, dB: {all_words} above {ends[FEW]}", of(base, few, "psnr"), ".2f", ("base",)),
    ]  # fmt: skip
    for ways in WAYS:
        lines.append(
            (f"(c) {ways}-way accuracy by overlap: {ends[FEW]} words suffice, above {ends[last]}",
             of(few, base, str(ways)), ".3f", ("base",))
        )  # fmt: skip
    return lines


def verdict(score: Score | None, seeds: int) -> str:
    """By the interval, and only when all seeds are there."""
    if score is None or seeds < len(SEEDS):
        return f"unfinished: {seeds} of {len(SEEDS)} seeds"
    if score.low > 0:
        return "agrees"
    return "DISAGREES" if score.high < 0 else "undecided"


def unique_cell(results: dict, arm: str, layer: int) -> str:
    """Different words of a layer on all test images: of each seed."""
    return ", ".join(str(r["unique"][layer]) for r in results["runs"] if r["arm"] == arm)


def table(results: dict) -> str:
    """All of it as Markdown."""
    ends = results["ends"]
    depth = range(len(ends))
    lines = [
        f"Mean of the seeds [95 % interval, seeds and images drawn anew]; {STEPS} steps, "
        f"{CHANNELS} channels. Differences are paired by seed and image.",
        "",
        "## What of the paper's claims shows",
        "",
    ]
    rows = [
        [name, cell(score, digits), verdict(score, count(results, *arms))]
        for name, score, digits, arms in claims(results)
    ]
    lines += grid(["the paper's direction", "difference", "here"], rows)

    lines += ["## (a) SAQ against RQ, the table frozen: error of the test images", ""]
    lines += [f"Seeds: SAQ {state(results, 'base')}, RQ {state(results, 'rq')}.", ""]
    head = ["layers", "words", "SAQ, PSNR in dB", "RQ, PSNR in dB", "SAQ - RQ", "SAQ, MSE",
            "RQ, MSE", "SAQ, change of MSE by this layer", "RQ, the same"]  # fmt: skip
    arms, rows = ("base", "rq"), []
    for k in depth:
        step = lambda arm, k=k: difference(results, (arm, k), (arm, k - 1), "mse") if k else None
        rows.append(
            [k + 1, ends[k], *(cell(value(results, arm, "psnr", k), ".2f") for arm in arms),
             cell(difference(results, ("base", k), ("rq", k), "psnr"), ".2f"),
             *(cell(value(results, arm, "mse", k), ".4f") for arm in arms),
             *(cell(step(arm), ".4f") for arm in arms)]
        )  # fmt: skip
    lines += grid(head, rows)
    lines += [f"The paper (recalled): {paper.ABLATIONS['a']}.", ""]

    lines += ["## (b) Guidance on against off: words and captions, by the words of each layer", ""]
    lines += [
        "Margin: cosine of a layer's words with the image's caption, less that with the captions "
        "of other concepts, as the judge (wordllama, not the teacher) sees it; 0 by chance. "
        f"Seeds: guided {state(results, 'base')}, unguided {state(results, 'unguided')}.",
        "",
    ]
    arms = ("base", "unguided")
    head = ["layer", "guided, margin", "unguided, margin", "guided - unguided",
            "guided, different words by seed", "unguided, the same",
            "PSNR by layers to here, guided - unguided, dB"]  # fmt: skip
    rows = [
        [k + 1, *(cell(value(results, arm, "margin", k), ".3f") for arm in arms),
         cell(difference(results, ("base", k), ("unguided", k), "margin"), ".3f"),
         *(unique_cell(results, arm, k) for arm in arms),
         cell(difference(results, ("base", k), ("unguided", k), "psnr"), ".2f")]
        for k in depth
    ]  # fmt: skip
    lines += grid(head, rows)
    lines += [f"The paper (recalled): {paper.ABLATIONS['b']}; its scores by layer, of CLIP:", ""]
    lines += grid(paper.LAYERS_HEAD, paper.LAYERS)

    lines += ["## (c) Few tokens to understand, many to draw: base by its first words", ""]
    lines += [
        "Accuracy: of the nearest class by overlap of words, no language model; "
        "5 images a class shown, chance 1/2 and 1/5. "
        f"Seeds: {state(results, 'base')}.",
        "",
    ]
    head = ["words", "PSNR in dB", *(f"{ways}-way" for ways in WAYS),
            *(f"{ways}-way, less that by {ends[FEW]} words" for ways in WAYS)]  # fmt: skip
    rows = [
        [ends[k], cell(value(results, "base", "psnr", k), ".2f"),
         *(cell(value(results, "base", str(ways), k), ".3f") for ways in WAYS),
         *(cell(difference(results, ("base", k), ("base", FEW), str(ways)), ".3f")
           if k != FEW else "" for ways in WAYS)]
        for k in depth
    ]  # fmt: skip
    lines += grid(head, rows)
    lines += [f"The paper (recalled): {paper.ABLATIONS['c']}; answered by a language model, %:", ""]
    lines += grid(paper.FEWSHOT_HEAD, paper.FEWSHOT)

    lines += ["## Runs", ""]
    rows = [[arm, state(results, arm), f"{results['minutes'][arm]:.1f}"] for arm in ARMS]
    lines += grid(["arm", "seeds", "CPU-minutes"], rows)
    return "\n".join(lines[:-1]) + "\n"


def plot(results: dict, file: Path) -> None:
    """A panel a claim."""
    import matplotlib.pyplot as plt
    from matplotlib import ticker

    ends = results["ends"]
    figure, panels = plt.subplots(1, 3, figsize=(11.5, 3.6), layout="constrained")
    colours = {"base": "#1f5fa8", "rq": "#c8501e", "unguided": "#4d8c3f"}

    def curve(axes, arm, what, x, **style):
        of = [value(results, arm, what, k) for k in range(len(ends))]
        if count(results, arm) < len(SEEDS):
            style["label"] += f" (seeds {state(results, arm)})"
        if None not in of:
            y = np.array([s.value for s in of])
            bars = [y - [s.low for s in of], [s.high for s in of] - y]
            axes.errorbar(x, y, bars, marker="o", ms=4, lw=1.4, capsize=2, **style)

    for arm, name in (("base", "SAQ"), ("rq", "RQ")):
        curve(panels[0], arm, "mse", ends, c=colours[arm], label=name)
    panels[0].set(title="(a) error by the first words", ylabel="MSE", xlabel="words")
    for arm, name in (("base", "guided"), ("unguided", "unguided")):
        curve(panels[1], arm, "margin", range(1, len(ends) + 1), c=colours[arm], label=name)
    panels[1].axhline(0, c="grey", lw=0.8, ls=":")
    panels[1].set(
        title="(b) margin of the own caption", ylabel="cosine, own less others'", xlabel="layer"
    )
    curve(panels[2], "base", "psnr", ends, c="black", label="PSNR")
    panels[2].set(title="(c) few to understand, many to draw", ylabel="PSNR, dB", xlabel="words")
    right = panels[2].twinx()
    for ways, style in zip(WAYS, ("-", "--")):
        curve(right, "base", str(ways), ends, c=colours["base"], ls=style,
              label=f"{ways}-way accuracy (no LM)")  # fmt: skip
    right.set(ylim=(0, 1), ylabel="accuracy by overlap of words")
    for axes in (panels[0], panels[2]):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(ticker.FixedLocator(ends))
        axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%d"))
        axes.xaxis.set_minor_locator(ticker.NullLocator())
    panels[1].xaxis.set_major_locator(ticker.MultipleLocator(1))
    for axes, others in ((panels[0], ()), (panels[1], ()), (panels[2], (right,))):
        axes.title.set_fontsize(10)
        axes.grid(alpha=0.25, lw=0.5)
        handles = [h for a in (axes, *others) for h in a.get_legend_handles_labels()[0]]
        if handles:
            axes.legend(handles=handles, fontsize=8, frameon=False)
    figure.savefig(file, dpi=110)


def collect(runs: Path) -> dict:
    """What results.json holds.

    Raises:
      UserError: a record of other settings.
    """
    records = read_records(runs)
    test = json.loads((runs / "test.json").read_text())
    number = {name: i for i, name in enumerate(dict.fromkeys(test["groups"]))}
    test["groups"] = [number[name] for name in test["groups"]]
    for record in records:
        del record["config"]  # a digest, of use beside the run alone
    return {
        "ends": records[0]["ends"],
        "settings": said(),
        "test": test,
        "minutes": {arm: round(spent(runs, arm) / 60, 1) for arm in ARMS},
        "runs": records,
    }


def said() -> dict:
    """What runs and scores hang on, as JSON has it: the whole config of base and seed 0, what the
    arms change of it, and how they are scored."""
    return json.loads(json.dumps({"base": settings("base", 0), "arms": ARMS, "scores": RECIPE}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/spae_claims"))
    runs = parser.parse_args().runs
    if not any(runs.glob("*/record.json")):
        parser.error(f"--runs {runs}: no run has finished there; run.py trains")
    results = collect(runs)
    (HERE / "results.json").write_text(json.dumps(results) + "\n")
    (HERE / "table.md").write_text(table(results))
    print(table(results))
    plot(results, HERE / "claims.png")


if __name__ == "__main__":
    main()
