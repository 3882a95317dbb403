"""What does a picture of a scene show? Read by synthesis: the known drawings, tried everywhere.

No network, so nothing that could have taught or guided a model scores it. A picture is brought to
`SIDE` pixels (area average). Its background is the named colour that most of its frame is nearest
to. Then, greedily, the drawing, size and place that explain most of what is not background. For a
residual R (picture minus background), a drawing's own D (drawing minus background) and the pixels m
that nothing has explained yet, all sums over the drawing:

    gain = sum m (R^2 - (R - D)^2) = 2 sum m R D - sum m D^2
    likeness = 2 sum m R D / (sum m R^2 + sum m D^2)

The gain is the log-likelihood ratio against "nothing there" under gaussian noise (a matched
filter); alone it prefers one large drawing over two small ones that it half covers. The likeness is
1 for an equal picture only. The greatest gain * likeness^`POWER` wins, if its likeness is `LIKE` at
least and `VISIBLE` of its drawing's energy lies on unexplained pixels. A sign is one more drawing,
which says nothing of its letters; they are read in their cells.

Legend: B batch, S side in pixels, h w a drawing, y x its place, C colours, K drawings, F
frequencies.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmx.core.progress import Progress
from mmx.data import scene_draw, scene_grammar
from mmx.data.scene_grammar import Found
from mmx.eval import images as im
from mmx.eval import retrieval

SIDE = 32
LIKE = 0.6  # ours, as POWER: see the table in mmx.eval.scenes
POWER = 4
VISIBLE = 0.35  # ours: "on" hides up to a third of the lower drawing
MOST = 4  # objects looked for: one more than a scene has, so that too many show
_BLUR = 0.7  # pixels, of picture and drawings: a shift by half a pixel then costs little
_THERE = 0.05  # alpha of a drawing from which on a pixel is its own
_PAD = 2  # pixels around a drawing that its blur reaches
_CANVAS = 48  # pixels: the picture and what a window may reach beyond it; a good length for an FFT
_BATCH = 64
_COLOURS = np.array([scene_draw.COLOURS[name] for name in scene_grammar.BACKGROUNDS], np.float32)
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_BLURS = (0.0, 0.5, 1.0, 1.5)  # sigmas, in 1/32 of the side, that letters are tried with
_SHAPES = (("small", scene_grammar.KINDS), ("normal", scene_grammar.KINDS), ("sign", ("sign",)))


class Thing(NamedTuple):
    """A found object: its kind, size ("sign" for a sign) and box, in 1/32 of the side."""

    kind: str
    size: str
    x: float
    y: float
    w: float
    h: float


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
    for start in range(0, len(pictures), _BATCH):
        rows = range(start, min(start + _BATCH, len(pictures)))
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


def backgrounds(pictures_BSSC: np.ndarray) -> np.ndarray:
    """Index in `scene_grammar.BACKGROUNDS` of each picture's, int [B]; pictures 0..255."""
    edge = np.zeros(pictures_BSSC.shape[1:3], bool)
    edge[:2] = edge[-2:] = edge[:, :2] = edge[:, -2:] = True
    frame_BNC = pictures_BSSC[:, edge]
    nearest_BN = ((frame_BNC[:, :, None] - _COLOURS) ** 2).sum(-1).argmin(-1)
    votes = [np.bincount(row, minlength=len(_COLOURS)) for row in nearest_BN]
    return np.stack(votes).argmax(-1)


@functools.cache
def _drawing(kind: str, size: str) -> np.ndarray:
    """A drawing, blurred and with its margin: float32 [h, w, 4], colours times alpha, alpha."""
    ink = scene_draw.board(SIDE) if kind == "sign" else scene_draw.sprite(kind, size, SIDE)
    return _blurred(np.pad(ink, ((_PAD, _PAD), (_PAD, _PAD), (0, 0)))[None])[0]


def _explains(kind: str, size: str) -> np.ndarray:
    """bool [h, w]: where a drawing says what is seen. A sign does not, where its letters may be."""
    where = np.ones(_drawing(kind, size).shape[:2], bool)
    if kind == "sign":
        x, y = (_PAD + at for at in scene_draw.letter_corners(3, SIDE)[0])
        h, w = _letters(SIDE).shape[2:]
        where[y : y + h, x : x + 3 * w] = False
    return where


def _blurred(pictures_BHWC: np.ndarray, sigma: float = _BLUR) -> np.ndarray:
    """A gaussian blur out to about 3 sigma; the edge pixels go on beyond the edge."""
    reach = math.ceil(2.8 * sigma)
    x = np.arange(-reach, reach + 1)
    kernel = np.exp(-(x**2) / (2 * max(sigma, 1e-3) ** 2)).astype(np.float32)
    kernel /= kernel.sum()
    for axis in (1, 2):
        pad = [(0, 0)] * 4
        pad[axis] = (reach, reach)
        padded, n = np.pad(pictures_BHWC, pad, mode="edge"), pictures_BHWC.shape[axis]
        parts = [k * padded.take(range(i, i + n), axis=axis) for i, k in enumerate(kernel)]
        pictures_BHWC = np.sum(parts, axis=0)
    return pictures_BHWC


@functools.cache
def _bank(shape: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The drawings of one size, each in the top left corner of what holds the largest.

    Colours times alpha float32 [h, w, 3, K] in units of 255, alpha [h, w, K], and 0 or 1 [h, w, K]:
    where the drawing is.
    """
    size, kinds = _SHAPES[shape]
    drawings = [_drawing(kind, size) for kind in kinds]
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
    pictures_BSSC = retrieval.area_resize(pictures_BHWC, SIDE)
    fine = retrieval.area_resize(pictures_BHWC, 64 if pictures_BHWC.shape[1] >= 64 else 32)
    names = backgrounds(pictures_BSSC)
    things = _things(_blurred(pictures_BSSC), names)
    return [
        _found(of_one, picture, scene_grammar.BACKGROUNDS[name])
        for of_one, picture, name in zip(things, fine, names)
    ]


def _things(pictures_BSSC: np.ndarray, names_B: np.ndarray) -> list[list[Thing]]:
    """The objects of pictures on backgrounds, best explained first."""
    count = len(pictures_BSSC)
    padded = min(_BATCH, max(8, 1 << (count - 1).bit_length()))  # few shapes to compile for
    background = np.zeros((padded, 3), np.float32)
    background[:count] = _COLOURS[names_B] / 255
    residual = np.zeros((padded, _CANVAS, _CANVAS, 3), np.float32)
    inner = slice(_PAD, SIDE + _PAD)
    residual[:count, inner, inner] = pictures_BSSC / 255 - background[:count, None, None]
    unexplained = np.zeros(residual.shape[:3], np.float32)
    unexplained[:count, inner, inner] = 1
    things: list[list[Thing]] = [[] for _ in range(count)]
    banks = [_bank(shape) for shape in range(len(_SHAPES))]
    for _ in range(MOST):
        best = [jax.device_get(_best(residual, unexplained, background, *bank)) for bank in banks]
        scores = np.stack([score for score, _ in best])[:, :count]
        for row in np.flatnonzero(scores.max(0) > 0):
            shape = int(scores[:, row].argmax())
            size, kinds = _SHAPES[shape]
            h, w, num = banks[shape][1].shape
            places = (_CANVAS - h + 1, _CANVAS - w + 1, num)
            y, x, k = (int(i) for i in np.unravel_index(best[shape][1][row], places))
            drawing = _drawing(kinds[k], size)
            h, w = drawing.shape[:2]
            hidden = unexplained[row, y : y + h, x : x + w]  # cut off where the canvas ends
            hidden *= drawing[: hidden.shape[0], : hidden.shape[1], 3] <= _THERE
            scale = scene_draw.SIDE / SIDE
            box = (x, y, w - 2 * _PAD, h - 2 * _PAD)
            things[row].append(Thing(kinds[k], size, *(scale * length for length in box)))
        if not (scores > 0).any():
            break
    return things


def _found(things: list[Thing], picture: np.ndarray, background: str) -> Found:
    groups: dict[str, tuple[int, frozenset[str]]] = {}
    for thing in things:
        if thing.kind != "sign":
            count, sizes = groups.get(thing.kind, (0, frozenset()))
            groups[thing.kind] = count + 1, sizes | {thing.size}
    boxes = {kind: _union([t for t in things if t.kind == kind]) for kind in groups}
    relations = {
        (a, relation, b)
        for a in boxes
        for b in boxes
        if a != b and (relation := relation_of(boxes[a], boxes[b])) is not None
    }
    signs = [thing for thing in things if thing.kind == "sign"]
    word = read_word(picture, signs[0]) if signs else None
    return Found(groups, frozenset(relations), background, word)


_Box = tuple[float, float, float, float]  # left, top, right, bottom in 1/32 of the side


def _union(things: list[Thing]) -> _Box:
    return (
        min(t.x for t in things),
        min(t.y for t in things),
        max(t.x + t.w for t in things),
        max(t.y + t.h for t in things),
    )


def relation_of(a: _Box, b: _Box) -> str | None:
    """Which relation of `scene_draw` a has to b, with about two units to spare; None for none."""
    gap_x, gap_y = b[0] - a[2], b[1] - a[3]
    off_x, off_y = abs(a[0] + a[2] - b[0] - b[2]) / 2, abs(a[1] + a[3] - b[1] - b[3]) / 2
    if gap_x > gap_y:
        return "left of" if gap_x > -1 and off_y <= 6 else None
    if gap_y > 0.4:  # between the -1.5 of "on" and the 2.25 of "above", less their rounding
        return "above" if off_x <= 6 else None
    return "on" if gap_y > -5 and off_x <= 4 else None


def read_word(picture: np.ndarray, sign: Thing) -> str:
    """The 2 or 3 capitals on a found sign that explain its dark pixels best.

    Args:
      picture: [side, side, 3], 0..255, of whatever side `scene_draw` draws.
      sign: where it is; its place is improved by up to 1/32 of the side each way.

    The least squared error over all words, places and the `_BLURS` that a picture may have.
    """
    side = len(picture)
    scale = side / scene_draw.SIDE
    w, h = (round(length * scale) for length in scene_draw.BOARD)
    edge, reach = round((scene_draw.LINE + 0.5) * scale), round(scale)
    dark = np.pad(1 - picture.mean(-1) / 255, reach, mode="edge")  # 1 is black
    best = (np.inf, "")
    for down, right in itertools.product(range(2 * reach + 1), repeat=2):
        top, left = round(sign.y * scale) + down, round(sign.x * scale) + right
        board = dark[max(top, 0) : top + h, max(left, 0) : left + w]
        if board.shape != (h, w):
            continue
        paper = (board[edge:-edge, edge:-edge] ** 2).sum()
        for length in (2, 3):
            corners = scene_draw.letter_corners(length, side)
            lh, lw = _letters(side).shape[2:]
            cells = np.stack([board[y : y + lh, x : x + lw] for x, y in corners])
            # [blur, place, letter]: how much more error than that of empty paper
            errors = _energies(side)[:, None] - 2 * np.einsum(
                "phw,blhw->bpl", cells, _letters(side), optimize=True
            )
            blur = errors.min(-1).sum(-1).argmin()
            word = "".join(_ALPHABET[i] for i in errors[blur].argmin(-1))
            best = min(best, (paper + errors[blur].min(-1).sum(), word))
    return best[1]


@functools.cache
def _letters(side: int) -> np.ndarray:
    """Darkness of the capitals in their cells at each of `_BLURS`, float32 [blurs, 26, h, w]."""
    sharp = np.stack([scene_draw.letter(c, side) for c in _ALPHABET]) * (1 - 30 / 255)
    return np.stack([_blurred(sharp[..., None], b * side / 32)[..., 0] for b in _BLURS])


@functools.cache
def _energies(side: int) -> np.ndarray:
    return (_letters(side) ** 2).sum((2, 3))
