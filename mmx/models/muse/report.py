"""How good a Muse run is: its validation loss while it trains, and the report on it after."""

import itertools
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np

from mmx.core import rng as rngs
from mmx.core.progress import Progress
from mmx.data import pipeline
from mmx.data.image import fit
from mmx.data.source import open_source
from mmx.eval import scenes, text_to_image
from mmx.eval.evaluator import Batch
from mmx.eval.report import Report, are_scenes, asked_split, open_splits
from mmx.models.muse import loss as losses
from mmx.models.protocols import OpenRun
from mmx.models.rows import fill_rows
from mmx.ops import masking
from mmx.train.sharding import batch_sharding, jit_sharded, place, replicated

_EVAL_SEED = 20230102  # of the fixed masks of validation: ours
_BUCKETS = (0.0, 0.25, 0.5, 0.75, 1.0)
_DRAWN_AT_ONCE = 64  # ours


class ValidationLoss:
    """Cross entropy at hidden codes of a split, with fixed masks, whole and by mask rate.

    Args:
      task, mesh: whose, where.
      split: of the config's data.
    """

    def __init__(self, task, mesh, split: str):
        self.task, self.mesh, self.split = task, mesh, split
        data = task.config.data
        self.source = open_source(data.source, split, data.data_dir)

        def fn(params, frozen, batch, key):
            codes_BS = task.codes(frozen, batch["image"])
            rate_B = masking.sample_mask_rate(rngs.row_keys(key, "mask_rate", batch["position"]))
            ids_BS, is_masked_BS = losses.hide_at(
                key, batch["position"], codes_BS, task.mask_id, rate_B
            )
            logits_BSV = task.logits(params, ids_BS, losses.text_of(batch), batch["text_mask"])
            loss_B, _ = masking.masked_cross_entropy(logits_BSV, codes_BS, is_masked_BS)
            return rate_B, loss_B, batch["_mask"]

        self._fn = jit_sharded(fn, mesh, out_shardings=replicated(mesh))
        self._key = place(rngs.base_key(_EVAL_SEED), replicated(mesh))

    def run(self, params, extra, frozen) -> Iterator[tuple[str, float]]:
        """Yields ``<split>/loss`` and ``<split>/loss_mask_<low>_<high>`` in nats."""
        del extra
        rates, all_losses = [], []
        with pipeline.eval_batches(
            self.source,
            self._plain,
            self.task.config.batch_size,
            batch_sharding(self.mesh),
            limit=self.task.config.eval.examples,
        ) as batches:
            for batch in batches:
                rate, loss, mask = map(np.asarray, self._fn(params, frozen, batch, self._key))
                rates.append(rate[mask])
                all_losses.append(loss[mask])
        rate, loss = np.concatenate(rates), np.concatenate(all_losses)
        yield f"{self.split}/loss", float(loss.mean())
        for low, high in itertools.pairwise(_BUCKETS):
            inside = (rate >= low) & ((rate < high) | (high == 1.0))
            if inside.any():
                name = f"{self.split}/loss_mask_{round(100 * low)}_{round(100 * high)}"
                yield name, float(loss[inside].mean())

    def _plain(self, example, rng):
        del rng
        text_ids, text_mask = self.task.tokenizer.encode(
            [example["text"]], self.task.config.text.max_len
        )
        image = fit(example["image"], self.task.config.data.image_size)
        return {"image": image, "text_ids": text_ids[0], "text_mask": text_mask[0]}


def report(task, run: OpenRun, seed: int) -> Report:
    """Scores of :mod:`mmx.eval.text_to_image` and its picture, with the run's own options.

    Of a run on scenes, those of :mod:`mmx.eval.scenes`: there a caption has many pictures, so
    whether the nearest picture is the captioned one says little, and the factors say more.

    Args:
      task: a MuseTask.
      run: its run, whose weights are scored.
      seed: of the choice of captions and of the drawing.
    """
    splits, attribution = open_splits(task.config.data)
    model = _model(task, run)
    if are_scenes(task.config.data.source):
        scores, sections, rows = scenes.report(model, splits, seed)
        first = next(split for split in splits if split != "train")
        subtitle = f"{first} captions with all factors right {scores[f'{first}/all']}"
    else:
        scores, sections, rows = text_to_image.report(model, splits, seed)
        subtitle = f"training caption recall R@1 {scores['training_caption_recall/r1']}"
    return Report(
        scores,
        sections,
        subtitle=subtitle,
        credit=f"Drawn by a model trained on {attribution}." if attribution else "",
        info={
            "settings": asdict(task.options()),
            "prompts": [caption for section in sections for caption in section.captions],
            "attribution": attribution,
        },
        measured=rows,
    )


def measured(task, run: OpenRun, seed: int) -> Iterator[Batch]:
    """The rows that the metrics of ``config.eval.metrics`` are of, those of :func:`report`."""
    splits, _ = open_splits(task.config.data)
    asked = splits[asked_split(task.config, list(splits))]
    of = scenes if are_scenes(task.config.data.source) else text_to_image
    return of.measured(_model(task, run), asked, seed)


def _model(task, run: OpenRun) -> text_to_image.Model:
    """The run as functions of arrays on the host."""
    options, codec, mesh = task.options(), run.frozen["codec"], run.mesh
    encode = jit_sharded(lambda w, x: task.codes({"codec": w}, x), mesh)
    decode = jit_sharded(lambda w, c: task.decode({"codec": w}, c), mesh)

    size = min(task.config.batch_size, _DRAWN_AT_ONCE)

    def in_batches(fn, array):
        parts = []
        for start in range(0, len(array), size):
            part = array[start : start + size]
            full = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
            out = fn(codec, fill_rows(full, mesh)[0])
            parts.append(np.asarray(out)[: len(part)])
        return np.concatenate(parts)

    def reconstruct(image_u8):
        codes = in_batches(encode, image_u8)
        return in_batches(decode, codes), codes

    def draw(captions, seed):
        progress = Progress(len(captions), "draw")
        parts = []
        for part in run.draw_batches(captions, "", options, seed, batch_size=_DRAWN_AT_ONCE):
            parts.append(part)
            progress.update(sum(len(p["image"]) for p in parts))
        progress.close()
        return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}

    return text_to_image.Model(
        draw=draw,
        reconstruct=reconstruct,
        decode=lambda codes: in_batches(decode, codes),
        num_codes=task.codec.num_codes,
        grid=task.grid,
        batch_size=size,
    )
