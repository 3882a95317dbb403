"""Muse as a task: what a row draws, what the loss sees, what is refused, how samples are guided."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmx.core import rng as rngs
from mmx.core.errors import UserError
from mmx.models.muse import report as muse_report
from mmx.models.muse.loss import masked_loss
from mmx.models.muse.sample import SampleOptions, sample_codes
from mmx.train.sharding import make_mesh


@pytest.fixture(scope="module")
def task(build):
    return build.muse()


@pytest.fixture(scope="module")
def weights(build, task):
    return build.params(task)[0]


def seen_by_the_model(task, position, seed=0, train=True, count=None):
    """(ids, text mask) that ``task.loss`` gives to the network, without running one."""
    count = len(position)
    S, T = task.grid**2, task.config.text.max_len
    seen = {}

    def logits(params, ids, text_ids, text_mask):
        seen.update(ids=np.asarray(ids), text_mask=np.asarray(text_mask))
        return jnp.zeros((*ids.shape, task.mask_id))

    spy = SimpleNamespace(
        config=task.config,
        mask_id=task.mask_id,
        codes=lambda frozen, image: jnp.zeros((count, S), jnp.int32),
        logits=logits,
    )
    batch = {
        "image": None,
        "position": np.asarray(position, np.uint32),
        "text_ids": np.ones((count, T), np.int32),
        "text_mask": np.ones((count, T), bool),
    }
    key = rngs.base_key(seed)
    type(task).loss(spy, None, {}, None, batch, key, jnp.int32(0), train)
    return seen["ids"] == task.mask_id, seen["text_mask"]


def test_mask_rates_follow_the_law_and_text_is_dropped_at_its_rate(task):
    hidden, text = seen_by_the_model(task, np.arange(40_000))
    rate = hidden.mean(1)
    assert (hidden.sum(1) >= 1).all()
    assert rate.mean() == pytest.approx(2 / np.pi, abs=0.005)
    # 64 codes: a rate below half is a count below 32, or at it half of the time by rounding.
    below = (rate < 0.5 - 0.5 / 64).mean(), (rate < 0.5 + 0.5 / 64).mean()
    assert np.mean(below) == pytest.approx(1 / 3, abs=0.01)  # 0.293 by the arccos rule
    kept = text.all(1)
    np.testing.assert_array_equal(kept, text.any(1))  # a caption goes as a whole
    assert kept.mean() == pytest.approx(0.9, abs=0.006)  # 0.1 where the mask is inverted
    assert abs(np.corrcoef(kept, rate)[0, 1]) < 0.02  # two streams, not one


@pytest.mark.parametrize(("rate", "kept"), [(0.0, 1.0), (1.0, 0.0)])
def test_text_drop_at_its_ends(build, rate, kept):
    task = build.muse(changes={"loss.text_drop": rate})
    assert seen_by_the_model(task, np.arange(500))[1].mean() == kept


def test_no_text_is_dropped_when_evaluating(task):
    assert seen_by_the_model(task, np.arange(500), train=False)[1].all()


def test_every_draw_of_a_row_is_of_its_seed_and_position(task):
    position = np.random.default_rng(0).integers(0, 2**32, 64, dtype=np.uint32)
    whole = seen_by_the_model(task, position)
    order = np.random.default_rng(1).permutation(64)
    for drawn, again in zip(whole, seen_by_the_model(task, position[order])):
        np.testing.assert_array_equal(drawn[order], again)
    for half in (slice(0, 16), slice(16, 64)):
        for drawn, part in zip(whole, seen_by_the_model(task, position[half])):
            np.testing.assert_array_equal(drawn[half], part)
    other, _ = seen_by_the_model(task, position, seed=1)
    assert (other != whole[0]).any(1).mean() > 0.9
    elsewhere, _ = seen_by_the_model(task, position + np.uint32(1))
    assert (elsewhere != whole[0]).any(1).mean() > 0.9


def test_weighting_by_code_counts_each_hidden_code_alike():
    rng = np.random.default_rng(0)
    rate = np.cos(0.5 * np.pi * rng.random(4000))
    hidden = rng.random((4000, 16)) < rate[:, None]
    hidden[:, 0] |= ~hidden.any(1)
    logits = rng.normal(size=(1, 16, 3)).astype(np.float32) * np.ones((4000, 1, 1), np.float32)
    codes = rng.integers(0, 3, (4000, 16))
    nats = -np.take_along_axis(jax.nn.log_softmax(logits, -1), codes[..., None], -1)[..., 0]
    # Losses that depend on the rate tell the two apart.
    logits *= hidden.mean(1)[:, None, None]
    nats = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits, -1)), codes[..., None], -1)
    nats = nats[..., 0]
    by = {
        kind: float(masked_loss(lambda *_: logits, codes, None, hidden, None, 0.0, kind)[0])
        for kind in ("row", "code")
    }
    assert by["code"] == pytest.approx(nats[hidden].mean(), rel=0.02)
    by_row = (nats * hidden).sum(1) / hidden.sum(1)
    assert by["row"] == pytest.approx(by_row.mean(), rel=1e-4)


def test_text_of_mixed_lengths_equals_one_by_one_and_padding_is_not_read(build, task, weights):
    batch = build.rows(task, 8)
    ids = np.random.default_rng(0).integers(0, task.mask_id + 1, (8, task.grid**2))
    apply = jax.jit(lambda *args: task.logits(weights, *args))
    text_ids, text_mask = batch["text_ids"], batch["text_mask"]
    assert len(set(text_mask.sum(1))) > 2
    whole = apply(ids, text_ids, text_mask)
    for b in (0, 7):
        alone = apply(ids[b : b + 1], text_ids[b : b + 1], text_mask[b : b + 1])
        np.testing.assert_allclose(alone[0], whole[b], atol=2e-5)
    padded = np.where(text_mask, text_ids, 5)
    np.testing.assert_array_equal(whole, apply(ids, padded, text_mask))
    nothing = np.zeros_like(text_mask)
    dropped = apply(ids, text_ids, nothing)
    np.testing.assert_array_equal(dropped, apply(ids, text_ids[::-1], nothing))
    np.testing.assert_array_equal(dropped, apply(ids, np.zeros_like(text_ids), nothing))
    assert np.abs(dropped - whole).max() > 0.01


def test_the_text_is_a_live_condition(task, weights):
    """Invariant 11 for the condition that the base has: order, row and gradient of its text."""
    T, S, real = task.config.text.max_len, task.grid**2, 6
    words = task.tokenizer.vocab_size
    text_ids = np.random.default_rng(0).integers(1, words, (2, T)).astype(np.int32)
    text_mask = np.arange(T)[None] < np.full((2, 1), real)
    ids = np.full((2, S), task.mask_id, np.int32)
    logits = jax.jit(lambda text: task.logits(weights, ids, text, text_mask))
    a = np.asarray(logits(text_ids))
    np.testing.assert_allclose(logits(text_ids[::-1]), a[::-1], atol=1e-5)
    assert np.abs(a[0] - a[1]).max() > 1e-3
    turned = text_ids.copy()
    turned[0, [1, 4]] = turned[0, [4, 1]]
    b = np.asarray(logits(turned))
    assert np.abs(b[0] - a[0]).max() > 1e-3
    np.testing.assert_allclose(b[1], a[1], atol=1e-5)
    emb = task.text_emb(weights, text_ids, text_mask)
    slope = jax.grad(lambda emb: jax.nn.log_softmax(logits(emb))[..., 0].sum())(emb)
    size = np.abs(slope).max(-1)
    assert (size[text_mask] > 1e-6).all() and not size[~text_mask].any()


def test_cached_embeddings_of_a_frozen_encoder_stand_in_for_ids(build, task, weights, monkeypatch):
    """Here the encoder that froze is the learned one, so every number must come out as from ids."""
    batch, frozen = build.rows(task, 8), task._frozen_host()
    mask = batch["text_mask"]
    encode = lambda ids, mask: np.asarray(task.text_emb(weights, jnp.asarray(ids), mask))
    emb = encode(batch["text_ids"], mask)
    assert (~mask).any()
    garbage = np.where(mask[..., None], emb, 1e3)  # the cache may hold anything finite at padding
    cached = {k: v for k, v in batch.items() if k != "text_ids"} | {"text_emb": garbage}
    loss = jax.jit(lambda rows: task.loss(weights, {}, frozen, rows, rngs.base_key(0), 0)[0])
    assert float(loss(cached)) == pytest.approx(float(loss(batch)), rel=1e-5)
    elsewhere = {**cached, "text_emb": garbage[::-1].copy()}
    assert float(loss(elsewhere)) != pytest.approx(float(loss(batch)), rel=1e-4)

    prompts = task.prompts(list(TEXTS), "red heart")
    ids = ("text_ids", "negative_ids")
    frozen_prompts = {k: v for k, v in prompts.items() if k not in ids} | {
        k.replace("ids", "emb"): encode(prompts[k], prompts[k.replace("ids", "mask")]) for k in ids
    }
    options = task.options(steps=2)
    drawn, again = (
        jax.jit(lambda b: task.sample(weights, {}, frozen, b, rngs.base_key(0), options))(p)
        for p in (prompts, frozen_prompts)
    )
    assert (np.asarray(drawn["codes"]) == np.asarray(again["codes"])).mean() > 0.98

    examples = [{"image": i, "text": t} for i, t in zip(build.images(8, 32), build.captions)]
    monkeypatch.setattr(muse_report, "open_source", lambda *args: examples)
    mesh = make_mesh({"slice": 1, "data": -1, "fsdp": 1, "tensor": 1})
    (evaluator,) = task.evaluators(mesh)
    by_ids = dict(evaluator.run(weights, {}, frozen))
    plain = evaluator._plain

    def with_emb(example, rng):
        row = plain(example, rng)
        ids, mask = row.pop("text_ids"), row["text_mask"]
        return row | {"text_emb": encode(ids[None], mask[None])[0]}

    evaluator._plain = with_emb
    assert dict(evaluator.run(weights, {}, frozen)) == pytest.approx(by_ids, rel=1e-5)


def test_codes_are_the_codecs_and_carry_no_gradient(build, task):
    frozen, image = task._frozen_host(), build.images(3, 32)
    codes = jax.jit(task.codes)(frozen, image)
    assert (codes.shape, codes.dtype) == ((3, task.grid**2), jnp.int32)
    direct = task.codec.encode(frozen["codec"], image.astype(np.float32) / 127.5 - 1)
    np.testing.assert_array_equal(codes.reshape(3, task.grid, task.grid), direct)


def test_rows_keep_to_the_spec_and_flip_only_where_the_caption_allows(build):
    task = build.muse(changes={"data.flip": True, "data.shift": 0})
    image = build.images(1, 40)[0]
    flipped = {}
    for text in ("red apple", "flag of japan"):
        rows = [
            task.transform({"image": image, "text": text}, np.random.default_rng(i))
            for i in range(20)
        ]
        flipped[text] = len({row["image"].tobytes() for row in rows})
    assert flipped == {"red apple": 2, "flag of japan": 1}
    spec = task.batch_spec()
    assert set(spec) == {*rows[0], "position"}
    for name, value in rows[0].items():
        assert (spec[name].shape[1:], spec[name].dtype) == (value.shape, value.dtype), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.image_size": 33}, r"image_size=33 is no multiple"),
        ({"data.image_size": 36}, r"model.patch=2 does not divide the tokenizer's grid of 9"),
        ({"model.heads": 3}, r"config.model.heads=3 does not divide config.model.width=32"),
        ({"text.heads": 5}, r"config.text.heads=5 does not divide config.text.width=32"),
        ({"model.activation": "relu"}, r"config.model.activation='relu': use one of gelu, "),
        ({"dtype": "float16"}, r"config.dtype='float16'"),
        ({"text.max_len": 3}, r"prompt .* is too long"),  # of the preview, before training
        ({"model.code_width": 0}, r"config.model.code_width=0: must be at least 1 where .*patch=2"),
        ({"loss.weighting": "token"}, r"config.loss.weighting='token': use one of row, code"),
        ({"loss.text_drop": 1.5}, r"config.loss.text_drop=1.5: give a share from 0 to 1"),
        ({"loss.text_drop": -0.1}, r"config.loss.text_drop=-0.1"),
        ({"loss.label_smoothing": 1.0}, r"config.loss.label_smoothing=1.0: give 0 or more, below"),
        ({"loss.label_smoothing": -0.1}, r"config.loss.label_smoothing=-0.1"),
        ({"sample.steps": 0}, r"config.sample.steps=0: at least one"),
        ({"sample.guidance": -1.0}, r"config.sample.guidance=-1.0: give a finite number of 0"),
        ({"sample.sampling_temperature": -0.5}, r"config.sample.sampling_temperature=-0.5"),
        ({"sample.choice_temperature": float("nan")}, r"config.sample.choice_temperature=nan"),
        ({"sample.schedule": "square"}, r"config.sample.schedule='square': use one of cosine, arc"),
        ({"eval.metrics": ("cmmd",)}, r"config.eval.metrics='cmmd': it needs an image-text model"),
        (
            {"eval.metrics": ("captions",)},
            r"'captions': it scores texts that a run writes, .* none",
        ),
        ({"sample.selection": "foo"}, r"config.sample.selection='foo': use one of confidence, ran"),
    ],
)
def test_mistakes_are_named_before_anything_runs(build, changes, message):
    with pytest.raises(UserError, match=message):
        build.muse(changes=changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"steps": 0}, "^steps=0"), ({"guidance": -1.0}, "^guidance=-1"),
     ({"guidance": float("nan")}, "^guidance=nan")],
)  # fmt: skip
def test_sampling_options_are_checked(task, changes, message):
    with pytest.raises(UserError, match=message):
        task.options(**changes)


def test_options_default_to_the_config(task):
    options = task.options(guidance=None, steps=5)
    assert options.steps == 5
    assert options.guidance == task.config.sample.guidance


OPTIONS = SampleOptions(
    steps=6,
    guidance=1.5,
    sampling_temperature=0.0,
    choice_temperature=0.0,
    schedule="linear",
    selection="confidence",
)


def test_guidance_rises_from_nothing_and_points_away_from_the_negative():
    """One code a step. The text favours code 0 by 1.0 over 1; the negative favours 0 by 2.5.

    (1 + t) 1.0 - t 2.5 changes its sign at t = 2/3, and t = 0, 0.3, 0.6, 0.9, 1.2, 1.5.
    """
    S = 6

    def logits_fn(ids, emb, mask):
        favour = jnp.where(mask.any(1), 1.0, 2.5)[:, None]  # [2B, 1]
        confidence = jnp.arange(S) * -0.01  # reveals the positions in order
        zero = favour + 0 * confidence
        return jnp.stack([zero + 0.0, 0 * zero, confidence - 20.0 + 0 * zero], axis=-1)

    emb, on = jnp.zeros((1, 2, 4)), jnp.ones((1, 2), bool)
    ids = jnp.full((1, S), 3, jnp.int32)
    keys = rngs.row_keys(rngs.base_key(0), "sample", jnp.arange(1))

    def draw(options):
        codes, trace = sample_codes(logits_fn, emb, on, emb, ~on, ids, keys, mask_id=3,
                                    options=options)  # fmt: skip
        trace = np.asarray(trace)[:, 0]
        before = np.concatenate([np.asarray(ids), trace[:-1]])
        fresh = [trace[r][(before[r] == 3) & (trace[r] != 3)] for r in range(6)]
        assert [len(f) for f in fresh] == [1] * 6
        np.testing.assert_array_equal(codes[0], trace[-1])
        return [int(f[0]) for f in fresh]

    assert draw(OPTIONS) == [0, 0, 0, 1, 1, 1]
    assert draw(SampleOptions(**{**vars(OPTIONS), "guidance": 0.0})) == [0] * 6


TEXTS = ("red heart", "violin", "rocket")


def draw(task, weights, options, index, negative="", seed=0, texts=TEXTS):
    """Three rows, on a mesh of eight devices."""
    batch = task.prompts(list(texts), negative)
    batch["index"] = np.asarray(index, np.uint32)
    frozen = task._frozen_host()
    mesh = make_mesh({"slice": 1, "data": -1, "fsdp": 1, "tensor": 1})
    out = task.sampler(mesh, options)(weights, {}, frozen, batch, rngs.base_key(seed))
    return {k: np.asarray(v) for k, v in out.items()}


def test_a_sample_is_of_its_seed_and_index(task, weights):
    options = task.options(steps=3)
    first = draw(task, weights, options, [4, 5, 6])
    assert first["image"].shape == (3, 32, 32, 3)
    assert first["trace"].shape == (3, 3, task.grid**2)
    assert (first["codes"] < task.mask_id).all() and (first["codes"] >= 0).all()
    again = draw(task, weights, options, [4, 5, 6])
    np.testing.assert_array_equal(first["codes"], again["codes"])
    turned = draw(task, weights, options, [6, 4, 5], texts=("rocket", "red heart", "violin"))
    np.testing.assert_array_equal(first["codes"][[2, 0, 1]], turned["codes"])
    for other in (draw(task, weights, options, [7, 8, 9]),
                  draw(task, weights, options, [4, 5, 6], seed=1)):  # fmt: skip
        assert (first["codes"] != other["codes"]).mean() > 0.3


def test_a_negative_prompt_is_read_and_equal_to_the_prompt_it_cancels(task, weights):
    options = task.options(steps=3, guidance=4.0)
    texts = ("red heart",) * 3
    plain = draw(task, weights, task.options(steps=3, guidance=0.0), [0, 1, 2],
                 texts=texts)  # fmt: skip
    cancelled = draw(task, weights, options, [0, 1, 2], negative="red heart", texts=texts)
    assert (plain["codes"] == cancelled["codes"]).mean() > 0.98  # equal but for rounding
    guided = draw(task, weights, options, [0, 1, 2], texts=texts)
    away = draw(task, weights, options, [0, 1, 2], negative="rocket", texts=texts)
    assert (guided["codes"] != plain["codes"]).mean() > 0.02
    assert (guided["codes"] != away["codes"]).mean() > 0.02


def test_prompts_are_checked(task):
    with pytest.raises(UserError, match="is empty"):
        task.prompts(["red heart", "  "])
    with pytest.raises(UserError, match="is too long"):
        task.prompts(["red heart"], negative="violin " * 30)
    batch = task.prompts(["red heart", "violin"], first_index=5)
    np.testing.assert_array_equal(batch["index"], [5, 6])
    assert not batch["negative_mask"].any() and (batch["ids"] == task.mask_id).all()
