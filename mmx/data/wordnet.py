"""The data set ``wordnet``: 117,659 glosses of WordNet 3.0, plain English without pictures.

An example is a synset: ``text`` is its gloss, the definition and the example sentences that follow
it in quotes, as WordNet has it; beside it the first of its words, its part of speech and its number
there. Splits are by definition: one that two synsets share is on one side.

The glosses come from Debian's package `wordnet-base`, see `mmx.data.debian`. ``mmx prepare
wordnet`` does it.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from mmx.core.errors import UserError
from mmx.data import build, debian

ATTRIBUTION = "WordNet 3.0, Copyright 2006 by Princeton University"
VERSION = "1.0.0"
PACKAGE = "wordnet-base"
# Of the four data files, one after the other.
SHA256 = "9c33953116f661f96b2af6815ea87a505a54cd48e72994ba47bca5aad58840a6"
# Ending of the file -> part of speech.
_PARTS = {"noun": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}
_FILE = "./usr/share/wordnet/data.{}"
_SHARES = {"test": 5, "validation": 5}  # percent; the rest is train
# One synset a line (wndb(5WN)): offset, lexicographer's file, type, number of words, first word.
_LINE = re.compile(r"(\d{8}) \d\d ([nvasr]) [0-9a-f]{2} (\S+) [^|]*\| (.*)")


@dataclass(frozen=True)
class Synset:
    """One gloss.

    Attributes:
      synset: unique: ``"02084071-n"``.
      text: the gloss.
      lemma: the first word, ``"domestic dog"``.
      part_of_speech: "noun", "verb", "adjective" or "adverb".
    """

    synset: str
    text: str
    lemma: str
    part_of_speech: str

    @property
    def split(self) -> str:
        """By a hash of the definition, whatever its case, spaces and marks."""
        definition = self.text.partition(' "')[0]
        plain = " ".join(re.findall(r"\w+", definition.lower()))
        draw = int.from_bytes(hashlib.sha256(plain.encode()).digest()[:8], "big") % 100
        for split, share in _SHARES.items():
            if draw < share:
                return split
            draw -= share
        return "train"


class Wordnet(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Features: see :class:`Synset`."""

    name = "wordnet"
    url_infos = {}  # noqa: RUF012  nothing is downloaded by TFDS: no list of checksums to look for
    VERSION = tfds.core.Version(VERSION)

    def __init__(self, *, synsets: list[Synset], **kwargs: Any):
        self._synsets = synsets
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        names = ("text", "lemma", "part_of_speech", "synset")
        return tfds.core.DatasetInfo(
            builder=self,
            description="Glosses of WordNet 3.0.",
            features=tfds.features.FeaturesDict({name: tfds.features.Text() for name in names}),
            homepage="https://wordnet.princeton.edu",
            license="WordNet 3.0 license",
            metadata=tfds.core.MetadataDict({"attribution": ATTRIBUTION}),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict]]]:
        del dl_manager
        return {split: self._generate_examples(split) for split in ("train", *_SHARES)}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, str]]]:
        for found in self._synsets:
            if found.split == split:
                yield found.synset, asdict(found)


def parse(part: str, data: str) -> list[Synset]:
    """The synsets of one of WordNet's data files.

    Args:
      part: of speech, as the file's name has it.
      data: the file; the licence before the first synset is indented.
    """
    found = []
    for line in data.splitlines():
        if match := _LINE.match(line):
            offset, kind, word, gloss = match.groups()
            # "(p)" after an adjective says where it stands; a satellite ("s") is an adjective too.
            lemma = re.sub(r"\((p|a|ip)\)$", "", word).replace("_", " ")
            number = f"{offset}-{kind.replace('s', 'a')}"
            found.append(Synset(number, gloss.strip(), lemma, _PARTS[part]))
    return found


def read_package(package: str | Path | None) -> list[Synset]:
    """The synsets of the package.

    Args:
      package: as of :func:`prepare`.

    Raises:
      UserError: it is not there, or not the package that we know.
    """
    names = [_FILE.format(part) for part in _PARTS]
    files = debian.read(PACKAGE, package, names)
    if (digest := hashlib.sha256(b"".join(files)).hexdigest()) != SHA256:
        raise UserError(f"{PACKAGE}: sha256 {digest} of its glosses, expected {SHA256}")
    texts = [file.decode("latin-1") for file in files]
    return [synset for part, text in zip(_PARTS, texts) for synset in parse(part, text)]


def prepare(data_dir: str | Path | None = None, package: str | None = None) -> tuple[Path, bool]:
    """Build ``wordnet`` and its tokenizer, unless it is there.

    Args:
      data_dir: where data sets lie; the TFDS default when None.
      package: the file of `PACKAGE`, as ``apt-get download`` writes it; None downloads it.

    Returns:
      (directory of the data set, whether this call built it).

    Raises:
      UserError: the package is not there or not the one that we know, or the disk refuses.
    """

    def read() -> tuple[dict, list[str]]:
        synsets = read_package(package)
        return {"synsets": synsets}, [s.text for s in synsets if s.split == "train"]

    return build.prepare(Wordnet, data_dir, read)
