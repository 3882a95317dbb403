"""An image's latents as a pyramid of words of a frozen table: few words at first, more by layer.

    pyramid = Pyramid()  # 1, 4, 16, 64, 256, 256 words of a 16x16 grid
    out = quantize(pyramid, z_BhwZ, table_VZ)
    image = decode(decoder_input(pyramid, z_BhwZ, out.stages_PBhwZ, layers_B, fill="nearest"))
    loss = reconstruction(image) + 0.33 * commitment(pyramid, z_BhwZ, out.stages_PBhwZ)
    image = decode(reconstruct(pyramid, out.words_BT[:, :21], table_VZ, fill="nearest"))

The upper layers have few cells: what a decoder sees at cells without a word is its `fill`.
The table gets no gradient, so the encoder has to move to the words.
Legend: B batch, h w latent grid, p q grid of one layer, T words of all layers, P layers, V words of
the table, Z width. A video's grid has a time axis in front: for h w read t h w, for p q o p q.
Source: arXiv 2306.17842 (SPAE), as recalled: its text was not at hand.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmx.core.errors import UserError, choose
from mmx.ops.fill import fill_cells
from mmx.ops.lookup import embed_words, nearest_words
from mmx.ops.quantize import straight_through
from mmx.ops.resize import bicubic_pytorch


@dataclasses.dataclass(frozen=True)
class Pyramid:
    """Which layers there are and how their words add up. Layers count from 0.

    sides: rows (and columns) of each layer's square grid; each divides the largest, which is the
      latent grid. The default is SPAE's for 128x128 images: 597 words.
    scheme: of `SCHEMES`: "saq", SPAE's streaming average; "rq", residuals; "area", VAR's.
    frames: of a video, the frames of each layer, which divide the most; () for an image. (The
      paper's sizes for video are not known to us.)

    Raises:
      UserError: a side or frames that do not divide the largest; frames of some layers only; a
        scheme of another name.
    """

    sides: tuple[int, ...] = (1, 2, 4, 8, 16, 16)
    scheme: str = "saq"
    frames: tuple[int, ...] = ()

    def __post_init__(self):
        if not self.sides or min(self.sides) < 1:
            raise UserError(f"pyramid.sides={self.sides}: at least one layer, sides of 1 and more")
        if self.frames and (len(self.frames) != self.num_layers or min(self.frames) < 1):
            raise UserError(
                f"pyramid.frames={self.frames}: 1 and more for each of {self.num_layers} layers, "
                "or () for images"
            )
        for field, sizes in (("sides", self.sides), ("frames", self.frames)):
            bad = [size for size in sizes if max(sizes) % size]
            if bad:
                raise UserError(
                    f"pyramid.{field}={sizes}: {bad[0]} does not divide the largest, {max(sizes)}"
                )
        choose("pyramid.scheme", SCHEMES, self.scheme)

    @property
    def grid(self) -> int:
        """Side of the latent grid."""
        return max(self.sides)

    @property
    def num_layers(self) -> int:
        return len(self.sides)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the latent grid: (h, w); of a video's (t, h, w)."""
        return (*((max(self.frames),) if self.frames else ()), self.grid, self.grid)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of each layer's grid: (p, q); of a video's (o, p, q)."""
        frames = [(count,) for count in self.frames] or [()] * self.num_layers
        return tuple((*time, side, side) for time, side in zip(frames, self.sides, strict=True))

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many words each layer has."""
        return tuple(map(math.prod, self.shapes))

    @property
    def ends(self) -> tuple[int, ...]:
        """How many words there are up to the end of each layer: 1, 5, 21, 85, 341, 597."""
        return tuple(np.cumsum(self.sizes).tolist())

    def steps(self, layer: int) -> tuple[int, ...]:
        """Cells from one word of a layer to the next, along each axis of the grid."""
        return tuple(n // k for n, k in zip(self.shape, self.shapes[layer]))

    def places(self, layer: int) -> tuple[slice, ...]:
        """Where a layer of the dilation subsampler takes its words, along each axis of the grid.

        The centre of each block, or what is one past it: `step * i + step // 2` (the paper's
        positions counted from 0; in time by the same formula, ours).
        """
        return tuple(slice(step // 2, None, step) for step in self.steps(layer))

    def cells(self, layer: int) -> slice:
        """The rows, and the columns, of :meth:`places`."""
        return self.places(layer)[-1]

    def layers_of(self, num_words: int) -> int:
        """How many layers so many words are.

        Raises:
          UserError: they end inside a layer, or past the last.
        """
        if num_words not in self.ends:
            ends = ", ".join(map(str, self.ends))
            raise UserError(f"{num_words} words: whole layers of this pyramid end at {ends}")
        return self.ends.index(num_words) + 1


# ---------------------------------------------------------------- words in a row


def flatten(layers: Sequence[jax.Array], axes: int = 2) -> jax.Array:
    """[..., T]: ids [..., p, q] of the first layers, one layer after another, each row by row.

    Args:
      axes: of a layer's grid; 3 for a video, whose layers go frame by frame.
    """
    return jnp.concatenate([x.reshape(*x.shape[: x.ndim - axes], -1) for x in layers], -1)


def unflatten(pyramid: Pyramid, words: jax.Array) -> list[jax.Array]:
    """The first layers [..., p, q] of [..., T].

    Raises:
      UserError: the words end inside a layer.
    """
    count = pyramid.layers_of(words.shape[-1])
    parts = jnp.split(words, pyramid.ends[: count - 1], -1)
    return [x.reshape(*x.shape[:-1], *shape) for x, shape in zip(parts, pyramid.shapes)]


# ---------------------------------------------------------------- schemes


class Scheme(NamedTuple):
    """How the words of a layer are chosen and what they add.

    counts: pyramid -> int [P, h, w], the words that a cell has in the first layers; 0: uncovered.
    target: (pyramid, layer, z_BhwZ, total_BhwZ) -> [B, p, q, Z], what the layer's words should be
      near, where total is what the words of the layers before it add up to.
    spread: (pyramid, layer, e_BpqZ) -> [B, h, w, Z], what the layer's words add to the total.
    divisor: pyramid -> int [P, h, w]; the reconstruction is total / divisor.
    """

    counts: Callable[[Pyramid], np.ndarray]
    target: Callable[[Pyramid, int, jax.Array, jax.Array], jax.Array]
    spread: Callable[[Pyramid, int, jax.Array], jax.Array]
    divisor: Callable[[Pyramid], np.ndarray]


def _take(pyramid: Pyramid, layer: int, x_BhwZ):
    return x_BhwZ[:, *pyramid.places(layer)]


def _put(pyramid: Pyramid, layer: int, e_BpqZ: jax.Array) -> jax.Array:
    """The layer's words at its cells, zeros elsewhere."""
    edges = [  # before, after, between
        (step // 2, step - 1 - step // 2, step - 1) for step in pyramid.steps(layer)
    ]
    return jax.lax.pad(e_BpqZ, np.zeros((), e_BpqZ.dtype), [(0, 0, 0), *edges, (0, 0, 0)])


@functools.cache
def _dilated_counts(pyramid: Pyramid) -> np.ndarray:
    counts_Phw = np.zeros((pyramid.num_layers, *pyramid.shape), np.int32)
    for layer in range(pyramid.num_layers):
        counts_Phw[layer:, *pyramid.places(layer)] += 1
    return counts_Phw


def _every_cell(pyramid: Pyramid) -> np.ndarray:
    return np.ones((pyramid.num_layers, *pyramid.shape), np.int32)


def _average_target(pyramid: Pyramid, layer: int, z_BhwZ, total_BhwZ):
    """z + sum of (z - e) over the words that the cell has: the boosted target z_l."""
    n_1pq1 = _take(pyramid, layer, _dilated_counts(pyramid)[layer][None, ..., None])
    n_1pq1 = n_1pq1.astype(z_BhwZ.dtype)
    return n_1pq1 * _take(pyramid, layer, z_BhwZ) - _take(pyramid, layer, total_BhwZ)


def _residual_target(pyramid: Pyramid, layer: int, z_BhwZ, total_BhwZ):
    return _take(pyramid, layer, z_BhwZ - total_BhwZ)


def _area_target(pyramid: Pyramid, layer: int, z_BhwZ, total_BhwZ):
    """The mean residual of each block."""
    batch, width = z_BhwZ.shape[0], z_BhwZ.shape[-1]
    split = [n for pair in zip(pyramid.shapes[layer], pyramid.steps(layer)) for n in pair]
    blocks = (z_BhwZ - total_BhwZ).reshape(batch, *split, width)
    return blocks.mean(tuple(range(2, len(split) + 1, 2)))


def _bicubic(pyramid: Pyramid, layer: int, e_BpqZ: jax.Array) -> jax.Array:
    x, axes = e_BpqZ, "opq"[-len(pyramid.shape) :]
    for i, (small, large) in enumerate(zip(pyramid.shapes[layer], pyramid.shape)):
        matrix_hp = bicubic_pytorch(small, large).astype(x.dtype)
        after = axes.replace(axes[i], "h")
        x = jnp.einsum(f"h{axes[i]},b{axes}z->b{after}z", matrix_hp, x, precision="highest")
    return x


SCHEMES: dict[str, Scheme] = {
    # Streaming average quantization (the paper's sec. 3): each word is an estimate of z itself,
    # the reconstruction is the mean of a cell's words. After n words its error is the distance of
    # the last target to its word, divided by n.
    "saq": Scheme(_dilated_counts, _average_target, _put, _dilated_counts),
    # The same cells, each word quantizes what the sum of the earlier ones leaves over (arXiv
    # 2203.01941). Without words near 0 its error grows.
    "rq": Scheme(_dilated_counts, _residual_target, _put, _every_cell),
    # The residual of the whole grid, area-averaged to the layer's size, its words resized
    # bicubically and added (arXiv 2404.02905 algorithms 1 and 2, without their convolutions).
    "area": Scheme(_every_cell, _area_target, _bicubic, _every_cell),
}


def covered(pyramid: Pyramid) -> np.ndarray:
    """bool [P, h, w]: which cells have a word in the first 1 to P layers."""
    return SCHEMES[pyramid.scheme].counts(pyramid) > 0


# ---------------------------------------------------------------- latents -> words -> latents


class PyramidWords(NamedTuple):
    """What :func:`quantize` makes of latents.

    words_BT: int32 [B, T], rows of the table, layer by layer, each row by row.
    targets_BTZ: float [B, T, Z], what each word was chosen to be near, with its gradient to z
      (semantic guidance stands on it).
    stages_PBhwZ: float [P, B, h, w, Z], the reconstruction from the first 1 to P layers, 0 at cells
      without a word. Constant: no gradient passes.
    """

    words_BT: jax.Array
    targets_BTZ: jax.Array
    stages_PBhwZ: jax.Array


def quantize(
    pyramid: Pyramid, z_BhwZ: jax.Array, table_VZ: jax.Array, num_words: int | None = None
) -> PyramidWords:
    """Finds the words of every layer, each at the layer's own cells only.

    Args:
      z_BhwZ: float [B, h, w, Z], of the grid `pyramid.shape`; worked on in float32 at least.
      table_VZ: float [V, Z], no gradient reaches it. It may lie over the mesh
        (`mmx.ops.lookup.TABLE_AXES`).
      num_words: how many of its rows are words, if not all.

    Raises:
      ValueError: latents of another grid.
    """
    grid, scheme = pyramid.shape, SCHEMES[pyramid.scheme]
    if z_BhwZ.shape[1:-1] != grid:
        size = "x".join(map(str, grid))
        raise ValueError(f"latents {z_BhwZ.shape} for a pyramid of a {size} grid")
    z_BhwZ = _at_least_float32(z_BhwZ)
    table_VZ = jax.lax.stop_gradient(table_VZ)
    divisor_Phw1 = np.maximum(scheme.divisor(pyramid), 1)[..., None]
    total_BhwZ = jnp.zeros_like(z_BhwZ)
    words, targets, stages = [], [], []
    for layer in range(pyramid.num_layers):
        targets.append(scheme.target(pyramid, layer, z_BhwZ, total_BhwZ))
        words.append(nearest_words(targets[-1], table_VZ, num_words))
        e_BpqZ = embed_words(words[-1], table_VZ).astype(z_BhwZ.dtype)
        total_BhwZ += scheme.spread(pyramid, layer, e_BpqZ)
        stages.append(total_BhwZ / divisor_Phw1[layer])
    batch, width = z_BhwZ.shape[0], z_BhwZ.shape[-1]
    targets_BTZ = jnp.concatenate([x.reshape(batch, -1, width) for x in targets], 1)
    return PyramidWords(flatten(words, len(grid)), targets_BTZ, jnp.stack(stages))


def reconstruct(
    pyramid: Pyramid,
    words_BT: jax.Array,
    table_VZ: jax.Array,
    fill: str,
    mask_Z: jax.Array | None = None,
) -> jax.Array:
    """float [B, h, w, Z]: what a decoder sees of the words of the first layers.

    Args:
      words_BT: int [B, T] in [0, V), whole layers; T says how many.
      table_VZ: float [V, Z]. The result is linear in it, with that gradient.
      fill, mask_Z: as in :func:`decoder_input`.

    Raises:
      UserError: the words end inside a layer.
    """
    scheme, total_BhwZ = SCHEMES[pyramid.scheme], 0.0
    layers = unflatten(pyramid, words_BT)
    for layer, words_Bpq in enumerate(layers):
        e_BpqZ = _at_least_float32(embed_words(words_Bpq, table_VZ))
        total_BhwZ += scheme.spread(pyramid, layer, e_BpqZ)
    last = len(layers) - 1
    stage_BhwZ = total_BhwZ / np.maximum(scheme.divisor(pyramid)[last], 1)[..., None]
    return fill_cells(stage_BhwZ, covered(pyramid), last, fill, mask_Z)


def decoder_input(
    pyramid: Pyramid,
    z_BhwZ: jax.Array,
    stages_PBhwZ: jax.Array,
    layers: int | jax.Array,
    fill: str,
    mask_Z: jax.Array | None = None,
) -> jax.Array:
    """[B, h, w, Z]: `reconstruct` of the first layers while training, with a gradient to z.

    At cells that have a word the gradient passes straight to z, once, not through each layer; a
    filled cell hands its own on to what fills it.

    Args:
      z_BhwZ, stages_PBhwZ: into and out of :func:`quantize`.
      layers: in [1, P], one number or int32 [B], a row's own: :func:`random_layers`.
      fill: of `mmx.ops.fill.FILLS`, for cells without a word.
      mask_Z: float [Z], what "mask" fills in.

    Raises:
      UserError: another fill.
    """
    rows = (jnp.arange(z_BhwZ.shape[0]),) if jnp.ndim(layers) else ()
    stage_BhwZ = stages_PBhwZ[(layers - 1, *rows)]
    through_BhwZ = straight_through(_at_least_float32(z_BhwZ), stage_BhwZ)
    return fill_cells(through_BhwZ, covered(pyramid), layers - 1, fill, mask_Z)


def commitment(pyramid: Pyramid, z_BhwZ: jax.Array, stages_PBhwZ: jax.Array) -> jax.Array:
    """Sum over layers of |z - sg(stage)|^2 at the cells that have a word by then; a float scalar.

    Divided by the size of z, so that a cell weighs the same in every layer and the weight does not
    hang on batch, grid or width (the division is ours).

    Source: arXiv 2306.17842, as recalled (beta is its weight).
    """
    covered_P1hw1 = covered(pyramid)[:, None, ..., None]
    distance_PBhwZ = _at_least_float32(z_BhwZ) - jax.lax.stop_gradient(stages_PBhwZ)
    # Not a product: its gradient at uncovered cells is 0 whatever z is there.
    distance_PBhwZ = jnp.where(covered_P1hw1, distance_PBhwZ, 0)
    return jnp.square(distance_PBhwZ).sum() / z_BhwZ.size


def random_layers(keys_B: jax.Array, pyramid: Pyramid, probability: float) -> jax.Array:
    """int32 [B] in [1, P]: with this probability any number of layers but all, else all.

    A decoder that has only ever seen full depth cannot draw from fewer (ours).
    """

    def one(key):
        is_short, count = jax.random.split(key)
        short = jax.random.randint(count, (), 1, pyramid.num_layers)
        return jnp.where(jax.random.bernoulli(is_short, probability), short, pyramid.num_layers)

    return jax.vmap(one)(keys_B)


def _at_least_float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
