"""Compositions never seen: does "teacher, dark skin tone" come out dark, and a teacher?

Of the people and hands that are drawn in five skin tones, some (concept, tone) pairs are kept from
training in all genders, while the concept's other tones are trained on. A generator that only
recalls cannot draw them; one that composes can.

Q questions (held-out drawings), T toned drawings, K = 5 tones. Distances are those of `retrieval`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmx.data.emoji_table import TONES
from mmx.eval import retrieval, stats

Records = Sequence[Mapping]


@dataclass(frozen=True)
class Questions:
    """Held-out drawings to ask for, as places in the list of records.

    Attributes:
      true_Q: int [Q], the held-out drawings themselves.
      same_QK: int [Q, 5], the same drawing (concept, gender, direction) in each tone.
      tone_Q: int [Q], the asked tone, in 0..4.
      copy_Q: int [Q], the trained drawing of `same_QK` whose tone is nearest to the asked one (the
        lighter of two equally near).
      sibling_Q: int [Q], of the trained drawings of other concepts in the asked tone, the one that
        looks most like the drawing of `copy_Q`.
    """

    true_Q: np.ndarray
    same_QK: np.ndarray
    tone_Q: np.ndarray
    copy_Q: np.ndarray
    sibling_Q: np.ndarray


def questions(images: np.ndarray, records: Records) -> Questions:
    """The held-out drawings that can be asked: all five tones exist, at least one was trained on.

    Args:
      images: [number of records, H, W, 3], the real drawings of all splits.
      records: one mapping a drawing with `base` (caption without its tone: one drawing in several
        tones), `concept` (genders merged), `skin_tone` (one of `TONES`, else untoned: ignored) and
        `trained` (bool: the generator saw it). A concept with no trained tone is no composition
        but an unknown concept, and is passed over.
    Raises ValueError if two records share base and tone, if there is no question, or if one has
    no sibling.
    """
    place: dict[tuple[str, int], int] = {}
    for i, record in enumerate(records):
        if record["skin_tone"] in TONES:
            key = record["base"], TONES.index(record["skin_tone"])
            if key in place:
                raise ValueError(f"two records are {key[0]!r} in tone {TONES[key[1]]}")
            place[key] = i
    true, same, tones, copies = [], [], [], []
    for (base, tone), i in place.items():
        row = [place.get((base, t)) for t in range(len(TONES))]
        if records[i]["trained"] or None in row:
            continue
        seen = [t for t in range(len(TONES)) if records[row[t]]["trained"]]
        if seen:
            true.append(i)
            same.append(row)
            tones.append(tone)
            copies.append(row[min(seen, key=lambda t: abs(t - tone))])
    if not true:
        raise ValueError("no held-out drawing has all five tones and a trained one among them")
    copy_Q = np.array(copies)
    siblings = _siblings(np.array(true), copy_Q, images, records)
    return Questions(np.array(true), np.array(same), np.array(tones), copy_Q, siblings)


def _siblings(
    true_Q: np.ndarray, copy_Q: np.ndarray, images: np.ndarray, records: Records
) -> np.ndarray:
    """`Questions.sibling_Q`."""
    trained_T = np.array(
        [i for i, r in enumerate(records) if r["trained"] and r["skin_tone"] in TONES]
    )
    fits_QT = np.array(
        [
            [
                records[t]["skin_tone"] == records[q]["skin_tone"]
                and records[t]["concept"] != records[q]["concept"]
                for t in trained_T
            ]
            for q in true_Q
        ]
    )
    if not fits_QT.any(1).all():
        raise ValueError("an asked tone has no trained drawing of another concept")
    distance_QT = retrieval.distances(images[copy_Q], images[trained_T])
    return trained_T[np.where(fits_QT, distance_QT, np.inf).argmin(1)]


def tone_match(
    generated: np.ndarray,
    reconstructed: np.ndarray,
    asked: Questions,
    images: np.ndarray,
    records: Records,
) -> dict[str, stats.Score | float]:
    """Scores of the drawings generated for held-out (concept, tone) pairs.

    `tone_match` is five-way: of the real drawing in its five tones, is the asked one nearest to the
    generated image? Chance is 20 %. `pair_match` is harder: of all toned drawings of all concepts,
    is the nearest one of the asked concept (any gender) in the asked tone? Each also for:

      - `/ceiling`: the true drawing through the codec.
      - `/copy_nearest_tone`: a generator that knows the concept but not the tone: it copies the
        trained drawing of the concept (same gender) whose tone is nearest to the asked one. Its
        five-way score is 0, below chance: a copy is nearest to itself, which is never asked.
      - `/copy_sibling_tone`: a generator that knows the tone but not the concept. Held-out pairs
        merge genders, so the sibling is another concept (`Questions.sibling_Q`). Its five-way score
        can be high, as a hand's colour tells the tone; its pair score is 0.

    Only a generator that composes beats both, on both scores. Intervals are Wilson's, clustered by
    concept (its genders are no independent questions).

    Args:
      generated: [Q, H, W, 3], uint8 or float in [-1, 1], one image a question.
      reconstructed: [Q, H, W, 3], the true drawings through the codec.
      asked: from `questions(images, records)`; images, records: the same.
    Returns `tone_match`, `tone_match/ceiling` and so on as Scores; `.../chance` as a float.
    """
    if not len(generated) == len(reconstructed) == len(asked.true_Q):
        raise ValueError(
            f"{len(asked.true_Q)} questions, but {len(generated)} generated and "
            f"{len(reconstructed)} reconstructed images"
        )
    toned_T = np.array([i for i, record in enumerate(records) if record["skin_tone"] in TONES])
    column = {int(i): t for t, i in enumerate(toned_T)}
    same_QK = np.vectorize(column.__getitem__)(asked.same_QK)
    right_QK = asked.tone_Q[:, None] == np.arange(len(TONES))

    concept_T = np.array([records[i]["concept"] for i in toned_T])
    tone_T = np.array([TONES.index(records[i]["skin_tone"]) for i in toned_T])
    concept_Q = np.array([records[i]["concept"] for i in asked.true_Q])
    right_QT = (concept_Q[:, None] == concept_T) & (asked.tone_Q[:, None] == tone_T)

    drawn = {
        "": generated,
        "/ceiling": reconstructed,
        "/copy_nearest_tone": images[asked.copy_Q],
        "/copy_sibling_tone": images[asked.sibling_Q],
    }
    scores: dict[str, stats.Score | float] = {}
    for name, pictures in drawn.items():
        distance_QT = retrieval.distances(pictures, images[toned_T])
        five_way = retrieval.nearest_share(np.take_along_axis(distance_QT, same_QK, 1), right_QK)
        pair = retrieval.nearest_share(distance_QT, right_QT)
        scores[f"tone_match{name}"] = stats.proportion(five_way, concept_Q)
        scores[f"pair_match{name}"] = stats.proportion(pair, concept_Q)
    scores["tone_match/chance"] = 1 / len(TONES)
    scores["pair_match/chance"] = float(right_QT.mean())
    return scores
