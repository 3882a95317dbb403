"""BLEU and CIDEr-D: captions made by hand, and pycocoevalcap."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.parity.metric_inputs import CAPTIONS, REFERENCES
from mmx.core.errors import UserError
from mmx.eval import captions, evaluator

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens/metrics.json").read_text())
SAID = [text.split() for text in CAPTIONS]
TRUE = [[text.split() for text in texts] for texts in REFERENCES]


def test_equal_to_pycocoevalcap():
    np.testing.assert_allclose(captions.bleu(SAID, TRUE), GOLDEN["bleu"], rtol=1e-7)
    np.testing.assert_allclose(captions.cider_d(SAID, TRUE), GOLDEN["cider_each"], rtol=1e-10)


def test_made_by_hand():
    # Clipped: "the" counts twice of seven (Papineni et al. 2002, example 2); nothing of two words.
    the, cat = ["the"] * 7, ["the", "cat", "is", "on", "the", "mat"]
    assert captions.bleu([the], [[cat]]) == pytest.approx([2 / 7, 0, 0, 0])
    # Half as long as the nearest reference: exp(1 - 4 / 2).
    short = captions.bleu([["a", "b"]], [[list("abcd"), list("abcdefgh")]])
    assert short[:2] == pytest.approx([np.exp(-1)] * 2)
    assert captions.bleu([list("abcdef")], [[list("abcdef")]]) == pytest.approx([1] * 4)
    assert captions.bleu([[]], [[["a"]]]) == [0] * 4


def test_cider_of_its_only_reference_is_ten_and_of_another_row_none():
    texts = [list("abcde"), list("fghij"), list("klmno")]
    np.testing.assert_allclose(captions.cider_d(texts, [[t] for t in texts]), 10, rtol=1e-12)
    turned = [[t] for t in texts[1:] + texts[:1]]
    np.testing.assert_allclose(captions.cider_d(texts, turned), 0)


def test_rows_come_in_batches_and_shards_padding_left_out():
    whole = captions.evaluator()
    rows = {"caption": CAPTIONS, "references": REFERENCES}
    expected = evaluator.run([whole], [rows])
    assert expected["cider_d"].value == pytest.approx(GOLDEN["cider"], rel=1e-9)
    assert expected["bleu_4"] == pytest.approx(GOLDEN["bleu"][3], rel=1e-7)
    parts = [
        {"caption": [*CAPTIONS[:2], "padding"], "references": [*REFERENCES[:2], ["x"]],
         "_mask": np.array([True, True, False])},
        {"caption": CAPTIONS[2:], "references": REFERENCES[2:]},
    ]  # fmt: skip
    assert evaluator.run([whole], parts) == expected
    states = [whole.update(whole.init(), part) for part in parts]
    assert whole.result(evaluator.merged(whole, states)) == expected


def test_words_and_mistakes():
    assert captions.words("A dog's bone, 2 cafés!") == ["a", "dog's", "bone", "2", "cafés"]
    with pytest.raises(UserError, match="needs a list of one or more"):
        captions.bleu([["a"]], [[]])
    with pytest.raises(UserError, match="one row"):
        captions.cider_d([["a"]], [[["a"]]])
