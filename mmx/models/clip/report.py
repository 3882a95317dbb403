"""How good a CLIP is: retrieval on a split, and the report on a run.

Axis letters: N pairs, E joint width.
"""

from collections.abc import Iterator

import numpy as np

from mmx.core.progress import Progress
from mmx.data import pipeline
from mmx.data.source import open_source
from mmx.eval import ranking
from mmx.eval.grid import Section
from mmx.eval.report import MAX_EXAMPLES, Report, open_splits
from mmx.eval.stats import Score
from mmx.eval.tile import tile
from mmx.models.protocols import OpenRun
from mmx.train.sharding import batch_sharding, whole

_QUERIES, _NEAREST = 8, 7  # shown in a picture: ours
_AT_ONCE = 64  # ours: images or texts; of a split on each device


class ClipEmbedder:
    """A :class:`mmx.models.protocols.Embedder`.

    Args:
      task: a ClipTask.
      run: its run.
    """

    def __init__(self, task, run: OpenRun):
        self.task, self.run = task, run

    def images(self, images: list[np.ndarray]) -> np.ndarray:
        """uint8 [H, W, 3] each -> float32 [n, E] of length 1."""
        return self._in_batches("embed_image", np.stack([self.task.fit(i) for i in images]))

    def texts(self, texts: list[str], strict: bool = True) -> np.ndarray:
        """-> float32 [n, E] of length 1. Raises UserError for an empty or over-long text; where not
        strict, its tail is cut as in training."""
        return self._in_batches("embed_text", self.task.text_ids(texts, strict))

    def split(self, source, limit: int) -> tuple[np.ndarray, np.ndarray]:
        """(image embeddings [n, E], features [n, D]) of the first ``limit`` examples."""
        whats = "embed_image", "features"
        return embed_split(
            self.task, self.run.mesh, source, limit, self.run.params, self.run.extra, whats
        )

    def _in_batches(self, what: str, rows: np.ndarray) -> np.ndarray:
        embed, parts = self.task.embedder(self.run.mesh, what), []
        for start in range(0, len(rows), _AT_ONCE):
            part = rows[start : start + _AT_ONCE]
            missing = min(len(rows), _AT_ONCE) - len(part)  # one compiled shape
            full = np.concatenate([part, np.repeat(part[-1:], missing, 0)])
            parts.append(embed(self.run.params, self.run.extra, full)[: len(part)])
        return np.concatenate(parts)


class Retrieval:
    """Recall at 1, 5, 10 from images to captions and back, among the pairs of a split.

    Args:
      task, mesh: whose, where.
      split: of the config's data.
      limit: the first ones only; the smaller the gallery, the easier.
      source: of the split, where it is open already.
    """

    def __init__(self, task, mesh, split: str, limit: int, source=None):
        self.task, self.mesh, self.split, self.limit = task, mesh, split, limit
        data = task.config.data
        self.source = source or open_source(data.source, split, data.data_dir)

    def run(self, params, extra, frozen) -> Iterator[tuple[str, float]]:
        """Yields ``<split>/image_to_text_r1`` and so on."""
        del frozen
        for name, score in self.scores(params, extra)[0].items():
            if isinstance(score, Score):
                yield f"{self.split}/{name}", score.value

    def scores(self, params, extra):
        """(scores with 95 % intervals, image [N, E], text [N, E], captions)."""
        image_NE, text_NE = embed_split(
            self.task, self.mesh, self.source, self.limit, params, extra
        )
        captions = [self.source[i]["text"] for i in range(len(image_NE))]
        return ranking.retrieval(image_NE, text_NE, captions), image_NE, text_NE, captions


def embed_split(task, mesh, source, limit: int, params, extra, whats=("embed_image", "embed_text")):
    """What :meth:`ClipTask.embedder` gives of the first ``limit`` examples, each once and in order.

    Returns:
      a list of float32 [N, E or D], one for each of ``whats``.
    """
    embed = {what: task.embedder(mesh, what) for what in whats}
    found = {what: [] for what in whats}
    count = min(limit, len(source))
    rows = batch_sharding(mesh)
    ways = rows.num_devices // mesh.shape["tensor"]
    # Not the batch of training: a device may not hold its 32,768 rows, a split not fill them.
    size = ways * min(_AT_ONCE, -(-count // ways))
    progress = Progress(count, "embed", every=max(1, count // 4))
    with pipeline.eval_batches(source, task.plain, size, rows, limit=limit) as batches:
        for batch in batches:
            mask = whole(batch["_mask"], mesh)
            for what in whats:
                inputs = batch["text_ids" if what == "embed_text" else "image"]
                found[what].append(embed[what](params, extra, inputs)[mask])
            progress.update(sum(map(len, found[whats[0]])))
    progress.close()
    return [np.concatenate(found[what]) for what in whats]


def preview(task, params, extra, mesh) -> dict[str, np.ndarray]:
    """A row an example of the last split: its image, then the images nearest to its caption."""
    of = Retrieval(task, mesh, task.config.eval.splits[-1], task.config.eval.examples)
    image_NE, text_NE = embed_split(task, mesh, of.source, of.limit, params, extra)
    count = min(_QUERIES, len(image_NE))
    nearest = np.argsort(-text_NE[:count] @ image_NE.T, axis=1)[:, :_NEAREST]
    shown = lambda i: task.plain(of.source[int(i)])["image"]
    rows = [np.stack([shown(i), *map(shown, nearest[i])]) for i in range(count)]
    return {"nearest": tile(np.stack(rows))}


def report(task, run: OpenRun, seed: int) -> Report:
    """Retrieval on each split of the data set, and the images nearest to some captions.

    Args:
      task: a ClipTask.
      run: its run, whose weights are scored.
      seed: of the choice of captions.
    """
    splits, attribution = open_splits(task.config.data)
    held_out = next((s for s in reversed(task.config.eval.splits) if s in splits), "train")
    scores, sections = {}, []
    for split, examples in splits.items():
        of = Retrieval(task, run.mesh, split, MAX_EXAMPLES, examples)
        found, image_NE, text_NE, captions = of.scores(run.params, run.extra)
        scores |= {f"{split}/{name}": score for name, score in found.items()}
        if split == held_out:
            sections = _sections(examples, image_NE, text_NE, captions, seed)
    best = scores[f"{held_out}/text_to_image_r1"]
    return Report(
        scores,
        sections,
        subtitle=f"{held_out}: the right image is the nearest to a caption {best}; of {best.n}",
        credit=f"Images: {attribution}." if attribution else "",
        info={
            "settings": {},
            "prompts": [section.title for section in sections],
            "attribution": attribution,
        },
    )


def _sections(examples, image_NE, text_NE, captions, seed: int) -> list[Section]:
    """A row a caption: its own image, then the nearest ones with their cosines."""
    chosen = np.random.default_rng(seed).permutation(len(captions))[:_QUERIES]
    sections = []
    for query in map(int, chosen):
        cosine_N = image_NE @ text_NE[query]
        nearest = np.argsort(-cosine_N)[:_NEAREST]
        images = [examples[i]["image"] for i in (query, *map(int, nearest))]
        under = ["the one that is meant"]
        under += [f"{cosine_N[i]:.2f} {captions[i]}" for i in map(int, nearest)]
        sections.append(Section(np.stack(images), under, captions[query]))
    return sections
