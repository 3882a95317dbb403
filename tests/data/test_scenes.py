"""Scenes: the language and its inverse, the held-out combinations, geometry, and the built set."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmx.core.errors import UserError
from mmx.data import scene_draw, scene_grammar, scene_splits, scenes
from mmx.data.captions import flip_keeps_caption
from mmx.data.scene_grammar import Group, Scene
from mmx.data.source import open_source
from mmx.data.text import Tokenizer

FEW = {
    "train": 160,
    "test": 40,
    "heldout_relation": 8,
    "heldout_background": 8,
    "heldout_count": 8,
    "heldout_word": 8,
}
kinds = st.sampled_from(scene_grammar.KINDS)
sizes = st.sampled_from(scene_grammar.SIZES)


@st.composite
def any_scene(draw):
    background = draw(st.sampled_from(scene_grammar.BACKGROUNDS))
    form = draw(st.sampled_from(("group", "pair", "sign")))
    if form == "sign":
        letters = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ", min_size=2, max_size=3)
        return Scene((), None, background, draw(letters))
    if form == "group":
        return Scene(
            (Group(draw(kinds), draw(st.integers(1, 3)), draw(sizes)),), None, background, None
        )
    first, second = draw(st.lists(kinds, min_size=2, max_size=2, unique=True))
    relation = draw(st.sampled_from(scene_grammar.RELATIONS))
    counts = (1, 1) if relation == "on" else draw(st.sampled_from(((1, 1), (1, 2), (2, 1))))
    groups = (Group(first, counts[0], draw(sizes)), Group(second, counts[1], draw(sizes)))
    return Scene(groups, relation, background, None)


@given(any_scene())
def test_a_caption_says_its_scene_and_nothing_else(scene):
    caption = scene_grammar.caption(scene)
    assert scene_grammar.is_scene(scene)
    assert scene_grammar.parse(caption) == scene == scene_grammar.parse(caption.upper())
    assert scene_grammar.read(caption) == scene_grammar.found(scene)
    assert Scene.from_json(scene.to_json()) == scene


def test_captions_by_hand():
    heart, dog = Group("red heart", 2, "normal"), Group("dog", 1, "small")
    scene = Scene((dog, heart), "left of", "blue", None)
    assert scene_grammar.caption(scene) == "a small dog left of two red hearts on blue"
    book = Scene((dog, Group("orange book", 1, "normal")), "on", "orange", None)
    assert scene_grammar.caption(book) == "a small dog on an orange book on orange"
    sign = Scene((), None, "white", "HI")
    assert scene_grammar.caption(sign) == "a sign that says HI on white"
    assert not flip_keeps_caption(scene_grammar.caption(scene))
    assert not flip_keeps_caption(scene_grammar.caption(sign))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a dog",
        "a dog on a dog on blue",  # one kind on both sides
        "two dogs on a cat on blue",  # "on" is one on one
        "two dogs left of two cats on blue",  # four objects
        "a dogs on blue",
        "an dog on blue",
        "a dog left of a cat above a pig on blue",
        "a dog on blue and more",
        "a sign that says LONG on blue",
        "a red car on blue",
    ],
)
def test_what_is_no_caption_has_no_scene(text):
    assert scene_grammar.parse(text) is None


def test_any_text_is_read_for_what_it_says():
    seen = scene_grammar.read("Look: two  small CATS above a dog, and a dog in the rain")
    assert seen.groups == {
        "cat": (2, frozenset({"small"})),
        "dog": (2, frozenset({"normal"})),
    }
    assert seen.relations == {("cat", "above", "dog")}
    assert seen.background is seen.word is None


@pytest.fixture(scope="module")
def drawn():
    """split -> some of its scenes."""
    many = {"train": 4000, "test": 300}
    return {
        split: [scene_splits.make_scene(split, i)[0] for i in range(many.get(split, 150))]
        for split in scene_splits.SPLITS
    }


def _combinations(scene):
    """What each held-out split holds out, of one scene."""
    kinds = [group.kind for group in scene.groups]
    return {
        "heldout_relation": {(kinds[0], scene.relation, kinds[-1])} if scene.relation else set(),
        "heldout_background": {(kind, scene.background) for kind in kinds},
        "heldout_count": {(g.kind, g.count) for g in scene.groups if g.count > 1},
        "heldout_word": {scene.word} if scene.word else set(),
    }


def test_each_heldout_split_breaks_its_own_rule_which_training_never_does(drawn):
    trained = {name: set() for name in _combinations(drawn["train"][0])}
    for scene in drawn["train"]:
        for name, combinations in _combinations(scene).items():
            trained[name] |= combinations
    for split in trained:
        for scene, name in itertools.product(drawn[split], trained):
            new = _combinations(scene)[name] - trained[name]
            assert bool(new) or name != split
            # Of what training may hold, a sample of 4,000 lacks rare relations only.
            assert not new or name in (split, "heldout_relation")
        assert all(scene_splits.broken_rules(scene).keys() == {split} for scene in drawn[split])
    for split in ("train", "test"):
        assert not any(scene_splits.broken_rules(scene) for scene in drawn[split])


def test_training_has_every_word_of_the_heldout_splits(drawn):
    seen = [set(scene_grammar.caption(scene).split()) for scene in drawn["train"]]
    seen = set().union(*seen)
    for split in scene_splits.SPLITS:
        for scene in drawn[split]:
            new = set(scene_grammar.caption(scene).split()) - seen
            assert not new or (split == "heldout_word" and new == {scene.word})
    train = {scene.word for scene in drawn["train"] if scene.word}
    places = {(len(word), i, c) for word in train for i, c in enumerate(word)}
    held = scene_splits.heldout_words()
    assert len(held) >= 20 and not held & train
    assert all((len(word), i, c) in places for word in held for i, c in enumerate(word))
    with pytest.raises(ValueError, match="heldout_word"):
        scene_splits.make_scene("validation", 0)


@pytest.mark.parametrize("pixels", [32, 64, 128])
def test_objects_stand_as_the_caption_says(pixels):
    """From the boxes in whole pixels: inside the picture, apart, and each relation as defined."""
    for index in range(400):
        scene, boxes = scene_splits.make_scene("test", index)
        ends = []
        for box, (x, y) in zip(boxes, scene_draw.corners(boxes, pixels)):
            w, h = (round(v * pixels / 32) for v in (box.w, box.h))
            assert 0 <= x <= pixels - w and 0 <= y <= pixels - h
            ends.append((box.kind, x, x + w, y, y + h))
        assert len(boxes) == max(1, sum(group.count for group in scene.groups))
        for (a, l1, r1, t1, b1), (b, l2, r2, t2, b2) in itertools.combinations(ends, 2):
            if a == b or scene.relation != "on":
                assert r1 <= l2 or r2 <= l1 or b1 <= t2 or b2 <= t1  # no two overlap
            if a != b and scene.relation == "left of":
                assert r1 <= l2
            elif a != b:  # a whole pixel tells "above" from "on"
                assert b1 < t2 if scene.relation == "above" else t2 <= b1 < b2 and t1 < t2


def test_relations_keep_the_distances_that_the_reader_relies_on():
    """Before rounding: the gap along the axis, and how far off it the middles are."""
    least = {"left of": 1.25, "above": 2.25, "on": -3}
    seen = {relation: [] for relation in least}
    for index in range(400):
        scene, boxes = scene_splits.make_scene("test", index)
        if scene.relation is None:
            continue
        (l1, r1, t1, b1), (l2, r2, t2, b2) = (
            (
                min(box.x for box in own),
                max(box.x + box.w for box in own),
                min(box.y for box in own),
                max(box.y + box.h for box in own),
            )
            for own in ([box for box in boxes if box.kind == g.kind] for g in scene.groups)
        )
        gap, off = l2 - r1, t1 + b1 - t2 - b2
        if scene.relation != "left of":
            gap, off = t2 - b1, l1 + r1 - l2 - r2
        assert abs(off) / 2 <= (2 if scene.relation == "on" else 4) + 1e-6
        seen[scene.relation].append(gap)
    for relation, gaps in seen.items():
        assert least[relation] - 1e-6 <= min(gaps) < least[relation] + 0.2  # and is not far from it
    assert max(seen["on"]) <= -1.5 + 1e-6


def test_the_first_group_is_in_front():
    heart, sun = (Group(kind, 1, "normal") for kind in ("red heart", "sun"))
    alone = Scene((heart,), None, "blue", None)
    boxes = [
        scene_draw.Box(g.kind, "normal", 9.0, y, *scene_draw.extent(g.kind, "normal"))
        for g, y in ((heart, 4.0), (sun, 8.0))
    ]
    solid = scene_draw.sprite("red heart", "normal", 64)[..., 3] == 1
    solid = np.pad(solid, ((8, 64 - 8 - solid.shape[0]), (18, 64 - 18 - solid.shape[1])))
    both = scene_draw.draw(Scene((heart, sun), "on", "blue", None), boxes, 64)
    behind = scene_draw.draw(Scene((sun, heart), "on", "blue", None), boxes[::-1], 64)
    shown = scene_draw.draw(alone, boxes[:1], 64)
    assert (both[solid] == shown[solid]).all() and (behind[solid] != shown[solid]).any()


def test_a_picture_by_hand():
    """One heart: its colour inside its box, the background everywhere else."""
    scene = Scene((Group("red heart", 1, "normal"),), None, "blue", None)
    box = scene_draw.Box("red heart", "normal", 8.0, 4.0, *scene_draw.extent("red heart", "normal"))
    image = scene_draw.draw(scene, [box], 64)
    inside = image[8 : 8 + round(2 * box.h), 16 : 16 + round(2 * box.w)]
    outside = np.ones((64, 64), bool)
    outside[8 : 8 + round(2 * box.h), 16 : 16 + round(2 * box.w)] = False
    assert (image[outside] == scene_draw.COLOURS["blue"]).all()
    red, green, blue = inside[inside.shape[0] // 2, inside.shape[1] // 2].astype(int)
    assert red > 180 and green < 80 and blue < 80
    # Its ink touches all four sides of its box.
    ink = (inside != scene_draw.COLOURS["blue"]).any(-1)
    assert ink[0].any() and ink[-1].any() and ink[:, 0].any() and ink[:, -1].any()


def test_a_scene_is_the_same_at_every_size():
    examples = [scene_splits.make_example(3, "train", pixels) for pixels in (32, 64, 128)]
    assert len({(e["caption"], e["factors"]) for e in examples}) == 1
    small, large = (
        scene_draw.draw(*scene_splits.make_scene("train", 3), pixels).astype(float)
        for pixels in (32, 128)
    )
    shrunk = large.reshape(32, 4, 32, 4, 3).mean((1, 3))
    assert np.abs(shrunk - small).mean() < 8


def test_no_picture_of_test_is_in_training():
    """Not by luck: where, in whole pixels, a scene of the one may stand, none of the other does."""
    for split, kept in (("train", False), ("test", True)):
        for index in range(250):
            assert scene_splits.is_kept(*scene_splits.make_scene(split, index)) == kept
    # What is the same picture at any size stands at the same place at 32 pixels.
    rng = np.random.default_rng(0)
    sign = Scene((), None, "pink", "CAT")
    heart = Scene((Group("red heart", 1, "normal"),), None, "gray", None)
    for scene, pixels in itertools.product((sign, heart), (32, 64)):
        pictures = {True: [], False: []}
        for _ in range(300):
            boxes = scene_draw.place(scene, rng)
            picture = scene_draw.draw(scene, boxes, pixels).tobytes()
            pictures[scene_splits.is_kept(scene, boxes)].append(picture)
        assert not {*pictures[True]} & {*pictures[False]}
        assert len({*pictures[True]}) + len({*pictures[False]}) < 300  # some are drawn twice
        assert 0.1 < len(pictures[True]) / 300 < 0.5
    # Each sign has places of both kinds, so that none is looked for in vain.
    board = scene_draw.place(sign, rng)[0]
    free = [[dataclasses.replace(board, x=x + 0.5, y=y + 0.5)] for x in range(4) for y in range(12)]
    for word, background in itertools.product(scene_grammar.WORDS, scene_grammar.BACKGROUNDS):
        sign = Scene((), None, background, word)
        assert {scene_splits.is_kept(sign, boxes) for boxes in free} == {True, False}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A small build, in this process."""
    root = tmp_path_factory.mktemp("scenes")
    directory, new = scenes.prepare("32", root, FEW, processes=1)
    assert new and scenes.prepare("32", root, FEW) == (directory, False)
    return root


def test_the_same_bytes_with_any_number_of_processes(built, tmp_path, capfd):
    other, _ = scenes.prepare("32", tmp_path, FEW, processes=2)
    lines = capfd.readouterr().err.splitlines()
    assert any("scenes/32 train: drawing" in line and "eta" in line for line in lines)
    mine = built / "scenes" / "32" / scenes.VERSION
    names = sorted(path.name for path in mine.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    for name in names:
        assert (mine / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize("part", ["sprite", "letter", "board"])
def test_other_drawings_are_other_data(built, monkeypatch, part):
    """One grey level of one drawing: the digest is another, which the data set states."""
    stated = json.loads((built / "scenes" / "32" / scenes.VERSION / "metadata.json").read_text())
    assert stated["drawings"] == scene_draw.digest(32) != scene_draw.digest(64)
    draw, arguments = getattr(scene_draw, part), []

    def redrawn(*args):
        arguments.append(args)
        return draw(*args) + (len(arguments) == 1)

    monkeypatch.setattr(scene_draw, part, redrawn)
    assert scene_draw.digest(32) != stated["drawings"]


def test_what_is_built(built):
    source = open_source("tfds:scenes/32", "train", built)
    assert source.info.attribution == "OpenMoji, CC BY-SA 4.0" and source.info.splits == FEW
    captions = []
    for split, count in FEW.items():
        source = open_source("tfds:scenes/32", split, built)
        expected = {
            scene_grammar.caption(scene_splits.make_scene(split, i)[0]) for i in range(count)
        }
        for example in (source[i] for i in range(count)):
            assert example["image"].shape == (32, 32, 3)
            scene = Scene.from_json(example["factors"])
            assert example["text"] == example["caption"] == scene_grammar.caption(scene)
            assert json.loads(example["factors"])["background"] == scene.background
            captions.append(example["text"])
        assert {*captions[-count:]} == expected
    tokenizer = Tokenizer.load(source.info.tokenizer_path)
    tokenizer.encode(captions, 32, strict=True)  # none is cut


def test_errors(tmp_path):
    with pytest.raises(UserError, match="32, 64, 128"):
        scenes.prepare("48", tmp_path)
    with pytest.raises(UserError, match="mmx prepare scenes --config 64"):
        open_source("tfds:scenes/64", "train", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write there"):
        scenes.prepare("32", tmp_path / "file", FEW)


def test_the_command(built, capsys):
    from mmx.cli import main

    assert main.main(["prepare", "scenes", "--config", "32", "--data_dir", str(built)]) == 0
    out = capsys.readouterr().out
    assert "tfds:scenes/32: already prepared" in out and "heldout_word 8" in out
    assert "OpenMoji, CC BY-SA 4.0" in out
