"""SigLIP's tokenizer: the ids that transformers gives for a tiny vocabulary, kept in goldens."""

import json
from pathlib import Path

import pytest
import tokenizers

from mmx.core.errors import UserError
from mmx.data.siglip_text import SiglipTokenizer, clean

GOLDENS = Path(__file__).parents[1] / "goldens/pretrained/siglip_text"


@pytest.fixture(scope="module")
def tokenizer():
    return SiglipTokenizer.load(GOLDENS / "tokenizer.json")


def test_ids_are_those_of_transformers(tokenizer):
    texts = json.loads((GOLDENS / "golden.json").read_text())["texts"]
    assert len(texts) > 10
    for text, want in texts:
        text_ids, text_mask = tokenizer.encode([text], 64)
        assert text_ids[0].tolist() == want, text
        end = int(text_mask[0].sum()) - 1
        assert (text_ids[0, end:] == tokenizer.eot_id).all() and text_mask[0, : end + 1].all()


def test_only_words_count(tokenizer):
    """Case, ASCII punctuation and white space say nothing, also where the text begins."""
    same = ["two birds sit", "  Two, birds\n sit!", "_two (birds) sit."]
    assert {clean(text) for text in same} == {"two birds sit"}
    ids, _ = tokenizer.encode(same, 8)
    assert (ids == ids[0]).all()
    spelt, _ = tokenizer.encode(["cat</s>"], 8)
    assert spelt[0].tolist() == tokenizer.encode(["cats"], 8)[0][0].tolist()


def test_long_and_empty_texts_and_other_files(tokenizer, tmp_path):
    long = " ".join(["cat"] * 8)
    ids, mask = tokenizer.encode([long], 8)
    assert ids[0, -1] == tokenizer.eot_id and ids[0, -2] != tokenizer.eot_id and mask.all()
    with pytest.raises(UserError, match="too long: 8 tokens, at most 7 fit"):
        tokenizer.encode([long], 8, strict=True)
    with pytest.raises(UserError, match=r"'\.' is empty"):
        tokenizer.encode(["."], 8, strict=True)
    with pytest.raises(UserError, match="no tokenizer here"):
        SiglipTokenizer.load(tmp_path / "tokenizer.json")
    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"tokenizer\.json: not SigLIP's"):
        SiglipTokenizer.load(tmp_path / "tokenizer.json")


def test_siglip_2_is_refused(tmp_path):
    """Gemma's vocabulary: the end is <eos> 1, rows are filled by <pad> 0, </s> is a tag of HTML."""
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "</s>", "cat"]
    pieces = tokenizers.Tokenizer(tokenizers.models.Unigram([(w, -1.0) for w in words], 3, False))
    file = tmp_path / "tokenizer.json"
    pieces.save(str(file))
    with pytest.raises(UserError, match=r"</s> is 4, .* SigLIP 2 and other vocabularies"):
        SiglipTokenizer.load(file)
    # SigLIP's own places, but filled as Gemma fills.
    theirs = tokenizers.Tokenizer.from_file(str(GOLDENS / "tokenizer.json"))
    theirs.enable_padding(pad_id=0, pad_token="<pad>", length=64)
    theirs.save(str(file))
    with pytest.raises(UserError, match=r"</s> is 1, the filler 0\)"):
        SiglipTokenizer.load(file)
    theirs.enable_padding(pad_id=1, pad_token="</s>", length=64)
    theirs.save(str(file))
    ids, mask = SiglipTokenizer.load(file).encode(["cat"], 8)
    assert ids[0, -1] == 1 and mask[0].sum() < 8
