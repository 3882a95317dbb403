"""Of a size, say gpu, results_gpu.json, table_gpu.md and claims_gpu.png of what run.py did.

pip install matplotlib
python experiments/transfusion_claims/report.py --size gpu
"""

import argparse
import json
from pathlib import Path

import numpy as np
import paper
from jobs import CURVES, SECONDS, SEEDS, SHARES, best_rate, of_arm, read_records
from sizes import SIZES
from statistic import Table, estimate

from mmx.eval.stats import Score, reach

HERE = Path(__file__).resolve().parent
MEAN = "mean"  # of the factors, "all" left out
DRAWING = ("object", "count", "size", "background", "all", MEAN)
KINDS = ("drawing", "caption")
STUDIES = {
    "a": ("Bidirectional attention inside images against causal", ("base", "causal")),
    "b": ("Transfusion against the same transformer on codes", ("base", "discrete")),
    "c": ("Patch size and codec", ("base", "patch4", "patch4_deep", "patch4_unet")),
    "d": ("A limit on the noise of images before captions against none", ("base", "no_limit")),
}
PAPER = {
    "a": (paper.COLUMNS, paper.ATTENTION),
    "b": (paper.COLUMNS, paper.CHAMELEON),
    "c": (paper.COLUMNS, paper.PATCHES),
    "d": (paper.NOISE_COLUMNS, paper.NOISE),
}
GIVES = {"discrete": "codes"}  # the others read latents
LAST = str(SHARES[-1])


def chosen_rate(arm: str, results: dict) -> float | None:
    """See :func:`jobs.best_rate`."""
    return best_rate(arm, results["runs"], SIZES[results["size"]].rates)


def scored(arm: str, results: dict, share: str = LAST) -> list[dict]:
    """What was scored of an arm at its best rate, seed by seed."""
    best, there = chosen_rate(arm, results), of_arm(arm, results["runs"])
    runs = [there[best, seed] for seed in SEEDS if (best, seed) in there]
    return [run["scores"][share] for run in runs if share in run["scores"]]


def table_of(scores: list[dict], measure: str) -> Table:
    """``measure``: "drawing/object", "perplexity", "perplexity_seen" or "image"."""
    kind, _, factor = measure.partition("/")
    if kind in KINDS and factor == MEAN:
        return Table.mean_of([table_of(scores, f"{kind}/{f}") for f in DRAWING[:-2]])
    if kind in KINDS:
        return Table.of_marks([score[kind][factor] for score in scores])
    name = {"perplexity": "nll", "perplexity_seen": "nll_seen", "image": "image"}[kind]
    over = np.array([score[name] for score in scores])
    words = np.array([score["words"] for score in scores], float)
    return Table(over, np.ones_like(over) if kind == "image" else words)


def value(scores: list[dict], measure: str) -> Score:
    """One arm's."""
    fn = np.exp if measure.startswith("perplexity") else lambda x: x
    return estimate(fn, table_of(scores, measure))


def difference(scores: list[dict], others: list[dict], measure: str) -> Score:
    """One arm's less another's."""
    fn = np.exp if measure.startswith("perplexity") else lambda x: x
    tables = table_of(scores, measure), table_of(others, measure)
    return estimate(lambda x, y: fn(x) - fn(y), *tables)


def share_of_ceiling(arm: str, scores: list[dict], results: dict, factor: str) -> Score:
    """Of what is read off the codec's reconstructions of the same scenes."""
    ceiling = {"drawing": results["ceilings"][GIVES.get(arm, "latents")]}
    n = len(scores[0]["drawing"]["all"])
    ceiling["drawing"] = {name: text[:n] for name, text in ceiling["drawing"].items()}
    tables = (table_of(of, f"drawing/{factor}") for of in (scores, [ceiling]))
    return estimate(lambda x, y: x / y, *tables)


def grid(head: list[str], rows: list[list]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in (head, *rows)]
    return [lines[0], "|---" * len(head) + "|", *lines[1:], ""]


def state(arm: str, results: dict, share: str = LAST) -> str:
    """How many seeds, in words."""
    count = len(scored(arm, results, share))
    return f"{count}" if count == len(SEEDS) else f"unfinished: {count} of {len(SEEDS)}"


def factor_rows(arms: tuple, results: dict, measures: list[str]) -> list[list]:
    """A row an arm, and a row a difference of each pair of arms that are worth comparing."""
    digits = ".2f" if "/" in measures[0] else ".3f"
    rows = []
    for arm in arms:
        of = scored(arm, results)
        cells = [f"{value(of, measure):{digits}}" if of else "" for measure in measures]
        rows.append([arm, state(arm, results), *cells])
    for first in ("base", "patch4", "patch4_deep"):
        later = arms[arms.index(first) + 1 :] if first in arms else ()
        for arm in later:
            pair = scored(first, results), scored(arm, results)
            if all(pair):
                cells = [f"{difference(*pair, measure):{digits}}" for measure in measures]
                rows.append([f"{first} - {arm}", "", *cells])
    return rows


def study_lines(letter: str, results: dict) -> list[str]:
    """One study: ours, then the paper's."""
    title, arms = STUDIES[letter]
    lines = [f"## ({letter}) {title}", ""]
    lines += ["Drawing captions: share of the pictures in which a factor is right.", ""]
    lines += grid(
        ["arm", "seeds", *DRAWING], factor_rows(arms, results, [f"drawing/{f}" for f in DRAWING])
    )
    lines += ["Describing scenes: share of the captions in which a factor is right.", ""]
    lines += grid(
        ["arm", "seeds", *DRAWING], factor_rows(arms, results, [f"caption/{f}" for f in DRAWING])
    )
    more = ["perplexity", "perplexity_seen", "image"]
    if letter == "b":
        more = more[:2]  # the losses of latents and of codes are different things
    names = {"perplexity": "perplexity of a caption", "perplexity_seen": "after its image",
             "image": "diffusion loss"}  # fmt: skip
    lines += grid(["arm", "seeds", *(names[m] for m in more)], factor_rows(arms, results, more))
    if letter == "b":
        lines += budget_lines(results)
    columns, rows = PAPER[letter]
    lines += ["The paper's:", ""]
    return lines + grid(["", *columns], [[name, *row] for name, row in rows.items()])


def budget_lines(results: dict) -> list[str]:
    """Of (b): three budgets, as shares of each codec's ceiling."""
    rows, points = [], {}
    for arm in CURVES:
        for share in map(str, SHARES):
            of = scored(arm, results, share)
            cells = [""] * 5
            if of:
                cells = [
                    share_of_ceiling(arm, of, results, f) for f in ("object", "background", MEAN)
                ]
                cells += [value(of, f"caption/{MEAN}"), value(of, "perplexity")]
                flops = of_arm(arm, results["runs"])[chosen_rate(arm, results), SEEDS[0]]
                flops = flops["marks"][share]["flops"]
                ours = [cell.value for cell in cells]
                points.setdefault(arm, []).append((flops, *ours[2:4], -ours[4]))
            rows.append([arm, f"{float(share):g}", state(arm, results, share), *cells])
    head = [
        "arm",
        "budget",
        "seeds",
        "object",
        "background",
        MEAN,
        "captions, " + MEAN,
        "perplexity",
    ]
    lines = [
        "At three budgets; of drawing, shares of what is read off the codec's reconstructions.",
        "",
    ]
    lines += grid(head, rows)
    if all(len(points.get(arm, [])) == len(SHARES) for arm in CURVES):
        parity = []
        for i, name in enumerate(("drawing", "captions", "perplexity"), 1):
            curve = [(point[0], point[i]) for point in points["base"]]
            last = points["discrete"][-1]
            x = reach(curve, last[i])
            first = points["base"][0][0] / last[0]
            text = f"< {first:.2f}" if x == 0 else f"{x / last[0]:.2f}"
            parity.append([name, text if x < np.inf else "> 1"])
        lines += [
            "FLOPs that base needs to be level with discrete at its whole budget, as a share.",
            "",
        ]
        lines += grid(["", "share"], parity)
    return lines


def table(results: dict) -> str:
    """All of it as Markdown."""
    records, rates = results["runs"], SIZES[results["size"]].rates
    devices = lambda name: ", ".join(sorted({r[name] for r in records if name in r}))
    lines = ["Mean of the seeds [95 % interval, scenes and seeds drawn anew].", ""]
    for letter in STUDIES:
        lines += study_lines(letter, results)
    lines += ["## Ceilings", "", "Read off each codec's reconstructions of the tested scenes.", ""]
    ceilings = [
        [gives, *(value([{"drawing": of}], f"drawing/{f}") for f in DRAWING)]
        for gives, of in results["ceilings"].items()
    ]
    lines += grid(["codec of", *DRAWING], ceilings)
    lines += [
        "## Runs",
        "",
        "Validation loss at a quarter of the budget by rate, the chosen one *, and at the end, "
        f"seed by seed. Trained on {devices('device')}; scored on {devices('scored_on')}.",
        "",
    ]
    rows = []
    for arm in dict.fromkeys(arm for _, arms in STUDIES.values() for arm in arms):
        there, best = of_arm(arm, records), chosen_rate(arm, results)
        cells = []
        for lr in rates:
            mark = there.get((lr, SEEDS[0]), {"marks": {}})["marks"].get(str(SHARES[0]))
            cells.append(f"{mark['validation_loss']:.3f}{' *' * (lr == best)}" if mark else "")
        run = next(iter(there.values()), None)
        if run is None:
            rows.append([arm, *[""] * (len(rates) + 8), state(arm, results)])
            continue
        whole = [r for r in there.values() if LAST in r["marks"]]
        cells.append(", ".join(f"{r['marks'][LAST]['validation_loss']:.3f}" for r in whole))
        steps = whole[0]["marks"][LAST]["step"] if whole else ""
        tflop = f"{whole[0]['marks'][LAST]['flops'] / 1e12:.2f}" if whole else ""
        sampling = (there.get((best, SEEDS[0])) or {}).get("sampling", {})
        settings = ", ".join(f"{k} {v:g}" for k, v in sampling.items() if k != "tried")
        costs = [f"{run['step_flops'] / 1e9:.2f}", steps, steps and steps * run["batch"], tflop]
        minutes = [f"{sum(r[k] for r in there.values()) / 60:.1f}" for k in SECONDS]
        rows.append([arm, *cells, *costs, settings, *minutes, state(arm, results)])
    head = ["arm", *(f"{lr:g}" for lr in rates), "at the end", "GFLOP a step", "steps",
            "images seen", "TFLOP", "sampling", "minutes of training", "of scoring",
            "seeds"]  # fmt: skip
    return "\n".join(lines + grid(head, rows)[:-1]) + "\n"


def plot(results: dict, file: Path) -> None:
    """A panel a study: the mean of the factors, drawing and describing; (b) over FLOPs."""
    import matplotlib.pyplot as plt
    from matplotlib import ticker

    figure, panels = plt.subplots(1, 4, figsize=(13, 3.4), sharey=True, layout="constrained")
    colours = dict(zip(KINDS, ("#1f5fa8", "#c8501e")))
    for axes, (letter, (title, arms)) in zip(panels, STUDIES.items()):
        first, _, second = title.partition(" against ")
        head = f"({letter}) {first}" + (f"\nagainst {second}" if second else "")
        axes.set_title(head, fontsize=8, loc="left")
        axes.grid(alpha=0.25, lw=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        for kind in KINDS:
            if letter == "b":
                for arm, style in zip(arms, ("-", "--")):
                    _curve(axes, arm, kind, results, c=colours[kind], ls=style,
                           label=f"{arm}, {kind}")  # fmt: skip
                continue
            shift = 0.12 * (KINDS.index(kind) - 0.5)
            for x, arm in enumerate(arms):
                if of := scored(arm, results):
                    _point(axes, x + shift, value(of, f"{kind}/{MEAN}"), c=colours[kind])
            axes.plot([], [], "o", c=colours[kind], ms=4, label=kind)
        if letter == "b":
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(ticker.FixedLocator([2**i for i in range(12)]))
            axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
            axes.xaxis.set_minor_locator(ticker.NullLocator())
            axes.set_xlabel("TFLOP of training")
        else:
            axes.set_xticks(range(len(arms)), [arm.replace("_", "\n") for arm in arms], fontsize=8)
            axes.set_xlim(-0.5, len(arms) - 0.5)
        axes.legend(fontsize=7, frameon=False, loc="lower right")
    panels[0].set_ylim(0, 1.02)
    panels[0].set_ylabel("share right, mean of the factors")
    figure.savefig(file, dpi=110)


def _point(axes, x: float, of: Score, **style) -> None:
    bars = [[of.value - of.low], [of.high - of.value]]
    axes.errorbar([x], [of.value], bars, fmt="o", ms=4, lw=1.2, **style)


def _curve(axes, arm: str, kind: str, results: dict, label: str, c: str, ls: str) -> None:
    points = []
    for share in map(str, SHARES):
        if of := scored(arm, results, share):
            run = of_arm(arm, results["runs"])[chosen_rate(arm, results), SEEDS[0]]
            points.append((run["marks"][share]["flops"] / 1e12, value(of, f"{kind}/{MEAN}")))
            _point(axes, *points[-1], c=c)
    axes.plot([x for x, _ in points], [of.value for _, of in points], c=c, ls=ls, label=label)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="cpu")
    parser.add_argument("--runs", type=Path, help="runs/transfusion_claims_SIZE")
    args = parser.parse_args()
    runs = args.runs or Path(f"runs/transfusion_claims_{args.size}")
    if not (runs / "ceilings.json").is_file():
        parser.error(f"--runs {runs}: nothing is there yet; run.py trains")
    ceilings = json.loads((runs / "ceilings.json").read_text())
    results = {"size": args.size, "ceilings": ceilings, "runs": read_records(runs)}
    (HERE / f"results_{args.size}.json").write_text(json.dumps(results) + "\n")
    (HERE / f"table_{args.size}.md").write_text(table(results))
    print(table(results))
    plot(results, HERE / f"claims_{args.size}.png")


if __name__ == "__main__":
    main()
