"""Two players in one scalar: each moves only itself, from the step it may."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from mmx.core import rng as rngs
from mmx.models.image_loss import adversarial_loss
from mmx.models.registry import make_task
from mmx.ops.losses import hinge_g, non_saturating_g

TINY = {
    "data.image_size": 16,
    "batch_size": 4,
    "model.multipliers": (1,),
    "model.patch": 4,
    "model.channels": 4,
    "model.encoder_mid_blocks": 0,
    "model.decoder_mid_blocks": 0,
    "quantizer.num_codes": 16,
    "quantizer.entropy": 0.0,
    "discriminator.levels": 1,
    "discriminator.channels": 4,
    "loss.gan_start": 5,
}
GAN = {"loss.adversarial": 0.1, "loss.r1": 10.0, "loss.lecam": 0.001}


@pytest.fixture(scope="module")
def players(build):
    """``run(step, train, **changes)`` -> (G's gradient, D's gradient, metrics, extra after)."""
    base = build.vqgan("vqgan/muse256:tiny", TINY)
    params, extra = build.params(base)
    extra["lecam"] = {"real": jnp.float32(0.7), "fake": jnp.float32(-0.4)}
    batch = build.rows(base, 4)
    cache = {}

    def run(step, train=True, **changes):
        key = tuple(sorted(changes.items())), train
        if key not in cache:
            dotted = {f"loss.{k}": v for k, v in changes.items() if k != "kind"}
            if "kind" in changes:
                dotted["discriminator.kind"] = changes["kind"]
            task = build.vqgan("vqgan/muse256:tiny", TINY | dotted)
            mine = params
            if "kind" in changes:
                mine = {**params, "discriminator": build.params(task)[0]["discriminator"]}

            @jax.jit
            def gradients(step):
                def loss(p):
                    state = extra if task.config.loss.lecam else {"vq": extra["vq"]}
                    return task.loss(
                        p, state, {"perceptual": []}, batch, rngs.base_key(0), step, train
                    )

                return jax.grad(loss, has_aux=True)(mine)

            cache[key] = gradients
        gradient, (metrics, after) = cache[key](jnp.int32(step))
        d = gradient.pop("discriminator", None)
        return gradient, d, metrics, after

    run.extra = extra
    return run


def assert_same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-7), a, b)


def size(tree):
    return max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


def difference(a, b):
    return size(jax.tree.map(lambda x, y: x - y, a, b))


def test_the_generators_term_does_not_move_the_discriminator(players):
    g, d, _, _ = players(9)
    g_strong, d_strong, _, _ = players(9, adversarial=50.0)
    assert size(d) > 1e-4
    assert_same(d, d_strong)
    assert difference(g, g_strong) > 0.01


@pytest.mark.parametrize(("term", "value"), [("r1", 0.0), ("lecam", 0.5)])
def test_the_discriminators_terms_do_not_move_the_generator(players, term, value):
    g, d, _, _ = players(9)
    g_other, d_other, _, _ = players(9, **{term: value})
    assert_same(g, g_other)
    assert difference(d, d_other) > 1e-4


def test_neither_sees_the_other_before_the_start(players):
    g_alone, d_alone, _, _ = players(4, adversarial=0.0)
    assert size(d_alone) == 0
    g, d, _, after = players(4)
    assert_same(g, g_alone)
    assert size(d) == 0
    for name in ("real", "fake"):
        assert after["lecam"][name] == players.extra["lecam"][name]
    started, d_started, _, _ = players(5)  # the first step at which they do
    assert difference(started, g_alone) > 1e-4
    assert size(d_started) > 1e-4


def test_lecam_follows_the_logits_in_training_only(players):
    _, _, metrics, after = players(9)
    for name in ("real", "fake"):
        expected = 0.999 * players.extra["lecam"][name] + 0.001 * metrics[f"d/{name}_logit"]
        assert after["lecam"][name] == pytest.approx(float(expected), abs=1e-6)
    _, _, _, after = players(9, train=False)
    assert after["lecam"] == players.extra["lecam"]
    np.testing.assert_array_equal(after["vq"]["count_E"], players.extra["vq"]["count_E"])


def test_penalties_are_positive_and_reported(players):
    _, _, metrics, _ = players(9)
    assert metrics["loss/d_r1"] > 0
    assert metrics["loss/d_lecam"] > 0


def test_the_scalar_is_the_weighted_sum_of_its_parts():
    """A linear discriminator's gradient is its weights, whatever the image."""
    rng = np.random.default_rng(0)
    image, recon = rng.normal(size=(2, 5, 4, 4, 3)).astype(np.float32)
    w = rng.normal(size=(4, 4, 3)).astype(np.float32)
    config = ConfigDict(dict(gan="hinge", gan_start=3, adversarial=0.1, r1=10.0, lecam=0.0))
    apply_d = lambda w, x: jnp.einsum("bhwc,hwc->b", x, w)
    g, d, _, metrics = adversarial_loss(config, apply_d, w, {}, image, recon, jnp.int32(3), True)
    total = g + d
    assert metrics["loss/d_r1"] == pytest.approx(np.square(w).sum(), rel=1e-5)
    parts = 0.1 * metrics["loss/g_adversarial"] + metrics["loss/d_adversarial"]
    assert total == pytest.approx(float(parts + 10.0 * np.square(w).sum()), rel=1e-5)


@pytest.mark.parametrize("gan", ["hinge", "non_saturating"])
def test_the_named_loss_is_the_one_used(players, gan):
    _, _, metrics, _ = players(9, gan=gan, kind="style" if gan == "hinge" else "patch")
    g, fake = metrics["loss/g_adversarial"], metrics["d/fake_logit"]
    if gan == "hinge":
        assert g == pytest.approx(float(hinge_g(fake)), rel=1e-5)
    else:  # convex: at least the value at the mean, and not hinge's
        assert float(non_saturating_g(fake)) <= g + 1e-6
        assert g > 0.1


@pytest.fixture
def vgg_file(tmp_path):
    rng, tensors = np.random.default_rng(0), {}
    for number, (fan_in, fan_out) in {0: (3, 4), 2: (4, 4), 5: (4, 6)}.items():
        weight = rng.normal(size=(fan_out, fan_in, 3, 3)) / (9 * fan_in) ** 0.5
        tensors[f"features.{number}.weight"] = weight.astype(np.float32)
        tensors[f"features.{number}.bias"] = np.zeros(fan_out, np.float32)
    save_file(tensors, tmp_path / "vgg.safetensors")
    return tmp_path / "vgg.safetensors"


def test_perceptual_slot(build, vgg_file):
    changes = TINY | {
        "loss.adversarial": 0.0,
        "loss.l2": 0.0,
        "quantizer.commitment": 0.0,
        "loss.perceptual": 0.05,
        "loss.perceptual_weights": str(vgg_file),
    }
    run = build.run_dir()
    task = build.vqgan("vqgan/muse256:tiny", changes, run)
    params, extra = build.params(task)
    batch, frozen = build.rows(task, 4), task._frozen_host()

    @jax.jit
    def gradients(frozen):
        loss = lambda p: task.loss(p, extra, frozen, batch, rngs.base_key(0), jnp.int32(1))
        return jax.value_and_grad(loss, has_aux=True)(params)

    (total, (metrics, _)), gradient = gradients(frozen)
    assert metrics["loss/perceptual"] > 0
    assert total == pytest.approx(0.05 * float(metrics["loss/perceptual"]), rel=1e-5)
    assert size(gradient["encoder"]) > 0 and size(gradient["decoder"]) > 0
    # Frozen weights: of the shapes that preflight is told, and nowhere among what is trained.
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert shapes(task.abstract_frozen()) == shapes(frozen)
    assert set(params) == {"encoder", "decoder"}
    # The run keeps its own copy.
    vgg_file.unlink()
    again = build.vqgan("vqgan/muse256:tiny", changes, run)._frozen_host()
    jax.tree.map(np.testing.assert_array_equal, frozen, again)


def shapes_alone(build, spec, changes):
    return make_task(build.changed(spec, changes), None, abstract=True)


@pytest.mark.parametrize(
    ("spec", "changes"),
    [
        ("spae/imagenet128:tiny", {"data.image_size": 128, "pyramid.sides": (1, 2, 4, 8, 16, 16)}),
        ("vqgan/muse256:tiny", {"data.image_size": 128}),
    ],
)
def test_flops_are_those_that_xla_counts(build, spec, changes):
    """Within 5 %: XLA counts no padding, which is 3 to 12 % of a small grid, and what is no
    product, which is little at these widths. Neither a player nor the perceptual network can be
    missing; a teacher and its guidance, 0.3 % here, are counted by hand in the next test."""
    wide = {"model.channels": 32, "discriminator.channels": 32, "loss.perceptual": 0.1}
    task = shapes_alone(build, spec, wide | changes | {"batch_size": 2})
    params, extra = nn.unbox(jax.eval_shape(task.init, rngs.base_key(0)))
    frozen, key = nn.unbox(task.abstract_frozen()), rngs.base_key(0)
    grad = jax.jit(jax.value_and_grad(task.loss, has_aux=True))
    lowered = grad.lower(params, extra, frozen, task.batch_spec(), key, jnp.int32(0))
    counted = lowered.cost_analysis()["flops"] / 2
    assert task.train_flops_per_row() == pytest.approx(counted, rel=0.05)


def test_a_teacher_that_stands_is_passed_once_and_the_guidance_forth_and_back(build):
    spec = "spae/imagenet128:tiny"
    with_it, without = (
        shapes_alone(build, spec, {"guidance.weight": weight}).train_flops_per_row()
        for weight in (1.0, 0.0)
    )
    # 32 pixels become 64, and 16 patches of 16x16x3 and one more 17 places of 32 numbers.
    tower = 2 * 3 * (64 * 32 * 32 + 64 * 64 * 32) + 2 * 16 * (16 * 16 * 3) * 32
    tower += 2 * (2 * 17 * (4 * 32 * 32 + 2 * 32 * 64) + 4 * 17 * 17 * 32) + 2 * 32 * 32
    similarities = 2 * 256 * 32
    # Five layers of 1, 4, 16, 16 and 16 words, 256 words of 576 numbers; no gradient to the table.
    softmax = 2 * (2 * 53 * 256 * 576)
    assert with_it - without == tower + similarities + softmax
