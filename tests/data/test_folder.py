"""A user's folder of images: captions by three conventions, and every way a file can be bad."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from mmx.core.errors import UserError
from mmx.data import folder, folder_scan
from mmx.data.source import open_source
from mmx.data.text import Tokenizer


def _image(path, value=100, size=(12, 8), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(path, **options)
    return path


@pytest.fixture
def photos(tmp_path):
    """Six images with .txt captions."""
    root = tmp_path / "photos"
    for i, suffix in enumerate((".png", ".jpg", ".webp", ".PNG", ".jpeg", ".png")):
        path = _image(root / f"sub{i % 2}" / f"img{i}{suffix}", value=40 * i)
        path.with_suffix(".txt").write_text(f" a picture\nnumber {i} ")
    return root


def _captions(data_dir, name="mine"):
    found = {}
    info = open_source(f"tfds:{name}", "train", data_dir).info
    for split in info.splits:
        source = open_source(f"tfds:{name}", split, data_dir)
        for i in range(len(source)):
            found[source[i]["file_name"]] = source[i]["text"]
    return found


def test_text_files(photos, tmp_path):
    data_dir = tmp_path / "data"
    directory, built = folder.prepare(photos, "mine", data_dir)
    assert built and directory == data_dir / "mine" / "1.0.0"
    captions = _captions(data_dir)
    assert captions["sub1/img3.PNG"] == "a picture number 3" and len(captions) == 6
    source = open_source("tfds:mine", "train", data_dir)
    assert set(source.info.splits) == {"train", "test"} and source.info.splits["test"] == 1
    by_name = {source[i]["file_name"]: source[i]["image"] for i in range(len(source))}
    for name, image in by_name.items():
        assert image.shape == (8, 12, 3)
        value = 40 * int(name[len("sub0/img")])
        assert np.abs(image.astype(int) - [value, 0, 0]).max() < 6
    Tokenizer.load(source.info.tokenizer_path).encode(["a picture"], 32, strict=True)
    assert sorted(path.name for path in data_dir.iterdir()) == ["mine"]  # no spool left


def test_metadata_jsonl_and_csv(photos, tmp_path):
    rows = [(p.relative_to(photos).as_posix(), f"row, {p.name}") for p in photos.rglob("*.*g")]
    rows += [(p.relative_to(photos).as_posix(), f"row, {p.name}") for p in photos.rglob("*.[wP]*")]
    lines = [json.dumps({"file_name": name, "text": text, "x": 1}) for name, text in rows]
    (photos / "metadata.jsonl").write_text("\n".join(lines) + "\n\n")
    folder.prepare(photos, "lines", tmp_path)
    assert _captions(tmp_path, "lines") == dict(rows)
    (photos / "metadata.jsonl").unlink()
    quoted = [f'"{text}",{name}' for name, text in rows]
    (photos / "metadata.csv").write_text("\ufefftext,file_name\r\n" + "\r\n".join(quoted))
    folder.prepare(photos, "table", tmp_path)
    assert _captions(tmp_path, "table") == dict(rows)


def test_metadata_in_a_subfolder_speaks_of_its_own_files(tmp_path):
    _image(tmp_path / "in" / "train" / "a.png")
    _image(tmp_path / "in" / "train" / "b.png")
    lines = [json.dumps({"file_name": f"{n}.png", "text": n * 3}) for n in "ab"]
    (tmp_path / "in" / "train" / "metadata.jsonl").write_text("\n".join(lines))
    folder.prepare(tmp_path / "in", "mine", tmp_path)
    assert _captions(tmp_path) == {"train/a.png": "aaa", "train/b.png": "bbb"}


def test_folder_names_are_classes(tmp_path):
    for kind in ("hot_dog", "cat"):
        for i in range(3):
            _image(tmp_path / "in" / kind / f"{i}.png")
    folder.prepare(tmp_path / "in", "mine", tmp_path, test_share=0)
    captions = _captions(tmp_path)
    assert captions["hot_dog/0.png"] == "a photo of a hot dog" and len(captions) == 6
    source = open_source("tfds:mine", "train", tmp_path)
    assert source.info.splits == {"train": 6}
    assert {source[i]["label"] for i in range(6)} == {"hot dog", "cat"}


def test_size(photos, tmp_path):
    folder.prepare(photos, "mine", tmp_path, size=16)
    assert open_source("tfds:mine", "train", tmp_path)[0]["image"].shape == (16, 16, 3)


def test_parallel_reading_gives_the_same(tmp_path, monkeypatch):
    for i in range(140):
        _image(tmp_path / "in" / "c" / f"{i}.png", value=i)
    assert 140 // 64 == 2  # enough for two processes
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    folder.prepare(tmp_path / "in", "two", tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    folder.prepare(tmp_path / "in", "one", tmp_path)
    sources = [open_source(f"tfds:{name}", "train", tmp_path) for name in ("one", "two")]
    assert [s["file_name"] for s in map(sources[0].__getitem__, range(len(sources[0])))] == [
        s["file_name"] for s in map(sources[1].__getitem__, range(len(sources[1])))
    ]
    for i in range(len(sources[0])):
        example = sources[1][i]
        value = int(example["file_name"].split("/")[1].removesuffix(".png"))
        np.testing.assert_array_equal(example["image"][0, 0], [value, 0, 0])


def _spoil(photos):
    """Every kind of bad file. name -> start of the reason."""
    expected = {}

    def bad(name, reason, data=None, caption="x"):
        path = photos / name
        if data is not None:
            path.write_bytes(data)
        if caption is not None:
            path.with_suffix(".txt").write_text(caption)
        expected[name] = reason

    whole = (photos / "sub1" / "img1.jpg").read_bytes()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    noise.save(photos / "noise.png")
    noisy = (photos / "noise.png").read_bytes()
    (photos / "noise.png").unlink()
    bad("cut.png", "corrupt or truncated", noisy[: len(noisy) // 2])
    bad("empty.png", "empty file", b"")
    bad("words.jpg", "not a PNG, JPEG or WebP", b"hello")
    bomb = bytearray(_bomb())
    bad("bomb.png", "too large", bytes(bomb))
    bad("mute.jpg", "no caption: no .txt", whole, caption=None)
    bad("blank.jpg", "no caption: its .txt is empty", whole, caption=" \n")
    bad("old.gif", "unsupported format", b"GIF89a", caption=None)
    bad("latin.jpg", "no caption: its .txt is not UTF-8", whole, caption=None)
    (photos / "latin.txt").write_bytes(b"caf\xe9")
    (photos / "broken.png").symlink_to(photos / "nowhere.png")
    expected["broken.png"] = "unreadable"
    os.mkfifo(photos / "pipe.png")
    expected["pipe.png"] = "unreadable"
    secret = _image(photos.parent / "secret.png")
    (photos / "leak.png").symlink_to(secret)
    expected["leak.png"] = "outside"
    return expected


def _bomb():
    import struct
    import zlib

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")):
        data += (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )
    return data


def test_bad_files_stop_and_are_all_listed(photos, tmp_path, capsys):
    expected = _spoil(photos)
    data_dir = tmp_path / "data"
    with pytest.raises(UserError, match=rf"^{len(expected)} unusable files .*6 good.*--skip-bad"):
        folder.prepare(photos, "mine", data_dir)
    listed = capsys.readouterr().err
    for name, reason in expected.items():
        assert f"\n{name}: {reason}" in "\n" + listed, name
    assert not (data_dir / "mine").exists() and not list(data_dir.iterdir())
    with pytest.raises(UserError, match="not prepared"):
        open_source("tfds:mine", "train", data_dir)


def test_skip_bad_goes_on_with_the_good(photos, tmp_path, capsys):
    expected = _spoil(photos)
    _, built = folder.prepare(photos, "mine", tmp_path, skip_bad=True)
    assert built and len(_captions(tmp_path)) == 6
    listed = capsys.readouterr().err
    assert all(f"{name}: " in listed for name in expected)
    assert f"skipped {len(expected)} unusable files" in listed and "3 no caption" in listed


def test_bad_metadata_rows(photos, tmp_path, capsys):
    lines = [
        {"file_name": "sub0/img0.png", "text": "good"},
        {"file_name": "sub0/img0.png", "text": "again"},
        {"file_name": "gone.png", "text": "x"},
        {"file_name": "../secret.png", "text": "x"},
        {"file_name": "/etc/passwd.png", "text": "x"},
        {"file_name": "sub1/img1.jpg", "text": " "},
        {"file_name": 3, "text": "x"},
        {"text": "x"},
        ["a"],
    ]
    text = "\n".join(map(json.dumps, lines)) + "\n{broken"
    (photos / "metadata.jsonl").write_text(text)
    folder.prepare(photos, "mine", tmp_path, skip_bad=True)
    assert _captions(tmp_path) == {"sub0/img0.png": "good"}
    listed = capsys.readouterr().err
    for line in (
        "metadata.jsonl:2: bad row: a second row",
        "metadata.jsonl:3: row without image: 'gone.png'",
        "metadata.jsonl:4: outside: '../secret.png'",
        "metadata.jsonl:5: outside: '/etc/passwd.png'",
        "sub1/img1.jpg: no caption: empty text in metadata.jsonl:6",
        "metadata.jsonl:7: bad row",
        "metadata.jsonl:8: bad row",
        "metadata.jsonl:9: bad row",
        "metadata.jsonl:10: bad row",
        "sub0/img2.webp: no caption: no row in metadata.jsonl",
    ):
        assert line in listed, line
    assert listed.count("sub1/img1.jpg") == 1


def test_unusable_metadata_files(photos, tmp_path):
    (photos / "metadata.csv").write_text("name,caption\na,b\n")
    with pytest.raises(UserError, match="needs the columns file_name and text"):
        folder.prepare(photos, "mine", tmp_path)
    (photos / "metadata.jsonl").write_text("{}")
    with pytest.raises(UserError, match="keep one of them"):
        folder.prepare(photos, "mine", tmp_path)
    (photos / "metadata.csv").unlink()
    (photos / "metadata.jsonl").write_bytes(b"\xff\xfe{}")
    with pytest.raises(UserError, match="not UTF-8"):
        folder.prepare(photos, "mine", tmp_path)


def test_images_beside_class_folders_have_no_caption(tmp_path):
    _image(tmp_path / "in" / "cat" / "a.png")
    _image(tmp_path / "in" / "b.png")
    found = folder_scan.scan(tmp_path / "in")
    assert [item.name for item in found.items] == ["cat/a.png"]
    assert [problem.name for problem in found.problems] == ["b.png"]


def test_hidden_files_are_not_looked_at(photos):
    _image(photos / ".cache" / "a.png")
    _image(photos / ".b.png")
    assert len(folder_scan.scan(photos).items) == 6 and not folder_scan.scan(photos).problems


def test_second_prepare_is_instant_and_a_changed_folder_is_refused(photos, tmp_path, monkeypatch):
    folder.prepare(photos, "mine", tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(folder_scan, "read_image", lambda *a, **k: pytest.fail("decoded again"))
        assert folder.prepare(photos, "mine", tmp_path) == (tmp_path / "mine" / "1.0.0", False)
    before = _captions(tmp_path)
    (photos / "sub0" / "img0.txt").write_text("changed")
    with pytest.raises(UserError, match="from other images or options"):
        folder.prepare(photos, "mine", tmp_path)
    assert _captions(tmp_path) == before


def test_a_test_image_stays_one_when_others_come():
    def items(count):
        return [folder_scan.Item(f"img{i}.png", None, "x") for i in range(count)]

    # The new ones come first, as they may in the order of names.
    small, large = folder._split(items(500), 0.1), folder._split(items(1000)[::-1], 0.1)
    names = [{item.name for item in split["test"]} for split in (small, large)]
    assert 25 < len(names[0]) < 80 and names[0] <= names[1]
    assert {i.name for s in large.values() for i in s} == {i.name for i in items(1000)}
    assert [len(folder._split(items(2), share)["test"]) for share in (0.01, 0.5)] == [1, 1]


def test_errors(photos, tmp_path):
    for name in ("../x", "a/b", "", "A", ".x", "x y", "openmoji", "9a"):
        with pytest.raises(UserError, match="--name"):
            folder.prepare(photos, name, tmp_path)
    with pytest.raises(UserError, match="--size=4"):
        folder.prepare(photos, "mine", tmp_path, size=4)
    with pytest.raises(UserError, match="--test-share"):
        folder.prepare(photos, "mine", tmp_path, test_share=0.9)
    with pytest.raises(UserError, match="no such folder"):
        folder.prepare(tmp_path / "nothing", "mine", tmp_path)
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match="no JPEG, PNG or WebP"):
        folder.prepare(tmp_path / "bare", "mine", tmp_path)
    (tmp_path / "mnist" / "3.0.1").mkdir(parents=True)
    with pytest.raises(UserError, match="taken by another data set"):
        folder.prepare(photos, "mnist", tmp_path)
    for path in list(photos.rglob("*.*g")) + list(photos.rglob("*.[wP]*")):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"no usable image \(6 empty file\)"):
        folder.prepare(photos, "mine", tmp_path, skip_bad=True)
