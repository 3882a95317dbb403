"""Transfusion on latents that are stored: the same rows and losses as on the pixels they are of."""

import re

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image

from mmx.cli.main import main
from mmx.core import config as configs
from mmx.core import rng as rngs
from mmx.core.errors import UserError
from mmx.core.flops import matmul_flops
from mmx.data import folder, packing
from mmx.data.image import fit
from mmx.data.source import open_source
from mmx.models.registry import make_codec, make_task
from mmx.train.checkpoint import Checkpoints
from mmx.train.sharding import make_mesh

SPEC = "transfusion/b7000:tiny"


@pytest.fixture(scope="module")
def where(tmp_path_factory, build):
    """A folder with three tokenizers' runs, kl, other and vq, and the data set photos, whose 12
    images of 40 x 36 pixels have latents by kl."""
    root = tmp_path_factory.mktemp("stored")
    patch, weights = pytest.MonkeyPatch(), {}
    specs = {"kl": "vqgan/openmoji32_kl", "other": "vqgan/openmoji32_kl", "vq": "vqgan/openmoji32"}
    for seed, (name, spec) in enumerate(specs.items()):
        config, rng = configs.load_config(f"{spec}:tiny"), np.random.default_rng(seed)
        drawn = lambda leaf, rng=rng: 0.2 * rng.standard_normal(leaf.shape).astype(np.float32)
        of = make_codec(config).abstract_weights()
        one = lambda leaf: np.ones(leaf.shape, np.float32)
        weights[str(root / name)] = {
            "params": jax.tree.map(drawn, of["params"]),
            "extra": jax.tree.map(one, of["extra"]),
        }
        (root / name / "checkpoints" / "10").mkdir(parents=True)
        (root / name / "config.json").write_text(configs.to_json(config))
    for name, spec in (("tf", SPEC), ("damaged", "vqgan/openmoji32_kl:tiny")):
        (root / name / "checkpoints" / "10").mkdir(parents=True)
        (root / name / "config.json").write_text(configs.to_json(configs.load_config(spec)))
    really = Checkpoints.read_model
    read = lambda self, step: weights.get(str(self.directory.parent)) or really(self, step)
    patch.setattr("mmx.train.start.Checkpoints.read_model", read)
    for name in ("main.before_jax", "backend.start_jax"):  # the session has done so
        patch.setattr(f"mmx.cli.{name}", lambda: None)
    (root / "images").mkdir()
    for i, image_u8 in enumerate(build.images(12, 40)):
        Image.fromarray(image_u8[:36]).save(root / "images" / f"{i}.png")
        (root / "images" / f"{i}.txt").write_text(build.captions[i % 8])
    folder.prepare(root / "images", "photos", root, test_share=0.3)
    yield root
    patch.undo()


def prepare(root, *more) -> int:
    return main(["prepare", "latents", "tfds:photos", "--data_dir", str(root), *map(str, more)])


@pytest.fixture(scope="module")
def tasks(where, build):
    """(on latents, on pixels): tasks that differ in nothing else, with what a run pins."""
    assert prepare(where, "--codec", where / "kl") == 0
    return [make(where, build.run_dir(), **{"data.latents": latents}) for latents in (True, False)]


def make(where, run, **changes):
    changes = {"data.latents": True, "codec.run": str(where / "kl")} | changes
    return make_task(config_of(where, **changes), run)


def config_of(where, **changes):
    config = configs.load_config(SPEC).copy_and_resolve_references()
    of = {"data.source": "tfds:photos/latents", "data.data_dir": str(where), "data.mix": ()}
    of |= {"model.depth": 1, "diffusion.prediction": "x0", "diffusion.weighting": "x0"}
    config.update_from_flattened_dict(of | changes)
    return config


@pytest.fixture(scope="module")
def params(tasks):
    """Random, of the model."""
    rng, abstract = np.random.default_rng(0), jax.eval_shape(tasks[0].init, rngs.base_key(0))[0]
    drawn = lambda leaf: 0.1 * rng.standard_normal(leaf.shape).astype(np.float32)
    return jax.tree.map(drawn, nn.unbox(abstract))


@pytest.fixture(scope="module")
def streams(tasks):
    return [packing.open_stream(task.config, task, task.run, print) for task in tasks]


def test_rows_are_those_of_the_pixels_position_by_position(tasks, streams):
    stored, pixels = streams
    frozen = tasks[1]._frozen_host()
    epoch = pixels.plan.rows
    for position in (*range(epoch), 7 * epoch + 1):
        assert stored.documents(position) == pixels.documents(position)
        row, of_pixels = stored.row(position), pixels.row(position)
        assert row.keys() == of_pixels.keys()
        for name in row.keys() - {"images"}:
            np.testing.assert_array_equal(row[name], of_pixels[name], err_msg=name)
        there = row["first"] < len(row["tokens"])
        z = tasks[1].latents(frozen, of_pixels["images"][there])
        assert there.any() and row["images"].shape == (4, 8, 8, 8)
        np.testing.assert_allclose(row["images"][there], z, rtol=1e-3, atol=1e-5)
        assert (row["images"][~there] == 0).all()
    spec = {name: (value.shape[1:], value.dtype) for name, value in tasks[0].batch_spec().items()}
    assert spec == {name: (value.shape, value.dtype) for name, value in row.items()}
    # A run that goes on does so with the rows that it began with.
    again = packing.open_stream(tasks[0].config, tasks[0], tasks[0].run)
    assert again.documents(epoch + 3) == stored.documents(epoch + 3)
    np.testing.assert_array_equal(again.row(2)["images"], stored.row(2)["images"])


def test_the_loss_is_that_of_the_pixels_and_the_step_encodes_nothing(params, tasks, streams):
    frozen, found, flops = tasks[0]._frozen_host(), [], []
    for task, stream in zip(tasks, streams):
        rows = [stream.row(position) for position in range(4)]
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        loss = lambda batch, task=task: task.loss(params, {}, frozen, batch, rngs.base_key(0), 0)
        total, (metrics, _) = jax.jit(loss)(batch)
        found.append({"total": total, **metrics})
        flops.append(matmul_flops(loss, batch))
    encoded = matmul_flops(tasks[1].latents, frozen, batch["images"])
    assert flops[0] == flops[1] - encoded and encoded > 0
    assert found[0]["rows/images"] == found[1]["rows/images"] > 3
    for name, value in found[1].items():
        np.testing.assert_allclose(found[0][name], value, rtol=5e-5, err_msg=name)


def test_validation_reads_latents_too(tasks, params):
    mesh = make_mesh({"slice": 1, "data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    frozen = tasks[0]._frozen_host()
    ((one,), (of_pixels,)) = (task.evaluators(mesh) for task in tasks)
    assert one.name == of_pixels.name == "test" and len(one.examples) == len(of_pixels.examples)
    rated = one.rater.rate(params, frozen, one.examples, 4)
    assert rated.learned.all() and (rated.error > 0).all()
    encoded = []
    for example in (of_pixels.examples[i] for i in range(4)):
        image = tasks[1].latents(frozen, fit(example["image"], 32)[None])[0]
        encoded.append({"text": example["text"], "image": np.asarray(image, np.float16)})
    for name, value in one.rater.rate(params, frozen, encoded)._asdict().items():
        np.testing.assert_allclose(getattr(rated, name), value, rtol=1e-3, err_msg=name)


def test_prompts_stay_pixels(tasks, where):
    image = open_source("tfds:photos/latents", "train", where)[0]["image"]
    rows = [task.prompt_rows([[image, "red heart"]], draw=False) for task in tasks]
    assert rows[0]["images"].dtype == np.uint8
    np.testing.assert_array_equal(rows[0]["images"], rows[1]["images"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data.source": "tfds:photos"}, "config.data.latents=True: the images of photos have no"),
        ({"codec.run": "other"}, "config.codec.run=.*other: photos/latents has the latents of ano"),
        ({"data.image_size": 64, "data.row_len": 512}, "config.data.image_size=64: .* 32 pixels"),
        ({"data.mix": ("tfds:photos train",)}, "config.data.latents=True: the images of photos"),
    ],
)
def test_latents_of_something_else_are_refused(where, build, tasks, changes, says):
    if "codec.run" in changes:
        changes = changes | {"codec.run": str(where / "other")}
    run = build.run_dir()
    with pytest.raises(UserError, match=says) as error:
        make(where, run, **changes)
    assert "\n" not in str(error.value) and "prepare latents" in str(error.value)
    if "codec.run" in changes:  # a run that has saved has been checked, and needs no data to draw
        (run.checkpoints / "10").mkdir(parents=True)
        make(where, run, **changes)


def test_a_training_without_latents_never_starts(where, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mmx.cli.backend.start_jax", lambda: pytest.fail("jax was started"))
    argv = ["--config.data.latents=true", "--config.data.source=tfds:photos"]
    argv += [f"--config.data.data_dir={where}", f"--config.codec.run={where / 'kl'}"]
    assert main(["train", "--config", SPEC, "--workdir", str(tmp_path / "run"), *argv]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "config.data.latents=True: the images of photos" in told


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--codec", "vq"], "--codec=.*vq: a tokenizer with config.quantizer.kind='vq' does not"),
        (["--codec", "tf"], "--codec=.*tf: a run of the family 'transfusion', which is no image"),
        (["--codec", "nowhere"], "nowhere: no such run directory"),
        (["--codec", "damaged"], "damaged"),
        (["--codec", "kl", "--size", 30], "--size=30: give a multiple of the tokenizer's f=4"),
        (["--codec", "kl", "--size", 0], "argument --size: '0': give a whole number"),
        (["--codec", "other"], "--name=latents: tfds:photos/latents is there already"),
        (["--codec", "kl", "--size", 64], "--name=latents: tfds:photos/latents is there already"),
    ],
)
def test_what_the_command_refuses(where, tasks, capsys, argv, says):
    option, run, *more = argv
    capsys.readouterr()
    assert prepare(where, option, where / run, *more) == 2
    told = capsys.readouterr()
    assert re.search(says, told.err) and told.err.count("\n") == 1 and told.out == ""
