"""CLIP trained on OpenMoji and scenes: seen or unseen concepts by the same or another artist.

    pip install -e '.[demo]' matplotlib
    mmx prepare openmoji --config 64; mmx prepare scenes --config 64; mmx prepare noto
    python experiments/clip_transfer/run.py --workdir runs/clip_transfer

Trains and measures each arm (`arms.py`) with each seed that is not done yet, one after another, and
writes results.json, table.md, transfer.png and matches.png beside this file of those that are done.
``--arms clip-0 classifier-0`` does some; ``--report`` draws table and plot of results.json alone;
``--tiny`` runs all of it in a minute or two, and writes into the workdir.
"""

from mmx.cli.backend import before_jax, start_jax

before_jax()

import argparse  # noqa: E402
import dataclasses  # noqa: E402
import json  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

import arms  # noqa: E402
import drawings  # noqa: E402
import numpy as np  # noqa: E402
import plot  # noqa: E402
import report  # noqa: E402
import scores  # noqa: E402
from drawings import Drawing  # noqa: E402

from mmx.core.run_dir import RunDir  # noqa: E402
from mmx.data.scene_grammar import Scene  # noqa: E402
from mmx.data.source import open_source  # noqa: E402
from mmx.eval import stats  # noqa: E402

HERE = Path(__file__).resolve().parent
ATTACKED, TYPED, SIGNS = 96, 512, 300  # pictures under PGD, under words; signs of a split
CHECKED_EPS = 4
POOL_SEED = 0
BASELINE = "pixels"  # of `scores.matches`; no arm of training


@dataclasses.dataclass(frozen=True)
class Setup:
    """All that is asked, the same of every arm.

    Attributes:
      pools: of the 2x2.
      groups: of the classification: "trained", untoned drawings that were trained on, and "tone",
        trained concepts in a tone that was not.
      attacked, typed: some of "trained".
      signs: (picture, scene) of trained and of held-out words.
      prompts, label_of: the classes: concept -> captions, concept -> number.
      leaks: of `drawings.leaks`.
    """

    pools: dict[str, list[Drawing]]
    groups: dict[str, list[Drawing]]
    attacked: list[Drawing]
    typed: list[Drawing]
    signs: dict[str, list[tuple[np.ndarray, Scene]]]
    prompts: dict[str, list[str]]
    label_of: dict[str, int]
    leaks: dict[str, list[str]]

    def clusters(self, name: str) -> list[str]:
        """Of the items of a score: concepts, or words."""
        kind, group = name.split("/")[:2]
        if kind == "reading":
            return [scene.word for _, scene in self.signs[group]]
        of = {"pgd": self.attacked, "pgd_check": self.attacked, "typo": self.typed}
        of = of.get(kind) or (self.groups if kind == "top1" else self.pools)[group]
        return [drawing.concept for drawing in of]


def set_up(data_dir: str, tiny: bool) -> Setup:
    """Opens the three data sets. Raises UserError where one is not prepared."""
    both = drawings.load(data_dir)
    openmoji = [open_source("tfds:openmoji/64", s, data_dir) for s in drawings.TRAINED]
    prompts = drawings.classes([source[i] for source in openmoji for i in range(len(source))])
    untoned = [d for d in both if d.split == "train"]
    mixed = [untoned[i] for i in np.random.default_rng(POOL_SEED).permutation(len(untoned))]
    signs = {}
    for group, split in (("trained", "test"), ("heldout", "heldout_word")):
        source = open_source("tfds:scenes/64", split, data_dir)
        shown = (
            (x["image"], Scene.from_json(x["factors"]))
            for x in map(source.__getitem__, range(len(source)))
        )
        count = 8 if tiny else SIGNS
        signs[group] = [pair for pair in shown if pair[1].word is not None][:count]
    few = 16 if tiny else None
    leaks = drawings.leaks(both)
    leaked = {base for bases in leaks.values() for base in bases}
    return Setup(
        pools=drawings.pools(both, leaked, POOL_SEED),
        groups={
            "trained": untoned[:few],
            "tone": [d for d in both if d.split == "heldout_composition"][:few],
        },
        attacked=mixed[: few or ATTACKED],
        typed=mixed[: few or TYPED],
        signs=signs,
        prompts=prompts,
        label_of={concept: label for label, concept in enumerate(prompts)},
        leaks=leaks,
    )


def measure(arm: str, seed: int, folder: Path, setup: Setup, data_dir: str, tiny: bool) -> None:
    """Train one arm with one seed, unless that is done, and write its hits.npz and record.json."""
    task = arms.make_task(arm, seed, folder, data_dir, list(setup.prompts), tiny)
    nets = arms.Nets(task, setup.prompts)

    def look(params) -> list[float]:
        """Of the curve: accuracy on what was trained on, by the same and by the new artist."""
        some = {"trained": setup.groups["trained"][::3]}
        hits = scores.classification(nets.net(params), some, setup.label_of)
        return [round(float(hit.mean()), 4) for hit in hits.values()]

    source = None if arm == "untrained" else arms.make_source(arm, data_dir)
    params, record = arms.trained(task, source, RunDir(folder), look)
    began = time.process_time()
    net = nets.net(params)
    hits, nearest = scores.matches(scores.feature_likeness(net), setup.pools)
    hits |= scores.classification(net, setup.groups, setup.label_of)
    hits |= scores.pgd(net, setup.attacked, setup.label_of)
    if seed == 0:
        hits |= scores.harder_pgd(net, setup.attacked, setup.label_of, CHECKED_EPS)
    hits |= scores.typographic(net, setup.typed, setup.label_of)
    if net.texts:
        hits |= scores.text_retrieval(net, setup.pools)
        for group, signs in setup.signs.items():
            hits[f"reading/{group}/r1"] = scores.reading(net, signs)
    record["measuring_cpu_seconds"] = round(time.process_time() - began, 1)
    record["nearest"] = named(nearest, setup)
    np.savez_compressed(folder / "hits.npz", **hits)
    (folder / "record.json").write_text(json.dumps(record) + "\n")


def named(nearest: dict[str, np.ndarray], setup: Setup) -> dict[str, dict[str, list[str]]]:
    """Pool -> code points of what the picture asks -> those of the nearest of the gallery."""
    names = {pool: [d.codepoints for d in of] for pool, of in setup.pools.items()}
    return {
        pool: {names[pool][q]: [names[pool][g] for g in nearest[pool][q]] for q in of}
        for pool, of in report.queries(setup.pools).items()
    }


def collect(workdir: Path, setup: Setup, settings: dict) -> dict:
    """results.json, of the arms and seeds that are done."""
    results: dict = {"settings": settings, "leaks": setup.leaks, "pools": {}, "arms": {}}
    for pool, of in setup.pools.items():
        results["pools"][pool] = {
            "drawings": len(of),
            "bases": len({d.base for d in of}),
            "concepts": len({d.concept for d in of}),
            "flags": sum(d.is_flag for d in of),
        }
    chance = scores.chance(setup.pools)
    results["chance"] = {n.removeprefix("chance/"): float(h.mean()) for n, h in chance.items()}
    results["chance"]["classes"] = len(setup.prompts)
    results["chance"]["words"] = len(scores.targets(setup.label_of))
    of_arm: dict[str, dict] = {}
    for arm in arms.ARMS:
        hits, seeds = {}, {}
        for seed in arms.SEEDS:
            folder = workdir / f"{arm}-{seed}"
            if not (folder / "record.json").is_file():
                continue
            record = json.loads((folder / "record.json").read_text())
            nearest = record.pop("nearest")
            results.setdefault("nearest", {}).setdefault(arm, nearest)  # of the first seed
            seeds[seed] = record
            with np.load(folder / "hits.npz") as file:
                for name in file.files:
                    hits.setdefault(name, []).append(file[name])
        if seeds:
            of_arm[arm] = {name: np.mean(rows, 0) for name, rows in hits.items()}
            results["arms"][arm] = {"seeds": seeds, "scores": pooled(hits, setup)}
    pixel_hits, nearest = scores.matches(scores.pixel_likeness, setup.pools)
    results["nearest"] = {**results.get("nearest", {}), BASELINE: named(nearest, setup)}
    results["arms"][BASELINE] = {
        "seeds": {},
        "scores": pooled({n: [h] for n, h in pixel_hits.items()}, setup),
    }
    results["ratios"] = ratios(of_arm, setup)
    return results


def spelt(score: stats.Score) -> dict:
    return {key: round(getattr(score, key), 4) for key in ("value", "low", "high")} | {"n": score.n}


def pooled(hits: dict[str, list[np.ndarray]], setup: Setup) -> dict[str, dict]:
    """Name -> the mean over seeds with an interval over concepts, and each seed's own mean."""
    found = {}
    for name, rows in hits.items():
        score = stats.proportion(np.mean(rows, 0), setup.clusters(name))
        each = [round(float(row.mean()), 4) for row in rows]
        found[name] = spelt(score) | {"seeds": each}
    return found


def ratios(of_arm: dict[str, dict], setup: Setup) -> dict[str, dict]:
    """New artist / same artist, of each arm; and that of an arm less that of the classifier."""
    same, new = (f"top1/trained/{artist}/right" for artist in drawings.ARTISTS)
    clusters, found = setup.clusters(same), {}
    for arm, hits in of_arm.items():
        if arm != "untrained" and same in hits:
            found[arm] = spelt(stats.ratio(hits[new], hits[same], clusters))
    for arm in ("clip", "clip_openmoji"):
        if {arm, "classifier"} <= found.keys():
            columns = [of_arm[a][n] for a in (arm, "classifier") for n in (new, same)]
            apart = lambda m: m[..., 0] / m[..., 1] - m[..., 2] / m[..., 3]
            score = stats.bootstrap(apart, np.stack(columns, 1), clusters)
            found[f"{arm} - classifier"] = spelt(score)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", default="runs/clip_transfer", help="weights and hits")
    parser.add_argument("--data_dir", default="", help="where the data sets are")
    every = [f"{a}-{s}" for a in arms.ARMS for s in arms.SEEDS if a != "untrained" or s == 0]
    parser.add_argument("--arms", nargs="*", choices=every, default=every, metavar="ARM-SEED")
    parser.add_argument("--report", action="store_true", help="table and plot of results.json")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    workdir = Path(args.workdir, "tiny") if args.tiny else Path(args.workdir)
    out = workdir if args.tiny else HERE
    if not args.report:
        start_jax()
        setup = set_up(args.data_dir, args.tiny)
        for name in args.arms:
            if not (workdir / name / "record.json").is_file():
                arm, _, seed = name.rpartition("-")
                measure(arm, int(seed), workdir / name, setup, args.data_dir, args.tiny)
        settings = {"every": every, "tiny": args.tiny}
        results = collect(workdir, setup, settings)
        (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        report.draw_matches(results, setup.pools, out / "matches.png")
    results = json.loads((out / "results.json").read_text())
    (out / "table.md").write_text(report.table(results))
    plot.plot(results, out / "transfer.png")
    print(report.table(results))


if __name__ == "__main__":
    main()
