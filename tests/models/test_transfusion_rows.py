"""Documents to rows, by hand: markers, labels, what is drawn and what does not fit."""

import numpy as np
import pytest

from mmx.core.errors import UserError
from mmx.models.transfusion.rows import Markers, RowRules, pack, prompt

EOS, BOS, BOI, EOI = 1, 10, 11, 12
RED, BLUE = (np.full((2, 2, 3), value, np.uint8) for value in (9, 7))


def rules(**changes):
    default = dict(
        markers=Markers.after(10, EOS),
        encode=lambda text: [int(c) for c in text],
        fit=lambda image: image,
        length=16,
        max_images=2,
        patches=3,
        image_size=2,
        image_first=0.0,
        drop=0.0,
    )
    return RowRules(**default | changes)


def packed(*documents, seed=0, **changes):
    return pack(list(documents), rules(**changes), np.random.default_rng(seed))


def test_caption_then_image_by_hand():
    row = packed({"text": "23", "image": RED}, {"text": "4"})
    e = EOS
    assert row["tokens"].tolist() == [
        BOS, 2, 3, BOI, e, e, e, EOI, EOS, BOS, 4, EOS, e, e, e, e,
    ]  # fmt: skip
    assert row["document"].tolist() == [0] * 9 + [1] * 3 + [-1] * 4
    assert row["image"].tolist() == [-1] * 4 + [0] * 3 + [-1] * 9
    # Nothing is learned where the input is the image's marker or a patch, nor across documents.
    labels = [2, 3, BOI, -1, -1, -1, -1, EOS, -1, 4, EOS, -1]
    assert row["labels"].tolist() == labels + [-1] * 4
    assert row["first"].tolist() == [4, 16] and row["noise_limit"].tolist() == [1.0, 0.0]
    assert (row["images"][0] == RED).all() and (row["images"][1] == 0).all()


def test_an_image_that_something_follows_is_less_noised():
    row = packed({"text": "23", "image": RED}, image_first=1.0, noise_limit=0.5)
    e = EOS
    assert row["tokens"][:9].tolist() == [BOS, BOI, e, e, e, EOI, 2, 3, EOS]
    assert row["labels"][:9].tolist() == [BOI, -1, -1, -1, -1, 2, 3, EOS, -1]
    assert row["noise_limit"].tolist() == [0.5, 0.0]
    parts = {"parts": [RED, "2", BLUE]}
    assert packed(parts, length=20, noise_limit=0.0)["noise_limit"].tolist() == [0.0, 1.0]
    assert (packed(parts, length=20)["images"] == np.stack([RED, BLUE])).all()


def test_a_dropped_caption_is_another_document_and_is_not_learned():
    row = packed({"text": "23", "image": RED}, {"text": "4"}, drop=1.0)
    assert row["document"].tolist() == [0] * 3 + [1] * 6 + [2] * 3 + [-1] * 4
    assert row["labels"][:9].tolist() == [-1] * 7 + [EOS, -1]
    assert row["labels"][9:12].tolist() == [4, EOS, -1]
    # There is nothing to hide from an image that comes first, or in a text.
    first = packed({"text": "23", "image": RED}, drop=1.0, image_first=1.0)
    assert first["document"][:9].tolist() == [0] * 9 and first["labels"][0] == BOI


def test_shares_are_what_they_say():
    options = dict(image_first=0.2, drop=0.1)
    rows = [packed({"text": "2", "image": RED}, seed=seed, **options) for seed in range(2000)]
    first = np.mean([row["tokens"][1] == BOI for row in rows])
    dropped = np.mean([row["document"].max() == 1 for row in rows])
    assert abs(first - 0.2) < 0.03 and abs(dropped - 0.08) < 0.02  # of those with caption first


def test_clean_copies_by_hand():
    """What follows an image reads it clean; it is learned at the end of a copy of what precedes."""
    parts = {"parts": ["2", RED, "34", BLUE, "5"]}
    row = packed(parts, {"text": "6"}, length=48, max_images=5, clean_copies=True)
    i = [BOI, EOS, EOS, EOS]
    whole, copy = [BOS, 2, *i, EOI, 3, 4, *i], [BOS, 2, *i]
    assert row["tokens"][:38].tolist() == [*whole, EOI, 5, EOS, *copy, *whole, BOS, 6, EOS]
    assert row["document"].tolist() == [0] * 16 + [1] * 6 + [2] * 13 + [3] * 3 + [-1] * 10
    assert (np.flatnonzero(row["labels"] != -1) < 16).sum() == 7  # the copies learn no id
    assert row["labels"][16:36].tolist() == [-1] * 19 + [6]
    assert row["noise_limit"].tolist() == [0, 0, 1, 0, 1]
    assert row["images"][:, 0, 0, 0].tolist() == [9, 7, 9, 9, 7]
    for slot, first in enumerate(row["first"]):
        assert np.flatnonzero(row["image"] == slot).tolist() == [first, first + 1, first + 2]
    # A pair whose image comes last has nothing to copy, and room for it is planned all the same.
    pair, of = {"text": "2", "image": RED}, rules(clean_copies=True, image_first=0.5, length=20)
    taken = {seed: packed(pair, seed=seed, clean_copies=True, image_first=0.5) for seed in range(9)}
    tokens = [(row["document"] >= 0).sum() for row in taken.values()]
    assert set(tokens) == {8, 13} and of.count(pair) == (13, 2)
    assert rules(clean_copies=True).count(parts) == (16 + 6 + 13, 5)
    # A copy's image is cut off from what precedes it as often as any.
    dropped = packed(parts, length=48, max_images=5, clean_copies=True, drop=1.0)
    assert dropped["document"][:35].tolist() == [0] * 16 + [1] * 2 + [2] * 4 + [3] * 9 + [4] * 4


def test_count_is_what_pack_writes():
    for document in ({"text": "234"}, {"text": "2", "image": RED}, {"parts": [RED, "2", BLUE]}):
        row = packed(document)
        tokens, images = rules().count(document)
        assert (row["document"] >= 0).sum() == tokens and (row["first"] < 16).sum() == images


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"18 tokens and 2 images do not fit .*row_len=16"):
        packed({"text": "2", "image": RED}, {"text": "234", "image": RED})
    with pytest.raises(UserError, match=r"3 images do not fit .*max_images=2"):
        packed({"parts": [RED] * 3}, length=30)


def test_prompts_by_hand():
    row = prompt(["23", RED, "4"], rules(), 12)
    e = EOS
    assert row["tokens"].tolist() == [BOS, 2, 3, BOI, e, e, e, EOI, 4, e, e, e]
    assert row["image"].tolist() == [-1] * 4 + [0] * 3 + [-1] * 5
    assert row["first"].tolist() == [4, 12] and row["length"] == 9
    assert row["images"].shape == (2, 2, 2, 3) and (row["images"][0] == RED).all()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([""], "prompt '' is empty"),
        ([RED[..., 0]], r"uint8 of shape \(2, 2\): give uint8 \[H, W, 3\], RGB"),
        ([RED / 255], r"float64 of shape \(2, 2, 3\)"),
        ([np.zeros((2, 2, 4), np.uint8)], r"\(2, 2, 4\)"),
        ([RED, RED, RED], "3 images in the prompt, but .* config.data.max_images=2"),
        (["2345678923456"], "the prompt is 14 tokens, but at most 12 fit"),
    ],
)
def test_prompts_that_cannot_be(parts, message):
    with pytest.raises(UserError, match=message):
        prompt(parts, rules(), 12)
