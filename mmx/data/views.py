"""Documents of several images, made of the drawings of an emoji data set as they are read.

``edits:openmoji/32``: ``[drawing, "make the skin tone dark", the same in that tone]``, for every
two tones of one drawing, from the untoned one too; and ``[red heart, "make it blue", blue heart]``
for every two colours of one thing.

``series:openmoji/32``: ``[caption, drawing, caption, drawing]`` of two drawings of one concept that
follow each other in the order of code points: a woman running, then a man running.

Either is opened like a data set, also of noto, which has the same features. Splits, those of edits
to another colour apart, as ``train_colour`` and so on, so that a run can weigh them: ``train`` has
only drawings that training on the data set's ``train+train_toned`` sees; ``test`` is of concepts of
which no document is in ``train``: of tones and series those that the data set holds out, of colours
books and squares, which are seen, but never to change; ``heldout_composition`` asks for a tone of a
concept, or a colour of a thing, that is never seen.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from etils.epath import PathLike

from mmx.core.errors import UserError
from mmx.data.source import DataInfo, Source, open_source

COLOURS = (
    "red", "orange", "yellow", "green", "blue", "light blue", "purple", "pink", "brown", "grey",
    "black", "white",
)  # fmt: skip
_LEARNED = ("train", "train_toned")
# The last words of things, in any size, whose colours never change in training. The data set holds
# out single drawings of a thing, the blue heart: that leaves every thing of many colours in it.
_HELD_THINGS = ("book", "square")
_FEATURES = ("base", "concept", "skin_tone", "codepoints")


@dataclasses.dataclass(frozen=True, order=True)
class Drawing:
    """One example of the data set, and where it is.

    Attributes:
      codepoints, caption, base, concept, skin_tone: see :class:`mmx.data.emoji_table.Entry`.
      split, index: its place.
    """

    codepoints: str
    caption: str
    base: str
    concept: str
    skin_tone: str
    split: str
    index: int


@dataclasses.dataclass(frozen=True)
class Document:
    """Texts and drawings in order.

    Attributes:
      kind: "tone" or "colour" of an edit, "series".
      of: whose drawings they are: the drawing without its tone, the thing without its colour, the
        concept.
      variants: all drawings of that.
      parts: str or :class:`Drawing`; the last is what the others ask for.
    """

    kind: str
    of: str
    variants: tuple[Drawing, ...]
    parts: tuple[str | Drawing, ...]


def edits(drawings: list[Drawing]) -> Iterator[Document]:
    """Every (drawing, instruction, drawing) of :func:`tones` and :func:`colours`."""
    yield from tones(drawings)
    yield from colours(drawings)


def tones(drawings: list[Drawing]) -> Iterator[Document]:
    """From any tone of a drawing, and from the untoned one, to each other tone."""
    for base, group in _groups(drawings, lambda drawing: drawing.base):
        for before, after in itertools.permutations(group, 2):
            if after.skin_tone != "none":
                text = f"make the skin tone {after.skin_tone}"
                yield Document("tone", base, group, (before, text, after))


def colours(drawings: list[Drawing]) -> Iterator[Document]:
    """From any colour of a thing to each other one; the thing is what its caption says else."""
    coloured = {drawing: split for drawing in drawings if (split := _colour(drawing.base.lower()))}
    for thing, group in _groups(list(coloured), lambda drawing: coloured[drawing][1]):
        for before, after in itertools.permutations(group, 2):
            text = f"make it {coloured[after][0]}"
            yield Document("colour", thing, group, (before, text, after))


def series(drawings: list[Drawing]) -> Iterator[Document]:
    """(caption, drawing, caption, drawing) of neighbours in one concept."""
    for concept, group in _groups(drawings, lambda drawing: drawing.concept):
        for first, second in itertools.pairwise(group):
            parts = (first.caption, first, second.caption, second)
            yield Document("series", concept, group, parts)


# What a spec begins with -> the documents of all drawings.
VIEWS: dict[str, Callable[[list[Drawing]], Iterator[Document]]] = {"edits": edits, "series": series}


def _colour(base: str) -> tuple[str, str] | None:
    """``"light blue heart"`` -> ("light blue", "heart"); None where no colour is named first."""
    for colour in COLOURS:
        if base.startswith(f"{colour} "):
            return colour, base.removeprefix(f"{colour} ")
    return None


def _groups(
    drawings: list[Drawing], key: Callable[[Drawing], str]
) -> Iterator[tuple[str, tuple[Drawing, ...]]]:
    """(key, its drawings in order of code points) where there are two or more."""
    found: dict[str, list[Drawing]] = {}
    for drawing in sorted(drawings):
        found.setdefault(key(drawing), []).append(drawing)
    return ((of, tuple(group)) for of, group in found.items() if len(group) > 1)


def _split(document: Document) -> str | None:
    """Of a document; None where it shows what is held out, but asks for nothing held out."""
    *shown, asked = (part.split for part in document.parts if isinstance(part, Drawing))
    if document.kind == "colour":
        if document.of.split()[-1] in _HELD_THINGS:
            return "test_colour"
        # The thing changes its colours in training, if not to this one.
        asked = "heldout_composition" if asked == "test" else asked
    elif asked == "test":
        return "test"
    if not all(split in _LEARNED for split in shown):
        return None
    side = "train" if asked in _LEARNED else asked
    return f"{side}_colour" if document.kind == "colour" else side


@dataclasses.dataclass(frozen=True)
class ViewInfo(DataInfo):
    """Of a view: as of its data set, with splits of its own.

    Attributes:
      documents: digest of all documents.
    """

    documents: str

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the data set's examples and of the documents made from them."""
        of_data = super().fingerprint
        return hashlib.sha256(f"{of_data} {self.documents}".encode()).hexdigest()[:16]


class View:
    """Random access to one split of documents: to its readers a :class:`mmx.data.source.Source`.

    ``view[i]`` is a dict: ``"parts"``, a list of texts and of images uint8 [H, W, 3] (with
    ``latents`` theirs, float16 [h, w, Z]); ``"kind"``;
    ``"caption"`` and ``"concept"`` of the last image.

    Attributes:
      info: of the view.
      split: its name.
      label, class_names: none.
      documents: in order.
    """

    label, class_names = None, {}

    def __init__(
        self,
        info: ViewInfo,
        split: str,
        documents: list[Document],
        sources: Mapping[str, Source],
    ):
        self.info, self.split = info, split
        self.documents, self._sources = documents, sources

    def __len__(self) -> int:
        return len(self.documents)

    def __repr__(self) -> str:
        return f"View({self.info.name}, {self.split}, {len(self)} documents)"

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._example(index, self.image)

    def image(self, drawing: Drawing) -> np.ndarray:
        """uint8 [H, W, 3]."""
        return self._sources[drawing.split][drawing.index]["image"]

    def outline(self, index: int) -> dict[str, Any]:
        """``self[index]`` with None for its images, which are not decoded."""
        return self._example(index, lambda drawing: None)

    def outlines(self) -> Iterator[dict[str, Any]]:
        """:meth:`outline` of all, in order."""
        return map(self.outline, range(len(self)))

    def _example(self, index: int, image: Callable[[Drawing], Any]) -> dict[str, Any]:
        document = self.documents[index]
        last = document.parts[-1]
        return {
            "parts": [part if isinstance(part, str) else image(part) for part in document.parts],
            "kind": document.kind,
            "caption": last.caption,
            "concept": last.concept,
        }


def open_view(
    spec: str, split: str, data_dir: PathLike | None = None, latents: bool = False
) -> View:
    """Open a split of a view.

    Args:
      spec: ``"edits:NAME/CONFIG"`` or ``"series:NAME/CONFIG"``.
      split: a split's name.
      data_dir: where data sets lie.
      latents: give those that are stored in the place of images.

    Raises:
      UserError: see :func:`mmx.data.source.open_source`; a data set without the features that this
        needs; no such split (lists the splits).
    """
    name = spec.partition(":")[2]
    base = open_source(f"tfds:{name}", "train", data_dir)
    sources, found, digest = _read(spec, data_dir, base.info.fingerprint, latents)
    if split not in found:
        raise UserError(f"data.split={split}: {spec} has the splits {', '.join(found) or 'none'}")
    fields = {f.name: getattr(base.info, f.name) for f in dataclasses.fields(base.info)}
    fields |= {"name": spec, "splits": {of: len(part) for of, part in found.items()}}
    return View(ViewInfo(**fields, documents=digest), split, found[split], sources)


@functools.lru_cache(maxsize=4)  # a run opens its views several times, for seconds each
def _read(
    spec: str, data_dir: PathLike | None, fingerprint: str, latents: bool
) -> tuple[dict[str, Source], dict[str, list[Document]], str]:
    """(the splits of a data set of this fingerprint, those of the view, digest of the latter)."""
    del fingerprint  # so that data prepared anew are read anew
    kind, _, name = spec.partition(":")
    splits = open_source(f"tfds:{name}", "train", data_dir).info.splits
    sources = {
        split: open_source(f"tfds:{name}", split, data_dir, latents=latents) for split in splits
    }
    drawings = [drawing for source in sources.values() for drawing in _drawings(source)]
    found: dict[str, list[Document]] = {}
    for document in VIEWS[kind](drawings):
        if (of := _split(document)) is not None:
            found.setdefault(of, []).append(document)
    return sources, found, _digest(found)


def _drawings(source: Source) -> Iterator[Drawing]:
    for index, example in enumerate(source.outlines()):
        if missing := [name for name in _FEATURES if name not in example]:
            raise UserError(
                f"data.source: {source.info.name} has no features {', '.join(missing)}, so no view "
                "can be made of it; use openmoji or noto"
            )
        facts = {name: example[name] for name in _FEATURES}
        yield Drawing(caption=example["text"], split=source.split, index=index, **facts)


def _digest(found: Mapping[str, list[Document]]) -> str:
    """Of the documents by their texts and code points."""
    listed = {
        split: [
            [part if isinstance(part, str) else part.codepoints for part in document.parts]
            for document in documents
        ]
        for split, documents in found.items()
    }
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()
