"""CLIP's tokenizer: the ids that open_clip gives, kept beside the tests (`make parity`)."""

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from mmx.core.errors import UserError
from mmx.data.clip_bpe import CONTEXT, ClipTokenizer, clean

GOLDEN = Path(__file__).parents[1] / "goldens/pretrained/clip_bpe.json"
SOT, EOT = 49406, 49407


@pytest.fixture(scope="module")
def published():
    return ClipTokenizer.published()


def test_ids_are_those_of_open_clip(published):
    texts = json.loads(GOLDEN.read_text())["texts"]
    assert len(texts) > 40
    for text, want in texts:
        text_ids, text_mask = published.encode([text])
        assert text_ids.shape == (1, CONTEXT) and text_ids.dtype == np.int32
        assert text_ids[0][text_mask[0]].tolist() == want, text
        assert not text_ids[0][~text_mask[0]].any()


def test_known_ids_start_and_end(published):
    assert published.vocab_size == 49408 and published.eot_id == published.vocab_size - 1
    text_ids, text_mask = published.encode(["a photo of a cat", ""], 10)
    assert text_ids.tolist() == [
        [SOT, 320, 1125, 539, 320, 2368, EOT, 0, 0, 0],
        [SOT, EOT, 0, 0, 0, 0, 0, 0, 0, 0],
    ]
    assert text_mask.sum(1).tolist() == [7, 2]


def test_long_texts_keep_their_end_or_are_refused(published):
    fits, long = " ".join(["cat"] * 75), " ".join(["cat"] * 76)
    text_ids, _ = published.encode([fits, long], CONTEXT, strict=False)
    assert text_ids[0].tolist() == text_ids[1].tolist() == [SOT, *[2368] * 75, EOT]
    published.encode([fits], CONTEXT, strict=True)
    with pytest.raises(UserError, match=r"'cat cat .*too long: 76 tokens, at most 75 fit"):
        published.encode([fits, long], CONTEXT, strict=True)
    with pytest.raises(UserError, match="' ' is empty"):
        published.encode([" "], CONTEXT, strict=True)


def test_a_text_that_spells_a_special_token_is_text(published):
    for text in ("<|endoftext|>", "<|startoftext|> a", "<end_of_text>", "</w>"):
        text_ids, text_mask = published.encode([text])
        inside = text_ids[0][text_mask[0]][1:-1]
        assert inside.max() < SOT
        assert published.decode(text_ids[0]).replace(" ", "") == text.replace(" ", "")


def test_nor_where_the_file_lists_special_tokens(published, tmp_path):
    """As the tokenizer.json of the hub does."""
    told = json.loads(published.to_str())
    flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=True, special=True)
    added = [(SOT, "<|startoftext|>"), (EOT, "<|endoftext|>")]
    told["added_tokens"] = [dict(id=number, content=token, **flags) for number, token in added]
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(told))
    texts = ["<|endoftext|> a", "a<|startoftext|>", "a cat"]
    got, want = (tokenizer.encode(texts)[0] for tokenizer in (ClipTokenizer.load(file), published))
    np.testing.assert_array_equal(got, want)


def test_decode_reads_back_what_clip_reads(published):
    for text in ("A photo of a CAT", "日本語 é 😀", "x" * 60):
        ids = published.encode([text])[0][0]
        assert published.decode(ids) == clean(text)


def test_a_run_keeps_it_as_one_file(published, tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_text(published.to_str())
    kept = ClipTokenizer.load(file)
    texts = [text for text, _ in json.loads(GOLDEN.read_text())["texts"]]
    np.testing.assert_array_equal(kept.encode(texts)[0], published.encode(texts)[0])
    assert kept.vocab_size == published.vocab_size


def test_other_files_are_refused(tmp_path):
    file = tmp_path / "tokenizer.json"
    with pytest.raises(UserError, match="no tokenizer here"):
        ClipTokenizer.load(file)
    file.write_text("{}")
    with pytest.raises(UserError, match="not a tokenizer file"):
        ClipTokenizer.load(file)
    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(file))
    with pytest.raises(UserError, match="not CLIP's"):
        ClipTokenizer.load(file)
