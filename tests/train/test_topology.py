"""Names of topologies, and the devices that libtpu makes of them."""

import itertools

import jax
import pytest

from mmx.core.errors import UserError
from mmx.train import compiler, sharding, topology
from mmx.train.metrics import PEAK_FLOPS


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5x:4x4", "use v4:SHAPE, v5e:SHAPE"),
        ("v5e", "after v5e: comes a shape such as v5e:16x16"),
        ("v5e:4x", "comes a shape"),
        ("v5e:4x4x4", "a shape of v5e is such as v5e:16x16"),
        ("v4:4x4", "a shape of v4 is such as v4:4x4x4"),
        ("v5e:3x5", "a host of v5e has 2x2 chips"),
        ("cpu:0", "comes a shape such as cpu:8"),
        ("cpu", "comes a shape such as cpu:8"),
        ("gpu:8", "use v4:SHAPE"),
        ("cpu:99999", "cpu has at most 1024 devices"),
        (
            "v5e:32x16",
            "v5e has at most 256 devices a slice; several slices are --config.mesh.slice",
        ),
    ],
)
def test_a_name_that_means_nothing_is_refused(name, message):
    with pytest.raises(UserError, match=message):
        topology.parse_topology(name)


@pytest.mark.parametrize(
    ("name", "chips"),
    [("v5e:1x1", 1), ("v5e:2x4", 8), ("v5e:16x16", 256), ("v6e:4x8", 32), ("v4:2x2x1", 4),
     ("v4:8x8x8", 512), ("v5p:4x4x4", 64), ("v5p:16x16x24", 6144)],
)  # fmt: skip
def test_libtpu_knows_every_generation_up_to_thousands_of_chips(name, chips):
    where = topology.parse_topology(name)
    topology.before_jax(where)
    devices = topology.make_devices(where)
    assert len(devices) == chips
    assert {device.device_kind for device in devices} == {where.chip.device_kind}
    # The metrics of a run on such a chip and preflight's ceiling are of one peak.
    assert PEAK_FLOPS[where.chip.device_kind] == where.chip.peak_flops


def test_two_slices_meet_on_the_slice_axis_alone():
    where = topology.parse_topology("v5e:4x4")
    topology.before_jax(where)
    devices = topology.make_devices(where, num_slices=2)
    mesh = sharding.make_mesh(dict(slice=2, data=1, fsdp=-1, tensor=2), devices)
    assert dict(mesh.shape) == dict(slice=2, data=1, fsdp=8, tensor=2)
    for index, part in enumerate(mesh.devices):
        assert {device.slice_index for device in part.flat} == {index}
    with pytest.raises(UserError, match=r"there are 2 TPU slices: --config.mesh.slice=2"):
        sharding.make_mesh(dict(slice=1, data=1, fsdp=-1, tensor=2), devices)


@pytest.mark.parametrize(
    ("name", "data"), [("v4:8x8x8", 2), ("v4:8x8x8", 32), ("v5p:4x4x4", 2), ("v5e:16x16", 2)]
)
def test_a_mesh_may_split_an_axis_of_the_network(name, data):
    """jax.make_mesh refuses 2 x 256 on 8x8x8 chips."""
    where = topology.parse_topology(name)
    topology.before_jax(where)
    devices = topology.make_devices(where)
    mesh = sharding.make_mesh(dict(slice=1, data=data, fsdp=-1, tensor=1), devices)
    assert dict(mesh.shape) == dict(slice=1, data=data, fsdp=len(devices) // data, tensor=1)
    assert {*mesh.devices.flat} == {*devices}


def test_neighbours_in_the_mesh_are_neighbours_in_the_network():
    """A ring of a mesh axis must not jump over chips: each step is one link of the 4x4 torus."""
    where = topology.parse_topology("v5e:4x4")
    topology.before_jax(where)
    mesh = sharding.make_mesh(dict(slice=1, data=1, fsdp=4, tensor=4), topology.make_devices(where))
    for row in mesh.devices[0, 0]:
        for a, b in itertools.pairwise(row):
            assert sum(abs(i - j) for i, j in zip(a.coords, b.coords)) == 1


def test_without_the_compiler_one_line_says_so(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'mmx\[preflight\]'"):
        topology.before_jax(topology.parse_topology("v5e:4x4"))


def test_devices_that_are_not_here_are_an_error():
    with pytest.raises(UserError, match="--topology=gpu: jax finds none here"):
        topology.make_devices(topology.parse_topology("gpu"))
    assert topology.make_devices(topology.parse_topology("cpu:4")) == jax.devices()[:4]


def test_options_of_the_compiler_go_by_generation_and_version(monkeypatch):
    monkeypatch.setattr(
        compiler,
        "TABLE",
        (
            compiler.Entry("v5e", options={"a": 1}),
            compiler.Entry("v5e", since="0.0.42", before="0.0.52", options={"b": 2}),
            compiler.Entry("v5p", options={"c": 3}),
        ),
    )
    assert compiler.options_for("v5e", "0.0.41.3") == {"a": 1}
    assert compiler.options_for("v5e", "0.0.42.1") == {"a": 1, "b": 2}
    assert compiler.options_for("v5e", "0.0.52") == {"a": 1}
    assert compiler.options_for("cpu", "0.0.52") == {}
