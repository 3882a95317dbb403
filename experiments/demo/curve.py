"""How fast the demo learns: training caption recall of every checkpoint of a run, against seconds.

    make demo
    mmx train --config muse/openmoji32 --workdir runs/curve --config.keep=20 \
        --config.codec.run=runs/demo/vqgan --config.data.data_dir=data
    pip install matplotlib
    python experiments/demo/curve.py runs/curve

Writes curve.json, curve.md and curve.png beside this file. Seconds are those between the first and
the last event of each step in the run's TensorBoard log: training with all that the loop does.
"""

import argparse
import json
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmx.cli.main import main as mmx
from mmx.cli.scoring import Scorer
from mmx.core.run_dir import parse_run

HERE = Path(__file__).resolve().parent
NAMES = ("r1", "r1_ceiling", "r1_of_ceiling", "r10")


def seconds_at(run_path: Path) -> dict[int, float]:
    """Step -> seconds since the first event."""
    log = EventAccumulator(str(run_path), size_guidance={"scalars": 0})
    log.Reload()
    events = log.Scalars("loss/total")
    began = log.FirstEventTimestamp()
    return {event.step: event.wall_time - began for event in events}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", help="a Muse run with many checkpoints")
    run, _ = parse_run(parser.parse_args().run)
    clock = seconds_at(run.path)
    points = []
    if mmx(["evaluate", str(run.path), "--every-checkpoint"]):
        raise SystemExit("not all checkpoints could be scored")
    scorer = Scorer(run)
    for step in run.steps():
        scores = scorer.scores(step)
        point = {"step": step, "seconds": round(clock[step], 1)}
        for name in NAMES:
            score = scores[f"training_caption_recall/{name}"]
            point[name] = [round(score[x], 4) for x in ("value", "low", "high")]
        points.append(point)
        print(json.dumps(point), flush=True)
    (HERE / "curve.json").write_text(json.dumps(points, indent=1) + "\n")
    (HERE / "curve.md").write_text(table(points))
    plot(points)


def table(points: list[dict]) -> str:
    """Markdown, one row a checkpoint, 95 % intervals in brackets."""
    lines = ["| step | seconds | R@1 | of the ceiling | R@10 |", "|---|---|---|---|---|"]
    for p in points:
        triples = [p[n] for n in ("r1", "r1_of_ceiling", "r10")]
        cells = [f"{value:.2f} [{low:.2f}, {high:.2f}]" for value, low, high in triples]
        lines.append(f"| {p['step']} | {p['seconds']:.0f} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(points: list[dict]) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    x = [p["seconds"] for p in points]
    for name, label in (("r10", "R@10"), ("r1", "R@1")):
        value, low, high = zip(*[p[name] for p in points])
        axes.plot(x, value, marker="o", label=label)
        axes.fill_between(x, low, high, alpha=0.2)
    axes.axhline(points[-1]["r1_ceiling"][0], ls="--", c="grey", label="R@1 of the codec alone")
    axes.set(xlabel="seconds of training", ylabel="training caption recall", ylim=(0, 1.02))
    axes.legend(loc="lower right")
    figure.savefig(HERE / "curve.png", dpi=120)


if __name__ == "__main__":
    main()
