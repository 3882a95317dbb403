"""SPAE: images through words and back, what moves and what stands, whom the words please."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save

from mmx.core import config as configs
from mmx.core import rng as rngs
from mmx.core import tree
from mmx.core.errors import UserError
from mmx.eval.word_meaning import meaning_scores
from mmx.models import kept, words
from mmx.models.registry import make_task
from mmx.models.rows import to_float
from mmx.models.spae import report as reports
from mmx.ops import pyramid as pyramids
from mmx.train.sharding import make_mesh

SMALL = {"model.channels": 8, "optim.lr": 1e-2, "optim.warmup_steps": 0}
ENDS = (1, 5, 21, 85, 149)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(dict(slice=1, data=-1, fsdp=1, tensor=1))


@pytest.mark.parametrize(
    ("arg", "changes"),
    [
        # As shipped, with a decay that must not reach the table.
        ("tiny", {"optim.weight_decay": 0.1, "guidance.weight": 5.0, "guidance.temperature": 2.0}),
        ("tiny,area,zeros", {"guidance.weight": 0.0}),
        ("tiny,rq,mask,linear", {"words.code_dim": 8}),
    ],
)
def test_each_combination_trains_and_the_table_stands(build, arg, changes):
    task = build.spae(f"spae/openmoji32:{arg}", SMALL | changes)
    state, update = build.trainer(task)
    batch = build.rows(task, 8)
    start, errors, alike = state, [], []
    for _ in range(40):
        state, metrics = update(state, batch)
        assert all(np.isfinite(v) for v in metrics.values()), metrics
        errors.append(float(metrics["loss/l2"]))
        alike.append(float(metrics.get("words/alike_1", 0)))
    assert errors[-1] < 0.7 * errors[0]
    if "guidance.temperature" in changes:  # the first words become those that the captions name
        assert np.mean(alike[-5:]) > np.mean(alike[:5]) + 0.15, alike
    frozen = task._frozen_host()
    loss = lambda table: task.loss(
        state.params, state.extra, frozen | {"table": table}, batch, rngs.base_key(0), jnp.int32(1)
    )[0]
    np.testing.assert_array_equal(jax.jit(jax.grad(loss))(frozen["table"]), 0)
    paths = set(tree.flatten(state.params))
    assert not any("table" in path for path in [*paths, *tree.flatten(state.opt_state)])
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), start.params, state.params)
    for name in state.params:
        assert max(jax.tree.leaves(moved[name])) > 1e-3, name
    assert ("mask" in state.params) == ("mask" in arg)
    assert ("projection" in state.params) == ("linear" in arg)
    for layer, side in enumerate(task.pyramid.sides):
        most = min(8 * side**2, 48)
        assert 1 <= metrics[f"words/perplexity_{layer + 1}"] <= metrics[f"words/unique_{layer + 1}"]
        assert metrics[f"words/unique_{layer + 1}"] <= most


@pytest.fixture(scope="module")
def trained(build):
    """A task, its weights after some steps of ever new images and the last batch."""
    task = build.spae(changes=SMALL)
    state, update = build.trainer(task)
    for step in range(40):
        batch = build.rows(task, 8, first=8 * step) | {"image": build.images(8, 32, seed=step)}
        state, _ = update(state, batch)
    return task, (state.params, state.extra), task._frozen_host(), batch


def test_words_of_an_image_draw_what_training_saw_of_it(trained, mesh):
    task, (params, extra), frozen, batch = trained
    image = to_float(jnp.asarray(batch["image"]))
    out = jax.jit(
        lambda image: task.codec.forward(params, extra, frozen["table"], task.num_words, image)
    )(image)
    words = task.to_words(mesh)(params, extra, frozen, batch["image"])
    np.testing.assert_array_equal(words, out.words.words_BT)
    assert words.shape == (8, 149) and words.max() < 48
    drawn = task.from_words(mesh)(params, extra, frozen, words)
    np.testing.assert_allclose(drawn, out.recon_BHWC, atol=1e-5)
    # Fewer layers draw something else, by the same weights; a layer in part is nothing.
    assert np.abs(task.from_words(mesh)(params, extra, frozen, words[:, :21]) - drawn).max() > 1e-3
    with pytest.raises(UserError, match="20 words: whole layers of this pyramid end at 1, 5, 21"):
        task.from_words(mesh)(params, extra, frozen, words[:, :20])


def test_the_layers_that_a_row_draws_are_its_own(trained, mesh):
    task, (params, extra), frozen, batch = trained
    image = to_float(jnp.asarray(batch["image"]))
    keys = rngs.row_keys(rngs.base_key(0), "layers", jnp.arange(8))

    @jax.jit
    def forward(image, keys):
        out = task.codec.forward(params, extra, frozen["table"], 48, image, keys)
        return out.recon_BHWC, out.words.words_BT

    recon, words = forward(image, keys)
    layers = np.asarray(pyramids.random_layers(keys, task.pyramid, 0.3))
    assert len(set(layers.tolist())) > 1
    for count in set(layers.tolist()):
        drawn = task.from_words(mesh)(params, extra, frozen, words[:, : ENDS[count - 1]])
        rows = np.flatnonzero(layers == count)
        np.testing.assert_allclose(recon[rows], drawn[rows], atol=1e-5)


def test_more_layers_draw_better_what_training_did_not_see(trained, build, mesh):
    """Pitfall 21: one decoder for every depth."""
    task, weights, frozen, _ = trained
    unseen = build.images(16, 32, seed=1000)
    words = task.to_words(mesh)(*weights, frozen, unseen)
    drawn = [task.from_words(mesh)(*weights, frozen, words[:, :end]) for end in ENDS]
    errors = [np.square(image - to_float(unseen)).mean() for image in drawn]
    assert (np.diff(errors) < 0).all() and errors[-1] < 0.5 * errors[0], errors


def test_a_fresh_run_starts_within_4_nats_of_an_even_guess(build):
    """Pitfall 13, of the shipped sizes, from rows with a large mean and a few strong directions, as
    a language model has them.

    A latent of unit variances, independent of words of the length sqrt(Z), has logits of the
    variance 4 Z / temperature^2, so a loss above ln V by half of that: here by 4.
    """
    task = make_task(configs.load_config("spae/openmoji32"), None, abstract=True)
    of, random = task.config.words, np.random.default_rng(0)
    scales = np.arange(1, of.width + 1) ** -0.5
    rows = random.normal(size=(of.size, of.width)) * scales
    rotation, _ = np.linalg.qr(random.normal(size=(of.width, of.width)))
    rows = (rows @ rotation + 0.5).astype(np.float32)
    unit = lambda x: (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)
    frozen = {"table": words.TABLES[of.table](rows, of.code_dim), "teacher": {}, "perceptual": {},
              "words": unit(random.normal(size=(of.size, 384)))}  # fmt: skip
    batch = {"image": build.images(4, 32), "position": np.arange(4, dtype=np.uint32),
             "teacher": unit(random.normal(size=(4, 384)))}  # fmt: skip

    @jax.jit
    def start(frozen, batch):
        key = rngs.base_key(0)
        params, extra = nn.unbox(task.init(key))
        return task.loss(params, extra, frozen, batch, key, jnp.int32(0))[1][0]["loss/guidance"]

    assert start(frozen, batch) == pytest.approx(np.log(of.size), abs=4)


def loss_of(task, params, extra, batch, train=False):
    frozen = task._frozen_host()
    loss = lambda p: task.loss(p, extra, frozen, batch, rngs.base_key(0), jnp.int32(1), train)
    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)


def test_the_guidance_is_as_heavy_as_the_appearance_and_moves_the_encoder_alone(trained, build):
    task, (params, extra), _, batch = trained
    (total, (metrics, _)), gradient = loss_of(task, params, extra, batch)
    appearance = metrics["loss/l2"] + 0.1 * metrics["loss/commitment"]
    assert total == pytest.approx(float(5 * appearance), rel=1e-5)
    weighted = metrics["guidance/weight"] * metrics["loss/guidance"]
    assert weighted == pytest.approx(float(4 * appearance), rel=1e-5)
    without = build.spae(changes=SMALL | {"guidance.weight": 0.0})
    (plain, _), plain_gradient = loss_of(without, params, extra, batch)
    assert plain == pytest.approx(float(appearance), rel=1e-5)
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)
    jax.tree.map(same, gradient["decoder"], plain_gradient["decoder"])
    differs = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), gradient["encoder"],
                           plain_gradient["encoder"])  # fmt: skip
    assert max(jax.tree.leaves(differs)) > 1e-4
    assert set(without._frozen_host()) == {"table", "perceptual"}


def test_pools_are_of_the_caption_and_hits_are_counted(trained, mesh):
    """By brute force, out of the words that the batch has."""
    task, (params, extra), frozen, batch = trained
    (_, (metrics, _)), _ = loss_of(task, params, extra, batch)
    words = task.to_words(mesh)(params, extra, frozen, batch["image"])
    first = 0
    for layer, (end, threshold) in enumerate(zip(ENDS, task.config.guidance.thresholds)):
        hits = []
        for row in range(8):
            alike = frozen["words"] @ batch["teacher"][row]
            low, high = alike.min(), alike.max()
            pool = {i for i in range(48) if (alike[i] - low) / (high - low) >= threshold}
            hits += [int(w) in pool for w in np.asarray(words[row, first:end])]
        assert metrics[f"words/pool_hit_{layer + 1}"] == pytest.approx(np.mean(hits), abs=1e-6)
        first = end


def test_meaning_is_of_the_own_caption_against_others():
    """Words that are their captions, words that are another's, and one word for all."""
    captions = ["dog", "cat", "dog", "sun"]
    axis = {"dog": 0, "cat": 1, "sun": 2}
    caption = np.eye(4)[[axis[c] for c in captions]]
    meaning = np.eye(4)
    own = np.array([[0, 3], [1, 3], [0, 3], [2, 3]])
    scores = meaning_scores((1, 2), own, meaning, caption, captions)
    assert scores["meaning_1"].value == 1 and scores["meaning_2"].value == 0.5
    assert scores["meaning_rank_1"].value == 1
    wrong = meaning_scores((1,), own[[1, 0, 1, 1], :1], meaning, caption, captions)
    # Of "cat" for the dogs and the sun, "dog" for the cat: nearer to some other, never to its own.
    # rank: dogs: others are cat (nearer) and sun (as near) ...
    assert wrong["meaning_1"].value == pytest.approx(-np.mean([1 / 2, 2 / 3, 1 / 2, 1 / 3]))
    ranks = [0.25, 0.5 / 3, 0.25, 1 / 3]
    assert wrong["meaning_rank_1"].value == pytest.approx(np.mean(ranks))
    assert meaning_scores((1, 2), own, meaning, caption, ["dog"] * 4) == {}  # no other to compare
    same = meaning_scores((1,), np.zeros((4, 1), int), meaning, caption, captions)
    # One word for all: what the dogs win, the others lose.
    assert same["meaning_1"].value == pytest.approx(np.mean([1, -2 / 3, 1, -2 / 3]))


def test_whitening_is_affine_but_for_lengths_and_keeps_the_largest_directions():
    rng = np.random.default_rng(0)
    scales = np.array([5.0, 3.0, 1.0, 0.1])
    rotation, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    scores = rng.normal(size=(4000, 4))
    rows = (scores * scales) @ rotation + 7.0
    table = words.whiten_table(rows.astype(np.float32), 3)
    np.testing.assert_allclose(np.square(table).sum(-1), 3, rtol=1e-5)
    # Up to signs the first three scores, brought to one length.
    expected = scores[:, :3] / np.linalg.norm(scores[:, :3], axis=-1, keepdims=True) * 3**0.5
    for z in range(3):
        assert abs(np.corrcoef(table[:, z], expected[:, z])[0, 1]) > 0.99


def test_a_runs_words_are_those_it_kept(build):
    vocabulary, run = build.spae().vocabulary, build.run_dir()
    folder = run.stage("words")
    with pytest.raises(UserError, match="nothing is kept there yet"):
        words.load_words(run)
    table = save({"table": np.ones((48, 16), np.float32)})
    files = {"vocabulary.json": vocabulary.to_json().encode(), "table.safetensors": table}
    kept.keep(folder, files)
    assert words.load_words(run).vocabulary == vocabulary
    (folder / "vocabulary.json").write_text("{}")
    with pytest.raises(UserError, match=r"vocabulary.json: changed or damaged"):
        words.load_words(run)
    (folder / "vocabulary.json").unlink()
    with pytest.raises(UserError, match=r"vocabulary.json: changed or damaged"):
        words.load_words(run)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pyramid.sides": (1, 2, 4, 4)}, r"config.data.image_size=32: a grid of 4 .* is 16"),
        ({"pyramid.fill": "mean"}, r"config.pyramid.fill='mean': use one of"),
        ({"words.code_dim": 8}, r"config.words.code_dim=8: with config.words.table='raw'"),
        ({"words.table": "linear", "words.code_dim": 49}, r"code_dim=49: a patch has 48 numbers"),
        ({"words.table": "white"}, r"config.words.table='white': use one of"),
        ({"words.table": "whiten", "words.code_dim": 17}, r"config.words.code_dim=17: from 1 to"),
        ({"guidance.thresholds": (0.8, 0.9)}, r"config.guidance.thresholds=\(0.8, 0.9\)"),
        ({"guidance.thresholds": (1.1,)}, r"config.guidance.thresholds"),
        ({"guidance.thresholds": (0.5,) * 6}, r"one in \[0, 1\] for each guided layer"),
        ({"optim.ema": 0.9}, r"config.optim.ema=0.9: the moments by which latents"),
        ({"guidance.teacher": "cat"}, r"config.guidance.teacher='cat': use one of captions, clip"),
        ({"guidance.sentences": "wordllama"}, r"config.guidance.sentences='wordllama'"),
        ({"guidance.teacher": "clip", "guidance.run": ""}, r"config.guidance.run"),
    ],
)
def test_bad_configs(build, changes, message):
    with pytest.raises(UserError, match=message):
        build.spae(changes=changes)


def test_a_caption_that_the_first_start_did_not_see(build):
    with pytest.raises(UserError, match=r"the caption 'a new one' is new"):
        build.spae().teacher.row({"text": "a new one"})


def test_the_picture_of_a_pyramid(build):
    task = build.spae()
    words = np.arange(149) % 48
    recon = np.zeros((5, 32, 32, 3), np.uint8)
    section = reports.pyramid_section(
        task.vocabulary, task.pyramid, recon[0], words, recon, "a title"
    )
    assert section.images.shape == (6, 32, 32, 3) and section.captions[0] == "image"
    assert section.captions[1] == "reda" and section.captions[2] == "redb redc redd rede"
    assert section.captions[3].endswith("... (16)")
