"""Transfusion's invariants: who reads whom, what is learned, and that a cache changes nothing."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmx.core import config as configs
from mmx.core import rng as rngs
from mmx.core.errors import UserError
from mmx.models.registry import make_task
from mmx.models.transfusion import loss as losses
from mmx.models.transfusion.generate import IMAGE, TEXT, draw_image, finish, start
from mmx.models.transfusion.patches import PATCHES
from mmx.models.transfusion.rows import NO_LABEL, pack, prompt
from mmx.nn.conv import depth_to_space
from mmx.ops.diffusion.guidance import guide
from mmx.ops.diffusion.predictions import to_x0
from mmx.ops.diffusion.schedules import SCHEDULES

KEY = rngs.base_key(0)
VOCAB = 100


def make(**changes):
    config = configs.load_config("transfusion/openmoji32:tiny")
    config.text.vocab_size = VOCAB
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    task = make_task(config, None, abstract=True)
    return task


@functools.cache
def task_and_params(patches="linear", by_modality=False):
    more = {"model.channels": 8, "model.blocks": 1} if patches == "unet" else {}
    task = make(**{"model.patches": patches, "model.by_modality": by_modality, **more})
    params = jax.jit(lambda key: nn.unbox(task.init(key)[0]))(KEY)
    # What starts as zero would hide what it does.
    noise = lambda x: x + 0.05 * jax.random.normal(jax.random.key(1), x.shape)
    return task, jax.tree.map(noise, params)


def documents(task, seed=0):
    """A pair, a text, and a text around two images."""
    rng = np.random.default_rng(seed)
    size = task.config.data.image_size
    image = lambda: rng.integers(0, 256, (size, size, 3), np.uint8)
    text = lambda n: " ".join(map(str, rng.integers(2, VOCAB, n)))
    return [
        {"text": text(4), "image": image()},
        {"text": text(7)},
        {"parts": [image(), text(3), image()]},
    ]


def rules_of(task, **changes):
    encode = lambda text: [int(word) for word in text.split()]
    return dataclasses.replace(task.rules, encode=encode, image_first=0.0, drop=0.0, **changes)


def batch_of(task, *rows, **changes):
    packed = [pack(list(row), rules_of(task, **changes), np.random.default_rng(0)) for row in rows]
    batch = {name: np.stack([row[name] for row in packed]) for name in packed[0]}
    return batch | {"position": np.arange(len(rows), dtype=np.uint32)}


def latents(task, batch, seed=0):
    """One latent for each picture, the same wherever it lies."""
    shape = (task.grid, task.grid, task.codec.latent_dim)
    seeds = batch["images"].astype(np.int64).sum((2, 3, 4))
    draw = lambda s: np.random.default_rng((seed, s)).normal(size=shape)
    return np.stack([[draw(s) for s in row] for row in seeds]).astype(np.float32)


def noised(task, batch, t=None):
    """Noise and time that depend on the picture alone."""
    x, eps = latents(task, batch), latents(task, batch, seed=1)
    seeds = batch["images"].astype(np.int64).sum((2, 3, 4))
    t_BM = np.float32((seeds % 89 + 5) / 100) * (batch["noise_limit"] > 0)
    t_BM = t_BM if t is None else np.full_like(t_BM, t)
    return x, losses.Noised(losses.add_noise(x, eps, t_BM, task.process), t_BM, eps)


def apply(task, params, batch, noised):
    """(hidden [B, L, D], predictions [B, M, h, w, Z])."""
    layout = task.layout(*(jnp.asarray(batch[n]) for n in ("document", "image", "first")))
    args = batch["tokens"], batch["image"], batch["first"], noised.z, noised.t, layout
    return task.model.apply({"params": params}, *args)


def test_who_reads_whom():
    task, params = task_and_params()
    batch = batch_of(task, documents(task))
    document, image = batch["document"][0], batch["image"][0]
    _, before = noised(task, batch)
    run = jax.jit(lambda batch, noised: apply(task, params, batch, noised)[0])
    base = np.asarray(run(batch, before))[0]
    end = np.arange(len(document)) + 1
    for n in range(image.max() + 1):
        end[image == n] = np.flatnonzero(image == n)[-1] + 1
    place = np.arange(len(document))
    reads = (document[:, None] == document) & (document[:, None] >= 0) & (place < end[:, None])
    np.fill_diagonal(reads, True)  # padding too: what a position holds goes on beside attention
    texts = np.flatnonzero((image < 0) & (document >= 0))
    for at in (*texts[::5], np.flatnonzero(document < 0)[0]):
        changed = dict(batch, tokens=batch["tokens"].copy())
        changed["tokens"][0, at] = (changed["tokens"][0, at] + 1) % VOCAB
        moved = np.abs(np.asarray(run(changed, before))[0] - base).max(-1) > 0
        assert (moved == reads[:, at]).all(), at
    for n in range(image.max() + 1):  # a latent reaches its own image's patches, and what follows
        other = before._replace(z=np.array(before.z))
        other.z[0, n, 0, 0] += 1
        moved = np.abs(np.asarray(run(batch, other))[0] - base).max(-1) > 0
        first = np.flatnonzero(image == n)[0]
        assert (moved == reads[:, first]).all(), n


def test_the_time_of_an_image_does_not_reach_what_is_before_it():
    task, params = task_and_params()
    batch = batch_of(task, documents(task)[:1])
    run = jax.jit(lambda noised: apply(task, params, batch, noised)[0])
    _, base = noised(task, batch)
    early, late = (np.asarray(run(base._replace(t=np.full_like(base.t, t)))) for t in (0.1, 0.9))
    first = batch["first"][0, 0]
    np.testing.assert_array_equal(early[0, :first], late[0, :first])
    assert np.abs(early - late)[0, first:].max() > 1e-3


@functools.cache
def graded(patches, by_modality):
    task, _ = task_and_params(patches, by_modality)

    @jax.jit
    def fn(params, batch, x, noised):
        def loss(params):
            text, diffusion, counts = task.losses(params, batch, x, noised)
            return text + 0.7 * diffusion, (text, diffusion, counts)

        return jax.value_and_grad(loss, has_aux=True)(params)

    return fn


@pytest.mark.parametrize(("patches", "by_modality"), [("linear", False), ("unet", True)])
def test_packed_equals_unpacked(patches, by_modality):
    task, params = task_and_params(patches, by_modality)
    fn, docs = graded(patches, by_modality), documents(task)
    results = []
    # All in one row and two empty ones; one a row.
    for rows in ([docs, [], []], [[d] for d in docs]):
        batch = batch_of(task, *rows)
        results.append(fn(params, batch, *noised(task, batch)))
    ((one, (*_, counts)), slopes), ((other, (*_, other_counts)), other_slopes) = results
    np.testing.assert_allclose(one, other, rtol=1e-5)
    assert counts == other_counts and counts["images"] == 3
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5)
    jax.tree.map(close, slopes, other_slopes)


def test_clean_copies_are_the_documents_that_sampling_makes():
    """In one row they give the loss and gradient of those documents, one a row; and the noise of an
    image that something follows reaches nothing else."""
    task, params = task_and_params("linear", False)
    fn, (pair, text, parts) = graded("linear", False), documents(task)
    packed = batch_of(task, [pair, text, parts], [], [], clean_copies=True)
    assert packed["noise_limit"][0].tolist() == [1, 0, 1, 1]
    (one, (own, diffusion, counts)), slopes = fn(params, packed, *noised(task, packed))
    assert counts["images"] == 3
    image = {"parts": [parts["parts"][0]]}  # up to the first image, which is all
    apart = batch_of(task, [pair, text], [parts], [image], noise_limit=0.0)
    apart["labels"][2] = NO_LABEL
    (other, _), other_slopes = fn(params, apart, *noised(task, apart))
    np.testing.assert_allclose(one, other, rtol=1e-5)
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5)
    jax.tree.map(close, slopes, other_slopes)

    def moved(batch, slot):
        """What another noise in an image does to (text loss, diffusion loss)."""
        x, at = noised(task, batch)
        at = at._replace(z=at.z.at[0, slot].add(1.0))
        (_, (text, error, _)), _ = fn(params, batch, x, at)
        return text, error

    learned_again = moved(packed, 3)
    assert learned_again[0] == own and learned_again[1] != diffusion
    assert moved(packed, 1)[0] != own  # the clean one is what is read
    noisy = batch_of(task, [pair, text, parts], [], [])
    (_, (own, *_)), _ = fn(params, noisy, *noised(task, noisy))
    assert moved(noisy, 1)[0] != own


def test_a_batch_of_one_kind_has_one_loss():
    task, params = task_and_params("linear", False)
    fn, docs = graded("linear", False), documents(task)
    text = batch_of(task, [docs[1]], [], [])
    (_, (_, diffusion, counts)), slopes = fn(params, text, *noised(task, text))
    assert diffusion == 0 and counts["images"] == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slopes))
    assert not np.any(slopes["patches"]["out"]["kernel"])
    image = batch_of(task, docs, [], [])
    image["labels"][:] = NO_LABEL
    (_, (loss, _, counts)), slopes = fn(params, image, *noised(task, image))
    assert loss == 0 and counts["tokens"] == 0
    assert not np.any(slopes["head"]["kernel"]) and np.any(slopes["patches"]["out"]["kernel"])


def test_the_losses_start_where_they_should():
    task, _ = task_and_params()
    params = jax.jit(lambda key: nn.unbox(task.init(key)[0]))(KEY)
    batch = batch_of(task, *[documents(task, seed) for seed in range(8)])
    x, at = noised(task, batch)
    text, diffusion, _ = task.losses(params, batch, x, at)
    assert abs(text - np.log(task.markers.count)) < 0.8
    # The first guess is 0: the error of x0 is x0, of variance 1.
    learned = batch["noise_limit"] > 0
    weight = np.asarray(
        losses.loss_weight(task.process.weighting, "x0", task.process.schedule, at.t)
    )
    expected = (weight * np.square(x).mean((2, 3, 4)))[learned].mean()
    np.testing.assert_allclose(diffusion, expected, rtol=1e-5)


def test_each_image_has_a_time_of_its_own_up_to_its_limit():
    task = make(**{"diffusion.times": "uniform"})
    limit = np.tile(np.float32([1.0, 0.5, 0.0]), (20_000, 1))
    x = np.ones((20_000, 3, 1, 1, 1), np.float32)
    positions = np.arange(20_000, dtype=np.uint32)
    at = losses.noise_images(KEY, positions, x, limit, task.process)
    t = np.asarray(at.t)
    assert t[:, 0].max() > 0.99 and t[:, 0].min() < 0.01
    assert 0.49 < t[:, 1].max() <= 0.5 and t[:, 1].min() < 0.01
    assert (t[:, 2] == 0).all() and (np.asarray(at.z)[:, 2] == 1).all()
    assert abs(np.corrcoef(t[:, 0], t[:, 1])[0, 1]) < 0.03
    np.testing.assert_allclose(t[:, 0].mean(), 0.5, atol=0.01)
    again = losses.noise_images(KEY, positions[5:7], x[5:7], limit[5:7], task.process)
    np.testing.assert_array_equal(again.z, np.asarray(at.z)[5:7])


@pytest.mark.parametrize(("patches", "by_modality"), [("linear", False), ("unet", True)])
def test_what_is_written_and_drawn_is_what_the_whole_model_reads(patches, by_modality):
    """The logits after the last token equal those of one pass over the finished row: after text,
    after an image of the prompt, and after images that the model drew."""
    task, params = task_and_params(patches, by_modality)
    options = task.options(images=2, text=5, steps=3, guidance=2.0, temperature=1.0)
    S, Z = task.patches, task.codec.latent_dim
    B, L, at = 3, 20 + task.patches, 3
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, VOCAB, (B, L)).astype(np.int32)
    tokens[:, 0] = task.markers.bos
    image, first = np.full((B, L), -1, np.int32), np.full((B, 1), L, np.int32)
    tokens[1, at - 1], tokens[1, at + S] = task.markers.boi, task.markers.eoi
    image[1, at : at + S], first[1] = 0, at
    x = rng.normal(size=(B, 1, task.grid, task.grid, Z)).astype(np.float32)
    length = np.array([5, at + S + 4, 9], np.int32)
    mode = np.array([TEXT, TEXT, IMAGE], np.int32)
    keys = rngs.row_keys(KEY, "sample", jnp.arange(B))

    @jax.jit
    def go(params, tokens, image, first, x, length, mode, keys):
        g = task.generator(params, options)
        row = start(g, tokens, image, first, x, length, g.places(L), mode)
        return finish(g, row, keys)

    inputs = tokens, image, first, x, length, mode, keys
    out = jax.tree.map(np.asarray, go(params, *inputs))
    assert out.drew[2] >= 1 and out.drew.sum() >= 3
    assert all(np.isfinite(x).all() and np.abs(x).max() > 0.1 for x in (out.x, out.logits))

    # The finished rows, as training would see them, with all images clean.
    L, M = out.tokens.shape[1], 3
    places, drawn = np.arange(L), out.cache.length_B
    image_BL, first_BM = np.full((B, L), -1), np.full((B, M), L)
    x_BM = np.zeros((B, M, *x.shape[2:]), np.float32)
    image_BL[1, at : at + S], first_BM[1, 0], x_BM[1, 0] = 0, at, x[1, 0]
    for b in range(B):
        for n in range(out.drew[b]):
            slot, patches_at = n + (b == 1), np.flatnonzero(out.image[b] == n)
            assert (np.diff(patches_at) == 1).all() and len(patches_at) == S
            image_BL[b, patches_at], first_BM[b, slot] = slot, patches_at[0]
            x_BM[b, slot] = out.x[b, n]
    document_BL = np.where(places < drawn[:, None], 0, -1)
    batch = dict(tokens=out.tokens, document=document_BL, image=image_BL, first=first_BM)
    zero = losses.Noised(x_BM, np.zeros((B, M), np.float32), None)
    hidden, _ = jax.jit(lambda params: apply(task, params, batch, zero))(params)
    last = np.asarray(hidden)[np.arange(B), drawn - 1]
    logits = task.model.apply({"params": params}, last[:, None], method="logits")[:, 0]
    np.testing.assert_allclose(out.logits, logits, atol=2e-5)

    # A row is what it is in any company.
    order = np.array([2, 0, 1])
    moved = go(params, *(v[order] for v in inputs))
    np.testing.assert_array_equal(moved.tokens, out.tokens[order])
    np.testing.assert_allclose(moved.x, out.x[order], atol=2e-5)


def test_guidance_and_the_grid_are_those_of_the_options():
    """One step: the image is what the denoiser says at the first of the times."""
    task, params = task_and_params()
    row = prompt([" ".join("2345")], rules_of(task), 8)
    x = np.zeros((1, 1, task.grid, task.grid, task.codec.latent_dim), np.float32)
    inputs = [row[name][None] for name in ("tokens", "image")] + [row["first"][None, :1], x]

    def drawn(**options):
        @jax.jit
        def go(params):
            g = task.generator(params, task.options(images=1, text=0, **{"steps": 1} | options))
            row_ = start(g, *inputs, row["length"][None], 64, np.array([IMAGE]))
            return draw_image(g, row_, rngs.row_keys(KEY, "sample", jnp.arange(1))).x[:, 0]

        return np.asarray(go(params))

    cond, uncond = (drawn(guidance=w, grid="even_log_snr") for w in (1.0, 0.0))
    assert np.abs(cond - uncond).max() > 1e-2
    assert np.abs(cond - drawn(guidance=1.0, grid="trailing")).max() > 1e-2
    guided = drawn(guidance=5.0, grid="even_log_snr", guidance_rescale=0.7)
    expected = guide(lambda z, t: (cond, uncond), 5.0, rescale=0.7)(cond, jnp.ones(1))
    np.testing.assert_allclose(guided, expected, rtol=1e-4, atol=1e-4)
    # Its first time is 0.988 of the rectified flow.
    outside = drawn(guidance=5.0, grid="even_log_snr", guidance_interval=(0.0, 0.98))
    np.testing.assert_allclose(outside, cond, atol=1e-5)

    # The second of two steps of Euler reads what training does at that time.
    first, second = (drawn(guidance=1.0, grid="trailing", steps=steps)[0] for steps in (1, 2))
    key = jax.random.fold_in(rngs.row_keys(KEY, "sample", jnp.arange(1))[0], 0)
    half = (first + jax.random.normal(jax.random.fold_in(key, 0), first.shape)) / 2
    pair = {"text": " ".join("2345"), "image": np.zeros((32, 32, 3), np.uint8)}
    batch = batch_of(task, [pair])
    z, t = np.zeros((1, task.slots, *half.shape), np.float32), np.full((1, task.slots), 0.5)
    z[0, 0] = half
    _, out = task.apply(params, batch, losses.Noised(z, np.float32(t), None))
    np.testing.assert_allclose(out[0, 0], second, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"grid": "even"}, r"grid='even': use one of .*even_log_snr"),
        ({"guidance_rescale": 1.5}, "guidance_rescale=1.5: give a share from 0 to 1"),
        (
            {"guidance_interval": (0.9, 0.1)},
            r"guidance_interval=\(0.9, 0.1\): give two rising times",
        ),
    ],
)
def test_options_that_cannot_be(options, says):
    with pytest.raises(UserError, match=says):
        task_and_params()[0].options(**options)
    with pytest.raises(UserError, match=f"config.sample.{says}"):
        make(**{f"sample.{name}": value for name, value in options.items()})


@pytest.mark.parametrize(("patches", "more"), [("linear", ()), ("unet", (8, 1))])
def test_the_head_of_the_images_is_in_float32(patches, more):
    """Of a bfloat16 model too: at time 1 of the cosine schedule a prediction is divided by 4.9e-5,
    and the first of 250 steps brings 126 times its rounding into z. Here 1e-3 at most."""
    side, grid, width, Z = 4, 8, 32, 8
    codec = PATCHES[patches](2, width, grid, Z, *more, dtype=jnp.bfloat16)
    noise = np.random.default_rng(0).normal
    z, t = np.float32(noise(size=(2, grid, grid, Z))), jnp.ones(2)
    h = jnp.asarray(noise(size=(2, side**2, width)), jnp.bfloat16)
    through = lambda codec: codec.decode(h, codec.encode(z, t)[1])
    shapes = nn.unbox(jax.eval_shape(lambda key: codec.init(key, method=through), KEY))
    params = jax.tree.map(lambda x: np.float32(noise(size=x.shape) * x.size**-0.25), shapes)
    read = []

    def keep_head(call, args, kwargs, context):
        if context.module.name == "out":
            read.append((context.module.clone(parent=None), *args))
        return call(*args, **kwargs)

    with nn.intercept_methods(keep_head):
        out = codec.apply(params, method=through)
    ((head, x),) = read
    assert x.dtype == jnp.bfloat16
    with jax.enable_x64():
        of = {"params": params["params"]["out"]}
        exact = head.clone(dtype=jnp.float64).apply(of, x.astype(jnp.float64))
        if patches == "linear":
            exact = depth_to_space(exact.reshape(-1, side, side, exact.shape[-1]), 2)
        exact = np.asarray(exact)
    schedule, s = SCHEDULES["cosine"], 1 - 1 / 250

    def first_step(out):
        x0 = to_x0("eps", schedule, z, t, jnp.float32(out))
        return schedule.alpha(s) * x0 + schedule.sigma(s) * out

    bound = 1e-3 * exact.std()
    assert np.abs(first_step(out) - first_step(exact)).max() < bound
    rounded = first_step(exact.astype(jnp.bfloat16))
    assert np.abs(rounded - first_step(exact)).max() > 100 * bound
