"""`mmx prepare latents`: all of a data set comes through, and the latents are of its pixels."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tiny_tfds import IMAGE, TEXT, Tiny, build, png

from mmx.core.errors import UserError
from mmx.data import latents
from mmx.data.image import fit
from mmx.data.source import open_source

OF = {"codec": "c0dec", "run": "runs/kl", "image_size": 8, "shape": [2, 2, 3]}
FACTS = ("base", "concept", "skin_tone", "codepoints")


def encode(image_u8):
    """Means of quarters, so that the last byte is 0 or not, whatever comes."""
    assert image_u8.shape == (4, 8, 8, 3) and image_u8.dtype == np.uint8
    return image_u8.reshape(-1, 2, 4, 2, 4, 3).mean((2, 4)).astype(np.float16)


def prepare(root, spec="tfds:drawn/8", of=OF, encode=encode, name=None):
    return latents.prepare(spec, of, encode, 4, name, root)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A data set of 11 examples in two splits of 3 shards, with all that may lie beside it."""
    root = tmp_path_factory.mktemp("data")
    features = {
        "image": IMAGE,
        "caption": TEXT,
        "label": tfds.features.ClassLabel(names=["person", "thing"]),
        "box": tfds.features.Tensor(shape=(4,), dtype=np.float32),
        "words": tfds.features.Sequence({"text": TEXT, "at": np.int64}),
        **dict.fromkeys(FACTS, TEXT),
    }
    rng, tones = np.random.default_rng(0), ("none", "light", "dark")
    examples = [
        {
            "image": png(rng.integers(0, 256, (9 + i, 14, 3)), (9 + i, 14, 3)),
            "caption": f"cäption {i}",
            "label": i % 2,
            "box": rng.random(4, np.float32),
            "words": [{"text": "a" * n, "at": n} for n in range(i)],
            **dict.fromkeys(FACTS, "man"),
            "skin_tone": tones[i % 3],
            "codepoints": f"{i:X}",
        }
        for i in range(11)
    ]
    splits = ("train", "test")
    Tiny(
        "drawn", features, examples, config="8", license="CC0", splits=splits, data_dir=str(root)
    ).download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=3))
    folder = root / "drawn" / "8" / "1.0.0"
    (folder / "tokenizer.json").write_text("{}")
    (folder / "metadata.json").write_text(json.dumps({"attribution": "by me", "drawings": "d"}))
    assert prepare(root) == ("tfds:drawn/8_latents", root / "drawn" / "8_latents" / "1.0.0", True)
    return root


def raw(root, config, split):
    builder = tfds.builder_from_directory(str(root / "drawn" / config / "1.0.0"))
    method = tfds.decode.DeserializeMethod.RAW_BYTES
    records = builder.as_data_source(split, deserialize_method=method)
    return [records[i] for i in range(len(records))], builder.info


def test_all_comes_through_bit_for_bit_and_in_its_place(made):
    from tensorflow_datasets.proto import tf_example_pb2

    for split in ("train", "test"):
        (before, old), (after, new) = raw(made, "8", split), raw(made, "8_latents", split)
        assert len(before) == len(after) == 11
        assert old.splits[split].shard_lengths == new.splits[split].shard_lengths
        assert len(old.splits[split].shard_lengths) == 3
        for record, record_with in zip(before, after):
            one, other = map(tf_example_pb2.Example.FromString, (record, record_with))
            assert set(other.features.feature) == {*one.features.feature, "latents"}
            del other.features.feature["latents"]
            assert one == other
    assert (new.name, new.config_name, str(new.version)) == ("drawn", "8_latents", "1.0.0")
    assert new.redistribution_info.license == "CC0"
    # As JSON, not as repr: a nested feature's members are read back in any order.
    told = {name: feature.to_json() for name, feature in new.features.items()}
    del told["latents"]
    assert told == {name: feature.to_json() for name, feature in old.features.items()}
    folders = [made / "drawn" / config / "1.0.0" for config in ("8", "8_latents")]
    old, new = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert set(old) == set(new)
    for name in ("tokenizer.json", "LICENSE", "label.labels.txt"):
        assert old[name] == new[name]
    told = json.loads(new["metadata.json"])
    source = open_source("tfds:drawn/8", "train", made).info.fingerprint
    assert told == {"attribution": "by me", "drawings": "d", "latents": {**OF, "source": source}}
    assert sorted(path.name for path in (made / "drawn").iterdir()) == [".lock", "8", "8_latents"]


def test_latents_stand_in_for_the_images_they_are_of(made):
    before = open_source("tfds:drawn/8", "train*2+test", made)
    pixels = open_source("tfds:drawn/8_latents", "train*2+test", made)
    stored = open_source("tfds:drawn/8_latents", "train*2+test", made, latents=True)
    assert len(before) == len(pixels) == len(stored) == 33
    for i in range(33):
        old, with_pixels, with_latents = before[i], pixels[i], stored[i]
        images = [example.pop("image") for example in (old, with_pixels, with_latents)]
        assert old == with_pixels == with_latents
        np.testing.assert_array_equal(images[0], images[1])
        z = encode(np.stack([fit(images[0], 8)] * 4))[0]
        assert images[2].dtype == np.float16
        np.testing.assert_array_equal(images[2], z)
    parts = [source.parts[0] for source in (before, stored)]
    assert list(parts[0].outlines()) == list(parts[1].outlines())
    edits = [
        open_source("edits:drawn/8_latents", "train", made, needs_image=False, latents=latents)[1]
        for latents in (True, False)
    ]
    assert [part.shape for part in edits[0]["parts"][::2]] == [(2, 2, 3)] * 2
    assert edits[0]["parts"][1] == edits[1]["parts"][1]
    assert before.info.latents is None and stored.info.latents["codec"] == "c0dec"


def test_again_is_the_same_bytes_and_another_is_refused(made, tmp_path, capsys):
    there = {p.name: p.read_bytes() for p in (made / "drawn" / "8_latents" / "1.0.0").iterdir()}
    fail = lambda image_u8: pytest.fail("was encoded again")
    assert prepare(made, encode=fail, of={**OF, "run": "elsewhere"})[2] is False
    for changes in ({"codec": "other"}, {"image_size": 16}):
        with pytest.raises(UserError, match=r"--name=8_latents: tfds:drawn/8_latents is there"):
            prepare(made, of=OF | changes, encode=fail)
    with pytest.raises(UserError, match=r"--name=8: tfds:drawn/8 is there already"):
        prepare(made, name="8", encode=fail)
    shutil.copytree(made / "drawn" / "8", tmp_path / "drawn" / "8")
    capsys.readouterr()
    spec, folder, _ = prepare(tmp_path, name="kl")
    assert spec == "tfds:drawn/kl"
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("encoding images 22/22 eta") and 4 < len(lines) < 9
    again = {path.name: path.read_bytes() for path in folder.iterdir()}
    changed = {name for name in there if there[name] != again[name]}
    assert changed == {"dataset_info.json"}  # the config's name


def test_latents_of_another_codec_are_other_data(made, monkeypatch):
    monkeypatch.setattr("mmx.data.source._HASH_BYTES", 0)  # even where no shard is read
    info = open_source("tfds:drawn/8_latents", "train", made).info
    other = dataclasses.replace(info, latents=info.latents | {"codec": "another"})
    assert other.fingerprint != info.fingerprint


class Stop(BaseException):
    """As Ctrl-C, or a kill that Python hears."""


def test_what_breaks_off_leaves_nothing(made, tmp_path):
    shutil.copytree(made / "drawn" / "8", tmp_path / "drawn" / "8")
    seen = []

    def stop(image_u8):
        seen.append(1)
        if len(seen) == 4:  # in the second split
            raise Stop
        return encode(image_u8)

    with pytest.raises(Stop):
        prepare(tmp_path, encode=stop)
    infinite = lambda image_u8: encode(image_u8) * np.float16(1e4)
    says = pytest.raises(UserError, match=r"drawn/8 train\[0\]: its latents are not finite")
    with says, np.errstate(over="ignore"):
        prepare(tmp_path, encode=infinite)
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == [".lock", "8"]
    assert prepare(tmp_path)[2]


@pytest.mark.parametrize(
    ("spec", "name", "message"),
    [
        ("tfds:texts", None, "tfds:texts: has no one image feature"),
        ("tfds:broken", None, r"broken train\[1\]: not a PNG"),
        ("tfds:broken", "A-b", r"--name='A-b': lower-case letters"),
        ("tfds:drawn/8_latents", None, "tfds:drawn/8_latents: has latents; name the data set"),
        ("edits:drawn/8", None, "documents of several parts"),
        ("tfds:nowhere", None, "tfds:nowhere: not prepared"),
    ],
)
def test_data_that_can_have_none(made, spec, name, message):
    if not (made / "broken").exists():
        build(made, "texts", {"text": TEXT}, [{"text": "word"}])
        images = [{"image": image, "text": "a"} for image in (png(1), b"no image")]
        build(made, "broken", {"image": IMAGE, "text": TEXT}, images)
    with pytest.raises(UserError, match=message) as error:
        prepare(made, spec, name=name)
    assert "\n" not in str(error.value)
    assert not list(made.glob("*/*_latents_latents")) and not (made / "broken/latents").exists()


def test_who_asks_for_latents_is_told_how_to_add_them(made):
    with pytest.raises(UserError, match=r"config.data.latents=True: .* prepare latents tfds:drawn"):
        open_source("tfds:drawn/8", "train", made, latents=True)
