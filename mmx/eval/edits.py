"""Is what a document is gone on with the drawing that it asks for? Edits and series.

Of ``[drawing, "make the skin tone dark"]`` the right one is the same drawing in that tone. It is
compared with all variants of the same thing, what was shown among them, and with all drawings of
the split. Knows no model: it takes a function that goes on with documents.

Q questions (documents of one split), G drawings. Distances are those of `retrieval`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mmx.data.image import fit
from mmx.data.views import Document, Drawing, View
from mmx.eval import retrieval, stats
from mmx.eval.evaluator import Scores
from mmx.eval.grid import Section
from mmx.eval.images import as_uint8, finite

ASKED = 128  # ours: documents of a split
COLUMNS = 8
Draw = Callable[[list[list], int], np.ndarray]  # (documents, seed) -> [n, H, W, 3]


@dataclass(frozen=True)
class Questions:
    """Documents of a split, without what they ask for.

    Attributes:
      documents: Q of them.
      prompts: of each the parts but the last, drawings as uint8 [H, W, 3].
      others: the same, but the last text is that of another document, which asks otherwise;
        empty where all of the split ask the same.
      small: float32 [G, 32, 32, 3] in [-1, 1], drawings at the size of the distance.
      true_Q: int [Q], places in `small` of what is asked for.
      before_Q: int [Q], of the last drawing that is shown.
      variant_QG: bool [Q, G], the variants of what is asked for, itself and `before_Q` among them.
      split_G: bool [G], the drawings that any document of the split shows or asks for.
      true: uint8 [Q, H, W, 3], what is asked for.
    """

    documents: Sequence[Document]
    prompts: list[list]
    others: list[list]
    small: np.ndarray
    true_Q: np.ndarray
    before_Q: np.ndarray
    variant_QG: np.ndarray
    split_G: np.ndarray
    true: np.ndarray


def questions(view: View, size: int, seed: int, count: int) -> Questions:
    """Up to ``count`` documents of a split.

    Args:
      view: the split.
      size: pixels of a side of all drawings.
      seed: of the choice, and of the other instructions.
    """
    draw = np.random.default_rng(seed)
    chosen = draw.choice(len(view), min(count, len(view)), replace=False)
    documents = [view.documents[int(i)] for i in np.sort(chosen)]
    in_split = dict.fromkeys(part for d in view.documents for part in _drawings(d))
    place = {drawing: g for g, drawing in enumerate(in_split)}
    for document in documents:
        for drawing in document.variants:
            place.setdefault(drawing, len(place))
    image = lambda drawing: fit(view.image(drawing), size)
    small = retrieval.shrink(np.stack([image(drawing) for drawing in place]))
    variant_QG = np.zeros((len(documents), len(place)), bool)
    for row, document in zip(variant_QG, documents):
        row[[place[drawing] for drawing in document.variants]] = True
    texts = sorted({_instruction(document) for document in view.documents})
    prompts, others = [], []
    for document in documents:
        parts = [part if isinstance(part, str) else image(part) for part in document.parts[:-1]]
        own = _instruction(document)
        prompts.append(parts)
        if len(texts) > 1:
            another = str(draw.choice([text for text in texts if text != own]))
            last = max(i for i, part in enumerate(parts) if isinstance(part, str))
            others.append([*parts[:last], another, *parts[last + 1 :]])
    return Questions(
        documents,
        prompts,
        others,
        small,
        np.array([place[document.parts[-1]] for document in documents]),
        np.array([place[_drawings(document)[-2]] for document in documents]),
        variant_QG,
        np.arange(len(place)) < len(in_split),
        np.stack([image(document.parts[-1]) for document in documents]),
    )


def _drawings(document: Document) -> list[Drawing]:
    return [part for part in document.parts if isinstance(part, Drawing)]


def _instruction(document: Document) -> str:
    return [part for part in document.parts if isinstance(part, str)][-1]


def scores(
    drawn: np.ndarray, shuffled: np.ndarray | None, rebuilt: np.ndarray, asked: Questions
) -> Scores:
    """Scores of what was drawn for each question.

    `right_variant`: of all variants, is the right one nearest? `right_drawing`: of all drawings of
    the split? Equally near ones share. `rms`: how far it is from the right one, as
    `retrieval.nearest` has it. Intervals are clustered by the concept of what is asked for. Each
    also for:

      - `_ceiling`: the right drawing through the codec.
      - `_unchanged`: an editor that does nothing gives back what was shown last. Never right, but
        where two variants are equal; its `rms` is what there is to change.
      - `_other_text`: the same model, told what another document tells. An editor that does not
        read scores the same; one that does as it is told is never right.

    And `_chance`, of drawing any variant, or any drawing of the split, blindly.

    Args:
      drawn: [Q, H, W, 3], uint8 or float in [-1, 1], after `asked.prompts`.
      shuffled: the same after `asked.others`; None where there are none.
      rebuilt: `asked.true` through the codec.
    """
    right_QG = asked.true_Q[:, None] == np.arange(len(asked.small))
    galleries = {
        "right_variant": asked.variant_QG,
        # What is asked for is of the split; variants beyond it are not compared with.
        "right_drawing": np.broadcast_to(asked.split_G, right_QG.shape),
    }
    concepts = [document.parts[-1].concept for document in asked.documents]
    pictures = {
        "": drawn,
        "_ceiling": rebuilt,
        "_unchanged": asked.small[asked.before_Q],
    }
    if shuffled is not None:
        pictures["_other_text"] = shuffled
    # One call: what takes its time is the gallery.
    small = np.concatenate([retrieval.shrink(of) for of in pictures.values()])
    each = np.split(retrieval.distances(small, asked.small), len(pictures))
    found: Scores = {}
    for end, distance_QG in zip(pictures, each):
        for name, among_QG in galleries.items():
            among = np.where(among_QG, distance_QG, np.inf)
            hits_Q = retrieval.nearest_share(among, right_QG)
            found[f"{name}{end}"] = stats.proportion(hits_Q, concepts)
        own_Q = np.take_along_axis(distance_QG, asked.true_Q[:, None], 1)[:, 0]
        found[f"rms{end}"] = stats.mean(np.sqrt(own_Q), concepts)
    for name, among_QG in galleries.items():
        found[f"{name}_chance"] = float((1 / among_QG.sum(1)).mean())
    return found


def report(
    draw: Draw, rebuild: Callable[[np.ndarray], np.ndarray], view: View, size: int, seed: int
) -> tuple[Scores, list[Section]]:
    """Scores of a split, and some of its documents: what is shown, drawn, and asked for.

    Args:
      draw: goes on with each document by one picture.
      rebuild: uint8 [n, H, W, 3] through the codec.
      view, size, seed: as of :func:`questions`.
    """
    asked = questions(view, size, seed, ASKED)
    drawn = draw(asked.prompts, seed)
    whole = np.isfinite(drawn).all((1, 2, 3))
    drawn = finite(drawn)
    other = finite(draw(asked.others, seed)) if asked.others else None
    found = scores(drawn, other, rebuild(asked.true), asked)
    found["not_finite"] = stats.proportion(~whole)  # those are scored as grey
    show = np.random.default_rng(seed + 1).permutation(len(drawn))[:COLUMNS]
    before = [[part for part in asked.prompts[i] if not isinstance(part, str)][-1] for i in show]
    caption = lambda drawing: drawing.caption
    chosen = [asked.documents[i] for i in show]
    sections = [
        Section(
            np.stack(before),
            [caption(_drawings(document)[-2]) for document in chosen],
            f"{view.info.name}, {view.split}: shown, drawn as the text asks, and the true drawing",
        ),
        Section(as_uint8(drawn[show]), [_instruction(document) for document in chosen]),
        Section(asked.true[show], [caption(document.parts[-1]) for document in chosen]),
    ]
    return found, sections
