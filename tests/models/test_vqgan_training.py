"""Every quantizer and discriminator for a few steps of the real update; the life of a codebook."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmx.core import rng as rngs
from mmx.core import tree
from mmx.core.errors import UserError
from mmx.models.vqgan import report as vqgan_report
from mmx.models.vqgan import task as vqgan_task
from mmx.train.sharding import make_mesh

FAST = {"optim.lr": 1e-2, "optim_disc.lr": 1e-2}
SMALL = FAST | {
    "data.image_size": 16,
    "batch_size": 4,
    "model.multipliers": (1, 1),
    "model.patch": 2,
    "model.channels": 4,
    "model.encoder_mid_blocks": 0,
    "model.decoder_mid_blocks": 0,
    "discriminator.levels": 2,
    "discriminator.channels": 4,
}


def moved(a, b):
    """Largest change of any number between two trees."""
    parts = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), a, b)
    return max(jax.tree.leaves(parts))


@pytest.mark.parametrize(
    ("spec", "changes"),
    [
        # As they are shipped: vq with entropy, style, non-saturating, R1, LeCam ...
        ("vqgan/muse256:tiny", FAST),
        ("vqgan/muse512:tiny", FAST),  # ... vq, patch, hinge, LeCam.
        ("vqgan/muse256:tiny,fsq", SMALL | {"loss.adversarial": 0.0, "loss.l1": 1.0,
                                            "model.norm": "rms"}),
        ("vqgan/muse256:tiny,lfq", SMALL | {"discriminator.kind": "patch", "loss.gan": "hinge",
                                            "dtype": "bfloat16"}),
    ],
)  # fmt: skip
def test_each_combination_trains(build, spec, changes):
    task = build.vqgan(spec, changes)
    state, update = build.trainer(task)
    batch = build.rows(task, task.config.batch_size)
    states, errors = [state], []
    for _ in range(6):
        state, metrics = update(state, batch)
        assert all(np.isfinite(v) for v in metrics.values()), metrics
        states.append(state)
        errors.append(float(metrics["loss/l2"]))
    assert int(state.bad_step) == -1
    assert errors[-1] < errors[0]
    assert 0 < metrics["codebook/usage"] <= 1 <= metrics["codebook/perplexity"]
    for name in ("encoder", "decoder"):
        assert moved(states[0].params[name], state.params[name]) > 1e-3
    for leaf in jax.tree.leaves(state.params):
        assert leaf.dtype == jnp.float32
    if task.losses.discriminator:
        # Up to and with step gan_start - 1 = 1 it stands (but for weight decay), then it moves.
        d = [s.params["discriminator"] for s in states]
        assert moved(d[0], d[2]) < 1e-5
        assert moved(d[2], d[6]) > 1e-3
        assert state.extra["lecam"]["real"] != 0
    if task.config.quantizer.kind == "vq":
        assert set(state.extra["vq"]) == {"codebook_EZ", "count_E", "sum_EZ"}
        assert moved(states[1].extra["vq"], state.extra["vq"]) > 0
        assert not any("codebook" in path for path in tree.flatten(state.params))
    else:
        assert "vq" not in state.extra


@pytest.fixture(scope="module")
def codebook(build):
    """(task, params, batch, step): ``step(state_of_codebook, n)`` -> (state after, metrics)."""
    changes = {
        "data.image_size": 16,
        "model.channels": 4,
        "model.linear_path": False,
        "quantizer.num_codes": 8,
        "quantizer.code_dim": 4,
        "quantizer.restart_below": 0.003,  # of 16 latents a code and batch
        "quantizer.ema": 0.9,
    }
    task = build.vqgan("vqgan/openmoji32:tiny", changes)
    params, extra = build.params(task)
    batch = build.rows(task, 8)

    @jax.jit
    def step(vq, n):
        key, frozen = rngs.base_key(0), {"perceptual": []}
        _, (metrics, after) = task.loss(params, {"vq": vq}, frozen, batch, key, n, train=True)
        z = task.codec.latents({"params": params}, vqgan_task.to_float(batch["image"]))
        return after["vq"], metrics, z

    return step, extra["vq"]


def test_the_first_batch_seeds_the_codebook_once(codebook):
    step, start = codebook
    far = start | {"codebook_EZ": start["codebook_EZ"] + 1000.0}
    seeded, _, z = step(far, jnp.int32(0))
    z = np.asarray(z).reshape(-1, 4)
    distance = np.linalg.norm(z[:, None] - np.asarray(seeded["codebook_EZ"]), axis=-1)
    assert distance.min(1).mean() < 0.5 * np.linalg.norm(z - z.mean(0), axis=-1).mean()
    assert distance.min(0).max() < 10  # every code lies among the latents
    # One that has seen a batch, here or in the run of --init_from, moves by running means only.
    known = far | {"count_E": jnp.ones(8), "sum_EZ": far["codebook_EZ"]}
    later, metrics, _ = step(known, jnp.int32(0))
    count = 0.9 * 1.0  # of a code that no latent chose
    unchosen = np.isclose(later["count_E"], count, atol=1e-6)
    assert unchosen.sum() == 7 and metrics["codebook/restarted"] == 0
    assert np.linalg.norm(later["codebook_EZ"][unchosen], axis=-1).min() > 500


def test_a_dead_code_is_restarted_in_training_and_live_ones_are_not(codebook):
    step, start = codebook
    seeded, _, z = step(start, jnp.int32(0))
    after, _, _ = step(seeded, jnp.int32(1))
    broken = {k: np.array(v) for k, v in seeded.items()}
    broken["codebook_EZ"][3] = 1000.0
    broken["count_E"][3] = 0.01
    revived, metrics, _ = step(broken, jnp.int32(1))
    assert metrics["codebook/restarted"] == 1
    z = np.asarray(z).reshape(-1, 4)
    assert np.abs(z - np.asarray(revived["codebook_EZ"][3])).max(1).min() < 1e-6
    chosen_less = np.asarray(seeded["count_E"]) > 1
    chosen_less[3] = False
    # The latents that code 3 had go to others, so those shift a little (by a tenth of the way, as
    # the decay is 0.9); none is replaced.
    moved = np.abs(revived["codebook_EZ"] - after["codebook_EZ"])[chosen_less].max()
    assert moved < 0.5 * np.abs(z - z.mean(0)).max()


def test_rows_that_see_each_other_are_not_accumulated(build):
    task = build.vqgan(changes={"optim.accum": 2})
    with pytest.raises(UserError, match="rows of 'vqgan' see each other"):
        build.trainer(task)


def test_each_player_has_its_optimiser_group(build):
    task = build.vqgan("vqgan/muse256:tiny", SMALL)
    params, _ = jax.eval_shape(task.init, rngs.base_key(0))
    labels = task.param_labels(params)
    assert set(jax.tree.leaves(labels.pop("discriminator"))) == {"disc"}
    assert set(jax.tree.leaves(labels)) == {"main"}


def test_flops_grow_with_the_area(build):
    small, large = (
        build.vqgan(changes={"data.image_size": size}).train_flops_per_row() for size in (32, 64)
    )
    assert large == pytest.approx(4 * small, rel=0.1)


def test_evaluating_is_deterministic_and_covers_every_example(build, monkeypatch):
    class Examples(list):
        info = SimpleNamespace(attribution="us")

    examples = Examples({"image": image, "text": ""} for image in build.images(11, 32))
    for module in (vqgan_task, vqgan_report):
        monkeypatch.setattr(module, "open_source", lambda *args: examples)
    task = build.vqgan(changes={"batch_size": 8, "eval.examples": 5000})
    params, extra = build.params(task)
    mesh = make_mesh({"slice": 1, "data": -1, "fsdp": 1, "tensor": 1})
    (evaluator,) = task.evaluators(mesh)
    first, second = (dict(evaluator.run(params, extra, None)) for _ in range(2))
    assert first == second
    assert set(first) == {f"test/{n}" for n in ("psnr", "codebook_use", "codebook_perplexity")}

    image = np.stack([e["image"] for e in examples])
    weights = {"params": params, "extra": extra}
    there_and_back = jax.jit(lambda x: task.codec.decode(weights, task.codec.encode(weights, x)))
    recon = there_and_back(vqgan_task.to_float(image))
    recon_u8 = np.clip(np.round((np.asarray(recon) + 1) * 127.5), 0, 255)
    error = np.square(recon_u8 - image).mean((1, 2, 3))
    assert first["test/psnr"] == pytest.approx(np.mean(10 * np.log10(255**2 / error)), abs=0.05)

    picture = task.preview(params, extra, None, mesh)["reconstruction"]
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    assert picture.shape[0] > 2 * 32 - 1 and picture.shape[1] > 8 * 32 - 1

    monkeypatch.setattr(vqgan_report, "MAX_EXAMPLES", 9)
    report = task.report(SimpleNamespace(params=params, extra=extra, mesh=mesh), seed=0)
    splits = ("train", "train_toned", "test")
    assert [report.scores[f"{split}/psnr"].n for split in splits] == [9] * 3
    assert len(report.info["prompts"]) == 11 and "us" in report.credit

    # A diverged checkpoint scores badly; it stops nothing.
    nan = jax.tree.map(lambda leaf: leaf * np.nan, params)
    broken = task.report(SimpleNamespace(params=nan, extra=extra, mesh=mesh), seed=0)
    assert broken.scores["test/psnr"].value < report.scores["test/psnr"].value
