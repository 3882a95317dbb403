"""A file of tensors is read, a hostile one is refused, and nothing of either is executed."""

import io
import struct
import zipfile

import numpy as np
import pytest

from mmx.core.errors import UserError
from mmx.pretrained.torch_file import read_tensors

# Pickles are put together by hand here: to make one that acts takes no more than its bytes.
PROTO, STOP, MARK, TUPLE, DICT = b"\x80\x02", b".", b"(", b"t", b"}"


def text(word):
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def number(n):
    if -(2**31) <= n < 2**31:
        return b"J" + struct.pack("<i", n)
    return b"\x8a\x10" + n.to_bytes(16, "little", signed=True)


def numbers(*ns):
    return MARK + b"".join(map(number, ns)) + TUPLE


def call(name, args):
    return b"c" + name.replace(" ", "\n").encode() + b"\n" + args + b"R"


def storage(key, count, kind="FloatStorage"):
    inside = text("storage") + b"ctorch\n" + kind.encode() + b"\n" + text(key) + text("cpu")
    return MARK + inside + number(count) + TUPLE + b"Q"


def tensor(stored, offset, shape, strides):
    hooks = call("collections OrderedDict", b")")
    args = stored + number(offset) + numbers(*shape) + numbers(*strides) + b"\x89" + hooks
    return call("torch._utils _rebuild_tensor_v2", MARK + args + TUPLE)


def state(**tensors):
    return state_of(b"".join(text(name) + value for name, value in tensors.items()))


def state_of(items):
    return PROTO + call("collections OrderedDict", b")") + MARK + items + b"u" + STOP


def nested(depth):
    return b")" + b"\x85" * depth


def zipped(pickle, storages, **more):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("net/data.pkl", pickle)
        for key, data in storages.items():
            archive.writestr(f"net/data/{key}", data)
        for name, data in more.items():
            archive.writestr(f"net/{name}", data)
    return file.getvalue()


def legacy(pickle, storages):
    magic = PROTO + b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19" + STOP
    version = PROTO + b"M\xe9\x03" + STOP
    system = PROTO + DICT + text("little_endian") + b"\x88s" + STOP
    keys = PROTO + b"](" + b"".join(map(text, storages)) + b"e" + STOP
    parts = (struct.pack("<q", len(data) // 4) + data for data in storages.values())
    return b"".join((magic, version, system, pickle, keys, *parts))


FLAT = np.arange(10, dtype="<f4")
GOOD = state(
    whole=tensor(storage("7", 10), 0, (2, 5), (5, 1)),
    turned=tensor(storage("7", 10), 1, (2, 3), (1, 2)),
    scalar=tensor(storage("7", 10), 4, (), ()),
    none=tensor(storage("7", 10), 0, (0, 3), (3, 1)),
)
LAYOUTS = {"zip": zipped, "legacy": legacy}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_are_read_from_both_layouts(layout):
    tensors = read_tensors(LAYOUTS[layout](GOOD, {"7": FLAT.tobytes()}), "net.pth")
    np.testing.assert_array_equal(tensors["whole"], FLAT.reshape(2, 5))
    np.testing.assert_array_equal(tensors["turned"], [[1, 3, 5], [2, 4, 6]])
    assert tensors["scalar"] == 4 and tensors["scalar"].shape == ()
    assert tensors["none"].shape == (0, 3) and tensors["whole"].dtype == np.float32


def hostile(tmp_path):
    """What must never run, had it been unpickled: each would make `tmp_path / "ran"`."""
    script = text(f"touch {tmp_path}/ran")
    one = MARK + script + TUPLE
    return {
        "a call": state(w=call("posix system", one)),
        "a call in place of the dictionary": PROTO + call("posix system", one) + STOP,
        "an evaluation": state(w=call("builtins eval", MARK + script + TUPLE)),
        "an instance": PROTO + MARK + script + b"iposix\nsystem\n" + STOP,
        "a new object": PROTO + b"cposix\nsystem\n" + one + b"\x81" + STOP,
        "an object's state": PROTO + b"cposix\nsystem\n" + DICT + b"b" + STOP,
        "a registered extension": PROTO + b"\x82\x01" + STOP,
        "a global by the stack": b"\x80\x04" + text("posix") + text("system") + b"\x93" + STOP,
        "a method of a dictionary": state(w=call("collections OrderedDict.update", one)),
        "a function as a tensor": state(w=b"cposix\nsystem\n"),
        "a text as a tensor": state(w=script),
        "a list of tensors": PROTO + b"]" + STOP,
        "a tensor without a storage": state(w=call(
            "torch._utils _rebuild_tensor_v2",
            MARK + script + number(0) + numbers(1) + numbers(1) + TUPLE)),
        "a name nested 5,000 deep": state_of(nested(5000) + storage("7", 10)),
        "a name nested 150,000 deep": state_of(nested(150_000) + storage("7", 10)),
        "a nested name, alone": PROTO + DICT + nested(150_000) + text("x") + b"s" + STOP,
        "a nested name in pairs": PROTO + call(
            "collections OrderedDict",
            b"](" + nested(150_000) + text("x") + b"\x86e" + b"\x85") + STOP,
        "nested numbers": state(w=tensor(
            MARK + text("storage") + nested(150_000) + text("7") + text("cpu") + number(10)
            + TUPLE + b"Q", 0, (1,), (1,))),
        "1,000 axes": state(w=tensor(storage("7", 10), 0, (1,) * 1000, (1,) * 1000)),
        "another storage": state(w=tensor(storage("7", 10, "UntypedStorage"), 0, (1,), (1,))),
        "a path as a storage": state(w=tensor(storage("../../x", 10), 0, (1,), (1,))),
    }  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_anything_but_tensors_is_refused_and_nothing_runs(layout, tmp_path):
    for what, pickle in hostile(tmp_path).items():
        with pytest.raises(UserError, match=r"^bad\.pth: (not read|damaged)") as caught:
            read_tensors(LAYOUTS[layout](pickle, {"7": FLAT.tobytes()}), "bad.pth")
        assert "\n" not in str(caught.value), what
        assert not (tmp_path / "ran").exists(), what


@pytest.mark.parametrize(
    "bad",
    [
        tensor(storage("7", 10), 0, (2, 6), (6, 1)),
        tensor(storage("7", 10), 8, (3,), (1,)),
        tensor(storage("7", 10), -1, (3,), (1,)),
        tensor(storage("7", 10), 0, (3,), (-1,)),
        tensor(storage("7", 10), 0, (3,), (1, 1)),
        tensor(storage("8", 10), 0, (3,), (1,)),
        tensor(storage("7", 10), 0, (2,), (2**70,)),
        tensor(storage("7", 10), 0, (2**70,), (1,)),
        tensor(storage("7", 10), 0, (1,), (2**70,)),
        tensor(storage("7", 10), 0, (2**70, 0), (1, 1)),
        tensor(storage("7", 10), 2**70, (1,), (1,)),
        tensor(storage("7", 2**70), 0, (3,), (1,)),
        tensor(storage("7", 9), 0, (3,), (1,)),
        # Numbers used over and over: of ten numbers, terabytes.
        tensor(storage("7", 10), 0, (10**6, 2 * 10**6), (0, 0)),
        tensor(storage("7", 10), 0, (2**45,), (0,)),
        tensor(storage("7", 10), 0, (6, 5), (1, 1)),
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_tensor_reads_its_own_storage_only(layout, bad):
    with pytest.raises(UserError, match="damaged"):
        read_tensors(LAYOUTS[layout](state(w=bad), {"7": FLAT.tobytes()}), "bad.pth")


def test_tensors_that_share_their_numbers_are_read_while_they_are_few():
    same = {f"w{i}": tensor(storage("7", 10), 0, (5, 2), (1, 5)) for i in range(5)}
    few = dict(list(same.items())[:4])
    assert len(read_tensors(zipped(state(**few), {"7": FLAT.tobytes()}), "tied.pth")) == 4
    with pytest.raises(UserError, match="damaged"):
        read_tensors(zipped(state(**same), {"7": FLAT.tobytes()}), "bad.pth")


@pytest.mark.parametrize("member", ["net/data.pkl", "net/data/7"])
def test_archives_that_are_compressed_encrypted_or_of_no_known_method_are_refused(member):
    def packed(method, data):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for name, inside in (("net/data.pkl", GOOD), ("net/data/7", data)):
                archive.writestr(name, inside, method if name == member else zipfile.ZIP_STORED)
            where = archive.getinfo(member).header_offset
        return bytearray(file.getvalue()), where

    plain, where = packed(zipfile.ZIP_STORED, FLAT.tobytes())
    assert read_tensors(bytes(plain), "net.pth").keys() == {"whole", "turned", "scalar", "none"}
    in_list = plain.find(b"PK\x01\x02", 0)
    if member != "net/data.pkl":
        in_list = plain.find(b"PK\x01\x02", in_list + 1)
    bad = {"deflated": packed(zipfile.ZIP_DEFLATED, FLAT.tobytes())[0]}
    bad["a bomb"] = packed(zipfile.ZIP_DEFLATED, bytes(10**7))[0]
    bad["deflated and damaged"], at = packed(zipfile.ZIP_DEFLATED, FLAT.tobytes())
    start = at + 30 + len(member)
    bad["deflated and damaged"][start : start + 8] = b"\xff" * 8
    for what, at, value in (("encrypted", 8, 1), ("no known method", 10, 77)):
        bad[what] = bytearray(plain)
        bad[what][in_list + at] = value
        bad[what][where + at - 2] = value
    for what, data in bad.items():
        with pytest.raises(UserError, match=r"^bad\.pth: (not read|damaged)"):
            read_tensors(bytes(data), "bad.pth")
            pytest.fail(what)


def test_files_cut_off_or_of_another_kind_are_named():
    for layout in LAYOUTS.values():
        whole = layout(GOOD, {"7": FLAT.tobytes()})
        for size in range(0, len(whole) - 1, 7):
            with pytest.raises(UserError, match=r"^cut\.pth: "):
                read_tensors(whole[:size], "cut.pth")
    for data in (b"", b"PK", b"<html>", b"\x89PNG\r\n", np.random.default_rng(0).bytes(500)):
        with pytest.raises(UserError, match=r"^x: "):
            read_tensors(data, "x")
    with pytest.raises(UserError, match="big-endian"):
        read_tensors(zipped(GOOD, {"7": FLAT.tobytes()}, byteorder=b"big"), "x")
