"""The metrics by name: what ``config.eval.metrics = ("kid_mobilenetv2_96px", "psnr")`` can name.

    evaluators = make(("kid_mobilenetv2_96px", "psnr", "ssim"))
    scores = evaluator.run(evaluators, batches)    # {"kid_mobilenetv2_96px": Score, ...}

What a batch holds is said at `evaluator.Evaluator`. The recipe of a number is in its name. Every
distance between sets comes with the same distance of true images (`/real_vs_real`: no model can be
expected to do better) and of true images that were blurred (`/blurred`: what must score worse).
"""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from mmx.core.errors import UserError, choose
from mmx.eval import captions, frechet, images, kernels, manifold, sets
from mmx.eval.evaluator import Batch, Evaluator, Scores, mean_of, rows
from mmx.eval.features import Extractor, InBatches, as_uint8
from mmx.pretrained import lpips, networks
from mmx.pretrained.networks import NETWORKS
from mmx.pretrained.weights import weights_file

Sets = Mapping[str, Any]  # field -> Moments or Features
_BLUR = 1 / 32  # ours: the gaussian's sigma over the width of the image, 2 pixels of 64


class Embedder(NamedTuple):
    """An image-text model that scores: one that did not guide, teach or choose what it scores.

    Attributes:
      name: of model and run or revision; part of a score's name.
      image: uint8 or float images [B, H, W, 3] -> float [B, D].
      text: B texts -> float [B, D].
    """

    name: str
    image: Callable[[np.ndarray], np.ndarray]
    text: Callable[[Sequence[str]], np.ndarray]


class SetMetric(NamedTuple):
    """A metric of sets of features.

    Attributes:
      network: of `NETWORKS`, or the embedder's name.
      score: (its name, sets) -> scores.
      blurred: does it look at blurred images?
      moments: are mean and covariance all that it needs? Then no features are kept.
    """

    network: str
    score: Callable[[str, Sets], Scores]
    blurred: bool = True
    moments: bool = False


def _distance(measure: Callable[[Any, Any], Any], name: str, of: Sets) -> Scores:
    """A distance to the reference, with its floor and its control."""
    return {
        name: measure(of["image"], of["reference"]),
        f"{name}/real_vs_real": measure(of["real"], of["reference"]),
        f"{name}/blurred": measure(of["blurred"], of["reference"]),
    }


def _frechet(name: str, of: Sets) -> Scores:
    """The same of a value that depends on the number of images, which its name tells."""
    kept = isinstance(of["image"], sets.Features)
    measure = frechet.frechet_of_features if kept else frechet.frechet
    return _distance(measure, f"{name}_n{of['image'].n}", of)


def _pair(names: tuple[str, str], measure, name: str, of: Sets) -> Scores:
    """Two shares of one measure, with the same of true images."""
    recipe = of["image"].recipe
    out: Scores = {}
    for end, which in (("", "image"), ("/real_vs_real", "real")):
        values = measure(of[which], of["reference"])
        out |= {f"{n}_{recipe}{end}": value for n, value in zip(names, values)}
    return out


_PRECISION = partial(_pair, ("precision", "recall"), manifold.precision_recall)
_DENSITY = partial(_pair, ("density", "coverage"), manifold.density_coverage)
_KID = partial(_distance, kernels.kid)

SET_METRICS: dict[str, SetMetric] = {
    "fd_mobilenetv2_96px": SetMetric("mobilenetv2_96px", _frechet),
    **{
        f"fid_{recipe}": SetMetric(recipe, _frechet, moments=True)
        for recipe in NETWORKS
        if recipe.startswith("inception2015")
    },
    **{f"kid_{recipe}": SetMetric(recipe, _KID) for recipe in NETWORKS},
    **{
        f"precision_recall_{recipe}": SetMetric(recipe, _PRECISION, blurred=False)
        for recipe in NETWORKS
    },
    **{
        f"density_coverage_{recipe}": SetMetric(recipe, _DENSITY, blurred=False)
        for recipe in NETWORKS
    },
}


class _Given(NamedTuple):
    data_dir: str | os.PathLike | None
    embedder: Embedder | None

    def needed(self, name: str) -> Embedder:
        if self.embedder is None:
            raise UserError(f"{name} needs an image-text model that scores, and none is named")
        return self.embedder


def _psnr(given: _Given) -> Evaluator:
    return mean_of("psnr", ("real", "image"), images.psnr)


def _ssim(given: _Given) -> Evaluator:
    return mean_of("ssim", ("real", "image"), images.ssim)


def _lpips(given: _Given) -> Evaluator:
    fn = InBatches(lpips.distance, networks.load("lpips_vgg", given.data_dir))

    def score(real, image):
        return fn(images.as_float(real), images.as_float(image))

    return mean_of("lpips_vgg", ("real", "image"), score)


def _clip_score(given: _Given) -> Evaluator:
    """2.5 max(cos, 0): arXiv 2104.08718 eq. 1. Its prompt is "A photo depicts" and the caption;
    here the text is the caption as it is. Many papers print 100 times the cosine instead."""
    embed = given.needed("clip_score")

    def score(text, image):
        pair = (np.asarray(x, np.float64) for x in (embed.text(text), embed.image(image)))
        a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in pair)
        return 2.5 * (a * b).sum(1).clip(0)

    return mean_of(f"clip_score_{embed.name}", ("text", "image"), score)


def _cmmd(given: _Given) -> Evaluator:
    embed = given.needed("cmmd")
    metric = SetMetric(embed.name, partial(_distance, kernels.cmmd))
    return of_sets(embed.name, {f"cmmd_{embed.name}": metric}, embed.image)


def _perplexity(given: _Given) -> Evaluator:
    """exp of the nats a token, over all tokens of all texts."""

    def update(state, batch):
        more = np.array([np.sum(rows(batch, k), dtype=np.float64) for k in ("nll", "tokens")])
        return state + more

    def result(state):
        if not state[1]:
            raise UserError("perplexity: no token to measure")
        return {"perplexity": float(np.exp(state[0] / state[1]))}

    return Evaluator(
        "perplexity", ("nll", "tokens"), lambda: np.zeros(2), update, lambda a, b: a + b, result
    )


class RowMetric(NamedTuple):
    """A metric that shares nothing with others.

    Attributes:
      make: its evaluator.
      needs: what that reads of a batch.
      embedder: does it need an image-text model?
    """

    make: Callable[[_Given], Evaluator]
    needs: tuple[str, ...]
    embedder: bool = False


ROW_METRICS: dict[str, RowMetric] = {
    "psnr": RowMetric(_psnr, ("real", "image")),
    "ssim": RowMetric(_ssim, ("real", "image")),
    "lpips_vgg": RowMetric(_lpips, ("real", "image")),
    "clip_score": RowMetric(_clip_score, ("text", "image"), embedder=True),
    "cmmd": RowMetric(_cmmd, ("image", "real", "reference"), embedder=True),
    "captions": RowMetric(lambda given: captions.evaluator(), ("caption", "references")),
    "perplexity": RowMetric(_perplexity, ("nll", "tokens")),
}

METRICS = (*SET_METRICS, *ROW_METRICS)


def make(
    names: Sequence[str],
    data_dir: str | os.PathLike | None = None,
    embedder: Embedder | None = None,
) -> list[Evaluator]:
    """Evaluators for metrics by name; those that share a network share its features.

    Args:
      names: of `METRICS`.
      data_dir: where ``mmx prepare features`` put the networks.
      embedder: for the metrics that need one.

    Raises:
      UserError: an unknown name, weights that are not there, or no embedder for what needs one.
    """
    check_names(names)
    given = _Given(data_dir, embedder)
    by_network: dict[str, dict[str, SetMetric]] = {}
    made = []
    for name in dict.fromkeys(names):
        if name in SET_METRICS:
            metric = SET_METRICS[name]
            by_network.setdefault(metric.network, {})[name] = metric
        else:
            made.append(ROW_METRICS[name].make(given))
    for network, metrics in by_network.items():
        made.append(_of_sets(network, metrics, given))
    return made


def check_names(names: Sequence[str]) -> None:
    """Raises UserError for a name that is not of `METRICS`."""
    for name in names:
        choose("config.eval.metrics", dict.fromkeys(METRICS), name)


# What a report knows of its drawings: nothing has captioned them, and no other model embeds them.
OF_DRAWINGS = ("image", "real", "reference", "text")


def check_config(names: Sequence[str]) -> None:
    """Raises UserError for a name that is not of `METRICS`, or that no report can compute."""
    check_names(names)
    for name in names:
        metric = ROW_METRICS.get(name)
        if metric and (metric.embedder or not set(metric.needs) <= set(OF_DRAWINGS)):
            lacks = "an image-text model" if metric.embedder else " and ".join(metric.needs)
            raise UserError(
                f"config.eval.metrics={name!r}: it needs {lacks}, which a report has not; leave it "
                "out here and compute it in Python (mmx.eval.metrics.make)"
            )


def missing_file(name: str, data_dir: str | os.PathLike | None = None) -> str | None:
    """Of `networks.FILES`, the one that a metric needs and that is not in the data directory."""
    file = "lpips_vgg" if name == "lpips_vgg" else None
    if name in SET_METRICS:
        file = NETWORKS[SET_METRICS[name].network].file
    return file if file and not weights_file(file, data_dir).is_file() else None


def _of_sets(network: str, metrics: dict[str, SetMetric], given: _Given) -> Evaluator:
    extract = Extractor(NETWORKS[network], given.data_dir)
    return of_sets(extract.recipe, metrics, extract)


def of_sets(
    recipe: str, metrics: Mapping[str, SetMetric], extract: Callable[[np.ndarray], np.ndarray]
) -> Evaluator:
    """An evaluator whose state is, for each set of images, its features or their moments.

    Args:
      recipe: of the features.
      metrics: by name.
      extract: images -> features [B, D].
    """
    needs = ("image", "real", "reference")
    blurred = any(m.blurred for m in metrics.values())
    empty = sets.Features(recipe)
    if all(m.moments for m in metrics.values()):
        empty = sets.no_moments(recipe)

    def init() -> dict:
        return dict.fromkeys((*needs, *(["blurred"] if blurred else [])), empty)

    def update(state: dict, batch: Batch) -> dict:
        pictures = {field: rows(batch, field) for field in needs}
        if blurred:
            pictures["blurred"] = blur(pictures["real"])
        return {field: state[field].add(extract(pictures[field])) for field in state}

    def merge(a: dict, b: dict) -> dict:
        return {field: a[field].merge(b[field]) for field in a}

    def result(state: dict) -> Scores:
        scores: Scores = {}
        for name, metric in metrics.items():
            scores |= metric.score(name, state)
        return scores

    return Evaluator(recipe, needs, init, update, merge, result)


def blur(batch: np.ndarray) -> np.ndarray:
    """uint8 [B, H, W, 3]: what a distance between sets must see, by a gaussian of W / 32 pixels."""
    image_u8 = as_uint8(batch)
    if not len(image_u8):
        return image_u8
    filtered = ImageFilter.GaussianBlur(image_u8.shape[2] * _BLUR)
    return np.stack([np.asarray(Image.fromarray(x).filter(filtered)) for x in image_u8])
