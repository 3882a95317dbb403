"""Edits and series: which drawings make a document, on which side it lies, and that it opens."""

import numpy as np
import pytest
import tiny_tfds

from mmx.core.errors import UserError
from mmx.data import emoji_table
from mmx.data.source import open_source
from mmx.data.views import Drawing, _split, colours, series, tones


def drawing(base, tone="none", split="train", concept=None):
    caption = base if tone == "none" else f"{base}, {tone} skin tone"
    return Drawing(caption, caption, base, concept or base, tone, split, 0)


def captions(documents):
    return [tuple(getattr(part, "caption", part) for part in d.parts) for d in documents]


def test_tones_go_to_every_other_tone_of_the_same_drawing():
    man = [drawing("man", tone, concept="person") for tone in ("none", "light", "dark")]
    woman = [drawing("woman", "light", concept="person"), drawing("violin")]
    light, dark = "man, light skin tone", "man, dark skin tone"
    assert set(captions(tones([*man, *woman]))) == {
        ("man", "make the skin tone light", light),
        ("man", "make the skin tone dark", dark),
        (light, "make the skin tone dark", dark),
        (dark, "make the skin tone light", light),
    }


def test_colours_are_of_one_thing_and_may_be_two_words():
    names = ("red heart", "light blue heart", "blue book", "lightning", "heart", "redwood heart")
    assert set(captions(colours([drawing(name) for name in names]))) == {
        ("red heart", "make it light blue", "light blue heart"),
        ("light blue heart", "make it red", "red heart"),
    }


def test_series_are_neighbours_of_one_concept():
    names = ("woman running", "man running", "person running")
    three = [drawing(name, concept="running") for name in names]
    man, person, woman = sorted(names)
    assert captions(series([*three, drawing("violin")])) == [
        (man, man, person, person),
        (person, person, woman, woman),
    ]


@pytest.mark.parametrize(
    "shown, asked, expected",
    [
        ("train", "train_toned", "train"),
        ("train_toned", "heldout_composition", "heldout_composition"),
        ("train", "test", "test"),
        ("test", "test", "test"),
        ("test", "train", None),
        ("heldout_composition", "train_toned", None),
    ],
)
def test_training_shows_nothing_that_is_held_out(shown, asked, expected):
    two = [drawing("man", "light", shown), drawing("man", "dark", asked)]
    (document,) = (d for d in tones(two) if d.parts[1] == "make the skin tone dark")
    assert _split(document) == expected


@pytest.mark.parametrize(
    "thing, shown, asked, expected",
    [
        ("heart", "train", "train", "train_colour"),
        ("heart", "train", "test", "heldout_composition_colour"),
        ("heart", "test", "train", None),
        ("heart", "test", "test", None),
        ("large square", "train", "train", "test_colour"),
        ("square", "test", "train", "test_colour"),
        ("square button", "train", "train", "train_colour"),
    ],
)
def test_some_things_change_their_colour_in_no_training(thing, shown, asked, expected):
    two = [drawing(f"red {thing}", split=shown), drawing(f"blue {thing}", split=asked)]
    (document,) = (d for d in colours(two) if d.parts[1] == "make it blue")
    assert _split(document) == expected


def test_edits_of_openmoji(data_dir):
    by_split = emoji_table.assign_splits(emoji_table.load_entries()[1])
    learned = {e.caption for split in ("train", "train_toned") for e in by_split[split]}
    open_split = lambda split: open_source("edits:openmoji/32", split, data_dir, needs_image=False)
    views = {split: open_split(split) for split in open_split("train").info.splits}
    drawings = lambda document: [p for p in document.parts if isinstance(p, Drawing)]
    concepts, asked, seen = {}, {}, set()
    for split, view in views.items():
        assert len(view) == view.info.splits[split]
        assert {d.kind for d in view.documents} == {"colour" if "colour" in split else "tone"}
        assert all({*drawings(d)} <= {*d.variants} for d in view.documents)
        concepts[split] = {d.parts[-1].concept for d in view.documents}
        concepts[split] |= {d.of for d in view.documents}
        asked[split] = {d.parts[-1].caption for d in view.documents}
        if split in ("train", "train_colour"):
            seen |= {p.caption for d in view.documents for p in drawings(d)}
    assert seen <= learned
    # Of what `test` asks for, no document is trained on: none of the concept, none of the thing.
    assert not concepts["test"] & concepts["train"] and not asked["test"] & learned
    things = {split: {d.of for d in view.documents} for split, view in views.items()}
    assert things["test_colour"] == {
        "book",
        *("square", "large square", "small square", "medium square", "medium-small square"),
    }
    assert not things["test_colour"] & things["train_colour"]
    # Of a composition the concept is, and what is asked for is not.
    for kind in ("", "_colour"):
        held = asked[f"heldout_composition{kind}"]
        assert not held & learned and not held & asked[f"train{kind}"]
    assert things["heldout_composition_colour"] <= things["train_colour"] | {"hair"}
    assert len(views["test"]) > 700 and len(views["train"]) > 6000
    assert len(views["train_colour"]) > 150 and len(views["test_colour"]) > 50
    view = views["test"]
    assert view.info.attribution == "OpenMoji, CC BY-SA 4.0"
    outlines = list(view.outlines())
    assert all(o["parts"][0] is None and o["parts"][2] is None for o in outlines)
    # The images are those of the drawings that the texts tell of.
    source = open_source("tfds:openmoji/32", "test", data_dir)
    index = {source.caption(i): i for i in range(len(source))}
    for i in range(0, len(view), 97):
        before, text, after = view[i]["parts"]
        assert np.array_equal(after, source[index[view[i]["caption"]]]["image"])
        assert np.array_equal(after, view.image(view.documents[i].parts[-1]))
        assert text.startswith("make the skin tone ")
        assert before.shape == after.shape and not np.array_equal(before, after)


def test_a_series_opens_and_its_fingerprint_is_its_own(data_dir):
    view = open_source("series:openmoji/32", "train*2", data_dir, needs_image=False)
    example = view[len(view) // 2]
    assert [type(part) for part in example["parts"]] == [str, np.ndarray] * 2
    assert example["caption"] == example["parts"][2] and example["kind"] == "series"
    edits = open_source("edits:openmoji/32", "train", data_dir, needs_image=False)
    data = open_source("tfds:openmoji/32", "train", data_dir)
    assert len({source.info.fingerprint for source in (view, edits, data)}) == 3


def test_errors(data_dir, tmp_path):
    with pytest.raises(UserError, match=r"edits:openmoji/32: documents .* family that packs"):
        open_source("edits:openmoji/32", "train", data_dir)
    with pytest.raises(UserError, match="edits:openmoji/32 has the splits train, "):
        open_source("edits:openmoji/32", "train_toned", data_dir, needs_image=False)
    with pytest.raises(UserError, match="tfds:nowhere: not prepared"):
        open_source("series:nowhere", "train", data_dir, needs_image=False)
    features = {"image": tiny_tfds.IMAGE, "text": tiny_tfds.TEXT}
    tiny_tfds.build(tmp_path, "plain", features, [{"image": tiny_tfds.png(9), "text": "a"}])
    with pytest.raises(
        UserError, match=r"plain has no features base, concept.*use openmoji or noto"
    ):
        open_source("edits:plain", "train", tmp_path, needs_image=False)
