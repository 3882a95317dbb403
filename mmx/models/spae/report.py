"""What a SPAE run keeps of images by its first layers, and what its words say of them.

A video is shown as a strip of some of its frames.
"""

import itertools
from collections.abc import Iterator

import numpy as np

from mmx.data import pipeline
from mmx.data.image import join_frames
from mmx.data.source import open_source
from mmx.eval import images as image_scores
from mmx.eval import stats
from mmx.eval.grid import Section
from mmx.eval.images import to_uint8
from mmx.eval.report import MAX_EXAMPLES, Report, trained_splits
from mmx.eval.stats import Score
from mmx.eval.tile import tile
from mmx.eval.word_meaning import JUDGE, meaning_scores
from mmx.models import rebuilding
from mmx.models.protocols import OpenRun
from mmx.ops.pyramid import Pyramid
from mmx.ops.quantize import usage_metrics
from mmx.pretrained.sentences import load_sentences
from mmx.train.sharding import batch_sharding, whole

_SHOWN = 8  # images in a picture: ours
_FRAMES = 4  # of a video in a strip: ours


class Rebuilding:
    """PSNR by the first 1 to P layers and use of words by layer, on a split without augmentation.

    Args:
      task, mesh: whose, where.
      split: of the config's data.
      limit: the first ones only.
    """

    def __init__(self, task, mesh, split: str, limit: int):
        self.task, self.mesh, self.split, self.limit = task, mesh, split, limit
        data = task.config.data
        self.source = open_source(data.source, split, data.data_dir)

    def run(self, params, extra, frozen) -> Iterator[tuple[str, float]]:
        """Yields ``<split>/psnr`` in dB, of all layers and the name that the log shows, and
        ``<split>/psnr_<layers>``; ``<split>/words`` (how many different ones),
        ``<split>/words_<layer>``, ``<split>/perplexity_<layer>``."""
        scores = self.scores(params, extra, frozen)[0]
        last = self.task.pyramid.num_layers
        yield f"{self.split}/psnr", scores[f"{self.split}/psnr_{last}"].value
        for name, score in scores.items():
            yield name, score.value if isinstance(score, Score) else score

    def scores(self, params, extra, frozen) -> tuple[dict[str, Score | float], np.ndarray]:
        """The same with 95 % intervals; words int32 [N, T] of the split's images, in order."""
        pyramid, read = self.task.pyramid, self.task.to_words(self.mesh)
        draw = self.task.from_words(self.mesh)
        psnr, seen = [[] for _ in pyramid.ends], []
        with pipeline.eval_batches(
            self.source,
            self._plain,
            self.task.config.batch_size,
            batch_sharding(self.mesh),
            limit=self.limit,
        ) as batches:
            for batch in batches:
                mask, image = (whole(batch[k], self.mesh) for k in ("_mask", "image"))
                words_BT = read(params, extra, frozen, image)
                for layer, end in enumerate(pyramid.ends):
                    recon = image_scores.finite(draw(params, extra, frozen, words_BT[:, :end]))
                    psnr[layer].append(image_scores.psnr(_tall(image), _tall(recon))[mask])
                seen.append(words_BT[mask])
        words_NT = np.concatenate(seen)
        scores: dict[str, Score | float] = {
            f"{self.split}/psnr_{layer + 1}": stats.mean(np.concatenate(parts))
            for layer, parts in enumerate(psnr)
        }
        scores[f"{self.split}/words"] = float(len(np.unique(words_NT)))
        first = 0
        for layer, end in enumerate(pyramid.ends):
            histogram = np.bincount(words_NT[:, first:end].ravel(), minlength=self.task.num_words)
            used = usage_metrics(histogram.astype(np.float32))["perplexity"]
            scores[f"{self.split}/words_{layer + 1}"] = float((histogram > 0).sum())
            scores[f"{self.split}/perplexity_{layer + 1}"] = float(used)
            first = end
        return scores, words_NT

    def _plain(self, example, rng):
        del rng
        return {"image": self.task.plain(example)}


def _tall(image: np.ndarray) -> np.ndarray:
    """[B, H, W, C]; the frames of a video below each other."""
    return image.reshape(len(image), -1, *image.shape[-2:])


def shown(pyramid: Pyramid, images: np.ndarray) -> np.ndarray:
    """Images as they are; videos [..., T, H, W, 3] as strips of some of their frames, the first and
    the last among them."""
    if not pyramid.frames:
        return images
    count = images.shape[-4]
    chosen = np.linspace(0, count - 1, min(count, _FRAMES)).round().astype(int)
    return join_frames(images[..., chosen, :, :, :])


def depths(task, mesh, params, extra, frozen, image_u8: np.ndarray):
    """Images by all numbers of layers: (words int32 [B, T], uint8 [P, B, H, W, 3])."""
    words_BT = task.to_words(mesh)(params, extra, frozen, image_u8)
    draw = task.from_words(mesh)
    drawn = [draw(params, extra, frozen, words_BT[:, :end]) for end in task.pyramid.ends]
    return words_BT, np.stack([to_uint8(image_scores.finite(x)) for x in drawn])


def preview(task, params, extra, frozen, mesh) -> dict[str, np.ndarray]:
    """Held-out images above what is left of them by 1 to P layers, uint8."""
    data = task.config.data
    source = open_source(data.source, task.config.eval.splits[-1], data.data_dir)
    count = min(_SHOWN, len(source))
    image_u8 = np.stack([task.plain(source[i]) for i in range(count)])
    _, recon_u8 = depths(task, mesh, params, extra, frozen, image_u8)
    return {"layers": tile(shown(task.pyramid, np.stack([image_u8, *recon_u8])))}


def pyramid_section(
    vocabulary, pyramid, image_HWC, words_T, recon_PHWC, title: str, most: int = 6
) -> Section:
    """An image and what is left of it by its layers, each above the words that it adds.

    Args:
      words_T: of the image.
      most: words of a layer that are written out.
    """
    captions, first = ["image"], 0
    for end in pyramid.ends:
        words = vocabulary.words(words_T[first:end])
        more = f" ... ({len(words)})" if len(words) > most else ""
        captions.append(" ".join(words[:most]) + more)
        first = end
    return Section(shown(pyramid, np.stack([image_HWC, *recon_PHWC])), captions, title)


def _examples_scored(data) -> int:
    """Examples of a split that are scored, by ``config.data``: videos of as many frames as there
    would be images."""
    return MAX_EXAMPLES // max(1, data.get("frames", 0))


def report(task, run: OpenRun, seed: int) -> Report:
    """Scores of each split, what its words say of the captions, and pyramids of held-out images.

    Args:
      task: a SpaeTask.
      run: its run.
      seed: of the choice of images.

    Raises:
      UserError: the judge of words is not prepared.
    """
    config, data = task.config, task.config.data
    judge = load_sentences(JUDGE, data.data_dir)
    strings = task.vocabulary.words(np.arange(task.num_words))
    meaning_VE, splits = judge.embed(strings), config.eval.splits
    scores: dict[str, Score | float] = {}
    for split in dict.fromkeys((*trained_splits(data.split), *splits)):
        of_split = Rebuilding(task, run.mesh, split, _examples_scored(data))
        more, words_NT = of_split.scores(run.params, run.extra, run.frozen)
        examples = list(itertools.islice(of_split.source.outlines(), len(words_NT)))
        captions = judge.embed([e["text"] for e in examples])
        groups = [e.get("concept", e["text"]) for e in examples]
        scores |= more | {
            f"{split}/{name}": score
            for name, score in meaning_scores(
                task.pyramid.ends, words_NT, meaning_VE, captions, groups
            ).items()
        }
    held_out = splits[-1]
    source = open_source(data.source, held_out, data.data_dir)
    chosen = np.random.default_rng(seed).permutation(len(source))[:_SHOWN]
    image_u8 = np.stack([task.plain(source[int(i)]) for i in chosen])
    words_BT, recon_u8 = depths(task, run.mesh, run.params, run.extra, run.frozen, image_u8)
    texts = [source[int(i)]["text"] for i in chosen]
    sections = [
        pyramid_section(
            task.vocabulary, task.pyramid, image_u8[i], words_BT[i], recon_u8[:, i], texts[i]
        )
        for i in range(len(chosen))
    ]
    last, attribution = task.pyramid.num_layers, source.info.attribution
    subtitle = f"PSNR on {held_out} by {last} layers {scores[f'{held_out}/psnr_{last}']} dB"
    if meaning := scores.get(f"{held_out}/meaning_{min(2, last)}"):
        subtitle += (
            f"; the words of the first layers are nearer to their captions than to others' by "
            f"{meaning} ({JUDGE})"
        )
    return Report(
        scores,
        sections,
        subtitle=subtitle,
        credit=f"Images and what is left of them: {attribution}." if attribution else "",
        info={"settings": {}, "prompts": texts, "attribution": attribution},
        measured=lambda: rebuilding.measured(task, run, seed),
    )
