"""The metrics by name: what ``config.eval.metrics = ("kid_mobilenetv2_96px", "psnr")`` can name.

    evaluators = make(("kid_mobilenetv2_96px", "psnr", "ssim"))
    scores = evaluator.run(evaluators, batches)    # {"kid_mobilenetv2_96px": Score, ...}

Each name is an evaluator of its own, so one that is named later is computed alone. What a batch
holds is said at `evaluator.Evaluator`. The recipe of a number is in its name. Every distance
between sets comes with the same distance of true images (`/real_vs_real`: no model can be expected
to do better) and of true images that were blurred (`/blurred`: what must score worse).

Importing this starts no jax: what is scored already is shown without it.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from mmx.core.errors import UserError, choose
from mmx.eval import captions, frechet, images, kernels, manifold, sets
from mmx.eval.clip_score import clip_score
from mmx.eval.evaluator import Batch, Evaluator, Scores, mean_of, rows
from mmx.pretrained.weights import FEATURES, digest, weights_file

Sets = dict[str, Any]  # field -> Moments or Features
_BLUR = 1 / 32  # ours: the gaussian's sigma over the width of the image, 2 pixels of 64


class Embedder(NamedTuple):
    """An image-text model that scores: one that did not guide, teach or choose what it scores.

    Attributes:
      name: of its run and step; part of a score's name.
      image: uint8 or float images [B, H, W, 3] -> float [B, D].
      text: B texts -> float [B, D].
    """

    name: str
    image: Callable[[np.ndarray], np.ndarray]
    text: Callable[[Sequence[str]], np.ndarray]


class PerBatch:
    """Features of a batch's pictures, made once for all metrics that read them.

    Args:
      recipe: of the features.
      extract: images -> features [B, D].
    """

    def __init__(self, recipe: str, extract: Callable[[np.ndarray], np.ndarray]):
        self.recipe, self._extract = recipe, extract
        self._batch: Batch | None = None
        self._known: dict[str, np.ndarray] = {}

    def __call__(self, batch: Batch, field: str) -> np.ndarray:
        """Of a field of `evaluator.Evaluator`, or of "blurred", which is `real` through `blur`."""
        if batch is not self._batch:  # held, so that no other batch can be taken for it
            self._batch, self._known = batch, {}
        if field not in self._known:
            of = blur(rows(batch, "real")) if field == "blurred" else rows(batch, field)
            self._known[field] = self._extract(of)
        return self._known[field]


class SetMetric(NamedTuple):
    """A metric of sets of features.

    Attributes:
      network: how features are made, of `FEATURES`, or the embedder's name.
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
        for recipe in FEATURES
        if recipe.startswith("inception2015")
    },
    **{f"kid_{recipe}": SetMetric(recipe, _KID) for recipe in FEATURES},
    **{
        f"precision_recall_{recipe}": SetMetric(recipe, _PRECISION, blurred=False)
        for recipe in FEATURES
    },
    **{
        f"density_coverage_{recipe}": SetMetric(recipe, _DENSITY, blurred=False)
        for recipe in FEATURES
    },
}


class _Given:
    """What evaluators are made of; networks are read once, when the first metric asks."""

    def __init__(self, data_dir: str | os.PathLike | None, embedder: Embedder | None):
        self.data_dir, self._embedder = data_dir, embedder
        self._networks: dict[str, PerBatch] = {}

    def features(self, network: str) -> PerBatch:
        if network not in self._networks:
            from mmx.eval.features import Extractor
            from mmx.pretrained.networks import NETWORKS

            extract = Extractor(NETWORKS[network], self.data_dir)
            self._networks[network] = PerBatch(network, extract)
        return self._networks[network]

    def embedder(self, name: str) -> tuple[Embedder, PerBatch]:
        """The embedder, and it as features. Raises UserError: none, for the metric of that name."""
        if self._embedder is None:
            raise UserError(f"{name} needs an image-text model that scores, and none is named")
        known, name = self._networks, f"embedder {self._embedder.name}"
        features = known.setdefault(name, PerBatch(self._embedder.name, self._embedder.image))
        return self._embedder, features


def _psnr(given: _Given) -> Evaluator:
    return mean_of("psnr", ("real", "image"), images.psnr)


def _ssim(given: _Given) -> Evaluator:
    return mean_of("ssim", ("real", "image"), images.ssim)


def _lpips(given: _Given) -> Evaluator:
    from mmx.eval.features import InBatches
    from mmx.pretrained import lpips, networks

    fn = InBatches(lpips.distance, networks.load("lpips_vgg", given.data_dir))

    def score(real, image):
        return fn(images.as_float(real), images.as_float(image))

    return mean_of("lpips_vgg", ("real", "image"), score)


def _clip_score(given: _Given) -> Evaluator:
    embed, features = given.embedder("clip_score")
    return clip_score(f"clip_score_{embed.name}", features, embed.text)


def _cmmd(given: _Given) -> Evaluator:
    embed, features = given.embedder("cmmd")
    metric = SetMetric(embed.name, partial(_distance, kernels.cmmd))
    return of_sets(f"cmmd_{embed.name}", metric, features)


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
    """Any other metric.

    Attributes:
      make: its evaluator.
      needs: what that reads of a batch.
      file: of weights that it needs; "" for none.
      embedder: does it need an image-text model?
      writes: is it of texts that a run writes or rates?
    """

    make: Callable[[_Given], Evaluator]
    needs: tuple[str, ...]
    file: str = ""
    embedder: bool = False
    writes: bool = False


ROW_METRICS: dict[str, RowMetric] = {
    "psnr": RowMetric(_psnr, ("real", "image")),
    "ssim": RowMetric(_ssim, ("real", "image")),
    "lpips_vgg": RowMetric(_lpips, ("real", "image"), file="lpips_vgg"),
    "clip_score": RowMetric(_clip_score, ("text", "image", "real"), embedder=True),
    "cmmd": RowMetric(_cmmd, ("image", "real", "reference"), embedder=True),
    "captions": RowMetric(
        lambda given: captions.evaluator(), ("caption", "references"), writes=True
    ),
    "perplexity": RowMetric(_perplexity, ("nll", "tokens"), writes=True),
}

METRICS = (*SET_METRICS, *ROW_METRICS)


def make(
    names: Sequence[str],
    data_dir: str | os.PathLike | None = None,
    embedder: Embedder | None = None,
) -> list[Evaluator]:
    """An evaluator for each metric, in order; those that share a network share its features.

    Args:
      names: of `METRICS`; one that is named twice is made once.
      data_dir: where ``mmx prepare features`` put the networks.
      embedder: for the metrics that need one.

    Raises:
      UserError: an unknown name, weights that are not there, or no embedder for what needs one.
    """
    check_names(names)
    given = _Given(data_dir, embedder)
    made = []
    for name in dict.fromkeys(names):
        if name in SET_METRICS:
            metric = SET_METRICS[name]
            made.append(of_sets(name, metric, given.features(metric.network)))
        else:
            made.append(ROW_METRICS[name].make(given))
    return made


def check_names(names: Sequence[str]) -> None:
    """Raises UserError for a name that is not of `METRICS`."""
    for name in names:
        choose("config.eval.metrics", dict.fromkeys(METRICS), name)


def check_config(
    names: Sequence[str], scorer: str = "", teachers: Sequence[str] = (), writes: bool = False
) -> None:
    """Whether a report can compute what a config names, as far as the config tells.

    Args:
      names: ``config.eval.metrics``.
      scorer: ``config.eval.scorer``.
      teachers: files of weights that taught the run or its tokenizer.
      writes: does the run write texts?

    Raises:
      UserError: a name that is not of `METRICS`; one of texts, and none is written; one that needs
        an image-text model, and none is named; one of a network that taught.
    """
    check_names(names)
    for name in names:
        given, metric = f"config.eval.metrics={name!r}", ROW_METRICS.get(name)
        if metric and metric.writes and not writes:
            raise UserError(
                f"{given}: it scores texts that a run writes, and a run of this family writes none"
            )
        if needs_scorer(name) and not scorer:
            raise UserError(
                f"{given}: it needs an image-text model that scores: name the run of a CLIP, "
                "config.eval.scorer=RUN[@STEP]"
            )
        if file_of(name) in teachers:
            raise UserError(
                f"{given}: {file_of(name)} taught the tokenizer (config.loss.perceptual), and a "
                "network that taught never scores; name another metric"
            )


def needs_scorer(name: str) -> bool:
    """Does a metric need an image-text model?"""
    return name in ROW_METRICS and ROW_METRICS[name].embedder


def file_of(name: str) -> str:
    """Of `networks.FILES`, the one that a metric needs; "" for none."""
    return FEATURES[SET_METRICS[name].network] if name in SET_METRICS else ROW_METRICS[name].file


def missing_file(name: str, data_dir: str | os.PathLike | None = None) -> str | None:
    """:func:`file_of`, where that is not in the data directory."""
    file = file_of(name)
    return file if file and not weights_file(file, data_dir).is_file() else None


def network_of(name: str, data_dir: str | os.PathLike | None = None) -> str:
    """What a metric's network is, for its recipe: how features are made, and a hash of its weights,
    which must be there; "" where it needs none."""
    if not (file := file_of(name)):
        return ""
    network = SET_METRICS[name].network if name in SET_METRICS else file
    return f"{network} (weights {digest(file, data_dir)})"


def of_sets(name: str, metric: SetMetric, features: PerBatch) -> Evaluator:
    """An evaluator whose state is, for each set of images, its features or their moments.

    Args:
      name: of the metric.
      metric: what it says of the sets.
      features: of batches.
    """
    needs = ("image", "real", "reference")
    empty = sets.Features(features.recipe)
    if metric.moments:
        empty = sets.no_moments(features.recipe)

    def init() -> Sets:
        return dict.fromkeys((*needs, *(["blurred"] if metric.blurred else [])), empty)

    def update(state: Sets, batch: Batch) -> Sets:
        return {field: state[field].add(features(batch, field)) for field in state}

    def merge(a: Sets, b: Sets) -> Sets:
        return {field: a[field].merge(b[field]) for field in a}

    return Evaluator(name, needs, init, update, merge, lambda state: metric.score(name, state))


def blur(batch: np.ndarray) -> np.ndarray:
    """uint8 [B, H, W, 3]: what a distance between sets must see, by a gaussian of W / 32 pixels."""
    image_u8 = images.as_uint8(batch)
    if not len(image_u8):
        return image_u8
    filtered = ImageFilter.GaussianBlur(image_u8.shape[2] * _BLUR)
    return np.stack([np.asarray(Image.fromarray(x).filter(filtered)) for x in image_u8])
