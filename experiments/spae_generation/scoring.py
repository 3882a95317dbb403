"""How near an image that was written word by word is to the true one, beside what needs no model.

Legend: T words of an image.
"""

from collections.abc import Callable

import numpy as np

from mmx.eval import stats
from mmx.eval.images import psnr

# What is scored -> how a reader is told.
ANSWERS = {
    "drawn": "language model",
    "wrong": "examples wrong",
    "copied": "input copied",
    "voted": "vote of the examples",
    "codec": "codec",
}


def score(
    words: dict[str, np.ndarray | None],
    true_T: np.ndarray,
    is_asked_T: np.ndarray,
    ends: tuple[int, ...],
    image: np.ndarray,
    from_words: Callable[[np.ndarray], np.ndarray],
) -> dict[str, dict]:
    """Of each answer its PSNR in dB and the share of right words of each layer.

    Args:
      words: answer -> int32 [T], or None where there is none.
      is_asked_T: bool [T]: these words are counted.
      ends: of the layers, of the pyramid.
      image: uint8 [H, W, 3], the true one; of a video [T, H, W, 3].
      from_words: int32 [n, T] -> images float32 [n, H, W, 3].

    Returns:
      answer -> {"psnr": against the image, "psnr_recon": against what the codec makes of the true
      words, "right": a number, or None for a layer of which nothing is asked, of each layer}.
    """
    there = {name: words_T for name, words_T in words.items() if words_T is not None}
    drawn = from_words(np.stack([true_T, *there.values()]))
    found = {}
    for (name, words_T), picture in zip(there.items(), drawn[1:], strict=True):
        right = []
        for begin, end in zip((0, *ends), ends):
            asked = is_asked_T[begin:end]
            hits = (words_T == true_T)[begin:end][asked]
            right.append(float(hits.mean()) if asked.any() else None)
        found[name] = {
            "psnr": _psnr(image, picture),
            "psnr_recon": _psnr(drawn[0], picture),
            "right": right,
        }
    return found


def _psnr(image: np.ndarray, picture: np.ndarray) -> float:
    """Of all pixels; the frames of a video are one tall picture."""
    tall = [x.reshape(1, -1, *x.shape[-2:]) for x in (image, picture)]
    return float(psnr(*tall)[0])


def pooled(pictures: list[dict]) -> dict[str, dict]:
    """The same answers' means over pictures: [value, low, high] of PSNRs with 95 % intervals over
    the pictures (of two or more), plain means of the shares."""
    found = {}
    for name in pictures[0]["scores"]:
        of = [picture["scores"][name] for picture in pictures]
        found[name] = {}
        for measure in ("psnr", "psnr_recon"):
            mean = stats.mean(np.array([scores[measure] for scores in of]))
            found[name][measure] = [round(x, 3) for x in (mean.value, mean.low, mean.high)]
        layers = zip(*(scores["right"] for scores in of), strict=True)
        found[name]["right"] = [
            None if None in layer else round(float(np.mean(layer)), 4) for layer in layers
        ]
    return found
