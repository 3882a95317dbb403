"""What does a picture of a scene show? Read by synthesis: the known drawings, tried everywhere.

No network, so nothing that could have taught or guided a model scores it. A picture is brought to
`SIDE` pixels (area average). Its ground is the named colour that most of its pixels are nearest to,
in the shade that they have. Then, greedily, the drawing, size and place that explain most of what
is not ground. For a residual R (picture minus ground), a drawing's own D (drawing minus ground) and
the pixels m that nothing has explained yet, all sums over the drawing:

    gain = sum m (R^2 - (R - D)^2) = 2 sum m R D - sum m D^2
    likeness = 2 sum m R D / (sum m R^2 + sum m D^2)

The gain is the log-likelihood ratio against "nothing there" under gaussian noise (a matched
filter); alone it prefers one large drawing over two small ones that it half covers. The likeness is
1 for an equal picture only. The greatest gain * likeness^`POWER` wins, if its likeness is `LIKE` at
least and `VISIBLE` of its drawing's energy lies on unexplained pixels. A sign is one more drawing,
which says nothing of its letters; `mmx.eval.scene_details` reads them, and tells "on" from behind.

Generated pictures may be soft. So the first drawing is looked for as blurred as each of `SOFT`, and
the others as that which explained most.

The ground is the scene's background if `GROUND` of the pixels that no drawing explains are of that
colour: no further than `SHADE` from it, and from no other less far.

Legend: B batch, S side in pixels, h w a drawing, y x its place, C colours, K drawings, F
frequencies.
"""

import functools
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mmx.core.progress import Progress
from mmx.data import scene_draw, scene_grammar
from mmx.data.scene_grammar import Found
from mmx.eval import images as im
from mmx.eval import retrieval, scene_details
from mmx.eval.scene_details import Box, Thing, blurred, union

SIDE = 32
LIKE = 0.6  # ours, as POWER: see the table in mmx.eval.scenes
POWER = 4
VISIBLE = 0.35  # ours: "on" hides up to a third of the lower drawing
GROUND = 0.75  # ours: a picture of two colours has no background
SHADE = 60  # grey levels, as a distance in RGB: about that of the two named colours most alike
MOST = 4  # objects looked for: one more than a scene has, so that too many show
SOFT = (0.0, 1.0, 1.75)  # sigmas, in 1/32 of the side, that objects are looked for with: ours
_BLUR = 0.7  # pixels, of picture and drawings: a shift by half a pixel then costs little
_THERE = 0.05  # alpha of a drawing from which on a pixel is its own
_PAD = 4  # pixels around a drawing that its blur reaches
_CANVAS = 48  # pixels: the picture and what a window may reach beyond it; a good length for an FFT
_BATCHES = (8, 32)  # pictures at once: few shapes to compile for
_COLOURS = np.array([scene_draw.COLOURS[name] for name in scene_grammar.BACKGROUNDS], np.float32)
_SHAPES = (("small", scene_grammar.KINDS), ("normal", scene_grammar.KINDS), ("sign", ("sign",)))


def read(pictures: Sequence[np.ndarray], what: str = "") -> list[Found]:
    """What each picture shows.

    Args:
      pictures: [n, H, W, 3], or a sequence of [H, W, 3]: uint8 or float in [-1, 1] (clipped);
        square, 32 pixels or more, all of one size.
      what: the word beside a progress bar; "" for none.

    Raises ValueError on other shapes, and on values that are not finite.
    """
    progress = Progress(len(pictures), what, every=max(1, len(pictures) // 5), enabled=bool(what))
    out: list[Found] = []
    for start in range(0, len(pictures), _BATCHES[-1]):
        rows = range(start, min(start + _BATCHES[-1], len(pictures)))
        out += _read_batch(_checked(np.stack([pictures[i] for i in rows])))
        progress.update(len(out))
    progress.close()
    return out


def _checked(pictures: np.ndarray) -> np.ndarray:
    """[B, H, H, 3] -> the same as float32, 0..255."""
    shape = pictures.shape
    if pictures.ndim != 4 or shape[1] != shape[2] or shape[3] != 3 or shape[1] < SIDE:
        raise ValueError(f"expected square pictures of {SIDE} pixels or more, got shape {shape}")
    if not np.isfinite(pictures).all():
        raise ValueError("a picture is not finite")
    return (im.as_float(pictures) + 1) * 127.5


def grounds(pictures_BSSC: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What most pixels of each picture are; pictures and colours 0..255.

    Returns:
      index in `scene_grammar.BACKGROUNDS` int [B], the shade [B, 3] (the median of the pixels
      nearest to that colour), and which pixels are that colour, bool [B, S, S].
    """
    distance_BSSK = np.stack([((pictures_BSSC - c) ** 2).sum(-1) for c in _COLOURS], -1)
    nearest_BSS = distance_BSSK.argmin(-1)
    close_BSS = distance_BSSK.min(-1) <= SHADE**2
    # Pixels of no named colour vote only where there are no others.
    voting_BSS = close_BSS | ~close_BSS.any((1, 2), keepdims=True)
    names_B = (np.eye(len(_COLOURS))[nearest_BSS] * voting_BSS[..., None]).sum((1, 2)).argmax(-1)
    ours_BSS = nearest_BSS == names_B[:, None, None]
    shades = [np.median(picture[ours], 0) for picture, ours in zip(pictures_BSSC, ours_BSS)]
    return names_B, np.stack(shades), ours_BSS & close_BSS


@functools.cache
def _drawing(kind: str, size: str, blur: float) -> np.ndarray:
    """A drawing, blurred and with its margin: float32 [h, w, 4], colours times alpha, alpha."""
    ink = scene_draw.board(SIDE) if kind == "sign" else scene_draw.sprite(kind, size, SIDE)
    padded = np.pad(ink, ((_PAD, _PAD), (_PAD, _PAD), (0, 0)))[None]
    return blurred(padded, math.hypot(_BLUR, blur))[0]


def _explains(kind: str, size: str) -> np.ndarray:
    """bool [h, w]: where a drawing says what is seen. A sign does not, where its letters may be."""
    where = np.ones(_drawing(kind, size, 0.0).shape[:2], bool)
    if kind == "sign":
        x, y = (_PAD + at for at in scene_draw.letter_corners(3, SIDE)[0])
        w, h = (round(length) for length in scene_draw.LETTER)
        where[y : y + h, x : x + 3 * w] = False
    return where


@functools.cache
def _bank(shape: int, blur: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The drawings of one size, each in the top left corner of what holds the largest.

    Colours times alpha float32 [h, w, 3, K] in units of 255, alpha [h, w, K], and 0 or 1 [h, w, K]:
    where the drawing is.
    """
    size, kinds = _SHAPES[shape]
    drawings = [_drawing(kind, size, blur) for kind in kinds]
    h, w = (max(d.shape[axis] for d in drawings) for axis in (0, 1))
    bank = np.zeros((h, w, 5, len(kinds)), np.float32)
    for k, (kind, d) in enumerate(zip(kinds, drawings)):
        where = _explains(kind, size) & (d[..., 3] > _THERE)
        known = np.concatenate([d[..., :3] / 255, d[..., 3:], np.ones_like(d[..., 3:])], -1)
        bank[: d.shape[0], : d.shape[1], :, k] = known * where[..., None]
    return bank[:, :, :3], bank[:, :, 3], bank[:, :, 4]


@jax.jit
def _best(residual_BSSC, open_BSS, background_BC, colour_hwCK, alpha_hwK, where_hwK):
    """(score [B], index [B] in (y, x, k)) of the best acceptable drawing of a bank; 0: none.

    Over a background b a drawing is D = colour - alpha b; what depends on b is taken out of the
    sums over windows, so that all pictures share the same drawings.
    """
    size = residual_BSSC.shape[1:3]
    rows, columns = (n - m + 1 for n, m in zip(size, alpha_hwK.shape))

    def correlate(x_BSSC, kernel_hwCK):
        """Sums over windows that lie in the canvas, by FFT: cheaper than to multiply them out."""
        x_BFFC = jnp.fft.rfft2(x_BSSC, axes=(1, 2))
        kernel_FFCK = jnp.fft.rfft2(kernel_hwCK, s=size, axes=(0, 1)).conj()
        product_BFFK = jnp.einsum("byxc,yxck->byxk", x_BFFC, kernel_FFCK)
        return jnp.fft.irfft2(product_BFFK, s=size, axes=(1, 2))[:, :rows, :columns]

    b_B11C, open_BSS1 = background_BC[:, None, None], open_BSS[..., None]
    b2_B111 = (b_B11C**2).sum(-1, keepdims=True)
    residual_BSSC = residual_BSSC * open_BSS1
    both_ByxK = 2 * correlate(
        jnp.concatenate([residual_BSSC, -(residual_BSSC * b_B11C).sum(-1, keepdims=True)], -1),
        jnp.concatenate([colour_hwCK, alpha_hwK[:, :, None]], 2),
    )
    # |D|^2 = |colour|^2 - 2 alpha colour b + alpha^2 b^2, as weights of b times what is drawn.
    weights_B115 = jnp.concatenate([jnp.ones_like(b2_B111), -2 * b_B11C, b2_B111], -1)
    colour2_hw1K = (colour_hwCK**2).sum(2, keepdims=True)
    alpha_hw1K = alpha_hwK[:, :, None]
    drawn_hw5K = jnp.concatenate([colour2_hw1K, alpha_hw1K * colour_hwCK, alpha_hw1K**2], 2)
    own_ByxK = correlate(open_BSS1 * weights_B115, drawn_hw5K)
    whole_B11K = jnp.einsum("byxc,ck->byxk", weights_B115, drawn_hw5K.sum((0, 1)))
    seen_ByxK = correlate((residual_BSSC**2).sum(-1, keepdims=True), where_hwK[:, :, None])

    likeness_ByxK = both_ByxK / jnp.maximum(own_ByxK + seen_ByxK, 1e-3)
    good = (own_ByxK >= VISIBLE * whole_B11K) & (likeness_ByxK >= LIKE)
    score_ByxK = jnp.where(good, (both_ByxK - own_ByxK) * likeness_ByxK**POWER, 0)
    flat = score_ByxK.reshape(len(score_ByxK), -1)
    return flat.max(1), flat.argmax(1)


def _read_batch(pictures_BHWC: np.ndarray) -> list[Found]:
    side = max(side for side in (32, 64, 128) if side <= pictures_BHWC.shape[1])
    fine = retrieval.area_resize(pictures_BHWC, side)
    pictures_BSSC = blurred(retrieval.area_resize(pictures_BHWC, SIDE), _BLUR)
    names_B, shades_BC, ground_BSS = grounds(pictures_BSSC)
    looks = [_look(*_canvas(pictures_BSSC, shades_BC), blur) for blur in SOFT]
    softness_B = np.argmax([scores.max(0) for scores, _ in looks], 0)[: len(fine)]
    out: list[Found | None] = [None] * len(fine)
    for soft, blur in enumerate(SOFT):
        rows = np.flatnonzero(softness_B == soft)
        if not len(rows):
            continue
        first = tuple(part[:, rows] for part in looks[soft])
        things, open_BSS = _things(pictures_BSSC[rows], shades_BC[rows], blur, first)
        for i, own, open_SS in zip(rows, things, open_BSS):
            agree = (ground_BSS[i] & open_SS).sum() >= GROUND * max(open_SS.sum(), 1)
            background = scene_grammar.BACKGROUNDS[names_B[i]] if agree else None
            out[i] = _found(own, fine[i], shades_BC[i], blur, background)
    return out


def _canvas(
    pictures_BSSC: np.ndarray, shades_BC: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(residuals, what is open, grounds) for `_best`: 0..1, with margins, B as in `_BATCHES`."""
    count = len(pictures_BSSC)
    padded = min(size for size in _BATCHES if size >= count)
    background = np.zeros((padded, 3), np.float32)
    background[:count] = shades_BC / 255
    residual = np.zeros((padded, _CANVAS, _CANVAS, 3), np.float32)
    inner = slice(_PAD, SIDE + _PAD)
    residual[:count, inner, inner] = pictures_BSSC / 255 - background[:count, None, None]
    unexplained = np.zeros(residual.shape[:3], np.float32)
    unexplained[:count, inner, inner] = 1
    return residual, unexplained, background


_Look = tuple[np.ndarray, np.ndarray]


def _look(residual, unexplained, background, blur: float) -> _Look:
    """`_best` of each bank: (scores, indices), both [banks, B]."""
    best = [
        jax.device_get(_best(residual, unexplained, background, *_bank(shape, blur)))
        for shape in range(len(_SHAPES))
    ]
    return np.stack([score for score, _ in best]), np.stack([index for _, index in best])


def _things(
    pictures_BSSC: np.ndarray, shades_BC: np.ndarray, blur: float, first: _Look
) -> tuple[list[list[Thing]], np.ndarray]:
    """The objects of pictures on grounds, best explained first, and the pixels that none explains.

    The latter are bool [B, S, S]. ``first`` is the first look at these pictures.
    """
    count = len(pictures_BSSC)
    residual, unexplained, background = _canvas(pictures_BSSC, shades_BC)
    things: list[list[Thing]] = [[] for _ in range(count)]
    for turn in range(MOST):
        scores, indices = _look(residual, unexplained, background, blur) if turn else first
        for row in np.flatnonzero(scores[:, :count].max(0) > 0):
            shape = int(scores[:, row].argmax())
            size, kinds = _SHAPES[shape]
            h, w, num = _bank(shape, blur)[1].shape
            places = (_CANVAS - h + 1, _CANVAS - w + 1, num)
            y, x, k = (int(i) for i in np.unravel_index(indices[shape, row], places))
            drawing = _drawing(kinds[k], size, blur)
            h, w = drawing.shape[:2]
            hidden = unexplained[row, y : y + h, x : x + w]  # cut off where the canvas ends
            hidden *= drawing[: hidden.shape[0], : hidden.shape[1], 3] <= _THERE
            scale = scene_draw.SIDE / SIDE
            box = (x, y, w - 2 * _PAD, h - 2 * _PAD)
            things[row].append(Thing(kinds[k], size, *(scale * length for length in box)))
        if not (scores > 0).any():
            break
    inner = slice(_PAD, SIDE + _PAD)
    return things, unexplained[:count, inner, inner] > 0


def _found(
    things: list[Thing],
    picture: np.ndarray,
    shade: np.ndarray,
    blur: float,
    background: str | None,
) -> Found:
    """What the things of a picture [side, side, 3] on ground [3] say together."""
    groups: dict[str, tuple[int, frozenset[str]]] = {}
    for thing in things:
        if thing.kind != "sign":
            count, sizes = groups.get(thing.kind, (0, frozenset()))
            groups[thing.kind] = count + 1, sizes | {thing.size}
    of = {kind: [thing for thing in things if thing.kind == kind] for kind in groups}
    boxes = {kind: union(own) for kind, own in of.items()}
    relations = {
        (a, relation, b)
        for a, b in itertools.permutations(of, 2)
        if (relation := relation_of(boxes[a], boxes[b])) is not None
        # Of more than one on one the count is wrong anyway: the best explained ones are looked at.
        and (relation != "on" or scene_details.in_front(picture, shade, of[a][0], of[b][0], blur))
    }
    signs = [thing for thing in things if thing.kind == "sign"]
    word = scene_details.read_word(picture, shade, signs[0]) if signs else None
    return Found(groups, frozenset(relations), background, word)


def relation_of(a: Box, b: Box) -> str | None:
    """Which relation of `scene_draw` a has to b, with about two units to spare; None for none."""
    gap_x, gap_y = b[0] - a[2], b[1] - a[3]
    off_x, off_y = abs(a[0] + a[2] - b[0] - b[2]) / 2, abs(a[1] + a[3] - b[1] - b[3]) / 2
    if gap_x > gap_y:
        return "left of" if gap_x > -1 and off_y <= 6 else None
    if gap_y > 0.4:  # between the -1.5 of "on" and the 2.25 of "above", less their rounding
        return "above" if off_x <= 6 else None
    return "on" if gap_y > -5 and off_x <= 4 else None
