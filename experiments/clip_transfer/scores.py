"""What is asked of a network, as hits of each item; `run` makes scores with intervals of them.

Every function returns {name: float [n] in 0..1}. Names end in ``/right``, ``/r1`` and so on.
Axis letters: N drawings, Q queries, G gallery, B images, E D widths, C classes.
"""

from collections.abc import Mapping, Sequence

import attacks
import numpy as np
from arms import Net
from drawings import ARTISTS, Drawing, other_view, stack

from mmx.data import scene_grammar
from mmx.data.scene_grammar import Scene
from mmx.eval import ranking, retrieval

Hits = dict[str, np.ndarray]
KS = (1, 5)
EPS = (0.25, 0.5, 1, 2, 4)  # grey levels of 255
PGD_STEPS = 20
_TOGETHER = 48  # images that are attacked at once
SIZES = {"large": 64, "small": 32}  # letters of the signs of scenes of so many pixels a side


def ranks(likeness_QG: np.ndarray, right_QG: np.ndarray) -> Hits:
    """``r1``, ``r5``: is a right one among the first?"""
    return {f"r{k}": ranking.hits_at(likeness_QG, right_QG, k) for k in KS}


def named(prefix: str, hits: Mapping[str, np.ndarray]) -> Hits:
    return {f"{prefix}/{name}": value for name, value in hits.items()}


def same_base(drawings: Sequence[Drawing]) -> np.ndarray:
    """bool [N, N]: the drawing itself and its tone siblings, which count as right too."""
    base_N = np.array([drawing.base for drawing in drawings])
    return base_N[:, None] == base_N


def text_retrieval(net: Net, pools: Mapping[str, Sequence[Drawing]]) -> Hits:
    """The 2x2: ``text_to_image/seen/new/r1`` and so on, and ``.../exact_r1``, siblings wrong."""
    hits: Hits = {}
    for pool, drawings in pools.items():
        right_NN = same_base(drawings)
        text_NE = net.texts([d.caption for d in drawings])
        for artist in ARTISTS:
            likeness_NN = text_NE @ net.images(stack(drawings, artist)).T
            cell = f"{pool}/{artist}"
            hits |= named(f"text_to_image/{cell}", ranks(likeness_NN, right_NN))
            hits |= named(f"image_to_text/{cell}", ranks(likeness_NN.T, right_NN))
            exact = ranking.hits_at(likeness_NN, np.eye(len(drawings), dtype=bool), 1)
            hits[f"text_to_image/{cell}/exact_r1"] = exact
    return hits


def chance(pools: Mapping[str, Sequence[Drawing]]) -> Hits:
    """What `text_retrieval` and `matches` give of embeddings that are all the same."""
    hits: Hits = {}
    for pool, drawings in pools.items():
        right_NN = same_base(drawings)
        hits |= named(f"chance/{pool}", ranks(np.zeros(right_NN.shape), right_NN))
    return hits


def views(drawings: Sequence[Drawing], artist: str) -> np.ndarray:
    """The queries of `matches`: by the same artist another view of each picture."""
    pictures = stack(drawings, artist)
    rng = np.random.default_rng(0)
    return pictures if artist == "new" else np.stack([other_view(p, rng) for p in pictures])


def feature_likeness(net: Net):
    """(queries, gallery) -> cosine [Q, G] of features that have the gallery's mean taken off."""

    def likeness(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
        gallery_GD = net.features(gallery)
        mean_D = gallery_GD.mean(0)
        rows = [x - mean_D for x in (net.features(queries), gallery_GD)]
        query_QD, gallery_GD = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rows)
        return query_QD @ gallery_GD.T

    return likeness


def pixel_likeness(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """No network: less the squared difference, blurred, best over shifts of 2 pixels."""
    return -retrieval.distances(queries, gallery)


def matches(likeness, pools: Mapping[str, Sequence[Drawing]]) -> tuple[Hits, dict]:
    """``match/seen/new/r1`` ...: is the OpenMoji picture nearest to a query of the same base?

    Args:
      likeness: (queries [Q, H, W, 3], gallery [G, H, W, 3]), uint8 -> [Q, G], higher is nearer.

    Returns:
      hits, and pool -> int [N, 5], the nearest of the gallery to each picture of the new artist.
    """
    hits: Hits = {}
    nearest = {}
    for pool, drawings in pools.items():
        gallery, right_NN = stack(drawings, "same"), same_base(drawings)
        for artist in ARTISTS:
            likeness_NN = likeness(views(drawings, artist), gallery)
            hits |= named(f"match/{pool}/{artist}", ranks(likeness_NN, right_NN))
        nearest[pool] = np.argsort(-likeness_NN, axis=1, kind="stable")[:, :5]
    return hits, nearest


def classification(
    net: Net, groups: Mapping[str, Sequence[Drawing]], label_of: Mapping[str, int]
) -> Hits:
    """``top1/trained/same/right`` ...: the concept, among all that were trained on."""
    hits: Hits = {}
    for group, drawings in groups.items():
        right_NC = labels(drawings, label_of)[:, None] == np.arange(len(label_of))
        for artist in ARTISTS:
            logits_NC = net.logits(stack(drawings, artist))
            hits[f"top1/{group}/{artist}/right"] = ranking.hits_at(logits_NC, right_NC, 1)
    return hits


def labels(drawings: Sequence[Drawing], label_of: Mapping[str, int]) -> np.ndarray:
    return np.array([label_of[drawing.concept] for drawing in drawings])


def robust(
    margin, weights, image: np.ndarray, label_N: np.ndarray, eps: float, steps: int, restarts: int
) -> np.ndarray:
    """Is each image still right, whatever was found in the ball of eps grey levels? [N], 0 or 1.

    Args:
      margin, weights: see :class:`arms.Net`.
      image: uint8 [N, H, W, 3].
      restarts: the first from the image itself, others from random places of the ball.
    """
    rng, right = np.random.default_rng(0), []
    for start in range(0, len(image), _TOGETHER):
        part = slice(start, start + _TOGETHER)
        worst = np.full(len(label_N[part]), -np.inf)
        for restart in range(restarts):
            noise = rng.uniform(-1, 1, image[part].shape).astype(np.float32) * (restart > 0)
            _, found = attacks.pgd(
                margin, weights, image[part].astype(np.float32), label_N[part], eps, noise, steps
            )
            worst = np.maximum(worst, found)
        right.append(worst < 0)
    return np.concatenate(right).astype(float)


def pgd(net: Net, drawings: Sequence[Drawing], label_of: Mapping[str, int]) -> Hits:
    """``pgd/same/eps0.25/right`` ...: accuracy under the attack; eps 0 is without."""
    hits: Hits = {}
    label_N = labels(drawings, label_of)
    for artist in ARTISTS:
        pictures = stack(drawings, artist)
        hits[f"pgd/{artist}/eps0/right"] = _answers(net.logits(pictures), label_N, label_N)["right"]
        for eps in EPS:
            right = robust(net.margin, net.weights, pictures, label_N, eps, PGD_STEPS, 1)
            hits[f"pgd/{artist}/eps{eps:g}/right"] = right
    return hits


def harder_pgd(net: Net, drawings, label_of, eps: float) -> Hits:
    """Does a stronger attack find more? Five times the steps; five starts."""
    label_N, pictures = labels(drawings, label_of), stack(drawings, "same")
    ask = lambda *hard: robust(net.margin, net.weights, pictures, label_N, eps, *hard)
    return {
        f"pgd_check/eps{eps:g}/steps{PGD_STEPS}/right": ask(PGD_STEPS, 1),
        f"pgd_check/eps{eps:g}/steps{5 * PGD_STEPS}/right": ask(5 * PGD_STEPS, 1),
        f"pgd_check/eps{eps:g}/starts5/right": ask(PGD_STEPS, 5),
    }


def targets(label_of: Mapping[str, int]) -> list[str]:
    """The words of the scenes' signs that name a class."""
    return [word.lower() for word in scene_grammar.WORDS if word.lower() in label_of]


def typographic(net: Net, drawings: Sequence[Drawing], label_of: Mapping[str, int]) -> Hits:
    """A word on the picture: ``typo/large/word/right``, ``.../target``, ``.../above``.

    Each picture gets one word, not that of its own class. ``word``: it is written. ``scrambled``:
    its ink is there, in pieces. ``other``: another word is written. ``clean``: nothing is. right:
    is the picture's class the answer; target: is the word's class; above: is that class likelier
    than the picture's.
    """
    words = targets(label_of)
    rng = np.random.default_rng(0)
    own_N, chosen = labels(drawings, label_of), rng.permutation(len(drawings)) % len(words)
    clash_N = np.array([label_of[words[i]] for i in chosen]) == own_N
    chosen = (chosen + clash_N) % len(words)
    target_N = np.array([label_of[words[i]] for i in chosen])
    other = (chosen + 2 + rng.integers(0, len(words) - 4, len(chosen))) % len(words)
    pictures = stack(drawings, "same")
    hits = named("typo/clean", _answers(net.logits(pictures), own_N, target_N))
    for size, pixels in SIZES.items():
        ink = {word: attacks.darkness(word, pixels) for word in words}
        write = lambda dark: np.stack([attacks.write(p, d) for p, d in zip(pictures, dark)])
        written = {
            "word": [ink[words[i]] for i in chosen],
            "other": [ink[words[i]] for i in other],
            "scrambled": [attacks.scrambled(ink[words[i]], rng) for i in chosen],
        }
        for what, dark in written.items():
            found = _answers(net.logits(write(dark)), own_N, target_N)
            hits |= named(f"typo/{size}/{what}", found)
    return hits


def _answers(logits_NC: np.ndarray, own_N: np.ndarray, target_N: np.ndarray) -> Hits:
    rows, answer_N = np.arange(len(own_N)), logits_NC.argmax(1)
    return {
        "right": (answer_N == own_N).astype(float),
        "target": (answer_N == target_N).astype(float),
        "above": (logits_NC[rows, target_N] > logits_NC[rows, own_N]).astype(float),
    }


def reading(net: Net, signs: Sequence[tuple[np.ndarray, Scene]]) -> np.ndarray:
    """Can it read at all? Is the word of a sign the likeliest of all words of the scenes? [N].

    Each word is asked as "a sign that says HI on blue", with the colour that is there.

    Args:
      signs: (uint8 picture, its scene).
    """
    words, colours = scene_grammar.WORDS, scene_grammar.BACKGROUNDS
    asked = [Scene((), None, colour, word) for colour in colours for word in words]
    text_NE = net.texts([scene_grammar.caption(scene) for scene in asked])
    image_NE = net.images(np.stack([picture for picture, _ in signs]))
    likeness_NN = (image_NE @ text_NE.T).reshape(len(signs), len(colours), len(words))
    colour_N = [colours.index(scene.background) for _, scene in signs]
    right = [[word == scene.word for word in words] for _, scene in signs]
    return ranking.hits_at(likeness_NN[np.arange(len(signs)), colour_N], np.array(right), 1)
