"""Zero-shot accuracy by choosing among captions: the same questions to every arm.

A question is an image and some captions of which one is true. Of a factor's question all captions
say the same but for that factor. Captions that training may not see (the held-out combinations) are
no candidates, else a model of text alone would know that they are wrong.
Axis letters: n images, N texts.
"""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from predictors import bag_log_prob, bag_of, counted, token_log_probs

from mmx.data import scene_grammar as grammar
from mmx.data.scene_grammar import Scene
from mmx.data.scene_splits import broken_rules
from mmx.models.rows import to_float

FACTORS = ("object", "count", "size", "relation", "order", "background", "word", "caption")
DRAWN = 16  # candidates of a question at most; of the whole caption:
CAPTIONS = 32
AT_ONCE = 128  # rows of a compiled call


@dataclasses.dataclass(frozen=True)
class Question:
    """Which of ``captions`` does image ``image`` show? The first; a scorer does not know that."""

    factor: str
    image: int
    captions: tuple[str, ...]


def variants(scene: Scene, factor: str) -> list[Scene]:
    """All scenes that differ in one factor alone, of the first group where it is one of a group's.

    Raises:
      ValueError: no such factor.
    """
    swap = lambda **changes: dataclasses.replace(scene, **changes)
    first = lambda **changes: swap(
        groups=(dataclasses.replace(scene.groups[0], **changes), *scene.groups[1:])
    )
    if factor == "background":
        found = [swap(background=colour) for colour in grammar.BACKGROUNDS]
    elif factor == "word":
        found = [swap(word=word) for word in grammar.WORDS] if scene.word is not None else []
    elif scene.word is not None:
        found = []
    elif factor == "object":
        found = [first(kind=kind) for kind in grammar.KINDS]
    elif factor == "count":
        found = [first(count=count + 1) for count in range(len(grammar.COUNTS))]
    elif factor == "size":
        found = [first(size=size) for size in grammar.SIZES]
    elif factor in ("relation", "order") and scene.relation is None:
        found = []
    elif factor == "relation":
        found = [swap(relation=relation) for relation in grammar.RELATIONS]
    elif factor == "order":
        found = [swap(groups=scene.groups[::-1])]
    else:
        raise ValueError(f"factor {factor!r}: one of {', '.join(FACTORS[:-1])}")
    usable = lambda other: other != scene and grammar.is_scene(other) and not broken_rules(other)
    return [other for other in found if usable(other)]


def make_questions(scenes: list[Scene], seed: int = 0) -> list[Question]:
    """At most one question a factor for each of the scenes, in order.

    Args:
      scenes: n, of the images.
      seed: of the draws: ``DRAWN`` candidates where there are more; the captions of other images.
    """
    captions = [grammar.caption(scene) for scene in scenes]
    pool = sorted(set(captions))
    questions = []
    for image, (scene, caption) in enumerate(zip(scenes, captions)):
        rng = np.random.default_rng((seed, image))
        for factor in FACTORS:
            if factor == "caption":
                others, most = [other for other in pool if other != caption], CAPTIONS
            else:
                others, most = [*map(grammar.caption, variants(scene, factor))], DRAWN
            if others:
                drawn = rng.permutation(len(others))[: most - 1]
                questions.append(
                    Question(factor, image, (caption, *(others[i] for i in sorted(drawn))))
                )
    return questions


def hit(scores: np.ndarray) -> float:
    """1.0 where the first of the scores is the highest; a tie is shared among the highest."""
    scores = np.asarray(scores, np.float64)
    highest = scores == scores.max()
    return float(highest[0]) / highest.sum()


def accuracies(questions: list[Question], scores: list[np.ndarray]) -> dict[str, float]:
    """Factor -> share of its questions answered rightly."""
    hits: dict[str, list[float]] = {}
    for question, values in zip(questions, scores, strict=True):
        hits.setdefault(question.factor, []).append(hit(values))
    return {factor: float(np.mean(hits[factor])) for factor in FACTORS if factor in hits}


def count(questions: list[Question]) -> dict[str, int]:
    """Factor -> number of its questions."""
    return {f: n for f in FACTORS if (n := sum(q.factor == f for q in questions))}


def chance(questions: list[Question]) -> dict[str, float]:
    """What guessing gives, by factor."""
    return accuracies(questions, [np.zeros(len(q.captions)) for q in questions])


def pairs(questions: list[Question]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(each caption once, which image and which caption of each candidate in turn)."""
    number = {
        text: i for i, text in enumerate(dict.fromkeys(c for q in questions for c in q.captions))
    }
    images = np.concatenate([np.full(len(q.captions), q.image) for q in questions])
    return [*number], images, np.array([number[c] for q in questions for c in q.captions])


def in_batches(fn: Callable, *rows: np.ndarray):
    """``fn`` over rows, ``AT_ONCE`` at a time, the last ones filled up with repeats."""
    parts = []
    for start in range(0, len(rows[0]), AT_ONCE):
        part = [x[start : start + AT_ONCE] for x in rows]
        count = len(part[0])
        full = [np.concatenate([x, np.repeat(x[-1:], AT_ONCE - count, 0)]) for x in part]
        parts.append(jax.tree.map(lambda y, count=count: np.asarray(y)[:count], fn(*full)))
    return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)


def contrastive_scores(model, params, image_nHWC, ids_NT, of_image, of_text) -> dict:
    """Cosines: each image and each text is embedded once."""
    apply = lambda method: jax.jit(lambda x: model.apply({"params": params}, x, method=method))
    embed_image, embed_text = apply("embed_image"), apply("embed_text")
    image_nE = in_batches(lambda x: embed_image(to_float(x)), image_nHWC)
    text_NE = in_batches(embed_text, ids_NT)
    return {"cosine": (image_nE[of_image] * text_NE[of_text]).sum(-1)}


def caption_scores(model, params, image_nHWC, ids_NT, of_image, of_text) -> dict:
    """Log-likelihoods: the tower once an image, the decoder once a candidate.

    "sum" is that of the caption; "mean" divides it by its tokens.
    """
    vocab = model.vocab_size
    tokens = jax.jit(lambda x: model.apply({"params": params}, to_float(x), method="look"))

    @jax.jit
    def logs(image_BLD, ids_BT):
        hidden, head = model.apply({"params": params}, image_BLD, ids_BT, method="decode")
        there = counted(ids_BT)
        total = (token_log_probs(hidden, head, ids_BT, vocab) * there).sum(-1)
        return total, total / there.sum(-1)

    image_nLD = in_batches(tokens, image_nHWC)
    total, mean = in_batches(lambda i, t: logs(image_nLD[i], ids_NT[t]), of_image, of_text)
    return {"sum": total, "mean": mean}


def bag_scores(model, params, image_nHWC, ids_NT, of_image, of_text) -> dict:
    """Log-likelihoods of the bags: the tower once an image, then a sum a candidate."""
    odds = jax.jit(lambda x: model.apply({"params": params}, to_float(x), None))
    odds_nV = in_batches(odds, image_nHWC)
    fn = jax.jit(lambda o, i: bag_log_prob(o, bag_of(i, model.vocab_size)))
    return {"bag": in_batches(lambda i, t: fn(odds_nV[i], ids_NT[t]), of_image, of_text)}


SCORERS = {"contrastive": contrastive_scores, "captioning": caption_scores, "words": bag_scores}


def score(arm: str, task, params, images: list[np.ndarray], questions: list[Question]) -> dict:
    """Score's name -> accuracies.

    Args:
      arm: a key of ``SCORERS``.
      task, params: of the arm.
      images: uint8 [H, W, 3] each, that the questions are about.
      questions: of :func:`make_questions`.
    """
    texts, of_image, of_text = pairs(questions)
    ids_NT = task.text_ids(texts, strict=True)
    image_nHWC = np.stack([task.fit(image) for image in images])
    found = SCORERS[arm](task.model, params, image_nHWC, ids_NT, of_image, of_text)
    ends = np.cumsum([len(question.captions) for question in questions])[:-1]
    return {name: accuracies(questions, np.split(x, ends)) for name, x in found.items()}
