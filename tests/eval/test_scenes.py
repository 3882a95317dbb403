"""The scorer of scenes: real pictures read right, hand-made ones exactly, others at chance."""

import dataclasses
import inspect
import itertools
import json

import numpy as np
import pytest
from PIL import Image, ImageFilter

from experiments.scenes import run as experiment
from mmx.core.errors import UserError
from mmx.data import scene_draw, scene_grammar, scene_splits
from mmx.data.scene_draw import Box
from mmx.data.scene_grammar import Found, Group, Scene
from mmx.eval import evaluator, metrics, report, scene_details, scene_reader, scenes
from mmx.eval.text_to_image import Model
from mmx.models.muse import report as muse_report

COUNT = 64


def make(split, count, pixels, first=0):
    """(scenes, pictures) of a split."""
    wanted, pictures = [], []
    for index in range(first, first + count):
        scene, boxes = scene_splits.make_scene(split, index)
        wanted.append(scene)
        pictures.append(scene_draw.draw(scene, boxes, pixels))
    return wanted, np.stack(pictures)


def degrade(pictures, blur, noise):
    """Gaussian blur in 1/32 of the side, noise in grey levels."""
    sigma = blur * pictures.shape[1] / 32
    blurred = [Image.fromarray(p).filter(ImageFilter.GaussianBlur(sigma)) for p in pictures]
    draws = np.random.default_rng(0).normal(0, noise, pictures.shape)
    return np.clip(np.stack([np.asarray(b) for b in blurred]) + draws, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("pixels", [32, 64, 128])
def test_real_pictures_are_read_right_and_others_at_chance(pixels):
    wanted, pictures = make("test", COUNT, pixels)
    found = scene_reader.read(pictures)
    scores = scenes.scores(wanted, found, found)
    for factor in scenes.FACTORS:
        assert scores[factor] == scores[f"{factor}_oracle"]
        assert scores[factor].value >= 0.96, factor
        assert scores[factor].low <= scores[factor].value <= scores[factor].high
    assert scores["background"].value == scores["word"].value == 1
    for factor in ("object", "count", "relation", "word", "all"):
        assert scores[f"{factor}_shuffled"].value <= 0.05, factor
    # One in eight; sizes right by chance need the right kind too.
    assert 0.03 <= scores["background_shuffled"].value <= 0.3
    assert scores["word"].n == sum(scene.word is not None for scene in wanted) < scores["all"].n


def test_accuracy_falls_smoothly_with_blur_and_noise():
    wanted, pictures = make("test", 32, 32)
    value = {
        level: scenes.accuracy(wanted, scene_reader.read(degrade(pictures, *level)))["all"].value
        for level in ((1.5, 10), (3.0, 10))
    }
    assert 0.96 > value[1.5, 10] >= 0.85 and value[3.0, 10] <= 0.2
    noise = np.random.default_rng(1).integers(0, 256, pictures[:8].shape, np.uint8)
    scores = scenes.accuracy(wanted[:8], scene_reader.read(noise))
    assert scores["all"].value == scores["object"].value == 0


def picture(background, *boxes, pixels=64, word=None):
    """Of boxes (kind, size, x, y), the first in front."""
    placed = [
        Box(kind, size, x, y, *(scene_draw.extent(kind, size) if kind != "sign" else (28, 20)))
        for kind, size, x, y in boxes
    ]
    return scene_draw.draw(Scene((), None, background, word), placed, pixels)


def test_pictures_by_hand():
    pictures = [
        picture(
            "blue",
            ("dog", "small", 1, 9),
            ("red heart", "normal", 16, 1),
            ("red heart", "normal", 16, 17),
        ),
        picture(
            "white", ("ball", "normal", 9, 1), ("star", "small", 4, 19), ("star", "normal", 16, 18)
        ),
        picture("gray", *(("ghost", "small", x, y) for x in (2, 18) for y in (2, 18))),
        picture("green"),
        picture("pink", ("sign", "normal", 3, 5), word="QX"),
        picture("yellow", ("cat", "small", 10, 5.5), ("gift", "normal", 8, 13)),
        picture("yellow", ("cat", "small", 10, 1), ("gift", "normal", 8, 14)),
    ]
    small, normal, both = map(frozenset, (("small",), ("normal",), ("small", "normal")))
    cat = {"cat": (1, small), "gift": (1, normal)}
    heart = {"dog": (1, small), "red heart": (2, normal)}
    star = {"ball": (1, normal), "star": (2, both)}
    expected = [
        Found(heart, frozenset({("dog", "left of", "red heart")}), "blue", None),
        Found(star, frozenset({("ball", "above", "star")}), "white", None),
        Found({"ghost": (4, small)}, frozenset(), "gray", None),
        Found({}, frozenset(), "green", None),
        Found({}, frozenset(), "pink", "QX"),
        Found(cat, frozenset({("cat", "on", "gift")}), "yellow", None),
        Found(cat, frozenset({("cat", "above", "gift")}), "yellow", None),
    ]
    assert scene_reader.read(pictures) == expected
    # Floats in [-1, 1] are the same pictures; order and company do not matter.
    floats = np.stack(pictures[::-1]).astype(np.float32) / 127.5 - 1
    assert scene_reader.read(floats) == expected[::-1]


def test_what_is_not_shown_is_not_read():
    """A frame is no background, nor is a colour without a name."""
    pink = picture("pink", ("dog", "normal", 9, 9), pixels=32)
    ground = (pink == scene_draw.COLOURS["pink"]).all(-1)
    framed, striped = pink.copy(), pink.copy()
    for edge in (framed[:2], framed[-2:], framed[:, :2], framed[:, -2:]):
        edge[:] = scene_draw.COLOURS["blue"]
    striped[ground & (np.arange(32) // 2 % 2 == 0)[:, None]] = scene_draw.COLOURS["green"]
    darker = np.clip(pink.astype(int) - 20, 0, 255).astype(np.uint8)  # a pink all the same
    black = np.zeros((32, 32, 3), np.uint8)
    found = scene_reader.read([framed, striped, darker, black])
    assert [seen.background for seen in found] == ["pink", None, "pink", None]
    dog = {"dog": (1, frozenset({"normal"}))}
    assert [seen.groups for seen in found[1:]] == [dog, dog, {}]
    asked = Scene((Group("dog", 1, "normal"),), None, "blue", None)
    assert not scenes.hits(asked, found[0])["background"]


@pytest.mark.parametrize("pixels", [32, 64, 128])
def test_behind_is_not_on(pixels):
    boxes = [("cat", "small", 10.25, 6.75), ("gift", "normal", 8.5, 14)]
    pictures = [picture("blue", *both, pixels=pixels) for both in (boxes, boxes[::-1])]
    pictures += [*degrade(np.stack(pictures), 0.5, 5), *degrade(np.stack(pictures), 1, 5)]
    found = scene_reader.read(pictures)
    assert [seen.relations for seen in found] == [{("cat", "on", "gift")}, set()] * 3
    assert all(len(seen.groups) == 2 and seen.groups == found[0].groups for seen in found)


@pytest.mark.parametrize("pixels", [32, 64, 128])
def test_words_are_read_where_letters_blur_into_each_other(pixels):
    sign = scene_details.Thing("sign", "sign", 2.0, 5.0, 28.0, 20.0)  # half a unit off
    shade = np.array(scene_draw.COLOURS["blue"], np.float32)
    for word, blur in itertools.product(("OQ", "WMW", "ILT"), (0, 1.5)):
        shown = picture("blue", ("sign", "normal", 2.5, 5.5), pixels=pixels, word=word)
        blurred = degrade(shown[None], blur, 0)[0].astype(np.float32)
        assert scene_details.read_word(blurred, shade, sign) == word


def test_relations_are_of_boxes():
    box = (10.0, 10.0, 16.0, 16.0)
    moved = {"left of": (18, 2), "above": (2, 18), "on": (1, 14)}
    for relation, (x, y) in moved.items():
        other = (float(x) + 8 * (x < 10), float(y) + 8 * (y < 10), x + 14.0, y + 14.0)
        assert scene_reader.relation_of(box, other) == relation
        assert scene_reader.relation_of(other, box) != relation
    assert scene_reader.relation_of(box, (18.0, 18.0, 24.0, 24.0)) is None  # off both axes
    assert scene_reader.relation_of(box, box) is None


WANTED = Scene((Group("dog", 1, "small"), Group("cat", 2, "normal")), "left of", "blue", None)


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ("a small dog left of two cats on blue", ()),
        ("a small dog left of two cats on pink", ("background",)),
        ("a dog left of two cats on blue", ("size",)),
        ("a small dog left of a cat and a small cat on blue", ("size",)),
        ("a small dog left of three cats on blue", ("count",)),
        ("a small dog above two cats on blue", ("relation",)),
        ("two cats left of a small dog on blue", ("relation",)),
        (
            "a small dog left of a cat above a small dog above a cat on blue",
            ("count", "relation"),
        ),
        ("a small dog left of two cats left of a pig on blue", ("object",)),
        ("a small dog left of two pigs on blue", ("object", "count", "size", "relation")),
        ("a small dog left of two cats and a pig on blue", ("object",)),
        ("a sign that says HI on blue", ("object", "count", "size", "relation")),
        ("", ("object", "count", "size", "relation", "background")),
    ],
)
def test_factors_by_hand(said, wrong):
    right = scenes.hits(WANTED, scene_grammar.read(said))
    assert {factor for factor, ok in right.items() if not ok} == {
        *wrong,
        *(["all"] if wrong else []),
    }
    assert "word" not in right


@pytest.mark.parametrize("split", [s for s in scene_splits.SPLITS if "heldout" in s])
def test_a_heldout_combination_counts_once(split):
    """Pictures of one combination agree: right for every second combination, the factor's n is
    that of the combinations."""
    wanted = [scene_splits.make_scene(split, i)[0] for i in range(120)]
    groups = [[group.kind for group in scene.groups] for scene in wanted]
    label = {
        "heldout_word": lambda scene, kinds: scene.word,
        "heldout_count": lambda scene, kinds: _held_kind(scene),
        "heldout_relation": lambda scene, kinds: (*kinds, scene.relation),
        "heldout_background": lambda scene, kinds: (_held_kind(scene), scene.background),
    }[split]
    labels = [label(scene, kinds) for scene, kinds in zip(wanted, groups)]
    order = list(dict.fromkeys(labels))
    right = [order.index(name) % 2 == 0 for name in labels]
    found = [
        scene_grammar.found(scene) if ok else Found({}, frozenset(), None, None)
        for scene, ok in zip(wanted, right)
    ]
    score = scenes.accuracy(wanted, found)["all"]
    assert score == scenes.stats.proportion(np.array(right), labels) and score.n == 120
    if split in ("heldout_word", "heldout_count"):
        assert len(order) < 30
        alone = scenes.stats.proportion(np.array(right))
        assert score.high - score.low > 1.5 * (alone.high - alone.low)
    # Of the test split no two scenes belong together, equal ones included.
    plain = scene_splits.make_scene("test", 0)[0]
    alone = scenes.stats.proportion(np.ones(50))
    assert scenes.accuracy([plain] * 50, [scene_grammar.found(plain)] * 50)["all"] == alone


def _held_kind(scene):
    """The first kind by which a scene, cut to that kind, is still held out."""
    for group in scene.groups:
        alone = dataclasses.replace(scene, groups=(group,), relation=None)
        if scene_splits.broken_rules(alone):
            return group.kind


def test_a_sign_beside_something_else_is_not_all_right():
    sign = Scene((), None, "blue", "HI")
    assert scenes.hits(sign, scene_grammar.found(sign)) == dict.fromkeys(
        ("background", "word", "all"), True
    )
    more = scene_grammar.read("a sign that says HI and a dog on blue")
    assert scenes.hits(sign, more) == {"background": True, "word": True, "all": False}
    assert "object" not in scenes.hits(sign, more)


def examples(split, count, first=0):
    wanted, pictures = make(split, count, 32, first)
    return [
        {"image": image, "text": scene_grammar.caption(scene), "factors": scene.to_json()}
        for scene, image in zip(wanted, pictures)
    ]


def test_recall_of_generated_captions():
    asked = examples("test", 40)
    captions = [example["text"] for example in asked]
    captions[:10] = [caption.replace(" on ", " on the ") for caption in captions[:10]]
    scores = scenes.caption_scores(captions, asked)
    assert scores["background"].value == scores["all"].value == 0.75
    assert scores["object"].value == scores["word"].value == scores["all_oracle"].value == 1
    assert scores["object_shuffled"].value <= 0.2


def test_the_report_of_a_model_that_can_draw_one_split_only(monkeypatch):
    splits = {
        "train": examples("train", 2),
        "test": examples("test", 40),
        "heldout_word": examples("heldout_word", 6),
    }
    known = {example["text"]: example["image"] for example in splits["test"]}
    blank = np.full((32, 32, 3), 255, np.uint8)

    def draw(captions, seed):
        images = np.stack([known.get(caption, blank) for caption in captions])
        codes = np.zeros((len(captions), 4), int)
        return {"image": images / 127.5 - 1, "codes": codes, "trace": codes[:, None]}

    codec = lambda images: (images / 127.5 - 1, np.zeros((len(images), 4), int))
    decode = lambda codes: np.zeros((len(codes), 32, 32, 3), np.float32)
    model = Model(draw, codec, 8, decode, num_codes=8, grid=2)
    monkeypatch.setattr(report, "DRAWN", 20)
    scores, sections, rows = scenes.report(model, splits, 0)
    measured = list(rows())  # the drawings of the first split
    assert evaluator.run(metrics.make(["psnr"]), measured)["psnr"].value > 50
    for one, other in zip(measured, scenes.measured(model, splits["test"], 0), strict=True):
        assert one["text"] == other["text"] and (one["image"] == other["image"]).all()
    of = {example["image"].tobytes() for example in splits["test"]}
    shown = [x.tobytes() for b in measured for k in ("real", "reference") for x in b[k]]
    assert len(set(shown)) == len(shown) == 40 and set(shown) <= of
    near = f"nearest_of_{len(splits['train'])}_training_images/rms"
    assert scores[near].value > 0.05  # none is of the training split
    assert scores["test/all"] == scores["test/all_codec"] == scores["test/all_oracle"]
    assert scores["test/all"].value >= 0.95
    assert scores["test/all_shuffled"].value <= 0.1 and scores["test/all"].n == 20
    assert scores["heldout_word/word"].value == 0 and scores["heldout_word/word_oracle"].value == 1
    assert scores["test/psnr_codec"].value > 50
    assert [len(section.images) for section in sections] == [16, 6, 2]
    monkeypatch.setattr(report, "DRAWN", 30)
    assert sum(len(b["text"]) for b in scenes.measured(model, splits["test"], 0)) == 20  # a half
    with pytest.raises(UserError, match="every split"):
        scenes.report(model, {"train": splits["train"]})


@pytest.mark.parametrize("source", ["tfds:scenes/64", "tfds:openmoji/32"])
def test_muse_reports_factors_of_scenes_and_recall_of_others(source, monkeypatch):
    from dataclasses import dataclass
    from types import SimpleNamespace

    @dataclass
    class Options:
        steps: int = 1

    score = scenes.stats.Score(0.5, 0.4, 0.6, 10)
    monkeypatch.setattr(muse_report, "open_splits", lambda data: ({"train": [], "test": []}, "me"))
    monkeypatch.setattr(muse_report, "_model", lambda *args: None)
    monkeypatch.setattr(scenes, "report", lambda *args: ({"test/all": score}, [], list))
    recall = {"training_caption_recall/r1": score}
    monkeypatch.setattr(muse_report.text_to_image, "report", lambda *args: (recall, [], list))
    config = SimpleNamespace(data=SimpleNamespace(source=source, data_dir=""), eval={})
    task = SimpleNamespace(options=Options, config=config)
    made = muse_report.report(task, None, 0)
    assert (made.scores == recall) == ("openmoji" in source)
    assert ("factors right 0.50" in made.subtitle) == ("scenes" in source)
    assert made.measured() == []


def test_what_was_measured_is_what_is_said():
    """The table of the experiment, its JSON, and the extract in the docstring agree."""
    rows = json.loads((experiment.HERE / "reader.json").read_text())
    table = (experiment.HERE / "reader.md").read_text()
    assert table == experiment.table(rows)
    cells = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("|")]
    assert len(cells) == 2 + len(rows) + 3 and all(cell.strip() for row in cells for cell in row)
    assert experiment.summary(rows) in inspect.cleandoc(scenes.__doc__).replace("\n    ", "\n")


def test_bad_input():
    small = np.zeros((1, 16, 16, 3), np.uint8)
    for pictures in (small, np.zeros((1, 32, 64, 3)), np.zeros((1, 32, 32, 1))):
        with pytest.raises(ValueError, match="square pictures of 32 pixels"):
            scene_reader.read(pictures)
    with pytest.raises(ValueError, match="not finite"):
        scene_reader.read(np.full((1, 32, 32, 3), np.nan))
    with pytest.raises(ValueError, match="1 scenes wanted, 0 found"):
        scenes.accuracy([WANTED], [])
    with pytest.raises(json.JSONDecodeError):
        Scene.from_json("not json")
    assert scene_reader.read([]) == []
