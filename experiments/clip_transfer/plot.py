"""transfer.png: what results.json says, in six panels."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import scores
from report import CELLS, COLOURS, NAMES

_GREY = {"untrained": "#b9b9bd", "pixels": "#8a8a90"}


def plot(results: Mapping, path: Path) -> None:
    """Needs matplotlib, which is no dependency of mmx."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    arms = {arm: of["scores"] for arm, of in results["arms"].items()}
    figure, axes = plt.subplots(2, 3, figsize=(14, 8.2), layout="constrained")
    chance = results["chance"]
    cells = [f"{pool}\n{artist} artist" for pool, artist in CELLS]

    names = {a: [f"text_to_image/{p}/{b}/r1" for p, b in CELLS] for a in COLOURS}
    _bars(axes[0, 0], arms, names, cells, chance["unseen/r1"])
    axes[0, 0].set(
        title="Caption to picture, R@1",
        ylabel=f"of {results['pools']['unseen']['drawings']} pictures",
    )

    names = {a: [f"match/{p}/{b}/r1" for p, b in CELLS] for a in (*COLOURS, *_GREY)}
    _bars(axes[0, 1], arms, names, cells, chance["unseen/r1"])
    axes[0, 1].set(title="Picture to picture by features, R@1")

    axis, tops = axes[0, 2], []
    for arm, colour in COLOURS.items():
        for i, record in enumerate(results["arms"].get(arm, {"seeds": {}})["seeds"].values()):
            _, same, new = np.array(record["curve"]).reshape(-1, 3).T
            tops.extend(new)
            axis.plot(
                same, new, "o-", c=colour, ms=4, lw=1, alpha=0.8, label=None if i else NAMES[arm]
            )
    axis.plot([0, 1], [0, 1], "--", c="grey", lw=1, label="no loss by the new artist")
    top = 1.3 * max([0.01, *tops])
    axis.set(title="Top-1 of trained concepts, as training goes on", xlim=(0, 1), ylim=(0, top))
    axis.set(xlabel="same artist (pictures trained on)", ylabel="new artist")
    axis.legend(fontsize=8)

    axis = axes[1, 0]
    for artist, style in (("same", "o-"), ("new", "s--")):
        for arm, colour in COLOURS.items():
            if f"pgd/{artist}/eps0/right" in arms.get(arm, {}):
                found = [arms[arm][f"pgd/{artist}/eps{e:g}/right"] for e in (0, *scores.EPS)]
                x = range(len(found))
                axis.plot(
                    x,
                    [s["value"] for s in found],
                    style,
                    c=colour,
                    ms=4,
                    lw=1.3,
                    label=f"{NAMES[arm]}, {artist} artist",
                )
    axis.set_xticks(range(len(scores.EPS) + 1), [f"{e:g}" for e in (0, *scores.EPS)])
    axis.set(title="Top-1 under PGD", xlabel="eps, grey levels of 255", ylim=(0, 1.02))
    axis.legend(fontsize=8)

    written = ["clean", "small/scrambled", "small/other", "small/word"]
    written += ["large/scrambled", "large/other", "large/word"]
    said = [
        "nothing",
        "small\npieces",
        "small\nother",
        "small\nword",
        "large\npieces",
        "large\nother",
    ]
    said.append("large\nword")
    for axis, asked, title in (
        (axes[1, 1], "right", "Top-1 with ink on the picture"),
        (axes[1, 2], "target", "Answer is the class of the word"),
    ):
        _bars(axis, arms, {a: [f"typo/{w}/{asked}" for w in written] for a in COLOURS}, said, None)
        axis.set(title=title)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _bars(axis, arms: Mapping, names: Mapping, labels: list[str], chance: float | None) -> None:
    """Bars in groups, one of each arm, with 95 % intervals."""
    there = [arm for arm in names if arm in arms and names[arm][0] in arms[arm]]
    width = 0.84 / max(1, len(there))
    for i, arm in enumerate(there):
        found = [arms[arm][name] for name in names[arm]]
        value, low, high = (np.array([s[k] for s in found]) for k in ("value", "low", "high"))
        x = np.arange(len(found)) + (i - (len(there) - 1) / 2) * width
        colour = COLOURS.get(arm) or _GREY[arm]
        bars = dict(color=colour, label=NAMES[arm], ecolor="#444444", error_kw={"lw": 0.8})
        axis.bar(x, value, width, yerr=np.maximum(0, [value - low, high - value]), **bars)
    if chance is not None:
        axis.axhline(chance, ls=":", c="black", lw=1, label="chance")
    axis.set_xticks(range(len(labels)), labels, fontsize=8)
    axis.legend(fontsize=8)
    axis.margins(y=0.15)
