"""What an arm can do: draw captions, describe scenes, foretell both.

Scores are kept scene by scene, so that arms are compared on the same scenes.
"""

from typing import Any

import numpy as np
from scenes import Data, Scenes, marks
from tasks import LatentsTask

from mmx.data import scene_grammar
from mmx.eval import scene_reader

GUIDANCE = (1.0, 2.0, 4.0)
TOP_P = (0.9, 1.0)  # of codes
GUIDED = 60  # validation scenes that choose between them


def validation_loss(task: LatentsTask, params, scenes: Scenes) -> float:
    """Nats a word of captions + the loss of images, caption first: what rates are chosen by."""
    rated = task.rate(params, scenes, image_first=False)
    return float(rated["nll"].sum() / rated["tokens"].sum() + rated["image"].mean())


def choose_sampling(task: LatentsTask, params, data: Data) -> dict[str, Any]:
    """The guidance that draws best, and of codes the ``top_p``, each tried on validation scenes.

    Returns:
      {"guidance", and of codes "top_p", "tried": [[settings, share of factors right], ...]}.
    """
    scenes, tried = data.validation.part(slice(GUIDED)), []

    def quality(**settings) -> float:
        drawn = draw(task, params, scenes, data, seed=1, **settings)
        letters = "".join(drawn.values())
        tried.append([settings, letters.count("1") / (len(letters) - letters.count("-"))])
        return tried[-1][1]

    best = {"guidance": max(GUIDANCE, key=lambda w: quality(guidance=w))}
    if task.gives == "codes":
        best["top_p"] = max(TOP_P, key=lambda p: quality(**best, top_p=p))
    return best | {"tried": tried}


def draw(task, params, scenes: Scenes, data: Data, seed: int, **settings) -> dict[str, str]:
    """What is read off pictures of the captions: :func:`scenes.marks`."""
    encoded = task.draw(params, scenes.captions, seed=seed, **settings)
    pictures = data.pictures(task.gives, encoded)
    return marks(scenes.wanted(), scene_reader.read(np.nan_to_num(pictures)))


def score(
    task: LatentsTask, params, data: Data, sampling: dict, seed: int, drawn: int
) -> dict[str, Any]:
    """All of a mark, on the tested scenes.

    Returns:
      "drawing" (of the first ``drawn``) and "caption": :func:`scenes.marks`; of each scene "words",
      "nll" of its caption, "nll_seen" after its image, and "image", the loss of its image.
    """
    test = data.test
    settings = {name: sampling[name] for name in ("guidance", "top_p") if name in sampling}
    first, after = (task.rate(params, test, image_first) for image_first in (False, True))
    said = [scene_grammar.read(text) for text in task.describe(params, test)]
    rounded = lambda values: [round(float(x), 3) for x in values]
    return {
        "drawing": draw(task, params, test.part(slice(drawn)), data, seed, **settings),
        "caption": marks(test.wanted(), said),
        "words": first["tokens"].tolist(),
        "nll": rounded(first["nll"]),
        "nll_seen": rounded(after["nll"]),
        "image": rounded(first["image"]),
    }
