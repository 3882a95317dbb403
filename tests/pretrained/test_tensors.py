"""Published tensors into our trees: layouts by hand, a mesh that reads its parts, mistakes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import save_file

from mmx.core.errors import UserError
from mmx.core.partition import MESH_AXES
from mmx.pretrained import tensors as t
from mmx.pretrained.hub import Repository

RNG = np.random.default_rng(0)
NORMAL = lambda *shape: RNG.normal(size=shape).astype(np.float32)

# As a model of two layers publishes them: PyTorch's order of dimensions.
TENSORS = {
    "conv.weight": NORMAL(8, 3, 2, 2),
    "table.weight": NORMAL(6, 8),
    "layers.0.fc.weight": NORMAL(4, 8),
    "layers.1.fc.weight": NORMAL(4, 8),
    "layers.0.fc.bias": NORMAL(4),
    "layers.1.fc.bias": NORMAL(4),
    "in_proj.weight": NORMAL(24, 8),
    "scale": NORMAL(1),
    "probe": NORMAL(1, 1, 8),
    "position_ids": np.arange(6)[None],
}
SOURCES = {
    "patches/kernel": t.Source("conv.weight", t.PATCH),
    "conv/kernel": t.Source("conv.weight", t.CONV),
    "table": t.Source("table.weight", t.MATRIX, padded=True),
    "fc/kernel": t.Source("layers.{}.fc.weight", t.LINEAR),
    "fc/bias": t.Source("layers.{}.fc.bias"),
    "k/kernel": t.Source("in_proj.weight", t.LINEAR, (1, 3)),
    "scale": t.Source("scale", t.SCALAR),
    "probe": t.Source("probe", t.FLAT),
}
WANTED = {
    "patches/kernel": TENSORS["conv.weight"].transpose(2, 3, 1, 0).reshape(12, 8),
    "conv/kernel": TENSORS["conv.weight"].transpose(2, 3, 1, 0),
    "table": np.concatenate([TENSORS["table.weight"], np.zeros((122, 8), np.float32)]),
    "fc/kernel": np.stack([TENSORS[f"layers.{i}.fc.weight"].T for i in range(2)]),
    "fc/bias": np.stack([TENSORS[f"layers.{i}.fc.bias"] for i in range(2)]),
    "k/kernel": TENSORS["in_proj.weight"][8:16].T,
    "scale": TENSORS["scale"][0],
    "probe": TENSORS["probe"][0, 0],
}
SPECS = {
    "patches/kernel": PartitionSpec(None, "fsdp"),
    "conv/kernel": PartitionSpec(None, None, None, "fsdp"),
    "table": PartitionSpec("tensor", "fsdp"),
    "fc/kernel": PartitionSpec(None, "fsdp", "tensor"),
    "k/kernel": PartitionSpec("fsdp", "tensor"),
}


def target(shapes=None, sharded=None):
    def leaf(path, like):
        sharding = sharded and NamedSharding(sharded, SPECS.get(path, PartitionSpec()))
        return jax.ShapeDtypeStruct(
            (shapes or {}).get(path, like.shape), np.float32, sharding=sharding
        )

    return {path: leaf(path, like) for path, like in WANTED.items()}


def read(folder, target, ignored=("position_ids",)):
    with t.TensorFiles(Repository(str(folder))) as files:
        return t.read_tree(files, SOURCES, target, ignored)


def test_each_layout_by_hand(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    got = read(tmp_path, target())
    for path, want in WANTED.items():
        assert isinstance(got[path], np.ndarray) and got[path].dtype == np.float32
        np.testing.assert_array_equal(got[path], want, err_msg=path)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_an_index_of_several_files_and_half_precision(tmp_path, dtype):
    names = [n for n in TENSORS if n != "position_ids"]
    half = {n: TENSORS[n].astype(dtype) for n in names}
    parts = {"a.safetensors": names[:4], "b.safetensors": names[4:]}
    for file, inside in parts.items():
        save_file({n: half[n] for n in inside}, tmp_path / file)
    weight_map = {n: file for file, inside in parts.items() for n in inside}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    got = read(tmp_path, target())
    for path, want in WANTED.items():
        np.testing.assert_array_equal(got[path], want.astype(dtype).astype(np.float32))
    index.write_text("[]")
    with pytest.raises(UserError, match="not an index"):
        read(tmp_path, target())


def test_a_mesh_reads_each_part_once_and_nothing_whole(tmp_path, monkeypatch):
    save_file(TENSORS, tmp_path / "model.safetensors")
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(1, 1, 4, 2), MESH_AXES)
    sizes = {}
    plain = t.TensorFiles.read

    def counted(self, name, index):
        part = plain(self, name, index)
        sizes.setdefault(name, []).append(part.size)
        return part

    monkeypatch.setattr(t.TensorFiles, "read", counted)
    got = read(tmp_path, target(sharded=mesh))
    for path, want in WANTED.items():
        np.testing.assert_array_equal(np.asarray(got[path]), want, err_msg=path)
        assert got[path].sharding.spec == SPECS.get(path, PartitionSpec())
    assert sizes["layers.0.fc.weight"] == [4 * 8 // 8] * 8  # fsdp 4 x tensor 2
    assert sizes["in_proj.weight"] == [8 * 8 // 8] * 8
    assert sizes["conv.weight"] == [8 * 12 // 4] * 8  # two parameters, by 4 parts
    assert sizes["layers.0.fc.bias"] == [4]  # replicated: read once


def test_all_that_does_not_fit_is_listed_at_once(tmp_path):
    changed = {k: v for k, v in TENSORS.items() if k not in ("layers.1.fc.bias", "probe")}
    changed |= {
        "layers.0.fc.weight": NORMAL(4, 9),
        "scale": NORMAL(2),
        "in_proj.weight": NORMAL(23, 8),
        "layers.2.fc.bias": NORMAL(4),
        "head.weight": NORMAL(2, 2),
    }
    save_file(changed, tmp_path / "model.safetensors")
    with pytest.raises(UserError) as caught:
        read(tmp_path, target({"table": (5, 8)}), ignored=())
    first, *lines = str(caught.value).split("\n")
    assert first == f"{tmp_path}: not the weights of this model; 9 of its tensors do not fit:"
    assert sorted(line.strip() for line in lines) == sorted(
        [
            "missing: layers.1.fc.bias (for fc/bias)",
            "missing: probe (for probe)",
            "misshapen: layers.0.fc.weight (4, 9) makes (9, 4), not (8, 4) (for fc/kernel)",
            "misshapen: scale (2,) does not make () (for scale)",
            "misshapen: in_proj.weight (23, 8) does not make (8, 8) (for k/kernel)",
            "misshapen: table.weight (6, 8) makes (6, 8), not (5, 8) (for table)",
            "extra: head.weight (2, 2)",
            "extra: layers.2.fc.bias (4,)",
            "extra: position_ids (1, 6)",
        ]
    )


def test_files_that_are_no_weights(tmp_path):
    with pytest.raises(UserError, match=r"neither model.safetensors nor model.safetensors.index"):
        read(tmp_path, target())
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"model\.safetensors: not a readable safetensors file"):
        read(tmp_path, target())
    save_file(TENSORS, tmp_path / "whole.safetensors")
    data = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[:-100])  # a download that stopped
    with pytest.raises(UserError, match="not a readable safetensors file"):
        read(tmp_path, target())
