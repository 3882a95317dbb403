"""What is known of a family without importing it: its task, its codec, its text encoder.

The loop and the verbs of ``mmx`` know a :class:`Task`, a :class:`DrawingTask` where they draw, an
:class:`EmbeddingTask` where they compare images with texts. A family that needs an earlier stage
takes any object of :class:`Codec`, or of :class:`LatentCodec`; `registry` finds which.
Axis letters: B batch, R decoding steps, S image codes, h w latent grid, H W pixels, T text tokens,
D width, Z latent width.
"""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np


class OpenRun(Protocol):
    """A trained run, on the devices: what a task needs to report on one (`mmx.cli.run.Run`).

    Attributes:
      params, extra, frozen: weights; params are the averaged ones where the run averages.
      mesh: that they lie on.
    """

    params: Any
    extra: Any
    frozen: Any
    mesh: Any

    def draw_batches(
        self, prompts: list[str], negative: str, options: Any, seed: int, *, batch_size: int
    ) -> Iterator[dict[str, np.ndarray]]:
        """What :meth:`DrawingTask.sampler` gives, on the host."""
        ...

    def generate_batches(
        self, documents: list[list], draw: bool, options: Any, seed: int, *, batch_size: int
    ) -> Iterator[list[list]]:
        """Of a :class:`WritingTask`: the parts that follow each document, images as uint8."""
        ...


@runtime_checkable
class Task(Protocol):
    """Contract 1: all that the loop and the verbs know of a family. Built from (config, run).

    Built with ``abstract=True`` and no run, for preflight, it knows shapes alone: neither data nor
    weights are read.

    Attributes:
      family: its name in the registry.
      config: of the run.
      batch_coupled: rows of a batch see each other (batch entropy, an EMA codebook), so gradients
        cannot be accumulated.
    """

    family: str
    config: Any
    batch_coupled: bool

    def transform(self, example: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """An example of the data -> a row of the batch."""
        ...

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Name -> global shape and dtype of a batch of rows."""
        ...

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """(params, extra), every leaf logically named; extra changes without gradients."""
        ...

    def abstract_frozen(self) -> Any:
        """Shapes of :meth:`load_frozen`; a leaf that carries logical names is sharded by them."""
        ...

    def load_frozen(self, mesh: Any) -> Any:
        """Weights of earlier stages on the mesh, each whole on every device unless
        :meth:`abstract_frozen` names its axes. Raises UserError when damaged."""
        ...

    def param_labels(self, params: Any) -> Any:
        """Group of each parameter, for optimiser, clipping, decay and average."""
        ...

    def loss(self, params, extra, frozen, batch, rng, step, train=True) -> tuple[jax.Array, tuple]:
        """(scalar, (metrics, extra)). Pure."""
        ...

    def train_flops_per_row(self) -> float:
        """Model FLOPs of one row's forward and backward pass: three times the forward pass of
        what is trained, without frozen codecs, products of pairs or what is computed anew; but of
        an image autoencoder all products of the loss and its gradient, so of discriminator and
        frozen networks too. Of a task whose rows hold several documents it takes
        ``images: float``, how many the plan of the rows has at the mean."""
        ...

    def evaluators(self, mesh: Any) -> list:
        """For the loop: objects with ``run(params, extra, frozen)`` that yields (name, float)."""
        ...

    def preview(self, params, extra, frozen, mesh: Any) -> dict[str, np.ndarray]:
        """Name -> uint8 picture [H, W, 3] for TensorBoard, at a fixed seed."""
        ...

    def report(self, run: OpenRun, seed: int) -> Any:
        """A `mmx.eval.report.Report`: scores with intervals and the sections of a picture."""
        ...

    def options(self, **changes: Any) -> Any:
        """The run's sampling options, a frozen dataclass, with the changes that are not None.

        Raises:
          UserError: a value out of range, or a family that draws nothing from prompts.
        """
        ...


class MeasuredTask(Task, Protocol):
    """A task whose pictures ``config.eval.metrics`` measure: it draws them, or rebuilds them."""

    def measured(self, run: OpenRun, seed: int) -> Iterator[dict[str, Any]]:
        """The rows of `mmx.eval.evaluator.Evaluator`, the same as its report computes them."""
        ...


class DrawingTask(MeasuredTask, Protocol):
    """A task whose :meth:`options` does not refuse: it draws pictures from prompts."""

    def prompt_spec(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Name -> shape and dtype of what :meth:`prompts` gives for ``count`` texts."""
        ...

    def prompts(self, texts: list[str], negative: str, first_index: int) -> dict[str, np.ndarray]:
        """A prompt batch. Raises UserError for an empty or over-long prompt."""
        ...

    def sampler(self, mesh: Any, options: Any):
        """``(params, extra, frozen, prompt batch, key) -> {name: array, its rows first}``.

        "image" float32 [B, H, W, 3] is always among them; where codes are drawn "codes" int32
        [B, S], and "trace" int32 [B, R, S], what they were after each step.
        """
        ...


class WritingTask(DrawingTask, Protocol):
    """A task whose runs go on with documents of texts and images, by texts and images."""

    def prompt_rows(
        self, documents: list[list], draw: bool, first_index: int
    ) -> dict[str, np.ndarray]:
        """A prompt batch.

        Args:
          documents: parts of each: texts, and images uint8 [H, W, 3] of any size.
          draw: each goes on with an image.
          first_index: which sample the first is.

        Raises:
          UserError: a part that is neither, a text that is empty or too long, more parts or images
            than fit, or a run that cannot draw and is to.
        """
        ...

    def parts(self, row: dict[str, np.ndarray]) -> list:
        """What followed a prompt, of one row of :meth:`sampler`'s: texts and images in [-1, 1]."""
        ...


class PublishedWeights(Protocol):
    """What `mmx import` makes a run of. Built from a folder or an id of the hub."""

    def config(self) -> Any:
        """The run's config: a recipe of the family with the sizes that the weights have."""
        ...

    def tokenizer_json(self) -> str:
        """The run's tokenizer.json. Raises UserError when there is none that fits."""
        ...

    def read(self, params: Any, extra: Any) -> tuple[Any, Any]:
        """(params, extra) of these shapes, laid out by their shardings where they have some.

        Raises:
          UserError: tensors that do not fit, all of them listed.
        """
        ...


class Embedder(Protocol):
    """Images and texts to one space, with the weights of a run: what CLIP is to other families."""

    def images(self, images: list[np.ndarray]) -> np.ndarray:
        """uint8 [H, W, 3] each, of any size -> float32 [n, E] of length 1."""
        ...

    def texts(self, texts: list[str], strict: bool = True) -> np.ndarray:
        """-> float32 [n, E] of length 1. Raises UserError for an empty or over-long text; where not
        strict, its tail is cut as in training."""
        ...

    def split(self, source: Any, limit: int) -> tuple[np.ndarray, np.ndarray]:
        """The first examples of a split, in order: (float32 [n, E] of length 1, features [n, D])
        of their images; features are what a linear probe reads."""
        ...


class EmbeddingTask(Task, Protocol):
    """A task whose runs embed images and texts."""

    def embedding(self, run: OpenRun) -> Embedder:
        """The run's weights as functions of arrays on the host."""
        ...

    def embed_images(self, weights: Any, image_BHWC: jax.Array) -> jax.Array:
        """float32 [B, H, W, 3] in [-1, 1], of any size -> float32 [B, E] of length 1. Pure, for the
        loss of another family; weights are those of :meth:`image_weights`."""
        ...

    def image_weights(self, weights: Any) -> Any:
        """Of a run's weights, ``{"params", "extra"}``, those that embed images."""
        ...


class RebuildingTask(MeasuredTask, Protocol):
    """A task whose runs give images back, as an image tokenizer's do."""

    def rebuild(self, run: OpenRun, image_u8: np.ndarray) -> np.ndarray:
        """uint8 [B, H, W, 3] -> float32 [B, H, W, 3], about [-1, 1], all that the run keeps."""
        ...


class WordsTask(RebuildingTask, Protocol):
    """A task of images that become words of a frozen language model, and of words drawn.

    Attributes:
      vocabulary: the words, a `mmx.data.vocabulary.Vocabulary`.
      pyramid: layers of an image's words, a `mmx.ops.pyramid.Pyramid`.
    """

    vocabulary: Any
    pyramid: Any

    def to_words(self, mesh: Any):
        """``(params, extra, frozen, image_u8 [B, H, W, 3]) -> words int32 [B, T]``, rows of the
        vocabulary, layer by layer; any B."""
        ...

    def from_words(self, mesh: Any):
        """``(params, extra, frozen, words int32 [B, T]) -> float32 [B, H, W, 3]``, about [-1, 1];
        words of whole layers, the first ones; any B."""
        ...

    def pyramid_section(self, image_HWC, words_T, recon_PHWC, title: str) -> Any:
        """A `mmx.eval.grid.Section`: an image and what is left of it by the layers, each above its
        words."""
        ...


class Codec(Protocol):
    """image <-> grid of codes. Weights are passed in, so that they can be sharded and donated.

    Attributes:
      num_codes: E; codes lie in [0, E). A model's mask id lies outside.
      scale: f, pixels a code along one side.
    """

    num_codes: int
    scale: int

    def grid(self, image_size: int) -> int:
        """Codes along one side. Raises UserError when f does not divide the size."""
        ...

    def abstract_weights(self) -> Any:
        """Shapes of the weights that :meth:`encode` and :meth:`decode` take."""
        ...

    def encode(self, weights: Any, image_BHWC: jax.Array) -> jax.Array:
        """float32 [B, H, W, 3] in [-1, 1] -> int32 [B, h, w]."""
        ...

    def decode(self, weights: Any, codes_Bhw: jax.Array) -> jax.Array:
        """int32 [B, h, w] -> float32 [B, H, W, 3], about [-1, 1], not clipped."""
        ...


class LatentCodec(Protocol):
    """image <-> grid of vectors whose channels have mean 0 and standard deviation 1 on the data.

    Mean and deviation are measured in training and are among the weights, which are passed in.

    Attributes:
      latent_dim: Z.
      scale: f, pixels a vector along one side.
    """

    latent_dim: int
    scale: int

    def grid(self, image_size: int) -> int:
        """Vectors along one side. Raises UserError when f does not divide the size."""
        ...

    def abstract_weights(self) -> Any:
        """Shapes of the weights that the other methods take."""
        ...

    def encode(self, weights: Any, image_BHWC: jax.Array) -> jax.Array:
        """float32 [B, H, W, 3] in [-1, 1] -> float32 [B, h, w, Z]: the means of the posteriors."""
        ...

    def decode(self, weights: Any, z_BhwZ: jax.Array) -> jax.Array:
        """float32 [B, h, w, Z] -> float32 [B, H, W, 3], about [-1, 1], not clipped."""
        ...


class FrozenTextEncoder(Protocol):
    """Ids -> embeddings, never trained (T5, CLIP), so its output may be cached with the data.

    A family encodes nothing where a batch has ``text_emb`` float [B, T, D] beside ``text_mask``: it
    reads the embeddings instead of ``text_ids``, in training, evaluation and sampling alike. None
    is built in, and no data set here carries embeddings yet.

    Attributes:
      width: D of the embeddings, the ``config.text.width`` of the run.
      name: of model and revision: part of the cache's identity, as is its dtype.
    """

    width: int
    name: str

    def encode(self, weights: Any, text_ids_BT: jax.Array, text_mask_BT: jax.Array) -> jax.Array:
        """int32 [B, T], bool [B, T] (True = real) -> float [B, T, D]; rows at padding are finite
        and mean nothing, whoever reads the result masks them."""
        ...
