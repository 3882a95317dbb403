"""Costs read from HLO: by hand, of CPU programs of known traffic, of a TPU's real compiler."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmx.train import hlo, topology

BY_HAND = (Path(__file__).parent / "golden" / "by_hand.hlo").read_text()


def test_loops_branches_and_collectives_by_hand():
    cost = hlo.cost(BY_HAND)
    assert cost.cycles == 5 * (3 * 10 + 100) + 1000 + 7 + 50
    assert cost.by_module["jit(f)/inner"] == 150
    assert cost.collective_bytes == {
        "all-gather": 5 * 64 * 4 + 16 * 4,  # the one of many fusions once
        "all-reduce": 5 * 32 * 4,
        "reduce-scatter": 4 * 16 * 2,  # a fusion of all-reduce and slice: its larger side
    }
    # Something is computed between the gather's start and done, nothing between the reduce's.
    assert cost.overlapped_bytes == {
        "all-gather": 5 * 256 + 64,
        "all-reduce": 0,
        "reduce-scatter": 0,
    }
    assert cost.collective_counts == {"all-gather": 6, "all-reduce": 5, "reduce-scatter": 1}
    assert cost.kernels == {"jit(f)/kernel_flops_77/fwd": 1}


@pytest.mark.parametrize(
    ("shape", "size"),
    [("f32[]", 4), ("bf16[8,128]{1,0:T(8,128)(2,1)S(1)}", 2048), ("(pred[3], s32[2,2])", 19),
     ("token[]", 0), ("(bf16[8,128]{1,0}, /*index=5*/f32[])", 2052)],
)  # fmt: skip
def test_bytes_of_a_shape(shape, size):
    assert hlo.shape_bytes(shape) == size


def test_a_loop_that_cannot_be_counted_is_an_error():
    with pytest.raises(ValueError, match=r"the turns of the loop outer\.1 cannot be read"):
        hlo.cost(
            BY_HAND.replace("%count.2, %bound.2), direction=LT", "%count.2, %p.4), direction=LT")
        )


@pytest.mark.parametrize(
    ("line", "other", "turns"),
    [
        ("%begin.1 = s32[] constant(0)", "%begin.1 = s32[] constant(2)", 3),  # 2, 3, 4
        ("%one.2 = s32[] constant(1)", "%one.2 = s32[] constant(2)", 3),  # 0, 2, 4
        ("%one.2 = s32[] constant(1)", "%one.2 = s32[] copy(%somewhere)", 5),
    ],
)
def test_turns_go_from_the_start_by_the_step(line, other, turns):
    """As the compiler's own loops do: those of a product with sharded weights go by twos."""
    assert line in BY_HAND
    cost = hlo.cost(BY_HAND.replace(line, other))
    assert cost.cycles == turns * (3 * 10 + 100) + 1000 + 7 + 50


def test_traffic_of_a_real_scan_is_the_traffic_by_hand():
    """Eight devices sum a vector of 64 numbers in each of 6 turns, 4 of them in a loop inside."""
    mesh = Mesh(np.array(jax.devices()), ("x",))

    def f(x):
        def turn(total, _):
            inner = lambda y, _: (y + jax.lax.psum(y * x[0], "x"), None)
            return jax.lax.scan(inner, total, None, length=4)[0], None

        return jax.lax.scan(turn, x[0], None, length=6)[0]

    g = jax.shard_map(
        f, mesh=mesh, in_specs=PartitionSpec("x"), out_specs=PartitionSpec(), check_vma=False
    )
    x = jax.ShapeDtypeStruct((8, 64), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("x")))
    cost = hlo.cost(jax.jit(g).lower(x).compile().as_text())
    assert cost.collective_counts == {"all-reduce": 24}
    assert cost.collective_bytes == {"all-reduce": 24 * 64 * 4}


@pytest.fixture(scope="module")
def v5e():
    where = topology.parse_topology("v5e:2x2")
    topology.before_jax(where)
    return Mesh(np.array(topology.make_devices(where)), ("x",))


def test_cycles_of_the_tpu_compiler_grow_by_whole_turns(v5e):
    """XLA's own estimate is the same whatever the length of a scan; ours is linear in it."""

    def cycles(length):
        def f(w, x):
            return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=length)[0]

        at = lambda *spec: NamedSharding(v5e, PartitionSpec(*spec))
        w = jax.ShapeDtypeStruct((1024, 1024), jnp.bfloat16, sharding=at())
        x = jax.ShapeDtypeStruct((4096, 1024), jnp.bfloat16, sharding=at("x"))
        return hlo.cost(jax.jit(f).lower(w, x).compile().as_text()).cycles

    few, more, most = cycles(10), cycles(20), cycles(30)
    assert most - more == more - few > 0
    # At the least what the matrix units take; at most three times that.
    ideal = 10 * 2 * 1024**3 / topology.CHIPS["v5e"].peak_flops * topology.CHIPS["v5e"].clock_hz
    assert ideal < more - few < 3 * ideal
