"""Edits of a made-up world, by editors whose scores are known."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from mmx.data.views import Drawing, series, tones
from mmx.eval import edits
from mmx.eval.images import from_uint8

SHADES = {"none": 255, "light": 220, "medium": 150, "dark": 60}
PLACES = {f"person {i}": (1 + 4 * (i % 6), 2 + 7 * (i // 6)) for i in range(24)}


def picture(drawing: Drawing) -> np.ndarray:
    """A square whose place is the person's, whose shade is the tone's."""
    image = np.full((32, 32, 3), 255, np.uint8)
    y, x = PLACES[drawing.base]
    shade = SHADES[drawing.skin_tone]
    image[y : y + 7, x : x + 7] = (40, 90, 140)
    image[y + 1 : y + 6, x + 1 : x + 6] = (shade, shade * 3 // 4, shade // 2)
    return image


def drawings(people=PLACES, tones=SHADES) -> list[Drawing]:
    return [
        Drawing(f"{base}, {tone}", f"{base}, {tone}", base, base, tone, "train", 0)
        for base in people
        for tone in tones
    ]


def view(documents, split="test") -> SimpleNamespace:
    info = SimpleNamespace(name="edits:made-up")

    class Split(SimpleNamespace):
        __len__ = lambda self: len(self.documents)

    return Split(documents=documents, image=picture, split=split, info=info)


@pytest.fixture(scope="module")
def asked() -> edits.Questions:
    return edits.questions(view(list(tones(drawings()))), 32, 0, 128)


def as_told(asked: edits.Questions, prompts) -> np.ndarray:
    """An editor that is perfect: it knows whom the image shows, and reads the text."""
    drawn = []
    for document, (_, text) in zip(asked.documents, prompts):
        tone = text.removeprefix("make the skin tone ")
        drawn.append(picture(dataclasses.replace(document.parts[0], skin_tone=tone)))
    return np.stack(drawn)


def test_questions(asked):
    assert len(asked.documents) == 128 == len({id(d) for d in asked.documents})
    assert asked.small.shape == (96, 32, 32, 3) and asked.split_G.all()
    for q, document in enumerate(asked.documents):
        before, text, after = document.parts
        np.testing.assert_array_equal(asked.prompts[q][0], picture(before))
        np.testing.assert_array_equal(asked.true[q], picture(after))
        assert asked.prompts[q][1] == text != asked.others[q][1]
        assert asked.others[q][1].startswith("make the skin tone ")
        assert asked.variant_QG[q].sum() == 4
        assert asked.variant_QG[q, asked.true_Q[q]] and asked.variant_QG[q, asked.before_Q[q]]
    again = edits.questions(view(list(tones(drawings()))), 32, 1, 128)
    assert again.documents != asked.documents


def test_of_a_series_the_second_drawing_is_asked_for():
    documents = list(series(drawings(list(PLACES)[:2])))
    asked = edits.questions(view(documents), 32, 0, 9)
    assert len(asked.documents) == 6
    for q, document in enumerate(asked.documents):
        caption, first, told, second = document.parts
        assert [caption, told] == asked.prompts[q][::2] == [caption, second.caption]
        np.testing.assert_array_equal(asked.prompts[q][1], picture(first))
        np.testing.assert_array_equal(asked.true[q], picture(second))
        *same, other = asked.others[q]
        assert same == [caption, asked.prompts[q][1]] and other != told
    before = np.stack([parts[1] for parts in asked.prompts])
    scores = edits.scores(before, before, asked.true, asked)
    assert scores["right_variant"].value == 0 and scores["right_variant_chance"] == 1 / 4


def test_a_perfect_editor_scores_one_and_told_otherwise_nothing(asked):
    drawn, shuffled = as_told(asked, asked.prompts), as_told(asked, asked.others)
    scores = edits.scores(drawn, shuffled, asked.true, asked)
    for name in ("right_variant", "right_drawing"):
        assert scores[name].value == scores[f"{name}_ceiling"].value == 1
        assert scores[f"{name}_other_text"].value == 0
        assert scores[f"{name}_unchanged"].value == 0
    assert scores["right_variant_chance"] == 1 / 4
    assert scores["right_drawing_chance"] == pytest.approx(1 / 96)
    # The root of float32's rounding in the squares, as `retrieval.nearest` says.
    assert scores["rms"].value == pytest.approx(0, abs=2e-3)
    assert scores["rms_unchanged"].value > scores["rms_other_text"].value * 0.5 > 0.03
    # As many independent items as there are concepts.
    assert scores["right_variant"].low == pytest.approx(24 / (24 + 1.959964**2), rel=1e-6)


def test_an_editor_that_does_nothing_scores_what_its_control_does(asked):
    before = np.stack([parts[0] for parts in asked.prompts])
    scores = edits.scores(before, before, asked.true, asked)
    for name in ("right_variant", "right_drawing", "rms"):
        own = pytest.approx(dataclasses.astuple(scores[name]), rel=1e-6)  # products of float32
        for end in ("unchanged", "other_text"):
            assert dataclasses.astuple(scores[f"{name}_{end}"]) == own
    assert scores["right_variant"].value == 0
    expected = [
        np.sqrt(edits.retrieval.distances(a[None], b[None])[0, 0])
        for a, b in zip(before, asked.true)
    ]
    assert scores["rms"].value == pytest.approx(np.mean(expected), rel=1e-5)


def test_an_editor_that_guesses_scores_chance(asked):
    """Any variant, any drawing of the split, and one and the same page."""
    draw = np.random.default_rng(3)
    of = lambda places: asked.small[places]
    variant = of([draw.choice(np.flatnonzero(row)) for row in asked.variant_QG])
    scores = edits.scores(variant, variant, asked.true, asked)
    assert abs(scores["right_variant"].value - 1 / 4) < 0.09  # 2.4 standard deviations of 128
    assert scores["right_variant"] == scores["right_variant_other_text"]
    blind = of(draw.integers(96, size=len(asked.documents)))
    scores = edits.scores(blind, blind, asked.true, asked)
    assert scores["right_drawing"].value < 0.04
    # One and the same page is nearest to the dark one of each.
    right = np.mean([document.parts[-1].skin_tone == "dark" for document in asked.documents])
    black = np.zeros((128, 32, 32, 3), np.uint8)
    scores = edits.scores(black, black, asked.true, asked)
    assert scores["right_variant"].value == pytest.approx(right) and 0.2 < right < 0.5


def test_a_drawing_that_several_variants_share_is_right_by_its_share(asked):
    equal = dataclasses.replace(asked, small=np.zeros_like(asked.small))
    scores = edits.scores(asked.true, asked.true, asked.true, equal)
    assert scores["right_variant"].value == pytest.approx(1 / 4)
    assert scores["right_drawing"].value == pytest.approx(1 / 96)


def test_variants_beyond_the_split_are_compared_with_each_other_alone():
    """Dark is never asked for or shown, as a held-out tone: a variant, but not of the split."""
    every = list(tones(drawings(list(PLACES)[:2])))
    told = [d for d in every if all(getattr(p, "skin_tone", "") != "dark" for p in d.parts)]
    asked = edits.questions(view(told), 32, 0, count=5)
    assert asked.variant_QG.sum(1).tolist() == [4] * 5 and asked.split_G.sum() == 6
    names = [(d.parts[-1].base, "dark") for d in asked.documents]
    dark = np.stack([picture(Drawing("", "", base, base, t, "", 0)) for base, t in names])
    scores = edits.scores(dark, dark, asked.true, asked)
    assert scores["right_variant"].value == 0
    assert scores["right_drawing_chance"] == pytest.approx(1 / 6)


def test_the_picture_shows_edits_in_columns(asked):
    told = []

    def draw(documents, seed):
        told.append((documents, seed))
        return as_told(asked, documents)

    scores, sections = edits.report(
        draw, lambda image_u8: image_u8, view(list(tones(drawings())), "heldout"), 32, 0
    )
    assert scores["right_variant"].value == 1 and len(told) == 2
    assert scores["right_variant_other_text"].value == 0
    before, drawn, true = sections
    assert "heldout" in before.title and len(before.images) == len(drawn.images) == edits.COLUMNS
    np.testing.assert_array_equal(drawn.images, true.images)
    for shown, image, text, caption in zip(
        before.captions, before.images, drawn.captions, true.captions
    ):
        base, tone = shown.split(", ")
        assert caption == f"{base}, {text.removeprefix('make the skin tone ')}"
        np.testing.assert_array_equal(image, picture(Drawing("", "", base, "", tone, "", 0)))


def test_one_instruction_has_no_other_and_broken_drawings_are_counted():
    told = [d for d in tones(drawings()) if d.parts[1] == "make the skin tone dark"]

    def draw(documents, seed):
        drawn = from_uint8(np.stack([parts[0] for parts in documents]))
        drawn[0, 0, 0] = np.nan
        return drawn

    same = lambda image_u8: image_u8
    scores, _ = edits.report(draw, same, view(told), 32, 0)
    assert len(told) and not [name for name in scores if name.endswith("_other_text")]
    count = min(len(told), edits.ASKED)
    assert scores["not_finite"].value == pytest.approx(1 / count)
