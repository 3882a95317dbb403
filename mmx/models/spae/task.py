"""SPAE as a task: images become words of a frozen language model, and words images; videos too.

Of a run of videos, `config.data.frames`, read [B, frames, H, W, 3] for [B, H, W, 3].
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmx.core import rng as rngs
from mmx.core.errors import UserError
from mmx.data.image import fit, fit_video, shift_flip
from mmx.eval.metrics import check_config as check_metrics
from mmx.eval.report import taught_by
from mmx.models import rebuilding
from mmx.models.flops import train_flops_per_row
from mmx.models.image_loss import ImageLosses
from mmx.models.rows import fill_rows, to_float
from mmx.models.spae import loss as losses
from mmx.models.spae import report as reports
from mmx.models.spae.codec import SpaeCodec
from mmx.models.teachers import make_teacher
from mmx.models.words import keep_words, table_width
from mmx.nn.linear import round_up
from mmx.ops.lookup import TABLE_AXES
from mmx.ops.losses import psnr
from mmx.ops.word_guidance import dynamic_weight
from mmx.train.sharding import frozen_shardings, jit_sharded, place, replicated


class SpaeTask:
    """Contract 1 for SPAE. Frozen weights: ``{"table": words' rows, "words": the teacher's features
    of them, "teacher": its weights, "perceptual": ...}``.

    Args:
      config: of the family ``spae``.
      run: the run directory, where words and the teacher's features are kept.
      abstract: shapes only, for preflight: there are ``config.words.size`` words.

    Raises:
      UserError: no such language model or teacher, sizes that do not fit, an unknown choice, an
        average of parameters beside standardised latents.

    Attributes:
      vocabulary: the words, `mmx.data.vocabulary.Vocabulary`; None where ``abstract``.
      pyramid: `mmx.ops.pyramid.Pyramid`.
    """

    family = "spae"
    batch_coupled = True  # the weight of the guidance is a ratio of the batch's losses

    def __init__(self, config, run, abstract: bool = False):
        self.config = config
        if config.optim.ema and config.pyramid.standardize:
            raise UserError(
                f"config.optim.ema={config.optim.ema}: the moments by which latents are "
                "standardised are those of the weights as they are trained, not of their average; "
                "use 0, or --noconfig.pyramid.standardize"
            )
        check_metrics(config.eval.metrics, config.eval.scorer, taught_by(config))
        self.codec = SpaeCodec(config)
        if self.codec.pyramid.frames:
            _check_video(config)
        self.pyramid = self.codec.pyramid
        width = table_width(config.words)
        if abstract:
            self.vocabulary, self.num_words = None, config.words.size
            table_VW = jax.ShapeDtypeStruct((round_up(self.num_words), width), jnp.float32)
        else:
            self.vocabulary, table_VW = keep_words(config, run)
            self.num_words = len(self.vocabulary)
            missing = round_up(self.num_words) - self.num_words
            table_VW = np.pad(table_VW, ((0, missing), (0, 0)))
        self._table = table_VW
        self.teacher = None
        if config.guidance.weight:
            losses.check_guidance(config.guidance, self.pyramid)
            strings = None if abstract else self.vocabulary.words(np.arange(self.num_words))
            self.teacher = make_teacher(config, None if abstract else run, strings)
        self._abstract = abstract
        self.losses = ImageLosses(config, run, abstract)
        self._compiled: dict = {}

    # Data

    def transform(self, example: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """example -> image uint8 [H, W, 3], augmented, and what the teacher reads. Videos are not
        augmented."""
        data, image = self.config.data, self.plain(example)
        if not self.pyramid.frames:
            image = shift_flip(image, rng, data.shift, data.flip)
        row = {"image": image}
        return row if self.teacher is None else row | self.teacher.row(example)

    def plain(self, example: dict) -> np.ndarray:
        """uint8 [H, W, 3] of an example, of the run's size.

        Raises:
          UserError: an image where videos are asked for, or a video of other frames.
        """
        image, frames = example["image"], self.codec.image_shape[:-3]
        if image.shape[:-3] != frames:
            raise UserError(
                f"config.data.frames={frames[0] if frames else 0}: {self.config.data.source} gives "
                f"an array of the shape {image.shape}"
            )
        return (fit_video if frames else fit)(image, self.config.data.image_size)

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Of the rows of :meth:`transform` and their positions in the stream, uint32 [B]."""
        B = self.config.batch_size
        spec = {
            "image": jax.ShapeDtypeStruct((B, *self.codec.image_shape), jnp.uint8),
            "position": jax.ShapeDtypeStruct((B,), jnp.uint32),
        }
        more = {} if self.teacher is None else self.teacher.row_spec()
        return spec | {k: jax.ShapeDtypeStruct((B, *s.shape), s.dtype) for k, s in more.items()}

    # Parameters

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """(params, extra), every leaf logically named."""
        params, extra = self.codec.init(key)
        more_params, more_extra = self.losses.init(key)
        return params | more_params, extra | more_extra

    def abstract_frozen(self) -> Any:
        """Shapes of :meth:`load_frozen`; the table's rows may lie over devices."""
        shape = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        frozen = jax.tree.map(shape, self._frozen_host())
        return frozen | {"table": nn.LogicallyPartitioned(frozen["table"], TABLE_AXES)}

    def load_frozen(self, mesh) -> Any:
        """Table, the teacher's features and weights, the perceptual network's, on the mesh."""
        table = frozen_shardings(self.abstract_frozen(), mesh)["table"]
        frozen = self._frozen_host()
        rest = {name: leaf for name, leaf in frozen.items() if name != "table"}
        return place(rest, replicated(mesh)) | {"table": place(frozen["table"], table)}

    def _frozen_host(self) -> Any:
        frozen = {"table": self._table, **self.losses.frozen()}
        if self.teacher is None:
            return frozen
        if self._abstract:
            features = jax.ShapeDtypeStruct((self.num_words, self.teacher.width), jnp.float32)
        else:
            features = self.teacher.words()
        return frozen | {"words": features, "teacher": self.teacher.frozen()}

    def param_labels(self, params: Any) -> Any:
        """One optimiser group a player."""
        return self.losses.param_labels(params)

    # Training

    def loss(self, params, extra, frozen, batch, rng, step, train=True):
        """(scalar, (metrics, extra)): appearance, guidance as heavy as it, both players' own.

        The weight of the guidance is by the appearance without the adversarial term, which may be
        negative (ours: the paper, as recalled, has it in). Source: arXiv 2306.17842.
        """
        of = self.config
        image = to_float(batch["image"])
        keys_B = rngs.row_keys(rng, "layers", batch["position"]) if train else None
        out = self.codec.forward(params, extra, frozen["table"], self.num_words, image, keys_B)
        # Frames are images to the perceptual network and the discriminator.
        true, recon = (x.reshape(-1, *x.shape[-3:]) for x in (image, out.recon_BHWC))
        appearance, metrics = self.losses.reconstruction(frozen, true, recon)
        appearance += of.pyramid.commitment * out.commitment
        metrics["loss/commitment"] = out.commitment
        players = self.losses.players(params, out.extra, true, recon, step, train)
        total = appearance + players.generator + players.discriminator
        metrics |= players.metrics | losses.use_of_words(
            self.pyramid, out.words.words_BT, self.num_words
        )
        if self.codec.projected:
            total += out.codebook
            metrics["loss/codebook"] = out.codebook
        if self.teacher is not None:
            image_BE = self.teacher.images(frozen["teacher"], batch, image)
            # A pool's edge is a hundredth of the span: bfloat16 products would move it.
            similarity_BV = jnp.matmul(
                jax.lax.stop_gradient(image_BE), frozen["words"].T, precision="highest"
            )
            pool_keys_B = rngs.row_keys(rng, "pool", batch["position"])
            semantic, more = losses.guidance(
                of.guidance, self.pyramid, out.words, out.table_VZ, similarity_BV, pool_keys_B
            )
            weight = of.guidance.weight * dynamic_weight(appearance, semantic)
            total += weight * semantic
            metrics |= more | {"loss/guidance": semantic, "guidance/weight": weight}
        metrics["psnr"] = psnr(jnp.clip(out.recon_BHWC, -1, 1), image).mean()
        return total, (metrics, players.extra)

    def train_flops_per_row(self) -> float:
        """:func:`mmx.models.flops.train_flops_per_row`."""
        return train_flops_per_row(self)

    # Looking

    def to_words(self, mesh):
        """``(params, extra, frozen, image_u8 [B, H, W, 3]) -> words int32 [B, T]``, compiled: rows
        of the vocabulary, layer by layer; any B."""
        fn = lambda params, extra, frozen, image_u8: self.codec.to_words(
            params, extra, frozen["table"], self.num_words, to_float(image_u8)
        )
        return self._compile("to_words", fn, mesh)

    def from_words(self, mesh):
        """``(params, extra, frozen, words int32 [B, T]) -> float32 [B, H, W, 3]``, about [-1, 1],
        compiled; words of whole layers; any B. Raises UserError where a layer is not whole."""
        fn = lambda params, extra, frozen, words: self.codec.from_words(
            params, frozen["table"], self.num_words, words
        )
        return self._compile("from_words", fn, mesh)

    def _compile(self, name: str, fn, mesh):
        if (name, mesh) in self._compiled:
            return self._compiled[name, mesh]
        compiled = jit_sharded(fn, mesh, out_shardings=replicated(mesh))

        def run(params, extra, frozen, rows):
            rows, count = fill_rows(np.asarray(rows), mesh)
            return np.asarray(compiled(params, extra, frozen, rows))[:count]

        self._compiled[name, mesh] = run
        return run

    def depths(self, mesh, params, extra, frozen, image_u8) -> tuple[np.ndarray, np.ndarray]:
        """:func:`mmx.models.spae.report.depths`."""
        return reports.depths(self, mesh, params, extra, frozen, image_u8)

    def pyramid_section(self, image_HWC, words_T, recon_PHWC, title: str):
        """:func:`mmx.models.spae.report.pyramid_section`."""
        return reports.pyramid_section(
            self.vocabulary, self.pyramid, image_HWC, words_T, recon_PHWC, title
        )

    def evaluators(self, mesh) -> list:
        """PSNR by layers and use of words, of each split that the config names."""
        of = self.config.eval
        return [reports.Rebuilding(self, mesh, split, of.examples) for split in of.splits]

    def preview(self, params, extra, frozen, mesh) -> dict[str, np.ndarray]:
        """Held-out images above what is left of them by 1 to P layers, uint8."""
        return reports.preview(self, params, extra, frozen, mesh)

    def report(self, run, seed: int):
        """:func:`mmx.models.spae.report.report`."""
        return reports.report(self, run, seed)

    def measured(self, run, seed: int):
        """:func:`mmx.models.rebuilding.measured`."""
        return rebuilding.measured(self, run, seed)

    def rebuild(self, run, image_u8: np.ndarray) -> np.ndarray:
        """uint8 [B, H, W, 3] -> float32 [B, H, W, 3], about [-1, 1], by all words."""
        weights = run.params, run.extra, run.frozen
        words_BT = self.to_words(run.mesh)(*weights, image_u8)
        return self.from_words(run.mesh)(*weights, words_BT)

    def options(self, **changes):
        """SPAE draws from words, not from prompts.

        Raises:
          UserError: always.
        """
        raise UserError(
            "this run draws from words, not from a prompt: mmx sample RUN --words FILE (words as "
            "mmx describe RUN IMAGE --words FILE writes them)"
        )


def _check_video(config) -> None:
    """Raises UserError: a choice that is for images alone."""
    if config.data.shift or config.data.flip:
        raise UserError(
            f"config.data.shift={config.data.shift}, flip={config.data.flip}: videos are not "
            "augmented; leave them 0 and False"
        )
    if config.guidance.weight and config.guidance.teacher != "captions":
        raise UserError(
            f"config.guidance.teacher={config.guidance.teacher!r} looks at images; of videos use "
            "'captions'"
        )
    if config.eval.metrics:
        raise UserError(
            f"config.eval.metrics={tuple(config.eval.metrics)}: of images; of videos leave it ()"
        )
