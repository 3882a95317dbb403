"""Episodes of pictures as what a language model reads: their words, noisy, beside two controls.

Legend: N examples, B episodes, T words of an image, H W pixels.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mmx.models.spae.in_context.conditions import Episode, Example
from mmx.models.spae.in_context.noise import Noise
from mmx.models.spae.in_context.prompts import Pair, Request
from mmx.models.spae.in_context.segments import asked_words
from mmx.ops.pyramid import Pyramid


class Posed(NamedTuple):
    """An episode in words.

    Attributes:
      supports: N examples, without noise.
      wrong_NT: int32 [N, T], the words of `Episode.wrong`.
      query: the true words are its `wanted_T`.
      is_asked_T: bool [T].
    """

    supports: list[Pair]
    wrong_NT: np.ndarray
    query: Pair
    is_asked_T: np.ndarray

    def request(self, noise: Noise, wrong: bool) -> Request:
        """What the language model is asked; with `wrong` its examples are the control's.

        Words that are not asked for are those of what is given.
        """
        wanted_NT = np.stack([pair.wanted_T for pair in self.supports])
        wanted_NT = noise.apply(self.wrong_NT if wrong else wanted_NT)
        given, has_words = self.query.given, not isinstance(self.query.given, str)
        supports = [pair.given for pair in self.supports]
        if has_words:
            supports = list(noise.apply(np.stack(supports)))
        known_T = given if has_words else np.zeros_like(self.query.wanted_T)
        return Request(list(map(Pair, supports, wanted_NT)), given, known_T)

    def copied(self) -> np.ndarray | None:
        """int32 [T]: what is given as the answer; None of a text."""
        return None if isinstance(self.query.given, str) else self.query.given

    def voted(self, request: Request) -> np.ndarray:
        """int32 [T]: the answer without a language model: of each word that is asked for the most
        frequent among the examples of a request, the latest of equals."""
        wanted_NT = np.stack([pair.wanted_T for pair in request.supports])
        votes_NT = (wanted_NT[:, None] == wanted_NT).sum(1)
        latest_T = len(votes_NT) - 1 - votes_NT[::-1].argmax(0)
        voted_T = np.take_along_axis(wanted_NT, latest_T[None], 0)[0]
        return np.where(self.is_asked_T, voted_T, request.known_T)


def pose(
    episodes: Sequence[Episode], pyramid: Pyramid, to_words: Callable[[np.ndarray], np.ndarray]
) -> list[Posed]:
    """Episodes -> words, each distinct image through the codec once.

    Args:
      to_words: uint8 [n, H, W, 3] -> int32 [n, T].
    """
    places: dict[bytes, int] = {}
    images: list[np.ndarray] = []

    def place(image: np.ndarray) -> int:
        number = places.setdefault(image.tobytes(), len(images))
        if number == len(images):
            images.append(image)
        return number

    for episode in episodes:
        for example in [*episode.supports, episode.query]:
            for image in example:
                if not isinstance(image, str):
                    place(image)
        for image in episode.wrong:
            place(image)
    words_nT = np.asarray(to_words(np.stack(images)))
    words = lambda image: words_nT[place(image)]

    def pair(example: Example) -> Pair:
        given = example.given
        return Pair(given if isinstance(given, str) else words(given), words(example.wanted))

    return [
        Posed(
            [pair(example) for example in episode.supports],
            np.stack([words(image) for image in episode.wrong]),
            pair(episode.query),
            asked_words(pyramid, episode.is_asked_hw),
        )
        for episode in episodes
    ]
