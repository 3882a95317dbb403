"""Noto: OpenMoji's captions, concepts and splits on another artist's drawings."""

import hashlib
import io
import itertools
import json
import subprocess
import tarfile

import numpy as np
import pytest
from PIL import Image

from mmx.cli.main import main
from mmx.core.errors import UserError
from mmx.data import emoji_table, noto
from mmx.data.source import open_source

RED = np.array([200, 30, 30])


@pytest.fixture(scope="module")
def chosen():
    """split -> three entries of OpenMoji, one of which is written with FE0F by the package."""
    splits = emoji_table.assign_splits(emoji_table.load_entries()[1])
    some = {split: entries[:2] for split, entries in splits.items()}
    heart = next(entry for entry in splits["train"] if entry.caption == "red heart")
    return some | {"train": [*some["train"], heart]}


def table(chosen):
    """As the package has it: the tones of an emoji below it."""
    listed = {}
    for entry in itertools.chain(*chosen.values()):
        untoned = {"category": f"of {entry.base}", "subcategory": "sub", "skin_variations": {}}
        row = listed.setdefault(entry.base, untoned)
        points = entry.codepoints + ("-FE0F" if entry.caption == "red heart" else "")
        if entry.untoned:
            row["unified"] = points
        else:
            row["skin_variations"][points] = {"unified": points}
    return [{"unified": "0", **row} for row in listed.values()]


@pytest.fixture(scope="module")
def archive(chosen, tmp_path_factory):
    """As `npm pack` writes it: a red square on nothing for each drawing, and what is not one."""
    picture = np.zeros((64, 64, 4), np.uint8)
    picture[16:48, 16:48] = *RED, 255
    png = io.BytesIO()
    Image.fromarray(picture).save(png, "PNG")
    path = tmp_path_factory.mktemp("npm") / "package.tgz"
    with tarfile.open(path, "w:gz") as tar:

        def add(name, data):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))

        add("package/emoji.json", json.dumps(table(chosen)).encode())
        add("package/img/google/64/ffff.png", b"not a picture, nor one of OpenMoji")
        for entry in itertools.chain(*chosen.values()):
            points = entry.codepoints.lower() + ("-fe0f" if entry.caption == "red heart" else "")
            add(f"package/img/google/64/{points}.png", png.getvalue())
    return path


def test_what_is_built(chosen, archive, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(noto, "SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    command = ["prepare", "noto", "--package", str(archive), "--data_dir", str(tmp_path)]
    assert main(command) == 0 and main(command) == 0
    first, second = capsys.readouterr().out.split("tfds:noto/64: ")[1:]
    assert first.startswith("prepared") and second.startswith("already prepared")
    assert "train 3" in first and "Noto Emoji by Google, Apache-2.0" in first
    for split, entries in chosen.items():
        source = open_source("tfds:noto/64", split, tmp_path)
        examples = {e["codepoints"]: e for e in (source[i] for i in range(len(source)))}
        assert examples.keys() == {entry.codepoints for entry in entries}
        for entry in entries:
            example = examples[entry.codepoints]
            assert example["text"] == entry.caption
            for key in ("concept", "gender", "skin_tone", "untoned", "is_flag"):
                assert example[key] == getattr(entry, key)
            assert (example["group"], example["subgroup"]) == (f"of {entry.base}", "sub")
            assert (example["image"][0, 0] == 255).all() and (example["image"][32, 32] == RED).all()


def test_errors(archive, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"sha256 .*, expected fb5fd131"):
        noto.prepare("64", tmp_path, str(archive))
    with pytest.raises(UserError, match=r"--package=.*none\.tgz: no such file"):
        noto.prepare("64", tmp_path, str(tmp_path / "none.tgz"))
    with pytest.raises(UserError, match="noto has the config 64"):
        noto.prepare("32", tmp_path)
    with pytest.raises(UserError, match="run: mmx prepare noto --data_dir"):
        open_source("tfds:noto/64", "train", tmp_path)
    failed = subprocess.CompletedProcess([], 1, "", "npm error\nnpm error no network")
    monkeypatch.setattr(noto.subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(UserError, match=r"not downloaded \(npm error no network\)"):
        noto.prepare("64", tmp_path)
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="npm is not installed"):
        noto.prepare("64", tmp_path)
