"""Logical names become mesh axes, or an error that says which parameter and why."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from mmx.core import partition
from mmx.core.partition import ShardingError, constrain, spec_for

MESH = {"slice": 1, "data": 2, "fsdp": 2, "tensor": 2}


def test_names_map_by_the_table():
    assert spec_for("w", (8, 6), ("embed", "mlp"), MESH) == PartitionSpec("fsdp", "tensor")
    assert spec_for("w", (3, 8), (None, "heads"), MESH) == PartitionSpec(None, "tensor")
    assert spec_for("k", (3, 3, 5, 8), (None, None, "conv_in", "conv_out"), MESH) == PartitionSpec(
        None, None, None, "fsdp"
    )
    rows = spec_for("x", (8, 5), ("act_batch", "act_len"), MESH)
    assert rows == PartitionSpec(("slice", "data", "fsdp"), None)
    # An axis of one device is no axis: any size goes.
    one = dict.fromkeys(MESH, 1)
    assert spec_for("w", (7, 5), ("embed", "mlp"), one) == PartitionSpec(None, None)
    assert spec_for("w", (7, 5), ("embed", "embed"), one) == PartitionSpec(None, None)
    assert spec_for("scalar", (), (), MESH) == PartitionSpec()


@pytest.mark.parametrize(
    ("shape", "names", "message"),
    [
        ((8, 8), ("embed", "nothing"), "a/b: no rule for the logical axis 'nothing'"),
        (
            (8, 7),
            ("embed", "mlp"),
            r"a/b \(8, 7\): the axis 'mlp' of size 7 does not divide over 2 .* change config.mesh",
        ),
        ((6,), ("act_batch",), "the axis 'act_batch' of size 6 does not divide over 4 devices"),
        ((8, 8), ("embed", "embed"), "'embed' and 'embed' both map to the mesh axis 'fsdp'"),
        ((8, 8), ("mlp", "heads"), "'mlp' and 'heads' both map to the mesh axis 'tensor'"),
        (
            (8, 8),
            ("act_batch", "embed"),
            "'act_batch' and 'embed' both map to the mesh axis 'fsdp'",
        ),
        ((8, 8), ("embed",), r"a/b: shape \(8, 8\) has 1 axis names"),
        ((8,), (), r"a/b: shape \(8,\) has 0 axis names"),
    ],
)
def test_what_does_not_fit_is_an_error(shape, names, message):
    with pytest.raises(ShardingError, match=message):
        spec_for("a/b", shape, names, MESH)


def test_every_rule_names_a_mesh_axis():
    for rule in partition.RULES.values():
        for axis in (rule,) if isinstance(rule, str) else (rule or ()):
            assert axis in partition.MESH_AXES


def test_activations_are_laid_out_on_the_mesh_that_is_set():
    mesh = jax.make_mesh((1, 2, 2, 2), partition.MESH_AXES, axis_types=(AxisType.Auto,) * 4)
    x_BLF = jnp.asarray(np.arange(4 * 3 * 2, dtype=np.float32).reshape(4, 3, 2))
    assert constrain(x_BLF, "act_batch", "act_len", "act_mlp") is x_BLF  # no mesh: nothing to do
    with jax.set_mesh(mesh):
        y_BLF = jax.jit(lambda x: constrain(x * 1, "act_batch", "act_len", "act_mlp"))(x_BLF)
        assert y_BLF.sharding.shard_shape(y_BLF.shape) == (1, 3, 1)
        np.testing.assert_array_equal(y_BLF, x_BLF)
        with pytest.raises(ShardingError, match=r"activation .*'act_batch' of size 3"):
            jax.jit(lambda x: constrain(x, "act_batch"))(jnp.ones(3))


def test_the_platform_is_that_of_the_mesh():
    assert partition.compiled_for() == "cpu"
    device = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", None, "gpu")
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        assert partition.compiled_for() == "gpu"
