"""Preflight: programs of known memory and traffic, on fake CPUs and by the real TPU compiler."""

import dataclasses
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mmx.core.errors import UserError
from mmx.core.flops import kernel_scope
from mmx.train import buffers, hlo, preflight, sharding, topology

ONE = dict(slice=1, data=1, fsdp=-1, tensor=1)


def compiled(where, fn, *shapes, donate=(), out=None):
    """The report of a function of float32 arrays, rows over fsdp."""
    where = topology.parse_topology(where)
    topology.before_jax(where)
    mesh = sharding.make_mesh(ONE, topology.make_devices(where))
    at = NamedSharding(mesh, PartitionSpec("fsdp"))
    args = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=at) for shape in shapes]
    call = sharding.jit_sharded(fn, mesh, donate=donate, out_shardings=out and at)
    return preflight.compile_report("test", call, args, mesh, where, 1e12)


@pytest.mark.parametrize("where", ["cpu:8", "v5e:2x4"])
def test_memory_is_that_of_the_arrays(where):
    """8 devices: an argument of 8 MiB and one of 1 MiB are 9/8 MiB a device; the donated counts
    once, though it comes out again."""
    report = compiled(where, lambda x, y: x * 2 + y.sum(), (2048, 1024), (256, 1024), donate=(0,),
                      out=True)  # fmt: skip
    assert report.memory["arguments"] == 9 * 2**20 // 8
    assert report.memory["total"] == report.memory["arguments"] + report.memory["temporary"]
    assert report.memory["temporary"] < 2**20  # no second copy of x
    assert report.largest[0].bytes == 2**20 and report.largest[0].shape == "f32[256,1024]"
    assert report.collectives["all-reduce"]["count"] == 1
    assert report.collectives["all-reduce"]["bytes"] < 2**10
    assert report.devices == 8 and report.model_flops == 1e12
    if where.startswith("cpu"):  # what nobody knows is not shown
        assert report.fits is report.memory_limit is report.mfu_ceiling is None
        assert "MFU" not in preflight.to_text(report) and "fits" not in preflight.to_text(report)
    else:
        assert report.fits and report.memory_limit == round(15.75 * 2**30)
        seconds = report.compute_seconds
        assert report.mfu_ceiling == pytest.approx(1e12 / (8 * 197e12 * seconds))


def big(x):
    """Keeps 40 copies of its argument alive."""
    with jax.named_scope("hungry"):
        kept = jax.lax.scan(lambda x, _: (jnp.sin(x), jnp.cos(x)), x, None, length=40)[1]
    return (kept[::-1] * x).sum(0)


def test_what_does_not_fit_names_what_takes_the_memory():
    report = compiled("v5e:2x2", big, (2**19, 1024))  # 0.5 GiB a device
    assert report.fits is False and report.memory["total"] > 20 * 2**30
    assert report.mfu_ceiling is None and report.collectives == {}
    first = report.largest[0]
    assert first.bytes == 20 * 2**30 and first.shape == "f32[40,131072,1024]"
    assert first.module.startswith("hungry/")
    text = preflight.to_text(report)
    assert f"{report.memory['total'] / 2**30:.2f} GiB of 15.75 GiB, DOES NOT FIT" in text
    assert text.count("hungry/") >= 1 and len(report.largest) >= 2


def test_the_limit_is_the_compilers_own():
    """CHIPS says what libtpu itself refuses to go beyond."""
    for kind, chip in topology.CHIPS.items():
        where = topology.parse_topology(f"{kind}:2x2x1" if chip.dims == 3 else f"{kind}:2x2")
        mesh = sharding.make_mesh(ONE, topology.make_devices(where))
        x = jax.ShapeDtypeStruct((4, 2**36), jnp.float32, sharding=NamedSharding(
            mesh, PartitionSpec("fsdp")))  # fmt: skip
        lowered = jax.jit(lambda x: jnp.sin(x) + x[:, ::-1]).lower(x)
        with pytest.raises(jax.errors.JaxRuntimeError) as refused:
            lowered.compile()
        limit = float(re.search(r"available HBM \(([\d.]+)G\)", str(refused.value))[1])
        assert limit == pytest.approx(chip.hbm_gib, abs=0.02)  # versions differ by 10 MB


def test_a_kernel_too_large_for_the_fast_memory_is_not_a_program_too_large():
    """Both are RESOURCE_EXHAUSTED; only one is about how many chips to rent."""
    from jax.experimental import pallas as pl

    def double(x_ref, o_ref):
        o_ref[...] = x_ref[...] * 2

    def f(x):
        return pl.pallas_call(double, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype))(x)

    with pytest.raises(UserError, match=r"test on v5e:1x1: .*vmem"):
        compiled("v5e:1x1", f, (2**16, 1024))


@pytest.mark.parametrize("kind", topology.CHIPS)
def test_a_large_product_keeps_the_matrix_units_busy(kind):
    """The clock of each chip, against the compiler's cycles: 8192^3 in bfloat16 takes no fewer than
    the peak allows, and not half as many again."""
    where = topology.parse_topology(f"{kind}:2x2x1" if topology.CHIPS[kind].dims == 3 else
                                    f"{kind}:2x2")  # fmt: skip
    topology.before_jax(where)
    mesh = sharding.make_mesh(ONE, topology.make_devices(where))
    whole = jax.ShapeDtypeStruct((8192, 8192), jnp.bfloat16, sharding=sharding.replicated(mesh))
    lowered = jax.jit(jnp.dot, out_shardings=sharding.replicated(mesh)).lower(whole, whole)
    chip = topology.CHIPS[kind]
    seconds = hlo.cost(lowered.compile().as_text()).cycles / chip.clock_hz
    assert 1.0 <= seconds * chip.peak_flops / (2 * 8192**3) < 1.5


def test_kernels_count_by_what_their_callers_state():
    """A forward kernel counts its scope's FLOPs, one for dq 1.5 times, one for dk and dv twice."""
    scope = "jit(f)/while/kernel_flops_1000/"
    cost = hlo.Cost()
    cost.kernels.update({f"{scope}fwd": 3, f"{scope}splash_dq": 2, f"{scope}splash_dkv": 1})
    assert preflight.kernel_flops(cost) == 1000 * (3 + 2 * 1.5 + 2)
    cost.kernels.update({"jit(f)/nameless": 1})
    with pytest.raises(ValueError, match="nameless: a kernel whose caller states no FLOPs"):
        preflight.kernel_flops(cost)


def test_a_kernel_of_a_tpu_is_found_with_its_scope():
    from jax.experimental import pallas as pl

    def double(x_ref, o_ref):
        o_ref[...] = x_ref[...] * 2

    def f(x):
        def turn(x, _):
            with kernel_scope(5e9):
                kernel = pl.pallas_call(double, out_shape=jax.ShapeDtypeStruct((8, 128), x.dtype))
                return kernel(x), None

        return jax.lax.scan(turn, x, None, length=7)[0]

    report = compiled("v5e:1x1", f, (8, 128))
    seconds = 7 * 5e9 / (0.5 * 197e12)
    assert report.kernel_seconds == pytest.approx(seconds)
    assert report.compute_seconds >= seconds
    assert "kernels at 50% of peak" in preflight.to_text(report)


@pytest.mark.parametrize(
    ("op_name", "module"),
    [
        ("jit(step)/transpose(jvp(Muse))/trunk/while/body/closed_call/checkpoint/blocks/mlp_in/dot",
         "Muse/trunk/blocks/mlp_in/dot, backward"),
        ("jit(step)/transpose(jvp(Muse))/trunk/checkpoint/rematted_computation/mlp_in/dot",
         "Muse/trunk/mlp_in/dot, backward, recomputed"),
        ("state.params['model']['kernel']", "state.params/model/kernel"),
        (r"state.params[\'model\'][\'kernel\']", "state.params/model/kernel"),
        ("", ""),
    ],
)  # fmt: skip
def test_names_of_modules(op_name, module):
    assert buffers.module_of(op_name) == module


def test_a_report_is_json():
    import json

    report = compiled("cpu:2", jnp.sin, (8, 8))
    again = json.loads(json.dumps(report.to_json()))
    assert again["mesh"] == {"slice": 1, "data": 1, "fsdp": 2, "tensor": 1}
    assert again["largest"][0].keys() == {"bytes", "shape", "module"}
    assert set(again) == {field.name for field in dataclasses.fields(preflight.Report)}


def test_what_is_compiled_holds_all_that_a_run_holds():
    """State, batch, key and the whole codec, whose decoder the step itself does not read."""
    from mmx.core.config import load_config
    from mmx.models.registry import make_task
    from mmx.train.plan import plan_training

    config = load_config("muse/openmoji32:tiny")
    task = make_task(config, None, abstract=True)
    where = topology.parse_topology("cpu:8")
    report = preflight.preflight_step(task, config, where)
    mesh = sharding.make_mesh(config.mesh, topology.make_devices(where))
    plan = plan_training(task, config, mesh)
    of = lambda tree, shardings: sum(
        int(np.prod(s.shard_shape(x.shape))) * x.dtype.itemsize
        for x, s in zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True)
    )
    whole, rows = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    frozen, batch = task.abstract_frozen(), task.batch_spec()
    want = of(plan.abstract, plan.shardings)
    want += of(frozen, jax.tree.map(lambda x: whole, frozen))
    want += of(batch, jax.tree.map(lambda x: rows, batch)) + 8  # and the key
    assert report.memory["arguments"] == want
    assert report.model_flops == task.train_flops_per_row() * config.batch_size


def test_flags_of_the_verb(capsys, tmp_path, monkeypatch):
    """Exit codes and where the reports go; the compiler is stood in for here."""
    from mmx.cli.main import main

    made = []

    def report(fits):
        one = compiled("cpu:2", jnp.sin, (8, 8))
        return dataclasses.replace(one, fits=fits)

    for fits, code in ((True, 0), (None, 0), (False, 1)):
        answer = report(fits)
        monkeypatch.setattr(preflight, "preflight_step", lambda *args, one=answer: one)
        file = tmp_path / f"{fits}.json"
        argv = ["preflight", "--config", "muse/openmoji32:tiny", "--topology", "cpu:8"]
        assert main([*argv, "--json", str(file)]) == code
        made.append(capsys.readouterr().out)
        assert '"fits"' in file.read_text()
    assert all("train step" not in text and "memory/device" in text for text in made)
    assert main([*argv, "--json", str(file / "x.json")]) == 2
    assert "name a file in a folder" in capsys.readouterr().err
    for bad, message in (
        (["--config", "muse/openmoji32:tiny", "--topology", "v5x:4"], "--topology=v5x:4"),
        (["--config", "muse/openmoji32:tny", "--topology", "cpu:8"], "'tny' is unknown"),
        (["--config", "vqgan/openmoji32:tiny", "--topology", "cpu:8", "--sample"], "cannot sample"),
        ([*argv[1:3], "--topology", "cpu:8", "--config.batch_size=7"], "config.batch_size=7"),
        ([*argv[1:3], "--topology", "cpu:8", "--config.mesh.tensor=3"], "does not multiply"),
    ):
        monkeypatch.undo()
        assert main(["preflight", *bad]) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("mmx: error") == 1


def test_a_tpu_needs_no_data_and_no_weights(mmx, tmp_path):
    """The command as it is typed, with the real compiler: step and sampler."""
    import json

    done = mmx("preflight", "--config", "muse/openmoji32:tiny", "--topology", "v5e:2x2", "--sample",
               "--json", "-", "--config.data.data_dir=/nowhere")  # fmt: skip
    step, sampler = json.loads(done.stdout)
    assert (step["program"], sampler["program"]) == ("train step", "sampler")
    for one in (step, sampler):
        assert one["fits"] and one["devices"] == 4 and 0 < one["mfu_ceiling"] < 1
        assert 0 < one["memory"]["arguments"] < one["memory"]["total"] < one["memory_limit"]
    assert "all-reduce" in step["collectives"]  # the gradients'
    assert SimpleNamespace(**step).compile_seconds > 0


def test_the_readme_shows_what_was_compiled():
    """Of the configs as they are: a change of one asks for its rows anew."""
    import importlib.util
    import json
    from pathlib import Path

    folder = Path(__file__).resolve().parents[2] / "experiments" / "scale"
    spec = importlib.util.spec_from_file_location("flagships", folder / "flagships.py")
    flagships = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(flagships)
    results = json.loads(flagships.RESULTS.read_text())
    rows = [(one["config"], one["topology"], one["mesh"]["data"]) for one in results]
    assert rows == flagships.ROWS
    for one in results:
        again = f"python experiments/scale/flagships.py {one['config']}"
        assert one["digest"] == flagships.digest(one["config"]), f"the config changed: {again}"
    assert flagships.shown(flagships.README.read_text()) == flagships.table(results)
    assert all(one["fits"] for one in results)


def test_a_deeper_model_is_no_longer_program():
    """Layers are scanned: what the compiler reads, and so its time, is the same at any depth."""
    from mmx.core.config import load_config
    from mmx.models.registry import make_task
    from mmx.train.plan import plan_training

    mesh = sharding.make_mesh(ONE, jax.devices())
    lines = []
    for depth in (2, 48):
        config = load_config("muse/base_3b:tiny").copy_and_resolve_references()
        config.model.depth = depth
        task = make_task(config, None, abstract=True)
        plan = plan_training(task, config, mesh)
        args = (
            preflight.place(plan.abstract, plan.shardings),
            task.abstract_frozen(),
            task.batch_spec(),
            preflight._key(None),
        )
        with jax.set_mesh(mesh):
            lines.append(len(plan.step.jitted.lower(*args).as_text().splitlines()))
    assert lines[0] == lines[1] > 1000
