"""Each option of the compiler's table compiles for its chips, reaches them, and does what it says.

The program is a scanned stack of sharded layers and its gradient, which is what moves the bytes.
"""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mmx.train import compiler, hlo, preflight, sharding, topology

LAYERS = 4


@pytest.fixture(autouse=True)
def uncached():
    """A program for devices that are not here cannot be read back from jax's cache on disk."""
    with preflight._uncached():
        yield


def lowered(name: str, width: int = 2048, data: int = 1):
    """Of the step x -> tanh(x w) four times, weights in float32, products in bfloat16."""
    where = topology.parse_topology(name)
    topology.before_jax(where)
    sizes = {"slice": 1, "data": data, "fsdp": -1, "tensor": 1}
    mesh = sharding.make_mesh(sizes, topology.make_devices(where))
    w_sharding = NamedSharding(mesh, PartitionSpec(None, "fsdp"))

    def step(w, x):
        body = lambda x, w: (jnp.tanh(x @ w.astype(jnp.bfloat16)), None)

        def loss(w):
            y, _ = jax.lax.scan(jax.checkpoint(body, prevent_cse=False), x, w)
            return jnp.mean(y.astype(jnp.float32) ** 2)

        return w - jax.grad(loss)(w)

    w = jax.ShapeDtypeStruct((LAYERS, width, width), jnp.float32, sharding=w_sharding)
    rows = sharding.batch_sharding(mesh)
    x = jax.ShapeDtypeStruct((512 * mesh.size, width), jnp.bfloat16, sharding=rows)
    call = sharding.jit_sharded(step, mesh, out_shardings=w_sharding, donate=(0,))
    with jax.set_mesh(mesh):
        return call.jitted.lower(w, x)


def gigabytes(lowered) -> dict[str, float]:
    cost = hlo.cost(lowered.compile().as_text())
    return {kind: size / 1e9 for kind, size in cost.collective_bytes.items()}


@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_every_entry_compiles(name):
    assert any(entry.kind == topology.parse_topology(name).kind for entry in compiler.TABLE)
    lowered(name, 512).compile()  # an option that libtpu does not know is an error


def test_options_go_with_each_compile_and_to_tpus_alone(monkeypatch):
    entry = compiler.Entry("v5e", options={"xla_no_such_option": True})
    monkeypatch.setattr(compiler, "TABLE", (entry,))
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
        lowered("v5e:2x2", 128).compile()
    lowered("v5p:2x2x1", 128).compile()
    assert compiler.options_of(jax.devices("cpu")[0]) == {}


def leave_out(monkeypatch, option):
    without = tuple(entry for entry in compiler.TABLE if option not in entry.options)
    assert len(without) < len(compiler.TABLE)
    monkeypatch.setattr(compiler, "TABLE", without)


def test_a_product_is_not_made_a_loop_of_small_ones(monkeypatch):
    assert "collective-permute" not in gigabytes(lowered("v5e:4x4"))
    leave_out(monkeypatch, "xla_jf_spmd_threshold_for_windowed_einsum_mib")
    assert gigabytes(lowered("v5e:4x4"))["collective-permute"] > 0.05


def test_thin_shards_are_gathered_not_summed(monkeypatch):
    """8 rows a chip, where a tile of bfloat16 holds 16."""
    gathered = 2 * LAYERS * 2048**2 * 2 / 1e9  # each layer's weights, forward and back
    assert gigabytes(lowered("v5e:16x16"))["all-gather"] == pytest.approx(gathered)
    leave_out(monkeypatch, "xla_tpu_prefer_async_allgather_to_allreduce")
    moved = gigabytes(lowered("v5e:16x16"))
    assert "all-gather" not in moved
    assert moved["all-reduce"] > gathered


def test_a_data_axis_makes_a_square_slice_scatter_its_gradients():
    """libtpu scatters over no square slice as a whole, but over a half of one."""
    gradients = LAYERS * 2048**2 * 2 / 1e9
    alone, split = (gigabytes(lowered("v5e:4x4", data=data)) for data in (1, 2))
    assert "reduce-scatter" not in alone
    assert alone["all-reduce"] == pytest.approx(gradients)
    assert split["reduce-scatter"] == pytest.approx(gradients)
    assert split["all-reduce"] < gradients / 7  # of what is left of each, between the halves
