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
    return b"J" + struct.pack("<i", n)


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
    items = b"".join(text(name) + value for name, value in tensors.items())
    return PROTO + call("collections OrderedDict", b")") + MARK + items + b"u" + STOP


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
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_tensor_reads_its_own_storage_only(layout, bad):
    with pytest.raises(UserError, match="damaged"):
        read_tensors(LAYOUTS[layout](state(w=bad), {"7": FLAT.tobytes()}), "bad.pth")


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
