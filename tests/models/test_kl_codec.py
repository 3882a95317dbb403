"""Continuous latents in the tokenizer: the codec, what training draws, the moments, the scores."""

import inspect
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmx.core import config as configs
from mmx.core import rng as rngs
from mmx.core import tree
from mmx.core.errors import UserError
from mmx.models import stages
from mmx.models.protocols import LatentCodec
from mmx.models.registry import make_codec
from mmx.models.rows import to_float
from mmx.models.vqgan import report as vqgan_report
from mmx.models.vqgan import task as vqgan_task
from mmx.models.vqgan.codec import KlCodec
from mmx.ops import losses
from mmx.train.sharding import make_mesh

SPEC = "vqgan/openmoji32_kl:tiny"
SMALL = {"model.channels": 8}


@pytest.fixture(scope="module")
def trained(build):
    """(task, weights, history of metrics) of a run that was trained, on new images each step."""
    task = build.vqgan(SPEC, {"steps": 60, "batch_size": 32})
    state, update = build.trainer(task)
    history = []
    for step in range(60):
        batch = {
            "image": build.images(32, 32, seed=step),
            "position": np.arange(32 * step, 32 * step + 32, dtype=np.uint32),
        }
        state, metrics = update(state, batch)
        history.append({name: float(value) for name, value in metrics.items()})
    assert int(state.bad_step) == -1
    return task, {"params": state.params, "extra": state.extra}, history


@pytest.fixture(scope="module")
def held_out(build):
    return to_float(build.images(256, 32, seed=1000))


def test_latents_of_held_out_images_have_mean_0_and_deviation_1(trained, held_out):
    task, weights, history = trained
    z = np.asarray(jax.jit(task.codec.encode)(weights, held_out), np.float64)
    assert z.shape == (256, 8, 8, 8)
    std = z.std((0, 1, 2))
    assert ((std > 0.95) & (std < 1.05)).all(), std
    assert np.abs(z.mean((0, 1, 2))).max() < 0.1
    # And it is the moments that make it so.
    raw = np.asarray(jax.jit(task.codec.latents)(weights, held_out)).std((0, 1, 2))
    assert np.abs(raw - 1).max() > 0.5
    assert weights["extra"]["moments"]["count"] == 60
    assert history[-1]["latent/std"] == pytest.approx(raw.mean(), rel=0.05)


def test_a_trained_run_gives_images_back(trained, held_out):
    task, weights, history = trained
    codec = task.codec
    z = jax.jit(codec.encode)(weights, held_out)
    decode = jax.jit(codec.decode)
    psnr = losses.psnr(jnp.clip(decode(weights, z), -1, 1), held_out).mean()
    assert psnr > 20
    # A latent of another place or scale is another image.
    for wrong in (2 * z, z[:, ::-1]):
        assert losses.psnr(jnp.clip(decode(weights, wrong), -1, 1), held_out).mean() < psnr - 5
    assert history[-1]["psnr"] > history[0]["psnr"]
    for row in history[::20]:  # the KL is in what is minimised, of 512 numbers to an image's 3,072
        expected = row["loss/l2"] + 1e-3 * row["latent/kl"] * 512 / 3072
        assert row["loss/total"] == pytest.approx(expected, rel=1e-5)


def test_a_pinned_stage_has_the_moments(trained, held_out, build, monkeypatch, tmp_path):
    task, weights, _ = trained
    (tmp_path / "checkpoints" / "60").mkdir(parents=True)
    (tmp_path / "config.json").write_text(configs.to_json(task.config))
    monkeypatch.setattr("mmx.train.start.Checkpoints.read_model", lambda self, step: weights)
    folder = stages.pin(build.run_dir(), "codec", str(tmp_path))
    kept, codec = stages.load_weights(folder), make_codec(stages.load_config(folder), "latents")
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert shapes(kept) == shapes(codec.abstract_weights())
    encode = jax.jit(codec.encode)
    np.testing.assert_array_equal(encode(kept, held_out[:4]), encode(weights, held_out[:4]))


def test_the_codec_keeps_the_protocol(build):
    codec = make_codec(build.changed(SPEC), "latents")
    assert isinstance(codec, KlCodec) and (codec.latent_dim, codec.scale) == (8, 4)
    assert set(LatentCodec.__annotations__) == {"latent_dim", "scale"}
    assert not hasattr(codec, "num_codes")
    for name in ("grid", "abstract_weights", "encode", "decode"):
        asked, got = (inspect.signature(getattr(c, name)) for c in (LatentCodec, KlCodec))
        assert list(asked.parameters) == list(got.parameters), name
    weights = tree.flatten(codec.abstract_weights())
    assert weights["extra/moments/mean_Z"].shape == weights["extra/moments/var_Z"].shape == (8,)


def test_what_training_draws_is_of_the_seed_and_the_position(build):
    task = build.vqgan(SPEC, SMALL)
    params, extra = build.params(task)
    image = to_float(build.images(4, 32))

    @jax.jit
    def coded(image, position, seed):
        key = rngs.base_key(seed)
        of = lambda train: task.codec.coded(params, extra, image, position, key, 3, train)
        return of(True), of(False)

    position = np.array([3, 1, 4, 15], np.uint32)
    drawn, plain = coded(image, position, 0)
    again, _ = coded(image[::-1], position[::-1], 0)
    np.testing.assert_allclose(again.z_BhwZ, drawn.z_BhwZ[::-1], atol=1e-5)
    for other in (coded(image, position + 1, 0), coded(image, position, 1)):
        assert np.abs(other[0].z_BhwZ - drawn.z_BhwZ).max() > 0.05
        np.testing.assert_array_equal(other[1].z_BhwZ, plain.z_BhwZ)
    mean, log_var = task.codec.apply_encoder(params, image)
    np.testing.assert_allclose(plain.z_BhwZ, mean, atol=1e-5)
    noise = (drawn.z_BhwZ - mean) / np.exp(log_var / 2)
    assert noise.std() == pytest.approx(1, abs=0.05) and abs(noise.mean()) < 0.1
    # Only training moves the moments.
    assert drawn.extra["moments"]["count"] == 1 and plain.extra["moments"]["count"] == 0
    np.testing.assert_allclose(drawn.extra["moments"]["mean_Z"], mean.mean((0, 1, 2)), atol=1e-5)
    # The KL of a whole image, as a share of its 3 * 32 * 32 numbers.
    kl = 0.5 * (np.square(mean) + np.exp(log_var) - 1 - log_var).sum((1, 2, 3)).mean()
    assert drawn.loss == pytest.approx(1e-3 * float(kl) / 3072, rel=1e-4)


def test_the_papers_recipe_trains(build):
    """L1, KL and an adversary from its start step."""
    changes = {"optim.lr": 1e-2, "optim_disc.lr": 1e-2, "model.multipliers": (1, 2)}
    changes |= {"data.image_size": 16, "batch_size": 4, "discriminator.levels": 1}
    changes |= {"model.encoder_mid_blocks": 0, "model.decoder_mid_blocks": 0}
    task = build.vqgan("vqgan/transfusion256_kl:tiny", changes)
    state, update = build.trainer(task)
    batch = build.rows(task, task.config.batch_size)
    states, l1 = [state], []
    for _ in range(6):
        state, metrics = update(state, batch)
        assert all(np.isfinite(v) for v in metrics.values()), metrics
        states.append(state)
        l1.append(float(metrics["loss/l1"]))
    assert int(state.bad_step) == -1 and l1[-1] < l1[0]

    def moved(a, b):
        parts = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), a, b)
        return max(jax.tree.leaves(parts))

    for name in ("encoder", "decoder"):
        assert moved(states[0].params[name], state.params[name]) > 1e-3
    d = [s.params["discriminator"] for s in states]
    assert moved(d[0], d[2]) == 0 < 1e-3 < moved(d[2], d[6])
    assert [float(s.extra["moments"]["count"]) for s in states] == list(range(7))
    assert set(state.extra) == {"moments"}


def test_scores_are_of_the_latents(trained, build, monkeypatch):
    class Examples(list):
        info = SimpleNamespace(attribution="us")

    task, weights, _ = trained
    examples = Examples({"image": image, "text": ""} for image in build.images(40, 32, seed=2))
    for module in (vqgan_task, vqgan_report):
        monkeypatch.setattr(module, "open_source", lambda *args: examples)
    params, extra = weights["params"], weights["extra"]
    mesh = make_mesh({"slice": 1, "data": -1, "fsdp": 1, "tensor": 1})
    (evaluator,) = task.evaluators(mesh)
    scores = dict(evaluator.run(params, extra, None))
    names = ("psnr", "kl", "latent_std", "latent_std_lowest", "latent_std_highest")
    assert set(scores) == {f"test/{n}" for n in names}
    image = to_float(np.stack([e["image"] for e in examples]))
    z = np.asarray(jax.jit(task.codec.encode)(weights, image), np.float64)
    std = z.std((0, 1, 2))
    assert scores["test/latent_std_lowest"] == pytest.approx(std.min(), rel=1e-4)
    assert scores["test/latent_std_highest"] == pytest.approx(std.max(), rel=1e-4)
    assert scores["test/latent_std"] == pytest.approx((std**2).mean() ** 0.5, rel=1e-4)
    mean, log_var = jax.jit(task.codec.apply_encoder)(params, image)
    kl = 0.5 * (np.square(mean) + np.exp(log_var) - 1 - log_var).mean()
    assert scores["test/kl"] == pytest.approx(float(kl), rel=1e-4)

    run = SimpleNamespace(params=params, extra=extra, mesh=mesh)
    report = task.report(run, seed=0)
    score = report.scores["test/latent_std"]
    assert score.n == 40 and score.low < score.value < score.high
    picture = task.preview(params, extra, None, mesh)["reconstruction"]
    assert picture.dtype == np.uint8 and picture.ndim == 3
    # A diverged checkpoint scores badly; it stops nothing.
    nan = jax.tree.map(lambda leaf: leaf * np.nan, params)
    broken = dict(evaluator.run(nan, extra, None))
    assert broken["test/psnr"] < scores["test/psnr"] and broken["test/latent_std_lowest"] == 0


def test_an_average_of_parameters_beside_the_moments_is_refused(build):
    with pytest.raises(UserError, match=r"config.optim.ema=0.9: the moments of continuous latents"):
        build.vqgan(SPEC, {"optim.ema": 0.9})


def test_a_model_of_codes_refuses_latents_and_the_other_way_round(build):
    says = r"config.quantizer.kind='kl' does not give codes, which are needed here"
    with pytest.raises(UserError, match=says):
        build.muse(codec=SPEC)
    with pytest.raises(UserError, match=r"kind='vq' does not give continuous latents"):
        make_codec(build.changed("vqgan/openmoji32:tiny"), "latents")


@pytest.mark.parametrize(
    ("spec", "changes", "says"),
    [
        (SPEC, {"quantizer.latent_dim": 64}, r"latent_dim=64: a patch has 48 numbers"),
        ("vqgan/openmoji32:tiny", {"quantizer.kind": "kl"},
         r"'kl' needs config.quantizer.latent_dim, .* such as vqgan/openmoji32_kl"),
    ],
)  # fmt: skip
def test_sizes_that_cannot_be(build, spec, changes, says):
    with pytest.raises(UserError, match=says):
        build.vqgan(spec, changes)
