"""Shardings: optimiser state by shape, the table of a real model, equal losses on any mesh."""

import shutil

import jax
import numpy as np
import pytest
import toy
from conftest import HERE, read_scalars, training
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mmx.core import rng
from mmx.core.errors import UserError
from mmx.core.partition import MESH_AXES, ShardingError
from mmx.core.run_dir import RunDir, open_or_create
from mmx.data import pipeline
from mmx.data.source import open_source
from mmx.train import loop, optim, plan, sharding
from mmx.train.state import state_shardings


def mesh_of(*sizes):
    devices = jax.devices()[: int(np.prod(sizes))]
    return jax.make_mesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * 4, devices=devices)


def test_make_mesh():
    sizes = lambda **axes: dict(slice=1, data=1, fsdp=1, tensor=1) | axes
    assert dict(sharding.make_mesh(sizes(data=-1, tensor=2)).shape) == sizes(data=4, tensor=2)
    assert dict(sharding.make_mesh(sizes(data=2, fsdp=2, tensor=2)).shape) == sizes(
        data=2, fsdp=2, tensor=2
    )
    rows = sharding.batch_sharding(mesh_of(1, 2, 2, 2))
    # Four parts, each on the two devices of the tensor axis.
    parts = rows.devices_indices_map((8,)).values()
    assert sorted(part[0].indices(8)[:2] for part in parts) == sorted(
        [(0, 2), (2, 4), (4, 6), (6, 8)] * 2
    )


def optimizer_shardings(name, shapes, specs):
    mesh = mesh_of(1, 2, 2, 2)
    params = {k: jax.ShapeDtypeStruct(shape, np.float32) for k, shape in shapes.items()}
    shardings = {k: NamedSharding(mesh, PartitionSpec(*spec)) for k, spec in specs.items()}
    group = dict(
        name=name, lr=1.0, b1=0.9, b2=0.96, weight_decay=0.0, warmup_steps=0, clip_norm=1.0
    )
    config = type("Config", (dict,), {"__getattr__": dict.get})
    config = config(steps=5, optim=config(group))
    tx, _ = optim.make_optimizer(config, dict.fromkeys(params, "main"))
    state = jax.eval_shape(tx.init, params)
    out = sharding.infer_optimizer_shardings(state, params, shardings)
    flat = {}
    for (path, leaf), one in zip(
        jax.tree.leaves_with_path(state), jax.tree.leaves(out), strict=True
    ):
        one.shard_shape(leaf.shape)  # raises where it does not divide
        flat.setdefault(jax.tree_util.keystr(path).split(".")[-1], []).append(one.spec)
    return flat


def test_moments_lie_where_their_parameters_lie():
    got = optimizer_shardings(
        "adamw", {"w": (8, 6), "b": (6,)}, {"w": ("fsdp", "tensor"), "b": ("tensor",)}
    )
    for moment in ("mu", "nu"):
        assert got[f"{moment}['w']"] == [PartitionSpec("fsdp", "tensor")]
        assert got[f"{moment}['b']"] == [PartitionSpec("tensor")]
    assert all(spec == PartitionSpec() for spec in got["count"])


def test_rows_and_columns_lie_where_their_dimension_lies():
    shapes = {"w": (128, 256), "conv": (3, 3, 128, 512), "small": (8, 6), "bias": (6,)}
    specs = {"w": ("fsdp", "tensor"), "conv": (None, None, None, "fsdp"), "small": ("fsdp", None),
             "bias": ("tensor",)}  # fmt: skip
    got = optimizer_shardings("adafactor", shapes, specs)
    assert got["v_row['w']"] == [PartitionSpec("fsdp")]  # [128]
    assert got["v_col['w']"] == [PartitionSpec("tensor")]  # [256]
    assert got["v_row['conv']"] == [PartitionSpec(None, None, None)]  # [3, 3, 128]
    assert got["v_col['conv']"] == [PartitionSpec(None, None, "fsdp")]  # [3, 3, 512]
    assert got["v['small']"] == [PartitionSpec("fsdp", None)]
    assert got["v['bias']"] == [PartitionSpec("tensor")]
    assert got["v['w']"] == got["v_row['small']"] == [PartitionSpec()]  # placeholders of size 1
    assert got["ema['w']"] == [PartitionSpec("fsdp", "tensor")]


def test_rows_and_columns_of_a_square_are_told_apart():
    """Both are [256] or [4, 256]: their shape alone does not say which dimension is left."""
    got = optimizer_shardings(
        "adafactor",
        {"q": (256, 256), "stacked": (4, 256, 256)},
        {"q": ("fsdp", "tensor"), "stacked": (None, "fsdp", "tensor")},
    )
    assert got["v_row['q']"] == [PartitionSpec("fsdp")]
    assert got["v_col['q']"] == [PartitionSpec("tensor")]
    assert got["v_row['stacked']"] == [PartitionSpec(None, "fsdp")]
    assert got["v_col['stacked']"] == [PartitionSpec(None, "tensor")]


def test_a_state_of_an_unknown_shape_is_refused():
    """Else it would lie whole on each device, and nobody would know why memory is short."""
    mesh = mesh_of(1, 2, 2, 2)
    params = {"w": jax.ShapeDtypeStruct((8, 6), np.float32)}
    shardings = {"w": NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))}
    state = {"history": {"w": jax.ShapeDtypeStruct((5, 8, 6), np.float32)}}
    with pytest.raises(ShardingError, match=r"history/w \(5, 8, 6\): of no parameter's shape"):
        sharding.infer_optimizer_shardings(state, params, shardings)


def test_a_parameter_that_no_rule_fits_is_refused_before_anything_runs(toy_config):
    def shard(task):
        labels = task.param_labels(jax.eval_shape(task.init, jax.random.key(0))[0])
        tx, _ = optim.make_optimizer(task.config, labels)
        return state_shardings(task, tx, mesh_of(1, 2, 2, 2), averages=True)

    abstract, shardings, table = shard(toy.ToyTask(toy_config()))
    assert shardings.params["first"]["kernel"].spec == PartitionSpec("fsdp", "tensor")
    assert shardings.ema is shardings.params and abstract.extra["count"].shape == ()
    assert "first/kernel  8x16            fsdp,tensor  0.000" in table
    with pytest.raises(
        ShardingError, match=r"first/bias .*'mlp' of size 15 does not divide over 2"
    ):
        shard(toy.ToyTask(toy_config(toy__width=15)))

    class Unnamed(toy.ToyTask):
        def init(self, key):
            params, extra = super().init(key)
            return params | {"last": {"kernel": jax.numpy.ones((16, 8))}}, extra

    with pytest.raises(ShardingError, match=r"last/kernel: shape \(16, 8\) has 0 axis names"):
        shard(Unnamed(toy_config()))


FLAGSHIPS = ["muse/base_3b", "muse/base_632m", "vqgan/muse256", "vqgan/muse512"]
FLAGSHIPS += ["muse/openmoji32:tiny", "clip/vit_l14", "clip/rn50", "clip/siglip_b16"]
FLAGSHIPS += ["vqgan/transfusion256_kl"]


@pytest.mark.parametrize("name", FLAGSHIPS)
def test_the_table_of_a_config_is_the_golden_one(name, tmp_path):
    """Each parameter, its layout on 1x2x2x2 and its bytes a device; no data, no weights."""
    from mmx.core.config import load_config
    from mmx.models.registry import make_task

    task = make_task(load_config(name), None, abstract=True)
    laid_out = plan.plan_training(task, task.config, mesh_of(1, 2, 2, 2))
    golden = HERE / "golden" / (name.replace("/", "-").replace(":", "-") + "-1x2x2x2.txt")
    want = golden.read_text() if golden.is_file() else ""
    fresh = tmp_path / golden.name
    fresh.write_text(laid_out.table + "\n")
    assert laid_out.table + "\n" == want, f"changed; when that is meant: cp {fresh} {golden}"
    # Of each large parameter, and so of its moments, no device holds the whole.
    for part in (laid_out.shardings.params, laid_out.shardings.opt_state):
        of = (
            laid_out.abstract.params
            if part is laid_out.shardings.params
            else (laid_out.abstract.opt_state)
        )
        for leaf, one in zip(jax.tree.leaves(of), jax.tree.leaves(part), strict=True):
            large = leaf.ndim >= 2 and min(leaf.shape[-2:]) >= 128
            assert not large or any(one.spec), (leaf, one)


def test_parts_of_a_batch_that_do_not_divide_over_the_devices_are_refused_by_name():
    from mmx.core.config import load_config
    from mmx.models.registry import make_task

    config = load_config("clip/openmoji64:tiny")  # 16 pairs
    for cached, ways in ((4, 8), (16, 2)):
        config.loss.cached = cached
        with pytest.raises(UserError, match=rf"loss\.cached={cached}: .* over {ways} devices"):
            plan.plan_training(make_task(config, None, True), config, mesh_of(1, ways, 1, 1))
    config.loss.cached = 2
    plan.plan_training(make_task(config, None, abstract=True), config, mesh_of(1, 8, 1, 1))


class Positions(toy.ToyTask):
    """Also reports which row lies where in the batch; exact in float32."""

    def loss(self, params, extra, frozen, batch, rng, step, train=True):
        loss, (metrics, extra) = super().loss(params, extra, frozen, batch, rng, step, train)
        rows = batch["position"].astype(np.float32)
        metrics = metrics | {"rows": (rows * (1 + np.arange(rows.shape[0]) % 7)).sum()}
        return loss, (metrics, extra)


MESHES = [(1, 8, 1, 1), (1, 1, 8, 1), (1, 2, 2, 2), (2, 1, 2, 2), (1, 1, 1, 1)]


def on_mesh(monkeypatch, *sizes):
    monkeypatch.setattr(loop, "make_mesh", lambda config: mesh_of(*sizes))


def test_losses_agree_on_every_mesh(toy_config, train_toy, tmp_path, monkeypatch):
    """Data and draws are exact; sums of float32 in another order agree to 2e-5 over 12 steps."""
    found = []
    for sizes in MESHES:
        on_mesh(monkeypatch, *sizes)
        config = toy_config("gan")
        train_toy(config, tmp_path / "x".join(map(str, sizes)), task=Positions(config))
        found.append(training(read_scalars(tmp_path / "x".join(map(str, sizes)))))
    *others, one_device = found
    for other in others:
        assert other["rows"] == one_device["rows"] and len(other["rows"]) == 12
        assert other.keys() == one_device.keys()
        for tag, points in one_device.items():
            a, b = (np.array([p[k] for k in sorted(points)]) for p in (other[tag], points))
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6, err_msg=tag)


def test_a_run_moves_to_another_mesh(toy_config, train_toy, tmp_path, monkeypatch):
    """Saved on 8 devices, resumed on 4, on 2, on 1 and then on 8 laid out otherwise."""
    folder, fields = tmp_path / "run", dict(keep=9, save_every=2, optim__warmup_steps=0)
    fields |= dict(eval_every=99, preview_every=99)

    def train(*sizes):
        on_mesh(monkeypatch, *sizes)
        config = toy_config(**fields)
        train_toy(config, folder, task=Positions(config))
        return read_scalars(folder)

    stayed = train(1, 8, 1, 1)
    meshes = [(1, 2, 2, 1), (1, 1, 2, 1), (1, 1, 1, 1), (1, 2, 2, 2)]
    for left, sizes in zip((2, 4, 6, 8), meshes, strict=True):
        for step in RunDir(folder).steps():
            if step > left:
                shutil.rmtree(folder / "checkpoints" / str(step))
        moved = train(*sizes)
    assert moved["rows"] == stayed["rows"] and len(moved["rows"]) == 12
    moved, stayed = moved["loss/total"], stayed["loss/total"]
    assert moved.keys() == stayed.keys()
    assert [moved[n] for n in (1, 2)] == [stayed[n] for n in (1, 2)]
    np.testing.assert_allclose(list(moved.values()), list(stayed.values()), rtol=2e-5)


def test_muse_and_its_tokenizer_agree_on_every_mesh(data_dir, vqgan_run, tmp_path):
    """Three steps of the shipped tiny configs; the same rows and masks, to 1e-4 in float32."""
    from mmx.core.config import load_config
    from mmx.models.registry import make_task

    for name, codec in (("vqgan", None), ("muse", vqgan_run)):
        config = load_config(f"{name}/openmoji32:tiny")
        with config.unlocked():
            config.batch_size = 8
            config.data.data_dir = str(data_dir)
            if codec:
                config.codec.run = str(codec)
        task = make_task(config, open_or_create(tmp_path / name, config))
        one_device = three_steps(task, config, mesh_of(1, 1, 1, 1))
        for sizes in MESHES[:3] if codec else MESHES[2:3]:
            found = three_steps(task, config, mesh_of(*sizes))
            for tag in ("loss/total", "grad_norm/main"):
                np.testing.assert_allclose(
                    found[tag], one_device[tag], rtol=1e-4, err_msg=f"{name} {tag} {sizes}"
                )


def test_clip_agrees_on_a_mesh(data_dir, tmp_path):
    """The ring and the gradient cache over all axes; every row is a negative of every other."""
    from mmx.core.config import load_config
    from mmx.models.registry import make_task

    config = load_config("clip/openmoji64:tiny")
    with config.unlocked():
        config.data.data_dir = str(data_dir)
        config.loss.update(form="ring", cached=2)
    task = make_task(config, open_or_create(tmp_path / "clip", config))
    one_device, found = (three_steps(task, config, mesh_of(*s)) for s in (MESHES[4], MESHES[2]))
    for tag in ("loss/total", "grad_norm/main", "logits/scale", "pairs/cosine"):
        np.testing.assert_allclose(found[tag], one_device[tag], rtol=1e-4, err_msg=tag)


def three_steps(task, config, mesh) -> dict[str, list[float]]:
    """Metrics of the first steps of a run: what the loop computes, without what it reports."""
    made = plan.plan_training(task, config, mesh)
    key = sharding.place(rng.base_key(config.seed), sharding.replicated(mesh))
    state, frozen = made.init(key), task.load_frozen(mesh)
    source = open_source(config.data.source, config.data.split, config.data.data_dir)
    stream = pipeline.Stream(source, task.transform, config.seed)
    vectors = []
    with pipeline.batches(stream, config.batch_size, sharding.batch_sharding(mesh)) as loader:
        for _ in range(3):
            state, vector = made.step(state, frozen, next(loader), key)
            vectors.append(np.asarray(vector))
    return dict(zip(made.metrics, np.transpose(vectors).tolist(), strict=True))
