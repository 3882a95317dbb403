"""results.json, table.md and efficiency.png of the runs that run.py finished.

pip install matplotlib
python experiments/clip_efficiency/report.py
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
from run import ARMS, BUDGETS, MAIN, RATES, SEEDS, mean_accuracy, next_run, rates, read_runs
from scipy.stats import t as student

from mmx.eval.stats import reach

HERE = Path(__file__).resolve().parent
LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9)
MEAN = "mean of all"


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """(geometric mean, ends of its 95 % interval by Student's t over the logarithms); of seeds."""
    logs = np.log(ratios)
    half = student.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / len(logs) ** 0.5
    return tuple(float(np.exp(logs.mean() + x)) for x in (0.0, -half, half))


def accuracy(run: dict, factor: str) -> float:
    """On the test split."""
    return mean_accuracy(run, "test") if factor == MEAN else run["test"][MAIN[run["arm"]]][factor]


def finished(arm: str, runs: list[dict]) -> list[list[dict]]:
    """Of each budget that has any, the runs at the best rate, seed by seed."""
    tuned = rates(arm, runs)
    if not set(RATES) <= tuned.keys():
        return []
    best = max(tuned, key=tuned.get)
    mine = {(r["steps"], r["seed"]): r for r in runs if (r["arm"], r["lr"]) == (arm, best)}
    rows = [[mine[steps, seed] for seed in SEEDS if (steps, seed) in mine] for steps in BUDGETS]
    return [row for row in rows if row]


def chosen(arm: str, runs: list[dict]) -> list[list[dict]]:
    """Those of :func:`finished` that have all seeds: what curves are made of."""
    return [row for row in finished(arm, runs) if len(row) == len(SEEDS)]


def costs(arm: str, runs: list[dict], factor: str, level: float, axis: str) -> list[float]:
    """Of each seed, what it takes to reach a level; ``axis``: "flops" or "examples"."""
    curves = zip(*chosen(arm, runs))
    return [reach([(r[axis], accuracy(r, factor)) for r in curve], level) for curve in curves]


def ratio_cell(arm: str, runs: list[dict], factor: str, level: float, axis: str) -> str:
    """Times what the contrastive arm needs; a bound where that lies beyond the points of one."""
    over, under = (costs(a, runs, factor, level, axis) for a in (arm, ARMS[0]))
    if not over or not under:
        return "-"
    if not {0.0, math.inf} & {*over, *under}:
        return "{:.2f} [{:.2f}, {:.2f}]".format(*interval([a / b for a, b in zip(over, under)]))
    first, last = ([chosen(a, runs)[i][0][axis] for a in (arm, ARMS[0])] for i in (0, -1))
    # The least and the most that each can be: 0 is anything up to the first point.
    least = lambda x, i: min(x, last[i])
    most = lambda x, i: x or first[i]
    low = min(least(a, 0) / most(b, 1) for a, b in zip(over, under))
    high = max(most(a, 0) / least(b, 1) if least(b, 1) else math.inf for a, b in zip(over, under))
    if low > 0:
        return f"> {low:.2f}"
    return f"< {high:.2f}" if high < math.inf else "-"


def cost_cell(arm: str, runs: list[dict], factor: str, level: float) -> str:
    """TFLOP, the geometric mean of the seeds."""
    found = costs(arm, runs, factor, level, "flops")
    if not found:
        return "unfinished"
    if math.inf in found:
        there = sum(cost < math.inf for cost in found)
        return f"by {there} of {len(found)} seeds" if there else "not reached"
    if 0.0 in found:
        return "< {:.2f}".format(chosen(arm, runs)[0][0]["flops"] / 1e12)
    return f"{float(np.exp(np.mean(np.log(found)))) / 1e12:.2f}"


def grid(head: list[str], rows: list[list]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in (head, *rows)]
    return [lines[0], "|---" * len(head) + "|", *lines[1:]]


def factors_of(runs: list[dict]) -> list[str]:
    """In the order of the questions, the mean last."""
    return [*runs[0]["test_chance"], MEAN]


def table(runs: list[dict]) -> str:
    """All of it as Markdown."""
    names = factors_of(runs)
    chance = [*runs[0]["test_chance"].values()]
    asked = [str(n) for n in runs[0]["test_questions"].values()]
    rows = [
        ["questions", "", "", "", *asked, ""],
        ["chance", "", "", "", *(f"{c:.2f}" for c in [*chance, np.mean(chance)])],
    ]
    for arm in ARMS:
        there = {row[0]["steps"]: row for row in finished(arm, runs)}
        for steps in BUDGETS:
            row = there.get(steps, [])
            seeds = f"{len(row)}" if len(row) == len(SEEDS) else f"unfinished: {len(row)}"
            cells = [arm, f"{row[0]['flops'] / 1e12:.2f}" if row else "", steps, seeds]
            for name in names:
                values = [accuracy(r, name) for r in row]
                cells.append(
                    f"{np.mean(values):.2f} ({min(values):.2f}-{max(values):.2f})" if row else ""
                )
            rows.append(cells)
    lines = [
        "Accuracy on the test split, mean of the seeds (lowest-highest).", "",
        *grid(["arm", "TFLOP", "steps", "seeds", *names], rows), "",
        "TFLOP until an accuracy is reached, and how many times what the contrastive arm needs, in "
        "FLOPs and in examples: geometric mean [95 % interval over the seeds].", "",
    ]  # fmt: skip
    rows = []
    for name in names:
        for level in LEVELS:
            cells = [cost_cell(arm, runs, name, level) for arm in ARMS]
            if all(
                cell[0] in "nub<" for cell in cells
            ):  # not reached, unfinished, by some, < a bound
                continue
            for axis in ("flops", "examples"):
                cells += [ratio_cell(arm, runs, name, level, axis) for arm in ARMS[1:]]
            rows.append([name, level, *cells])
    head = [f"{arm}, {axis}" for axis in ("FLOPs", "examples") for arm in ARMS[1:]]
    lines += [*grid(["factor", "accuracy", *ARMS, *head], rows), ""]
    lines += ["Learning rates: mean accuracy on the validation slice, one seed.", ""]
    tuned = {arm: rates(arm, runs) for arm in ARMS}
    tried = sorted({lr for values in tuned.values() for lr in values})
    cell = lambda values, lr: (
        "" if lr not in values else f"{values[lr]:.3f}{' *' * (lr == max(values, key=values.get))}"
    )
    rows = [[arm, *(cell(tuned[arm], lr) for lr in tried)] for arm in ARMS]
    lines += [*grid(["arm", *(f"{lr:g}" for lr in tried)], rows), ""]
    lines += ["What a run costs and what an answer costs, in MFLOP.", ""]
    rows = []
    for arm in ARMS:
        mine = [r for r in runs if r["arm"] == arm]
        if mine:
            use = mine[0]["use_flops"]
            minutes = sum(r["cpu_seconds"] for r in mine) / 60
            train = mine[0]["flops"] / mine[0]["examples"]
            costs_of = [train, use["image"], use["text"], use["pair"]]
            state = "unfinished" if next_run(arm, runs) else "finished"
            rows.append(
                [arm, *(f"{c / 1e6:.4g}" for c in costs_of), f"{minutes:.1f}", len(mine), state]
            )
    head = ["arm", "training, an example", "an image", "a text, once", "a pair of both"]
    lines += grid([*head, "CPU minutes in all", "runs", "state"], rows)
    return "\n".join(lines) + "\n"


def plot(runs: list[dict]) -> None:
    """A panel a factor: accuracy against FLOPs."""
    import matplotlib.pyplot as plt
    from matplotlib import ticker

    names = factors_of(runs)
    figure, panels = plt.subplots(
        3, 3, figsize=(10.5, 8.4), sharex=True, sharey=True, layout="constrained"
    )
    colours = dict(zip(ARMS, ("#1f5fa8", "#c8501e", "#4d8c3f")))
    for name, axes in zip(names, panels.flat, strict=True):
        chance = runs[0]["test_chance"]
        level = float(np.mean([*chance.values()])) if name == MEAN else chance[name]
        axes.axhline(level, ls=":", c="grey", lw=1)
        axes.annotate("chance", (0.99, level), xycoords=("axes fraction", "data"), ha="right",
                      va="bottom", fontsize=8, color="grey")  # fmt: skip
        ends = {}
        for arm in ARMS:
            for row in finished(arm, runs):
                for run in row:
                    axes.plot(run["flops"] / 1e12, accuracy(run, name), ".", c=colours[arm], ms=4)
            rows = chosen(arm, runs)
            if not rows:
                continue
            x = np.array([row[0]["flops"] for row in rows]) / 1e12
            y = np.array([[accuracy(run, name) for run in row] for row in rows])
            axes.plot(x, y.mean(1), c=colours[arm], lw=1.8)
            axes.fill_between(x, y.min(1), y.max(1), color=colours[arm], alpha=0.2, lw=0)
            ends[arm] = (x[-1], y.mean(1)[-1])
        right = max((x for x, _ in ends.values()), default=1.0)
        for arm, place in zip(ends, apart([y for _, y in ends.values()], 0.08)):
            axes.annotate(arm, (right, place), (6, 0), textcoords="offset points", va="center",
                          fontsize=8, color=colours[arm])  # fmt: skip
        axes.set_title(name, fontsize=10, loc="left")
        axes.set_xscale("log")
        axes.set_ylim(0, 1.03)
        axes.grid(alpha=0.25, lw=0.5, which="both")
        axes.spines[["top", "right"]].set_visible(False)
    low, high = panels[0, 0].get_xlim()
    panels[0, 0].set_xlim(low, high * 2)  # for the labels
    panels[0, 0].xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    panels[0, 0].xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    panels[0, 0].xaxis.set_minor_formatter(ticker.NullFormatter())
    figure.supxlabel("TFLOP of training (each point a run of its own, its rate cooled to 0)")
    figure.supylabel("zero-shot accuracy on unseen pictures")
    figure.savefig(HERE / "efficiency.png", dpi=110)


def apart(values: list[float], gap: float) -> list[float]:
    """Places of labels near the values, at least a gap from one another, in the values' order."""
    order = np.argsort(values)
    places = np.array(values, float)[order]
    for _ in range(50):
        for i in range(len(places) - 1):
            lack = gap - (places[i + 1] - places[i])
            if lack > 0:
                places[i] -= lack / 2
                places[i + 1] += lack / 2
    result = np.empty_like(places)
    result[order] = places
    return result.tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/clip_efficiency"))
    runs = read_runs(parser.parse_args().runs)
    if not runs:
        parser.error("no run has finished there; run.py trains")
    (HERE / "results.json").write_text(json.dumps(runs, indent=1) + "\n")
    (HERE / "table.md").write_text(table(runs))
    print(table(runs))
    plot(runs)


if __name__ == "__main__":
    main()
