"""What episodes are made of: sides, labels that one lends the other, questions, cells."""

from types import SimpleNamespace

import numpy as np
import pytest

from mmx.core.errors import UserError
from mmx.data.scene_grammar import Group, Scene
from mmx.eval import fewshot_data as data
from mmx.ops.pyramid import Pyramid
from tests.data import tiny_tfds

KINDS = ("dog", "cat", "pig")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two artists' drawings, of which one knows the groups; scenes."""
    root = tmp_path_factory.mktemp("fewshot")
    one = {"image": tiny_tfds.IMAGE, "caption": tiny_tfds.TEXT, "points": tiny_tfds.TEXT}
    image = lambda n: {"image": tiny_tfds.png(n, (4, 6, 3)), "points": f"p{n}"}
    drawn = [{**image(n), "caption": f"thing {n}"} for n in range(24)]
    splits = ("train", "test")
    tiny_tfds.build(root, "ours", one, drawn, splits=splits)
    grouped = [{**example, "group": "ab"[n % 2]} for n, example in enumerate(drawn[:20])]
    tiny_tfds.build(root, "theirs", {**one, "group": tiny_tfds.TEXT}, grouped, splits=splits)
    factors = {"image": tiny_tfds.IMAGE, "caption": tiny_tfds.TEXT, "factors": tiny_tfds.TEXT}
    scenes = []
    for n in range(40):
        scene = Scene((Group(KINDS[n % 3], 1 + n // 3 % 3, "normal"),), None, "white", None)
        pair = (Group("dog", 1, "normal"), Group("cat", 1, "small"))
        scene = scene if n % 4 else Scene(pair, "above", "blue", None)
        scenes.append({"image": tiny_tfds.png(n), "caption": f"c{n}", "factors": scene.to_json()})
    tiny_tfds.build(root, "scenes", factors, scenes, splits=splits)
    return root


def sides(root, source, split, asked, query_split):
    return data.open_sides(f"tfds:{source}", split, f"tfds:{asked}", query_split, root)


def test_labels_are_lent_by_a_key(root):
    both = sides(root, "ours", "train", "theirs", "test")
    for episode in data.draw(both, "classes", "group", "points", 0, 20, 2, root):
        items = [(item, "shown") for round_ in episode.rounds for item in round_]
        for item, role in [*items, *((item, "asked") for item in episode.queries)]:
            point = both.of(role)[item.image]["points"]
            assert item.answer == "ab"[int(point[1:]) % 2] and int(point[1:]) < 20
    with pytest.raises(UserError, match="--label=group: ours has no such field"):
        data.draw(both, "classes", "group", None, 0, 1, 2, root)
    with pytest.raises(UserError, match="--label=kind: neither ours nor theirs has such a field"):
        data.draw(both, "classes", "kind", "points", 0, 1, 2, root)


def test_captions_and_questions(root):
    one = sides(root, "ours", "train", "ours", "train")
    assert one.asked is None and one.of("asked") is one.shown
    (episode,) = data.draw(one, "captions", None, None, 0, 1, 2, root)
    assert all(one.shown[i.image]["text"] == i.answer for i in episode.queries)
    scenes = sides(root, "scenes", "train", "scenes", "test")
    for episode in data.draw(scenes, "count", None, None, 0, 5, 2, root):
        for item in (*episode.rounds[0], *episode.rounds[4]):
            scene = Scene.from_json(scenes.shown[item.image]["factors"])
            assert item.answer == ("one", "two", "three")[scene.groups[0].count - 1]
            assert item.question == f"How many {scene.groups[0].kind}s are there?"
    with pytest.raises(UserError, match="--ask=count: ours has no factors to ask about"):
        data.draw(one, "count", None, None, 0, 1, 2, root)


def test_sides_are_apart(root):
    with pytest.raises(UserError, match=r"--query-split=train\[10:\]: it has images of --split"):
        sides(root, "ours", "train[:12]", "ours", "train[10:]")
    with pytest.raises(UserError, match=r"--split=train\*2: name each image once"):
        sides(root, "ours", "train*2", "ours", "test")
    apart = sides(root, "ours", "train[:12]", "ours", "train[12:]")
    assert len(apart.shown) == len(apart.asked) == 12
    assert data.facts(apart)["asked"]["split"] == "train[12:]"


def test_each_image_becomes_words_once(root):
    one = sides(root, "ours", "train", "ours", "train")
    episodes = data.draw(one, "captions", None, None, 0, 9, 2, root)
    images = data.images_of(episodes)
    assert len(images) == len(set(images))
    seen = []

    def to_words(image_BHWC):
        assert image_BHWC.shape[1:] == (8, 8, 3) and image_BHWC.dtype == np.uint8
        seen.append(len(image_BHWC))
        return image_BHWC[:, 0, 0, :2].astype(np.int32)

    words = data.encode(one, images, 8, to_words)
    assert sum(seen) == len(images) and words.keys() == set(images)
    for role, n in images:
        assert words[role, n][0] == int(one.shown[n]["points"][1:])


def test_words_at_the_same_cells():
    ours = Pyramid((1, 2, 4, 4))
    grid = np.arange(2 * 16).reshape(2, 16)
    got = data.at_cells(grid, Pyramid((4,)), ours)
    assert got.shape == (2, ours.ends[-1])
    # Of a 4x4 grid the centre is (2, 2), and of its quarters (1, 1), (1, 3), (3, 1), (3, 3).
    assert got[0, :5].tolist() == [10, 5, 7, 13, 15] and got[1, 0] == 26
    assert got[0, 5:21].tolist() == got[0, 21:].tolist() == [*range(16)]
    deep = np.concatenate([grid, grid + 100], axis=1)
    np.testing.assert_array_equal(data.at_cells(deep, Pyramid((4, 4)), ours), got)
    words = np.arange(37)[None]
    np.testing.assert_array_equal(data.at_cells(words, ours, ours), words)
    with pytest.raises(UserError, match=r"--baseline: a pyramid of the sides \(2, 4\)"):
        data.at_cells(words[:, :20], Pyramid((2, 4)), ours)


def test_what_of_the_images_asked_about_was_trained_on():
    info = SimpleNamespace(name="emoji/32", splits={"train": 100, "test": 40})
    asked = SimpleNamespace(info=info, split="train[50:]+test")
    of = lambda source, split, **more: SimpleNamespace(source=source, split=split, **more)
    told = lambda *args, **more: data.trained_on(of(*args, **more), asked)
    assert told("tfds:emoji/32", "train[:50]") == told("tfds:noto/64", "train") == []
    assert told("tfds:emoji/32", "train[:60]*4+train_toned") == ["emoji/32 train[:60]"]
    assert told("moving:emoji/64", "train+test") == ["emoji/64 train", "emoji/64 test"]
    assert told("tfds:noto/64", "train", mix=("edits:emoji/32 test",)) == ["emoji/32 test"]
