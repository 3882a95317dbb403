"""`mmx prepare wordnet`: what is built from a small package of the same layout."""

import hashlib
import itertools

import debian_package
import pytest

from mmx.cli.main import main
from mmx.core.errors import UserError
from mmx.data import wordnet
from mmx.data.source import open_source
from mmx.data.text import Tokenizer

# Lines of the format of wndb(5WN); the licence comes first, indented.
FILES = {
    "noun": """  1 This software and database is being provided to you
00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 ~ 00002137 n 0000 | that which exists (living)
00002684 03 n 01 object 0 001 @ 00001930 n 0000 | a tangible entity; "a ball | bat"
00003993 03 n 01 Rhône_wine 0 000 | a wine
00004258 03 n 01 tea 0 000 | TEST
00004475 03 n 01 mead 0 000 | VALIDATION
""",
    "verb": "00005041 29 v 01 take_a_breath 1 001 @ 00001740 v 0000 01 + 02 00 | a wine; "
    '"Drink!"  \n',
    "adj": """00001740 00 a 01 able(p) 0 001 ! 00002098 a 0101 | having the means; "able to swim"
00003131 00 s 01 emergent 0 001 & 00003131 a 0000 | coming into being
""",
    "adv": "00001837 02 r 01 barely 0 000 | only just\n",
}


def _text_of(split):
    """One that is in a split."""
    texts = (f"drink {n}" for n in itertools.count())
    return next(t for t in texts if wordnet.Synset("1-n", t, "a", "noun").split == split)


for name in ("test", "validation"):  # a data set has no empty split
    FILES["noun"] = FILES["noun"].replace(name.upper(), _text_of(name))


def make_package(files):
    return debian_package.make(
        {f"./usr/share/wordnet/data.{p}": text.encode("latin-1") for p, text in files.items()}
    )


@pytest.fixture
def package(tmp_path, monkeypatch):
    joined = "".join(FILES[part] for part in ("noun", "verb", "adj", "adv")).encode("latin-1")
    monkeypatch.setattr(wordnet, "SHA256", hashlib.sha256(joined).hexdigest())
    file = tmp_path / "wordnet.deb"
    file.write_bytes(make_package(FILES))
    return file


def test_what_is_built(package, tmp_path, capsys):
    command = ["prepare", "wordnet", "--package", str(package), "--data_dir", str(tmp_path)]
    assert main(command) == 0 and main(command) == 0
    first, second = capsys.readouterr().out.split("tfds:wordnet: ")[1:]
    assert first.startswith("prepared") and second.startswith("already prepared")
    assert "Princeton University" in first
    found = {}
    for split in ("train", "validation", "test"):
        source = open_source("tfds:wordnet", split, tmp_path, needs_image=False)
        found |= {e["synset"]: e | {"split": split} for e in source.outlines()}
    assert found.pop("00004258-n")["split"] == "test"
    assert found.pop("00004475-n")["split"] == "validation"
    assert {key: (e["text"], e["lemma"], e["part_of_speech"]) for key, e in found.items()} == {
        "00001740-n": ("that which exists (living)", "entity", "noun"),
        "00002684-n": ('a tangible entity; "a ball | bat"', "object", "noun"),
        "00003993-n": ("a wine", "Rhône wine", "noun"),
        "00005041-v": ('a wine; "Drink!"', "take a breath", "verb"),
        "00001740-a": ('having the means; "able to swim"', "able", "adjective"),
        "00003131-a": ("coming into being", "emergent", "adjective"),
        "00001837-r": ("only just", "barely", "adverb"),
    }
    assert found["00003993-n"]["split"] == found["00005041-v"]["split"]
    assert Tokenizer.load(tmp_path / "wordnet" / "1.0.0" / "tokenizer.json").vocab_size >= 258
    with pytest.raises(UserError, match="tfds:wordnet: has no one image feature"):
        open_source("tfds:wordnet", "train", tmp_path)


def test_a_definition_is_on_one_side_whatever_its_spelling():
    def split(text):
        return wordnet.Synset("1-n", text, "a", "noun").split

    texts = [f"the thing of number {n}" for n in range(4000)]
    splits = [split(text) for text in texts]
    assert splits == [split(f'{text.upper()};  "with an example"') for text in texts]
    assert splits == [split(f'{text}: "another"') for text in texts]
    for name, share in (("train", 0.9), ("validation", 0.05), ("test", 0.05)):
        assert abs(splits.count(name) / 4000 - share) < 4 * (share * (1 - share) / 4000) ** 0.5


def test_errors(package, tmp_path):
    with pytest.raises(UserError, match=r"--package=.*none\.deb: no such file"):
        wordnet.prepare(tmp_path, str(tmp_path / "none.deb"))
    with pytest.raises(UserError, match="run: mmx prepare wordnet --data_dir"):
        open_source("tfds:wordnet", "train", tmp_path)
    package.write_bytes(make_package(FILES | {"adv": ""}))
    with pytest.raises(UserError, match=r"sha256 .* of its glosses, expected"):
        wordnet.read_package(package)
