"""Images beside what a run gives back of them: the rows that metrics of a tokenizer are of."""

from collections.abc import Iterator

import numpy as np

from mmx.core.errors import UserError
from mmx.core.progress import Progress
from mmx.data.source import open_source
from mmx.eval import images as image_scores
from mmx.eval.evaluator import Batch
from mmx.eval.report import Examples, asked_split
from mmx.models.protocols import OpenRun, RebuildingTask


def measured(task: RebuildingTask, run: OpenRun, seed: int) -> Iterator[Batch]:
    """The rows that the metrics of ``config.eval.metrics`` are of: of the last split of
    ``config.eval.splits`` one half, rebuilt, its originals, and the originals of the other half.

    A distance is so to other images than those that were rebuilt, as with what a model draws: what
    papers call rFID is to the same ones, and smaller.

    Args:
      task: that rebuilds.
      run: its run.
      seed: of the halves.
    Raises UserError: a split of one image.
    """
    data = task.config.data
    source = open_source(data.source, asked_split(task.config, ()), data.data_dir)
    examples = Examples(source, data.image_size)
    half = len(examples) // 2
    if not half:
        raise UserError(
            f"config.eval.metrics: one half of {task.config.eval.splits[-1]} is compared with the "
            f"other, and it has {len(examples)} image"
        )
    order = np.random.default_rng(seed).permutation(len(examples))
    load = lambda which: [examples[int(i)] for i in which]
    images = lambda of: np.stack([example["image"] for example in of])
    size = task.config.batch_size
    progress = Progress(half, "rebuild", every=max(1, half // 4))
    for start in range(0, half, size):
        rows = slice(start, min(start + size, half))
        true = load(order[:half][rows])
        real = images(true)
        # One compiled shape.
        full = np.concatenate([real, np.repeat(real[-1:], min(size, half) - len(real), axis=0)])
        recon = task.rebuild(run, full)
        progress.update(rows.stop)
        yield {
            "image": image_scores.finite(recon[: len(real)]),
            "real": real,
            "reference": images(load(order[half : 2 * half][rows])),
            "text": [example["text"] for example in true],
        }
    progress.close()
