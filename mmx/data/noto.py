"""The data set ``noto``: OpenMoji's concepts in the hand of another artist, Google's Noto Emoji.

For what a model knows of a concept rather than of one artist's drawing of it. Each example is a
drawing of Noto whose emoji OpenMoji has too; its caption, concept, gender and tone, and its split,
are those of the data set ``openmoji``: a concept that training there never saw is in ``test`` here.
Beside them it has the ``group`` and ``subgroup`` of the emoji in Unicode's list ("Food & Drink",
"food-fruit"); by ``codepoints`` they are known of OpenMoji's drawings too.

The drawings, 64 x 64, come from the npm package `emoji-datasource-google`, which npm downloads and
which is read as an archive: none of its code is run. ``mmx prepare noto`` does it.
"""

import hashlib
import io
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from mmx.core.errors import UserError
from mmx.data import build, emoji_table, openmoji
from mmx.data.emoji_table import Entry
from mmx.data.image import decode, encode_png

ATTRIBUTION = "Noto Emoji by Google, Apache-2.0"
SIZES = ("64",)
VERSION = "1.1.0"  # 1.1: group and subgroup
PACKAGE = "emoji-datasource-google@16.0.0"
SHA256 = "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"
_FOLDER = "package/img/google/64/"
_TABLE = "package/emoji.json"


class Drawing(NamedTuple):
    """A PNG on white, and where Unicode's list of emoji has it (UTS 51, emoji-test.txt)."""

    png: bytes
    group: str
    subgroup: str


class Noto(openmoji.Openmoji, skip_registration=True):
    """Features as in ``openmoji``, and of `Drawing`; splits too, of the emoji that both have."""

    name = "noto"
    VERSION = tfds.core.Version(VERSION)
    BUILDER_CONFIGS = [  # noqa: RUF012 (the base class names it so)
        tfds.core.BuilderConfig(name="64", description="64 x 64 pixels")
    ]

    def __init__(self, *, drawings: dict[str, Drawing], **kwargs: Any):
        self._drawings = drawings
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        like = super()._info()
        text = tfds.features.Text
        return tfds.core.DatasetInfo(
            builder=self,
            description="Noto Emoji drawings on white with the captions of OpenMoji.",
            features=tfds.features.FeaturesDict(
                {**like.features, "group": text(), "subgroup": text()}
            ),
            homepage="https://github.com/googlefonts/noto-emoji",
            license="Apache-2.0",
            metadata=tfds.core.MetadataDict({"attribution": ATTRIBUTION}),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict]]]:
        del dl_manager
        splits = shared_splits(self._drawings)
        return {split: self._generate_examples(entries) for split, entries in splits.items()}

    def _generate_examples(self, entries: list[Entry]) -> Iterator[tuple[str, dict[str, Any]]]:
        png_of = {codepoints: drawing.png for codepoints, drawing in self._drawings.items()}
        for key, example in super()._generate_examples(entries, png_of):
            drawing = self._drawings[key]
            yield key, {**example, "group": drawing.group, "subgroup": drawing.subgroup}


def shared_splits(drawings: dict[str, Drawing]) -> dict[str, list[Entry]]:
    """OpenMoji's splits without the entries of which there is no drawing here."""
    splits = emoji_table.assign_splits(emoji_table.load_entries()[1])
    return {split: [e for e in part if e.codepoints in drawings] for split, part in splits.items()}


def read_package(data: bytes) -> dict[str, Drawing]:
    """The drawings of the package's archive, by OpenMoji's code points.

    Raises:
      UserError: it is not the archive that we know.
    """
    if (digest := hashlib.sha256(data).hexdigest()) != SHA256:
        raise UserError(f"{PACKAGE}: sha256 {digest}, expected {SHA256}")
    by_key = {_key(entry.codepoints): entry.codepoints for entry in emoji_table.load_entries()[1]}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        groups = _groups(json.load(archive.extractfile(_TABLE)))
        drawings = {}
        for member in archive:
            key = _key(member.name.removeprefix(_FOLDER).removesuffix(".png").upper())
            if member.name.startswith(_FOLDER) and key in by_key:
                png = encode_png(decode(archive.extractfile(member).read()))
                drawings[by_key[key]] = Drawing(png, *groups[key])
    return drawings


def _groups(table: list[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    """Code points without FE0F -> (group, subgroup); a toned emoji is where its plain one is."""
    found = {}
    for emoji in table:
        for form in (emoji, *emoji.get("skin_variations", {}).values()):
            found[_key(form["unified"])] = emoji["category"], emoji["subcategory"]
    return found


def _key(codepoints: str) -> str:
    # FE0F only asks for the colour form; packages differ in where they write it.
    return "-".join(point for point in codepoints.split("-") if point != "FE0F")


def download() -> bytes:
    """The package's archive, by npm.

    Raises:
      UserError: npm is not there, or cannot download it.
    """
    with tempfile.TemporaryDirectory(prefix="mmx-") as folder:
        command = ["npm", "pack", "--ignore-scripts", "--silent", PACKAGE]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        except FileNotFoundError:
            raise UserError(
                f"{PACKAGE}: npm is not installed; install Node.js, or take the archive from "
                "another machine: --package FILE.tgz"
            ) from None
        found = sorted(Path(folder).glob("*.tgz"))
        if done.returncode or not found:
            reason = (done.stderr.strip() or "no file came").splitlines()[-1]
            raise UserError(
                f"{PACKAGE}: not downloaded ({reason}); check the network and npm's settings, or "
                "take the archive from another machine: --package FILE.tgz"
            )
        return found[0].read_bytes()


def prepare(
    config: str, data_dir: str | Path | None = None, package: str | None = None
) -> tuple[Path, bool]:
    """Build ``noto/64`` and its tokenizer, unless it is there.

    Args:
      config: "64".
      data_dir: where data sets lie; the TFDS default when None.
      package: the archive of `PACKAGE`, as ``npm pack`` writes it; None downloads it.

    Returns:
      (directory of the data set, whether this call built it).

    Raises:
      UserError: unknown config, a package is missing or not the one that we know, or the disk
        refuses.
    """
    if config not in SIZES:
        raise UserError(f"config={config!r}: noto has the config {', '.join(SIZES)}")

    def read() -> tuple[dict, list[str]]:
        emoji_table.load_entries()  # a missing package speaks before a download
        if package is not None and not Path(package).is_file():
            raise UserError(f"--package={package}: no such file")
        drawings = read_package(download() if package is None else Path(package).read_bytes())
        splits = shared_splits(drawings)
        captions = [entry.caption for entry in splits["train"] + splits["train_toned"]]
        return {"drawings": drawings}, captions

    return build.prepare(Noto, data_dir, read, config)
