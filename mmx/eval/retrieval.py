"""Is the picture the one that was asked for? A distance that forgives small shifts, and ranks.

The distance between two pictures. Both are brought to 32x32 (area average), taken as lying on an
endless white page, and blurred with a gaussian of sigma 1 pixel. One is shifted by up to 2 pixels
each way (25 shifts); the distance is the least mean squared difference over the shifts: the sum
over the whole page divided by 32 * 32 * 3, images in [-1, 1]. Nothing is cropped by a shift or by
the blur, so it is symmetric. Its root is an rms difference, of which 1/127.5 is one grey level.

Q queries, G gallery, H W pixels, C channels, I O rows in and out of a resize.
"""

from collections.abc import Iterator

import numpy as np

from mmx.eval import images as im
from mmx.eval import stats

SIZE = 32
SIGMA = 1.0
SHIFT = 2
# Distances no further apart than this are equal. The rounding of float32 puts equal OpenMoji
# pictures up to 4e-7 apart; the nearest unequal ones are 1.4e-6 and 1.7e-5 apart, and two pictures
# that differ by one grey level everywhere 6e-5.
TIE = 2e-6


def area_resize(images_BHWC: np.ndarray, size: int) -> np.ndarray:
    """Area average to size x size: each new pixel is the mean of the area that it covers.

    Any height and width >= size. Raises ValueError on smaller images.
    """
    height, width = images_BHWC.shape[1:3]
    if min(height, width) < size:
        raise ValueError(f"cannot area-average {height}x{width} images up to {size}x{size}")
    if height == width == size:
        return images_BHWC
    rows_OI, columns_OI = _area_weights(height, size), _area_weights(width, size)
    return np.einsum("oh,bhwc,pw->bopc", rows_OI, images_BHWC, columns_OI, optimize=True)


def _area_weights(num_in: int, num_out: int) -> np.ndarray:
    """[O, I]: the share of output pixel o that input pixel i covers; rows sum to 1."""
    edges_O = np.arange(num_out + 1) * (num_in / num_out)
    low_I = np.arange(num_in)
    overlap_OI = np.minimum(edges_O[1:, None], low_I + 1) - np.maximum(edges_O[:-1, None], low_I)
    return (np.maximum(overlap_OI, 0) * (num_out / num_in)).astype(np.float32)


def _kernel(sigma: float) -> np.ndarray:
    """Sampled gaussian out to 4 sigma, sum 1."""
    x = np.arange(-int(4 * sigma), int(4 * sigma) + 1)
    k = np.exp(-(x**2) / (2 * sigma**2))
    return k / k.sum()


def _blur_matrix(kernel: np.ndarray) -> np.ndarray:
    """[SIZE + len(kernel) - 1, SIZE]: full convolution, nothing lost at the ends."""
    return np.stack([np.convolve(row, kernel) for row in np.eye(SIZE)], 1).astype(np.float32)


def shrink(images: np.ndarray) -> np.ndarray:
    """All that the distance reads of images: uint8 or float [B, H, W, 3] -> float32 [B, 32, 32, 3].

    The distances of what comes back are those of what went in.
    """
    images = im.as_float(images)
    if images.ndim != 4:
        raise ValueError(f"expected images [B, H, W, C], got shape {images.shape}")
    return area_resize(images, SIZE)


def _prepare(images: np.ndarray) -> np.ndarray:
    """Images [B, H, W, 3] -> ink float32 [B, 32, 32, 3]: 0 where the page is white, else -2..0."""
    return shrink(images) - 1


def _blur(ink_BHWC: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    blurred = np.einsum("oh,bhwc,pw->bopc", matrix, ink_BHWC, matrix, optimize=True)
    return np.ascontiguousarray(blurred)  # einsum leaves strides that make slicing 10 times slower


def _energy(ink_BHWC: np.ndarray) -> np.ndarray:
    """Sum of squares of each blurred image over the page, [B] float64."""
    blurred = _blur(ink_BHWC, _blur_matrix(_kernel(SIGMA)))
    return np.einsum("bhwc,bhwc->b", blurred, blurred, dtype=np.float64)


def _shifted(ink_GHWC: np.ndarray) -> Iterator[np.ndarray]:
    """The gallery blurred twice, under each of the 25 shifts, cut to the 32x32 of a query."""
    twice = np.convolve(_kernel(SIGMA), _kernel(SIGMA))
    page = _blur(ink_GHWC, _blur_matrix(twice))
    margin = len(twice) // 2
    for y in range(margin - SHIFT, margin + SHIFT + 1):
        for x in range(margin - SHIFT, margin + SHIFT + 1):
            yield page[:, y : y + SIZE, x : x + SIZE]


def distances(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """The distance of this file between each query and each gallery image, float64 [Q, G].

    Args:
      queries, gallery: [Q or G, H, W, 3], uint8 or float in [-1, 1] (clipped), 32x32 or larger.
    Returns values in [0, 4 and a little]; inf where a query is not finite.

    |Ka - S Kb|^2 = |Ka|^2 + |Kb|^2 - 2 <a, S K'K b> for blur K and shift S on an endless page. So
    the queries are never blurred nor shifted, their support stays 32x32, and each shift costs one
    [Q, 3072] x [3072, G] product: 256 x 1,918 takes about a second on two cores.
    """
    ink_q, ink_g = _prepare(queries), _prepare(gallery)
    broken_Q = ~np.isfinite(ink_q).all((1, 2, 3))
    if not np.isfinite(ink_g).all():
        raise ValueError("a gallery image is not finite")
    ink_q = np.where(broken_Q[:, None, None, None], 0, ink_q)
    flat_q = ink_q.reshape(len(ink_q), -1)
    likeness = np.full((len(ink_q), len(ink_g)), -np.inf, np.float32)
    for ink in _shifted(ink_g):
        np.maximum(likeness, flat_q @ ink.reshape(len(ink_g), -1).T, out=likeness)
    squares = _energy(ink_q)[:, None] + _energy(ink_g)[None] - 2.0 * likeness
    # Rounding of the difference of large sums can pass below zero.
    distance = np.maximum(squares, 0) / flat_q.shape[1]
    return np.where(broken_Q[:, None], np.inf, distance)


def hits_at(distance_QG: np.ndarray, true_Q: np.ndarray, k: int) -> np.ndarray:
    """The share of a hit that each query earns: is the true image among the k nearest? [Q], 0..1.

    Ties are averaged: where the true image ties with others (as the flags of Norway and of Svalbard
    do), the share is the chance of being in the first k when ties are broken at random. So a model
    that draws one and the same thing, or nan (all distances inf), earns chance and no more.

    Args:
      distance_QG: from `distances`; true_Q: int [Q], the index of the true image in the gallery.
    """
    distance_QG, true_Q = np.asarray(distance_QG), np.asarray(true_Q)
    if true_Q.shape != distance_QG.shape[:1] or true_Q.min() < 0:
        raise ValueError(f"one true index >= 0 a query, got shape {true_Q.shape}")
    own_Q1 = np.take_along_axis(distance_QG, true_Q[:, None], 1)
    # Sums, not differences: inf - inf is nan, and nan ties with nothing, not even with itself.
    nearer_QG = distance_QG + TIE < own_Q1
    tie_QG = ~nearer_QG & (distance_QG <= own_Q1 + TIE)
    return np.clip((k - nearer_QG.sum(1)) / tie_QG.sum(1), 0, 1)


def nearest_share(distance_QG: np.ndarray, right_QG: np.ndarray) -> np.ndarray:
    """Is the nearest of the gallery a right one? [Q], 0..1.

    Where several are equally near (within `TIE`), the share of the right ones among them, so an
    image that is not finite (all distances inf) earns chance.

    Args:
      distance_QG: from `distances`; right_QG: bool [Q, G].
    """
    tie_QG = distance_QG <= distance_QG.min(1, keepdims=True) + TIE
    return (tie_QG & right_QG).sum(1) / tie_QG.sum(1)


def caption_recall(
    generated: np.ndarray,
    reconstructed: np.ndarray,
    true_Q: np.ndarray,
    gallery: np.ndarray,
    ks: tuple[int, ...] = (1, 10),
    seed: int = 0,
) -> dict[str, stats.Score | float]:
    """`training_caption_recall`: of all untoned images, is the captioned one nearest?

    The distance is that of this file (32x32, blur of sigma 1, best over shifts of 2 pixels on a
    white page), ties are averaged (`hits_at`).

    Args:
      generated: [Q, H, W, 3], one image for each of Q training captions.
      reconstructed: [Q, H, W, 3], the true images through the codec: no generator that draws with
        its codes can be expected to do better, so their recall is the ceiling.
      true_Q: int [Q], the place in the gallery of each caption's image.
      gallery: [G, H, W, 3].
    Returns for each k, with R@k as `training_caption_recall/r{k}`: the Score of the generator,
      `.../r{k}_ceiling` that of the codec, `.../r{k}_of_ceiling` their ratio (both of the same
      captions, drawn in pairs) and `.../r{k}_chance` = k / G, a float.
    """
    name = "training_caption_recall"
    distance, ceiling = distances(generated, gallery), distances(reconstructed, gallery)
    if len(distance) != len(ceiling):
        raise ValueError(f"{len(distance)} generated images and {len(ceiling)} reconstructed ones")
    scores: dict[str, stats.Score | float] = {}
    for k in ks:
        drawn, best = hits_at(distance, true_Q, k), hits_at(ceiling, true_Q, k)
        scores[f"{name}/r{k}"] = stats.proportion(drawn)
        scores[f"{name}/r{k}_ceiling"] = stats.proportion(best)
        if best.any():
            scores[f"{name}/r{k}_of_ceiling"] = stats.ratio(drawn, best, seed=seed)
        scores[f"{name}/r{k}_chance"] = min(1.0, k / distance.shape[1])
    return scores


def nearest(
    queries: np.ndarray, training: np.ndarray, distinct: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """(rms difference, index) of the training image nearest to each query, [Q] float64, [Q] int.

    The rms is the root of the distance of this file, in units of the [-1, 1] range (0..2): a copy,
    shifted by up to 2 pixels or not, has 0 to within the rounding of float32 (about 1e-3).

    Args:
      distinct: pass over training images equal to the query (distance within `TIE`). With
        training images as queries this is the distance between two nearest distinct ones: the
        reference that tells whether a generated image is a copy.
    """
    distance = distances(queries, training)
    if distinct:
        distance = np.where(distance <= TIE, np.inf, distance)
    index_Q = distance.argmin(1)
    return np.sqrt(np.take_along_axis(distance, index_Q[:, None], 1)[:, 0]), index_Q
