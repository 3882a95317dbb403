"""How good an image tokenizer is: scores of a split, and the report on a run."""

from collections.abc import Iterator

import jax
import numpy as np

from mmx.data import pipeline
from mmx.data.image import fit
from mmx.data.source import open_source
from mmx.eval import images as image_scores
from mmx.eval import stats
from mmx.eval.grid import Section
from mmx.eval.report import MAX_EXAMPLES, Report, trained_splits
from mmx.eval.stats import Score
from mmx.models import rebuilding
from mmx.models.protocols import OpenRun
from mmx.train.sharding import batch_sharding, whole

_SHOWN, _COLUMNS = 24, 8


class Reconstruction:
    """PSNR and codebook use, or KL and spread of the latents, on a split without augmentation.

    Args:
      task, mesh: whose, where.
      split: of the config's data.
      limit: the first ones only.
    """

    def __init__(self, task, mesh, split: str, limit: int):
        self.task, self.mesh, self.split, self.limit = task, mesh, split, limit
        data = task.config.data
        self.source = open_source(data.source, split, data.data_dir)
        self._reconstruct = task.reconstruct(mesh)

    def run(self, params, extra, frozen) -> Iterator[tuple[str, float]]:
        """Yields ``<split>/psnr`` in dB, ``<split>/codebook_use``, ``.../codebook_perplexity``.

        Where latents are continuous, instead of the codebook's: ``<split>/kl`` in nats a number,
        and `mmx.eval.images.latent_spread` of the normalised latents.
        """
        del frozen
        for name, score in self.scores(params, extra).items():
            yield name, score.value

    def scores(self, params, extra) -> dict[str, Score]:
        """The same with 95 % intervals."""
        psnr, seen = [], []
        with pipeline.eval_batches(
            self.source,
            self._plain,
            self.task.config.batch_size,
            batch_sharding(self.mesh),
            limit=self.limit,
        ) as batches:
            for batch in batches:
                recon, coded = self._reconstruct(params, extra, batch["image"])
                mask, image = (whole(batch[k], self.mesh) for k in ("_mask", "image"))
                # A broken model scores badly: it does not stop what scores the next checkpoint.
                recon = image_scores.finite(np.asarray(recon))
                psnr.append(image_scores.psnr(image, recon)[mask])
                seen.append(_summed_up(jax.tree.map(lambda x, m=mask: np.asarray(x)[m], coded)))
        seen = jax.tree.map(lambda *parts: np.concatenate(parts), *seen)
        if isinstance(seen, dict):
            scores = image_scores.latent_spread(seen["mean"], seen["square"])
            scores = {"kl": stats.mean(seen["kl"]), **scores}
        else:
            use, perplexity = image_scores.codebook_use(seen, self.task.codec.num_codes)
            scores = {"codebook_use": use, "codebook_perplexity": perplexity}
        scores = {"psnr": stats.mean(np.concatenate(psnr)), **scores}
        return {f"{self.split}/{name}": score for name, score in scores.items()}

    def _plain(self, example, rng):
        del rng
        return {"image": fit(example["image"], self.task.config.data.image_size)}


def _summed_up(coded):
    """Codes as they are; of continuous latents, each image's KL and moments by channel, [B, Z]."""
    if not isinstance(coded, dict):
        return coded
    z_BhwZ = image_scores.finite(coded["z"]).astype(np.float64)
    return {
        "kl": np.nan_to_num(coded["kl"].astype(np.float64)),
        "mean": z_BhwZ.mean((1, 2)),
        "square": np.square(z_BhwZ).mean((1, 2)),
    }


def report(task, run: OpenRun, seed: int) -> Report:
    """The scores of each split, and held-out images beside what is left of them.

    Args:
      task: a VqganTask.
      run: its run, whose weights are scored.
      seed: of the choice of images.
    """
    data, splits = task.config.data, task.config.eval.splits
    held_out = splits[-1]
    scores: dict[str, Score | float] = {}
    for split in dict.fromkeys((*trained_splits(data.split), *splits)):
        evaluator = Reconstruction(task, run.mesh, split, MAX_EXAMPLES)
        scores |= evaluator.scores(run.params, run.extra)
    source = open_source(data.source, held_out, data.data_dir)
    chosen = np.random.default_rng(seed).permutation(len(source))[:_SHOWN]
    image_u8 = np.stack([fit(source[int(i)]["image"], data.image_size) for i in chosen])
    captions = [source[int(i)]["text"] for i in chosen]
    recon, _ = task.reconstruct(run.mesh)(run.params, run.extra, image_u8)
    recon = image_scores.finite(np.asarray(recon))
    sections = []
    for start in range(0, len(chosen), _COLUMNS):
        row = slice(start, start + _COLUMNS)
        sections.append(Section(image_u8[row], captions[row], "" if start else "Held-out images"))
        sections.append(Section(recon[row], ["as rebuilt"] * len(captions[row])))
    attribution = source.info.attribution
    return Report(
        scores,
        sections,
        subtitle=f"PSNR on {held_out} {scores[f'{held_out}/psnr']} dB",
        credit=f"Images and their reconstructions: {attribution}." if attribution else "",
        info={"settings": {}, "prompts": captions, "attribution": attribution},
        measured=lambda: rebuilding.measured(task, run, seed),
    )
