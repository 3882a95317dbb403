"""Tokenizers of language models: ids, what they spell, and where a text may be cut."""

import json

import numpy as np
import pytest

from mmx.core.errors import UserError
from mmx.data.lm_text import LmTokenizer
from mmx.pretrained.hub import Repository
from mmx.pretrained.lm_tokenizer import load_tokenizer
from tests.tokenizer_fakes import TEXTS, byte_level, with_byte_fallback


def test_ids_come_back_whatever_the_text():
    tokenizer = byte_level()
    for text in (*TEXTS, "Ünïcödé ☃ \n\t", ""):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.start_ids == (0,) and tokenizer.eos_ids == (1,)
    assert tokenizer.special_ids == {0, 1} and tokenizer.vocab_size == 282
    # A text that spells a special token does not get it.
    assert not {0, 1} & {*tokenizer.encode("<|begin|>a<|end|>")}
    assert tokenizer.decode([0, *tokenizer.encode("dog")]) == "<|begin|>dog"


def test_what_an_id_adds_to_a_text():
    tokenizer = byte_level()
    (dog,) = tokenizer.encode(" dog")
    assert tokenizer.token(dog) == "Ġdog" and tokenizer.string(dog) == " dog"
    assert tokenizer.string(tokenizer.encode("☃")[0]) == "\ufffd"
    assert tokenizer.token(10_000) is None
    # There a decoder drops the first space of a text: the word has it all the same.
    tokenizer = with_byte_fallback()
    assert tokenizer.decode([tokenizer.encode("dog")[0]]) == "dog"
    assert tokenizer.string(tokenizer.encode("dog")[0]) == " dog"
    assert tokenizer.encode("☃")[1:] == [3 + b for b in "☃".encode()]


def test_a_continuation_is_what_the_whole_text_has():
    """Pitfall 17: the candidate's ids are those behind its prefix, not those of it alone."""
    tokenizer = byte_level()
    prefix = "Input: red dog\nOutput:"
    ids = tokenizer.continuation(prefix, " dog")
    assert tokenizer.encode(prefix) + ids == tokenizer.encode(prefix + " dog")
    with pytest.raises(
        UserError, match=r"'dog' after .*Output: ': a token would hold some of both"
    ):
        tokenizer.continuation(prefix + " ", "dog")
    with pytest.raises(UserError, match="a token would hold"):
        tokenizer.continuation(prefix, "")


def test_ids_that_a_reader_of_the_text_would_not_find():
    """Pitfall 15: of random ids many are not what their text is cut into; of stable words all."""
    tokenizer = byte_level()
    rng = np.random.default_rng(0)
    rows = rng.integers(2, tokenizer.vocab_size, (500, 6))
    stable = [tokenizer.is_stable(row) for row in rows]
    assert 0 < sum(stable) < 400
    for row, same in zip(rows, stable):
        assert (tokenizer.encode(tokenizer.decode(row)) == row.tolist()) == same
    words = [n for n in range(2, 282) if tokenizer.string(n)[1:].isalpha()
             and tokenizer.string(n)[0] == " " and tokenizer.is_stable([n])]  # fmt: skip
    assert len(words) > 5
    assert all(map(tokenizer.is_stable, rng.choice(words, (10_000, 6))))


def test_the_hash_is_of_what_ids_mean():
    ours = byte_level().vocab_hash
    changed = json.loads(byte_level().to_str())
    changed["post_processor"] = None
    assert LmTokenizer(json.dumps(changed)).vocab_hash == ours and len(ours) == 16
    vocab = changed["model"]["vocab"]
    vocab["!"], vocab['"'] = vocab['"'], vocab["!"]
    assert LmTokenizer(json.dumps(changed)).vocab_hash != ours
    assert LmTokenizer(byte_level().to_str()).vocab_hash == ours


def test_a_repository_says_what_ends_a_text(tmp_path):
    (tmp_path / "tokenizer.json").write_text(byte_level().to_str())
    write = lambda name, **fields: (tmp_path / name).write_text(json.dumps(fields))
    write("config.json", bos_token_id=0, eos_token_id=1)
    tokenizer = load_tokenizer(Repository(tmp_path))
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (0, (1,))
    write("generation_config.json", eos_token_id=[1, 5])
    assert load_tokenizer(Repository(tmp_path)).eos_ids == (1, 5)
    write("generation_config.json", eos_token_id=282)
    with pytest.raises(UserError, match="the special id 282 is none of its 282"):
        load_tokenizer(Repository(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="not a tokenizer file"):
        load_tokenizer(Repository(tmp_path))
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"no tokenizer.json in it \(a tokenizer.model alone"):
        load_tokenizer(Repository(tmp_path))
