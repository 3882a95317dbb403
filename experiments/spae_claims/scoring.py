"""What an arm's words are worth, image by image, so that arms are compared on the same images.

Axis letters: N images, T words of an image, P layers, Q queries, V words, E width of the judge.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmx.data.image import fit
from mmx.data.labels import lend_labels
from mmx.data.source import open_source
from mmx.eval import images as image_scores
from mmx.eval.episodes import Column, Episode, Pool, draw_classes
from mmx.eval.fewshot import overlap
from mmx.eval.fewshot_scores import hits
from mmx.eval.word_meaning import margins

WAYS = (2, 5)
SHOWN = Column(induction=True, shots=5, repeats=0)
EPISODES = {2: 150, 5: 60}  # of 300 queries each
JUDGE = "wordllama"  # of words against captions; it guided nothing
LENDER = "tfds:noto/64"  # drawings of the same emoji, with Unicode's groups
RECIPE = (JUDGE, LENDER, SHOWN, sorted(EPISODES.items()))  # all that scores depend on besides a run
_AT_ONCE = 50


class Test(NamedTuple):
    """The images that all runs are scored on.

    image_NHWC: uint8.
    captions: of each.
    groups: of each, the concept; tones of one are drawn together.
    episodes: by number of ways.
    """

    image_NHWC: np.ndarray
    captions: list[str]
    groups: list[str]
    episodes: dict[int, list[Episode]]


def open_test(data_dir: str, size: int) -> Test:
    """OpenMoji's test split. Its classes are Unicode's groups, of emoji without a skin tone.

    Raises:
      UserError: a data set that is not prepared.
    """
    source = open_source("tfds:openmoji/32", "test", data_dir)
    lender = open_source(LENDER, "test", data_dir, needs_image=False)
    examples = [source[i] for i in range(len(source))]
    group = lend_labels(source, "codepoints", "group", lender, data_dir)
    pool = Pool([g if e["untoned"] else None for g, e in zip(group, examples, strict=True)])
    return Test(
        np.stack([fit(e["image"], size) for e in examples]),
        [e["text"] for e in examples],
        [e["concept"] for e in examples],
        {ways: draw_classes(pool, None, 0, EPISODES[ways], ways) for ways in WAYS},
    )


def score(
    to_words: Callable, from_words: Callable, strings: Sequence[str], ends: Sequence[int],
    judge: Any, test: Test,
) -> dict[str, Any]:  # fmt: skip
    """All of a run.

    Args:
      to_words: uint8 [B, H, W, 3] -> int [B, T].
      from_words: int [B, T of whole layers] -> float [B, H, W, 3].
      strings: V words as one reads them.
      ends: how many words there are up to the end of each layer.
      judge: has ``embed``.

    Returns:
      "psnr", dB by the first 1 to P layers [P, N]; "margin", see :func:`layer_margins` [P, N];
      "unique", how many different words each layer has [P]; "hits", by ways, the share of each
      query's answer that is right by the first 1 to P layers [P, Q].
    """
    words, psnr = [], [[] for _ in ends]
    for first in range(0, len(test.image_NHWC), _AT_ONCE):
        image = test.image_NHWC[first : first + _AT_ONCE]
        words.append(to_words(image))
        for layer, end in enumerate(ends):
            recon = image_scores.finite(from_words(words[-1][:, :end]))
            psnr[layer].append(image_scores.psnr(image, recon))
    words_NT = np.concatenate(words)
    meaning_VE, caption_NE = judge.embed(list(strings)), judge.embed(test.captions)
    margin_PN = layer_margins(ends, words_NT, meaning_VE, caption_NE, test.groups)
    return {
        "psnr": [rounded(np.concatenate(part), 3) for part in psnr],
        "margin": [rounded(row, 4) for row in margin_PN],
        "unique": [len(np.unique(words_NT[:, at])) for at in layers(ends)],
        "hits": {
            str(ways): [rounded(row, 3) for row in overlap_hits(ends, words_NT, episodes)]
            for ways, episodes in test.episodes.items()
        },
    }


def layers(ends: Sequence[int]) -> list[slice]:
    """Where the words of each layer are."""
    return [slice(first, end) for first, end in zip((0, *ends), ends)]


def layer_margins(ends, words_NT, meaning_VE, caption_NE, groups) -> np.ndarray:
    """float [P, N]: of each layer's words alone, how much nearer they are to the image's caption
    than to those of other groups: :func:`mmx.eval.word_meaning.margins`."""
    return np.stack(
        [margins(words_NT[:, at], meaning_VE, caption_NE, groups)[0] for at in layers(ends)]
    )


def overlap_hits(
    ends: Sequence[int], words_NT: np.ndarray, episodes: Sequence[Episode]
) -> np.ndarray:
    """float [P, Q]: 1 where a query's words are most those of its class, without any language
    model; a tie earns its share."""
    words = {(role, i): row for role in ("shown", "asked") for i, row in enumerate(words_NT)}
    right = lambda episode, end: hits(overlap(episode, SHOWN, words, end), episode)
    return np.stack([np.concatenate([right(e, end) for e in episodes]) for end in ends])


def classes(episodes: Sequence[Episode]) -> list[str]:
    """Of each query."""
    return [item.answer for episode in episodes for item in episode.queries]


def rounded(values, digits: int) -> list[float]:
    """For JSON."""
    return [round(float(x), digits) for x in values]
