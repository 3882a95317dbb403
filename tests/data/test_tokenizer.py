"""The byte-pair tokenizer: fixed ids, masks, truncation, prompts' errors, reproducible files."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmx.core.errors import UserError
from mmx.data.text import EOS_ID, PAD_ID, Tokenizer, train_tokenizer

CAPTIONS = ["red heart", "red car", "blue heart", "woman teacher, dark skin tone", "red heart"] * 3


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(CAPTIONS, 300, tmp_path_factory.mktemp("tok") / "tokenizer.json")


def test_ids_and_mask(tokenizer):
    text_ids, text_mask = tokenizer.encode(["red heart", "red"], 6)
    assert text_ids.shape == text_mask.shape == (2, 6)
    assert (text_ids.dtype, text_mask.dtype) == (np.int32, np.bool_)
    assert (PAD_ID, EOS_ID) == (0, 1)
    for ids, mask in zip(text_ids, text_mask):
        length = mask.sum()
        assert mask[:length].all() and not mask[length:].any()
        assert ids[length - 1] == EOS_ID and (ids[length:] == PAD_ID).all()
        assert (ids[: length - 1] > EOS_ID).all()
    assert text_ids.max() < tokenizer.vocab_size <= 300


def test_same_word_same_tokens_wherever_it_stands(tokenizer):
    (first, second), _ = tokenizer.encode(["heart", "red heart"], 8)
    heart = first[: list(first).index(EOS_ID)].tolist()
    red = tokenizer.encode(["red"], 8)[0][0]
    assert second.tolist()[: list(second).index(EOS_ID)] == red[red > EOS_ID].tolist() + heart


def test_case_space_and_apostrophe_do_not_matter(tokenizer):
    text_ids, _ = tokenizer.encode(["Red  HEART\n", " red heart"], 8)
    np.testing.assert_array_equal(text_ids[0], text_ids[1])
    text_ids, _ = tokenizer.encode(["man\u2019s", "man's"], 12)
    np.testing.assert_array_equal(text_ids[0], text_ids[1])


def test_truncation_keeps_the_end(tokenizer):
    text_ids, text_mask = tokenizer.encode(["woman teacher, dark skin tone"], 3)
    assert text_mask.all() and text_ids[0, -1] == EOS_ID
    full, _ = tokenizer.encode(["woman teacher, dark skin tone"], 40)
    np.testing.assert_array_equal(text_ids[0, :2], full[0, :2])


def test_prompts_are_checked(tokenizer):
    long = "zebra " * 9
    with pytest.raises(UserError, match=r"zebra.*too long: \d+ tokens, at most 7"):
        tokenizer.encode(["red", long], 8, strict=True)
    for empty in ("", " \n "):
        with pytest.raises(UserError, match="empty"):
            tokenizer.encode([empty], 8, strict=True)
    exact = tokenizer.encode(["red heart"], 40)[1].sum()
    tokenizer.encode(["red heart"], int(exact), strict=True)
    with pytest.raises(UserError, match="too long"):
        tokenizer.encode(["red heart"], int(exact) - 1, strict=True)


def test_text_that_spells_a_special_token_is_text(tokenizer):
    text_ids, text_mask = tokenizer.encode(["<pad> <eos>"], 32)
    length = text_mask.sum()
    assert length > 3 and (text_ids[0, : length - 1] > EOS_ID).all()


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec="ascii", min_codepoint=33), min_size=1))
def test_nothing_is_unknown(tokenizer, text):
    text_ids, _ = tokenizer.encode([text], 4 * len(text) + 8)
    assert tokenizer.decode(text_ids[0]) == text.lower()


def test_other_scripts_survive(tokenizer):
    text_ids, _ = tokenizer.encode(["猫 åland"], 32)
    assert tokenizer.decode(text_ids[0]) == "猫 åland"


def test_file_is_reproducible_and_reloads(tokenizer, tmp_path):
    program = (
        "import sys; from mmx.data.text import train_tokenizer;"
        f"train_tokenizer({CAPTIONS!r}, 300, sys.argv[1])"
    )
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for seed, file in enumerate(files):
        env = {"PYTHONHASHSEED": str(seed), "PYTHONPATH": ":".join(sys.path)}
        subprocess.run([sys.executable, "-c", program, str(file)], check=True, env=env)
    assert files[0].read_bytes() == files[1].read_bytes()
    again = Tokenizer.load(files[0])
    assert again.vocab_size == tokenizer.vocab_size
    np.testing.assert_array_equal(again.encode(CAPTIONS, 24)[0], tokenizer.encode(CAPTIONS, 24)[0])


def test_errors(tmp_path):
    with pytest.raises(UserError, match="258"):
        train_tokenizer(CAPTIONS, 257, tmp_path / "t.json")
    with pytest.raises(UserError, match="no tokenizer here"):
        Tokenizer.load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match="not a tokenizer file"):
        Tokenizer.load(tmp_path / "bad.json")
    import tokenizers

    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(tmp_path / "foreign.json"))
    with pytest.raises(UserError, match="not made by mmx"):
        Tokenizer.load(tmp_path / "foreign.json")
