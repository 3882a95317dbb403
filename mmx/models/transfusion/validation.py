"""The losses of a Transfusion run on documents that it does not learn, while it trains.

Axis letters: B rows, L places of a row, M images of a row, V vocabulary, n documents.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from mmx.core import rng as rngs
from mmx.data import pipeline
from mmx.data.mixture import open_mixture
from mmx.data.source import open_source
from mmx.eval.images import finite, to_uint8
from mmx.eval.tile import tile
from mmx.models.transfusion import loss as losses
from mmx.models.transfusion.likelihood import token_nll
from mmx.models.transfusion.rows import NO_LABEL, pack, parts_of
from mmx.train.sharding import batch_sharding, jit_sharded, place, replicated

_EVAL_SEED = 20240820  # of the fixed noise and times of validation: ours
_BUCKETS = (0.0, 0.25, 0.5, 0.75, 1.0)
_LENGTHS = 128  # steps of the length of a row with one document: what kernels take
_HELD_OUT = ("validation", "test")  # of texts: the first of these that was not trained on


class Rated(NamedTuple):
    """What a model makes of documents, one a row.

    Attributes:
      nll: float [n], the sum over the learned tokens of a document, in nats.
      tokens: int [n], how many those are.
      error: float [n, M], of each image the weighted diffusion error.
      learned: bool [n, M], which images are learned.
      t: float [n, M], their times.
    """

    nll: np.ndarray
    tokens: np.ndarray
    error: np.ndarray
    learned: np.ndarray
    t: np.ndarray


class Rater:
    """Documents through the model, with noise and times that depend on their number alone.

    The caption comes first and nothing is dropped; images that something follows are clean and have
    no loss, unless they are learned last of all.

    Args:
      task, mesh: whose, where.
    """

    def __init__(self, task, mesh):
        self.task, self.mesh = task, mesh
        self._rules = replace(
            task.rules, image_first=0.0, noise_limit=0.0, drop=0.0, clean_copies=False
        )
        fn = lambda params, frozen, batch, key: _rate(task, params, frozen, batch, key)
        self._fn = jit_sharded(fn, mesh, out_shardings=replicated(mesh))
        self._key = place(rngs.base_key(_EVAL_SEED), replicated(mesh))

    def fits(self, document: dict) -> bool:
        """Does a row hold it?"""
        tokens, images = self._rules.count(document)
        return tokens <= self._rules.length and images <= self._rules.max_images

    def rate(self, params, frozen, examples: Sequence[dict], limit: int | None = None) -> Rated:
        """The first ``limit`` of some documents; at least one."""
        count = min(len(examples), limit or len(examples))
        documents = [parts_of(_outline(examples, i)) for i in range(count)]
        rules, parts = self._rules, max(map(len, documents))
        if parts <= 2:  # texts or pairs: rows of one document can be short
            most = 3 + parts * (self.task.config.text.max_len + rules.patches + 2)
            length = min(rules.length, -(-most // _LENGTHS) * _LENGTHS)
            images = max(sum(not isinstance(p, str) for p in document) for document in documents)
            rules = replace(rules, length=length, max_images=max(1, images))
        rated = []
        with pipeline.eval_batches(
            examples,
            lambda example, rng: pack([example], rules, rng),
            self.task.config.batch_size,
            batch_sharding(self.mesh),
            limit=limit,
        ) as batches:
            for batch in batches:
                *scores, mask = map(np.asarray, self._fn(params, frozen, batch, self._key))
                rated.append([score[mask] for score in scores])
        return Rated(*map(np.concatenate, zip(*rated)))


def _outline(examples: Sequence[dict], index: int) -> dict:
    """An example; of a data set without the pixels, which are decoded with the example."""
    return getattr(examples, "outline", examples.__getitem__)(index)


def _rate(task, params, frozen, batch, key):
    """(the fields of :class:`Rated`, which rows count) of a batch."""
    x_BMhwZ = task.latents(frozen, batch["images"])
    limit_BM = batch["noise_limit"]
    noised = losses.noise_images(key, batch["position"], x_BMhwZ, limit_BM, task.process)
    hidden_BLD, out_BMhwZ = task.apply(params, batch, noised)
    logits_BLV = task.model.apply({"params": params}, hidden_BLD, method="logits")
    nll_BL = token_nll(logits_BLV, batch["labels"])
    learned_BL = batch["labels"] != NO_LABEL
    error_BM, learned_BM = losses.image_errors(out_BMhwZ, x_BMhwZ, noised, limit_BM, task.process)
    mask = batch["_mask"]
    return nll_BL.sum(1), learned_BL.sum(1), error_BM, learned_BM, noised.t, mask


class Validation:
    """The losses on documents that the run did not learn, on fixed draws.

    Args:
      rater: of the task.
      name: of the split, before each score's.
      examples: the documents.
    """

    def __init__(self, rater: Rater, name: str, examples: Sequence[dict]):
        self.rater, self.name, self.examples = rater, name, examples
        self._count = min(len(examples), rater.task.config.eval.examples)

    def run(self, params, extra, frozen) -> Iterator[tuple[str, float]]:
        """Yields, each after the split's name and a slash:

        ``text_loss`` nats a token, and ``text_perplexity``, its exponential; where there are
        images, ``diffusion_loss``, the same by the time as ``diffusion_loss_t_<low>_<high>``, and
        ``conditioning_gap``, by how much it is higher, at the same noise, with another's text,
        where there is another.
        """
        del extra
        rated = self.rater.rate(params, frozen, self.examples, self._count)
        if tokens := rated.tokens.sum():
            text_loss = float(rated.nll.sum() / tokens)
            yield f"{self.name}/text_loss", text_loss
            yield f"{self.name}/text_perplexity", float(np.exp(text_loss))
        error, t = rated.error[rated.learned], rated.t[rated.learned]
        if not len(error):
            return
        yield f"{self.name}/diffusion_loss", float(error.mean())
        for low, high in itertools.pairwise(_BUCKETS):
            inside = (t >= low) & ((t < high) | (high == 1.0))
            if inside.any():
                name = f"diffusion_loss_t_{round(100 * low)}_{round(100 * high)}"
                yield f"{self.name}/{name}", float(error[inside].mean())
        shuffled = Shuffled(self.examples, self._count, self.rater.fits)
        changed = rated.learned & shuffled.changed()[:, None]
        if changed.any():
            others = self.rater.rate(params, frozen, shuffled)
            gap = (others.error - rated.error)[changed].mean()
            yield f"{self.name}/conditioning_gap", float(gap)


class Shuffled(Sequence):
    """The first ``count`` documents, each with the texts of another: of the one half of them away,
    or of the next whose texts are others and with which a row holds it.

    Args:
      examples: the documents.
      count: how many.
      fits: does a row hold a document?
    """

    def __init__(self, examples: Sequence[dict], count: int, fits: Callable[[dict], bool]):
        self._examples, self._count, self._fits = examples, count, fits

    def __len__(self) -> int:
        return self._count

    def outline(self, index: int) -> dict[str, Any]:
        """The document as it was: no text becomes an image."""
        return _outline(self._examples, index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        own, texts = parts_of(self._examples[index]), iter(self._texts(index) or ())
        return {"parts": [next(texts, part) if isinstance(part, str) else part for part in own]}

    def changed(self) -> np.ndarray:
        """Which documents say something else here, bool [count]: an only one, or one that fits with
        no other's texts, says what it did."""
        return np.array([self._texts(index) is not None for index in range(self._count)])

    def _texts(self, index: int) -> list[str] | None:
        """What a document says here in the places of its texts."""
        own = parts_of(self.outline(index))
        said = [part for part in own if isinstance(part, str)]
        for away in range(self._count):
            found = parts_of(self.outline((index + self._count // 2 + away) % self._count))
            others = [part for part in found if isinstance(part, str)]
            texts = list(itertools.islice(itertools.cycle(others), len(said)))
            if not others or texts == said:
                continue
            left = iter(texts)
            if self._fits({"parts": [next(left) if isinstance(p, str) else p for p in own]}):
                return texts
        return None


def evaluators(task, mesh) -> list[Validation]:
    """Of each split of ``config.eval.splits``, and of the texts that are mixed in and held out."""
    data, rater = task.config.data, Rater(task, mesh)
    kwargs = dict(needs_image=False, latents=data.get("latents", False))
    opened = [
        (split, open_source(data.source, split, data.data_dir, **kwargs))
        for split in task.config.eval.splits
    ]
    opened += [(f"{name}/{split}", source) for name, split, source in held_out_texts(data)]
    return [Validation(rater, name, examples) for name, examples in opened]


def held_out_texts(data) -> list[tuple[str, str, Any]]:
    """(name, split, documents) of each data set of texts in ``config.data.mix``.

    The split is "validation" or "test", whichever was not trained on; without one, none.
    """
    parts, found = open_mixture(data).parts, {}
    trained = {(part.info.name, part.split.partition("[")[0]) for part in parts}
    for part in parts:
        name = part.info.name
        if name in found or name == parts[0].info.name:
            continue
        if {"image", "parts"} & part.outline(0).keys():
            continue
        for split in _HELD_OUT:
            if split in part.info.splits and (name, split) not in trained:
                source = open_source(f"tfds:{name}", split, data.data_dir, needs_image=False)
                found[name] = (name, split, source)
                break
    return list(found.values())


def preview(task, params, extra, frozen, mesh) -> dict[str, np.ndarray]:
    """Pictures of fixed prompts and seed, uint8."""
    prompts = list(task.config.preview_prompts)
    if not prompts:
        return {}
    key = place(rngs.base_key(0), replicated(mesh))
    draw = task.sampler(mesh, task.options(images=1, text=0))
    image = np.asarray(draw(params, extra, frozen, task.prompts(prompts), key)["image"])
    image_u8 = to_uint8(finite(image))
    columns = min(8, len(prompts))
    rows = image_u8[: len(prompts) // columns * columns]
    return {"samples": tile(rows.reshape(-1, columns, *image_u8.shape[1:]))}
