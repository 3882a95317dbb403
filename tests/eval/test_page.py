"""The page and the sheet of a comparison, read back: every cell and text, nothing from outside."""

import base64
import io
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from mmx.eval.comparison import ABSENT, Column, Comparison, differences
from mmx.eval.page import page
from mmx.eval.sheet import draw_sheet

HOSTILE = "<script>alert(1)</script> & \"quotes\" 'too' <img src=http://x/y.png onerror=x>"
PROMPTS = ("red heart", HOSTILE)


def line(value, recipe="data 1", **interval):
    return {"value": value, "recipe": recipe, **interval}


@pytest.fixture
def shown():
    images = np.random.default_rng(0).integers(0, 256, (4, 2, 16, 16, 3), np.uint8)
    recall = [line(v, low=v - 0.1, high=v + 0.1, n=256) for v in (0.25, 0.5, 0.125, 0.75)]
    columns = [
        Column(run, step, {"recall": recall[i], "use": line(i / 8)}, images[i])
        for i, (run, step) in enumerate([("a", 100), ("a", 200), ("b<i>", 100), ("b<i>", 200)])
    ]
    return Comparison(
        family="muse",
        columns=columns,
        rows=PROMPTS,
        rows_are="prompts",
        what="drawn",
        seed=7,
        differences={"optim.lr": {"a": "0.001", "b<i>": "<i>3e-3"}},
        credits=["By models trained on <OpenMoji>, CC BY-SA 4.0."],
    )


class Page(HTMLParser):
    """Tables as lists of rows of cells (tag, attributes, text, images); all tags by name."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.tables, self.text = [], [], ""
        self._cell = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = {"tag": tag, "attrs": attrs, "text": "", "images": []}
            self.tables[-1][-1].append(self._cell)
        elif tag == "img":
            self._cell["images"].append(attrs)

    def handle_data(self, data):
        self.text += data
        if self._cell is not None:
            self._cell["text"] += data

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._cell = None


def decoded(attrs: dict) -> np.ndarray:
    head, _, data = attrs["src"].partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data, validate=True))))


def test_every_prompt_and_checkpoint_has_its_picture(shown):
    _, _, pictures = Page(page(shown)).tables
    runs, steps, *rows = pictures
    assert [(c["text"], c["attrs"].get("colspan")) for c in runs[1:]] == [("a", "2"), ("b<i>", "2")]
    assert [c["text"] for c in steps] == ["step 100", "step 200"] * 2
    assert [row[0]["text"] for row in rows] == list(PROMPTS)
    for i, row in enumerate(rows):
        assert len(row) == 5
        for column, cell in zip(shown.columns, row[1:], strict=True):
            (image,) = cell["images"]
            np.testing.assert_array_equal(decoded(image), column.images[i])
            at = f"drawn by {column.run} at step {column.step}, seed 7"
            assert image["alt"] == f"{PROMPTS[i]}: {at}"
            assert (image["width"], image["height"]) == ("112", "112")  # a whole multiple of 16


def test_scores_with_intervals_and_what_differs_are_on_top(shown):
    fields, scores, _ = Page(page(shown)).tables
    assert [[c["text"] for c in row] for row in fields] == [
        ["field", "a", "b<i>"],
        ["optim.lr", "0.001", "<i>3e-3"],
    ]
    assert [[c["text"] for c in row] for row in scores[2:]] == [
        ["recall", "0.25[0.15, 0.35]", "0.5[0.4, 0.6]", "0.125[0.025, 0.225]", "0.75[0.65, 0.85]"],
        ["use", "0", "0.125", "0.25", "0.375"],
    ]


def test_what_was_measured_otherwise_stands_in_another_row(shown):
    shown.columns[2].scores["use"] = line(0.5, recipe="data 2")
    del shown.columns[3].scores["use"]
    rows = Page(page(shown)).tables[1][2:]
    assert [[c["text"] for c in row] for row in rows[1:]] == [
        ["use on data 1", "0", "0.125", "-", "-"],
        ["use on data 2", "-", "-", "0.5", "-"],
    ]
    assert [sorted(of) for of in shown.scores_of()] == [
        ["recall", "use on data 1"], ["recall", "use on data 1"], ["recall", "use on data 2"],
        ["recall"],
    ]  # fmt: skip


def test_what_was_measured_on_fewer_images_stands_in_another_row(shown):
    for column, n in zip(shown.columns, (256, 256, 150, 256)):
        column.scores["use"] = line(0.5, n=n)
    rows = [[c["text"] for c in row] for row in Page(page(shown)).tables[1][3:]]
    assert rows == [["use, n = 256", "0.5", "0.5", "-", "0.5"],
                    ["use, n = 150", "-", "-", "0.5", "-"]]  # fmt: skip


def test_nothing_comes_from_outside_and_nothing_runs(shown):
    text = page(shown)
    tags = Page(text).tags
    assert {name for name, _ in tags}.isdisjoint({"script", "link", "iframe", "object", "base"})
    for _, attrs in tags:
        assert not any(name.startswith("on") or name == "href" for name in attrs)
        assert attrs.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
    assert "url(" not in text and "@import" not in text
    policy = [a["content"] for name, a in tags if name == "meta" and "http-equiv" in a]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert HOSTILE not in text and HOSTILE in Page(text).text  # as a text, not as tags
    assert shown.credits[0] in Page(text).text


def test_it_can_be_read_by_keyboard_and_by_ear(shown):
    read = Page(page(shown))
    html = [attrs for name, attrs in read.tags if name == "html"]
    assert html == [{"lang": "en"}]
    regions = [a for _, a in read.tags if a.get("role") == "region"]
    assert len(regions) == 3 and all(a["tabindex"] == "0" and a["aria-label"] for a in regions)
    cells = [cell for table in read.tables for row in table for cell in row]
    assert all(c["attrs"].get("scope") for c in cells if c["tag"] == "th")
    assert all(row[0]["tag"] == "th" for table in read.tables for row in table)


def test_images_that_were_rebuilt_stand_beside_the_originals(shown):
    originals = np.zeros((2, 16, 16, 3), np.uint8)
    changed = {**vars(shown), "what": "rebuilt", "originals": originals}
    pictures = Page(page(Comparison(**changed))).tables[-1]
    assert pictures[0][1]["text"] == "original"
    for i, row in enumerate(pictures[2:]):
        assert len(row) == 6 and row[1]["images"][0]["alt"] == f"{PROMPTS[i]}: the original"
        np.testing.assert_array_equal(decoded(row[1]["images"][0]), originals[i])
        assert "rebuilt by a at step 100" in row[2]["images"][0]["alt"]
    assert draw_sheet(Comparison(**changed)).width > draw_sheet(shown).width


def test_a_family_without_pictures_has_scores(shown):
    columns = [Column(c.run, c.step, c.scores) for c in shown.columns]
    without = Comparison(**{**vars(shown), "columns": columns, "rows": []})
    read = Page(page(without))
    assert len(read.tables) == 2 and not any(name == "img" for name, _ in read.tags)
    assert draw_sheet(without).height < draw_sheet(shown).height


def test_the_sheet_has_every_picture_enlarged_by_a_whole_factor(shown):
    sheet = np.asarray(draw_sheet(shown))
    found = []
    for column in shown.columns:
        for image in column.images:
            big = image.repeat(7, 0).repeat(7, 1)
            corner = (sheet[:-111, :-111] == big[0, 0]).all(-1)
            places = [(y, x) for y, x in zip(*np.nonzero(corner))
                      if (sheet[y : y + 112, x : x + 112] == big).all()]  # fmt: skip
            assert len(places) == 1
            found += places
    ys, xs = np.array(found).reshape(4, 2, 2).transpose(2, 0, 1)
    assert (ys == ys[0]).all() and ys[0, 0] < ys[0, 1]  # rows prompts
    assert (xs == xs[:, :1]).all() and (np.diff(xs[:, 0]) > 112).all()  # columns checkpoints


def test_differences():
    settings = {"a": {"x": 1, "y": (1, 2), "s": ""}, "b": {"x": 1, "y": (1, 3), "z": "words"}}
    assert differences(settings) == {
        "s": {"a": "''", "b": ABSENT},
        "y": {"a": "(1, 2)", "b": "(1, 3)"},
        "z": {"a": ABSENT, "b": "words"},
    }
    assert differences({"a": {"x": 1}, "b": {"x": 1}}) == {}
