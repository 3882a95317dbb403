"""The study of `experiments/transfusion_claims`: its arms, its sampler of codes, its arithmetic."""

import dataclasses
import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import studies

from mmx.core import tree
from mmx.core.errors import UserError
from mmx.data.scene_grammar import KINDS, Group, Scene, found
from mmx.data.scene_splits import make_scene
from mmx.data.text import train_tokenizer

NAMES = ("arms", "codes", "jobs", "report", "scenes", "sizes", "statistic", "tasks",
         "training")  # fmt: skip
arms, codes, jobs, report, scenes, sizes, statistic, tasks, training = studies.load(
    "transfusion_claims", *NAMES
)
SIZE = sizes.SIZES["cpu"]
CAPTIONS = ["a dog on blue", "two trees on pink", "a small fox on white", "a robot on gray"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    file = tmp_path_factory.mktemp("words") / "tokenizer.json"
    return train_tokenizer(CAPTIONS, 300, file)


@functools.cache
def make(arm, tokenizer, patch):
    """A task of an arm on images of 16 pixels: a grid of 4; and parameters far from their start."""
    config = arms.make_config(arm, SIZE, 1e-3, 0)
    config.data.image_size = 16
    config.model.update(patch=patch, width=16, heads=2, mlp=32, depth=2)
    config.text.max_len, config.batch_size = 24, 8
    config.data.row_len = config.loss.chunk = 48
    task = arms.ARMS[arm][0](config, tokenizer)
    rng = np.random.default_rng(1)
    fill = lambda path, leaf: (
        np.ones(leaf.shape, np.float32)
        if path.endswith("scale")
        else rng.normal(size=leaf.shape, scale=0.4).astype(np.float32)
    )
    shapes = nn.unbox(jax.eval_shape(lambda: task.init(jax.random.key(0))[0]))
    return task, tree.map_with_path(fill, shapes)


def some_scenes():
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(4, 4, 4, 8)).astype(np.float32)
    factors = [Scene((Group("dog", 1, "normal"),), None, "blue", None).to_json()] * 4
    return scenes.Scenes(factors, CAPTIONS, latents, rng.integers(0, codes.CODES, (4, 4, 4)))


@pytest.mark.parametrize("size", sizes.SIZES.values(), ids=sizes.SIZES)
def test_arms_differ_in_what_they_say_and_cost_alike(tokenizer, size):
    made = {arm: arms.make_task(arm, size, 1e-3, 0, tokenizer) for arm in arms.ARMS}
    for task in made.values():
        config, base = task.config.to_dict(), made["base"].config.to_dict()
        assert all(config[name] == base[name] for name in ("optim", "diffusion", "seed", "sample"))
        assert 0.84 < config["batch_size"] * config["data"]["row_len"] / size.tokens < 1.01
    unet, deep = (made[arm].step_flops() for arm in ("patch4_unet", "patch4_deep"))
    assert deep == pytest.approx(unet, rel=0.015)
    assert [task.patches for task in made.values()] == [64, 64, 256, 64, 16, 16, 16]
    assert made["no_limit"].rules.noise_limit == 1.0 and made["base"].rules.noise_limit == 0.5


def outputs(task, params, batch):
    """What the patches predict, at time 0.5 everywhere."""
    images = jnp.asarray(batch["images"])
    noised = tasks.losses.Noised(images, jnp.full(images.shape[:2], 0.5), images)
    return np.asarray(jax.jit(task.apply)(params, batch, noised)[1])


def test_a_patch_of_the_causal_arm_reads_no_later_one(tokenizer):
    found = {}
    for arm in ("base", "causal"):
        task, params = make(arm, tokenizer, 2)
        batch = task.batch(some_scenes(), 0)
        before = outputs(task, params, batch)
        batch["images"] = batch["images"].copy()
        batch["images"][:, :, 2:, 2:] += 1.0  # the last of four patches
        changed = outputs(task, params, batch) != before
        found[arm] = [changed[:, :, y : y + 2, x : x + 2].any() for y in (0, 2) for x in (0, 2)]
    assert found == {"base": [True] * 4, "causal": [False, False, False, True]}


def rows_of(task, some, **changes):
    """All scenes as rows, with nothing drawn by chance."""
    rules = tasks.replace(task.rules, **{"noise_limit": 0.0, "drop": 0.0, **changes})
    return task._rows(some, range(4), [np.random.default_rng(0)] * 4, rules)


def test_what_follows_an_image_is_as_in_one_whole_pass(tokenizer):
    """The causal arm's prompt, read to be gone on with, and its rows of training."""
    task, params = make("causal", tokenizer, 2)
    some = some_scenes()
    prompts = task._prompts([[tasks._BLANK]] * 4, draw=False, index=range(4))
    prompts["images"] = some.latents[:, None]
    options = task.options(images=0, text=4)
    row = jax.jit(lambda p, x: task.read(p, {}, x, options)[1])(params, prompts)
    batch = rows_of(task, some, image_first=1.0)
    images = jnp.asarray(batch["images"])
    noised = tasks.losses.Noised(images, jnp.zeros((4, 1)), images)
    hidden, _ = jax.jit(task.apply)(params, batch, noised)
    logits = task.model.apply({"params": params}, hidden, method="logits")
    np.testing.assert_allclose(row.logits, logits[:, prompts["length"][0] - 1], atol=2e-4)
    assert np.ptp(np.asarray(row.logits), axis=0).max() > 0.1  # the images matter


def test_codes_are_foretold_from_what_is_before_them(tokenizer):
    """The rate of rows by hand: each code from the ids to its left, one whole pass each."""
    task, params = make("discrete", tokenizer, 1)
    some = some_scenes()
    rated = task.rate(params, some, image_first=False)
    ids = [task.markers.bos, *task._encode(CAPTIONS[0]), task.markers.boi]
    ids += (task.markers.count + some.codes[0].ravel()).tolist()
    start = ids.index(task.markers.boi) + 1
    place = np.maximum(np.arange(len(ids)) - start, -1)
    row = lambda x: jnp.asarray(x)[None]
    layout = task.layout(row(np.zeros(len(ids), int)), row(np.full(len(ids), -1)), row([0]))
    whole = lambda params, *args: task.model.apply({"params": params}, *args, method="whole")
    logits = jax.jit(whole)(params, row(ids), row(place), layout)[0]
    nll = -np.asarray(jax.nn.log_softmax(logits))[np.arange(len(ids) - 1), ids[1:]]
    assert rated["image"][0] == pytest.approx(nll[start - 1 :].mean(), rel=1e-5)
    assert rated["nll"][0] == pytest.approx(nll[: start - 2].sum(), rel=1e-5)
    assert rated["tokens"][0] == start - 2
    # The loss is the mean of words and markers, and of codes, over rows like these.
    batch = task.batch(some, 0)
    loss = jax.jit(lambda *args: task.loss(args[0], {}, {}, args[1], None, 0)[0])(params, batch)
    hidden, next_BL = jax.jit(task.hidden)(params, batch)
    logits = task.model.apply({"params": params}, hidden, method="logits")
    by_hand = [
        tasks.token_nll(logits, x).sum() / (x >= 0).sum() for x in (batch["labels"], next_BL)
    ]
    assert float(loss) == pytest.approx(float(sum(by_hand)), rel=1e-5)


def test_codes_are_drawn_by_their_probabilities(tokenizer):
    """The likeliest codes, one by one from the cache, are so in one whole pass, guided too."""
    task, params = make("discrete", tokenizer, 1)
    drawn = task.draw(params, CAPTIONS, seed=0, guidance=2.0, top_p=1e-6)
    assert drawn.shape == (4, 4, 4) and drawn.min() >= 0 and drawn.max() < codes.CODES
    some = scenes.Scenes(some_scenes().factors, CAPTIONS, some_scenes().latents, drawn)
    logits = []
    for drop in (0.0, 1.0):
        batch = rows_of(task, some, image_first=0.0, drop=drop)
        hidden, next_BL = jax.jit(task.hidden)(params, batch)
        logits.append(np.asarray(task.model.apply({"params": params}, hidden, method="logits")))
    guided = (logits[1] + 2.0 * (logits[0] - logits[1]))[..., task.markers.count :]
    likeliest = task.markers.count + guided.argmax(-1)
    there = np.asarray(next_BL) >= 0
    np.testing.assert_array_equal(likeliest[there], np.asarray(next_BL)[there])


def test_codes_that_are_described_are_read_as_in_one_whole_pass(tokenizer):
    task, params = make("discrete", tokenizer, 1)
    some = some_scenes()
    ids, lengths = task._image_first(some.codes)
    read = jax.jit(lambda *args: task._read(*args, more=1)[1])(params, ids, lengths)
    hidden, _ = jax.jit(task.hidden)(params, rows_of(task, some, image_first=1.0))
    logits = task.model.apply({"params": params}, hidden, method="logits")
    np.testing.assert_allclose(read, logits[:, task.patches + 2], atol=2e-4)


def test_a_nucleus_is_the_fewest_codes_that_hold_the_mass():
    logits = jnp.log(jnp.array([[0.1, 0.5, 0.15, 0.25]]))
    kept = lambda p: np.isfinite(np.asarray(codes.nucleus(logits, p)))[0].tolist()
    assert kept(1e-6) == kept(0.49) == [False, True, False, False]
    assert kept(0.6) == [False, True, False, True]
    assert kept(0.8) == [False, True, True, True]
    assert kept(1.0) == [True] * 4


def test_a_training_goes_on_where_it_was_stopped(tokenizer, tmp_path, monkeypatch):
    """The same weights as in one go, to the bit; and an average that is not the weights."""
    task, _ = make("base", tokenizer, 2)
    one = training.Trainer(task, some_scenes(), tmp_path / "one.npz", "this")
    assert one.go_on(1) and not one.go_on(2, deadline=0.0) and one.step == 1
    monkeypatch.setattr(training, "plan_training", lambda *_: one.plan)  # compiled once
    two = training.Trainer(task, some_scenes(), tmp_path / "one.npz", "this")
    assert one.go_on(2) and two.go_on(2) and two.step == 2
    with pytest.raises(UserError, match=r"one\.npz: a run of other settings; give another --out"):
        training.Trainer(task, some_scenes(), tmp_path / "one.npz", "another")
    training.write_weights(tmp_path / "weights.npz", one.state.averaged)
    again = tree.flatten(training.read_weights(tmp_path / "weights.npz"))
    for path, leaf in tree.flatten(two.state.averaged).items():
        np.testing.assert_array_equal(leaf, again[path])
    assert any((leaf != again[path]).any() for path, leaf in tree.flatten(one.state.params).items())
    latents = lambda position: task.batch(some_scenes(), position)["images"][:, 0, 0, 0, 0]
    first, second = latents(0), latents(8)
    assert set(first[:4]) == set(first[4:]) == set(second[:4])  # epochs of four, in other orders
    assert len({tuple(x) for x in (first[:4], first[4:], second[:4], second[4:])}) > 1


def test_marks_say_which_scene_has_a_factor_right():
    wanted = [make_scene("test", i)[0] for i in range(40)]
    wanted = [scene for scene in wanted if scene.groups]
    right = scenes.marks(wanted, list(map(found, wanted)))
    assert set("".join(right.values())) == {"1"}
    none = scenes.marks([Scene((), None, "red", "HI")], [found(Scene((), None, "red", "HI"))])
    assert none["object"] == "-" and none["all"] == "1"
    wrong = scenes.marks(wanted[:1], [found(Scene((), None, "red", "HI"))])
    assert wrong["object"] == wrong["background"] == wrong["all"] == "0"
    dog = Group("dog", 1, "normal")
    of = lambda kind: Scene((Group(kind, 2, "small"),), None, "red", None)
    kinds = [
        {kind for kind in KINDS if scenes.is_chosen(of(kind), size.every)}
        for size in (SIZE, sizes.SIZES["gpu"])
    ]
    assert list(map(len, kinds)) == [6, 12] and kinds[0] < kinds[1]
    assert not scenes.is_chosen(Scene((dog, dog), "on", "blue", None), 8)
    assert not scenes.is_chosen(Scene((), None, "blue", "HI"), 8)


def test_groups_of_scenes_are_of_one_size():
    for count in (1, tasks.AT_ONCE, tasks.AT_ONCE + 1):
        parts = tasks.groups(count)
        assert {len(part) for part in parts} == {tasks.AT_ONCE}
        np.testing.assert_array_equal(tasks.joined(parts, count), np.arange(count))


# What there is to do, and what came out


def do_all(arm, loss, seeds=jobs.SEEDS):
    """Records of an arm, as run.py would write them, and the jobs in order."""
    records, done = [], []
    for seed in seeds:
        while job := jobs.next_job(arm, seed, records, SIZE.rates):
            kind, lr, share = job
            done.append((seed, *job))
            there = jobs.of_arm(arm, records)
            if (lr, seed) not in there:
                records.append(dict(arm=arm, lr=lr, seed=seed, step_flops=2.0e9, batch=4, marks={},
                                    scores={}, device="abacus", scored_on="abacus",
                                    train_seconds=60.0, score_seconds=6.0))  # fmt: skip
            record = jobs.of_arm(arm, records)[lr, seed]
            if kind == "train":
                mark = dict(step=100 * share, flops=1e12 * share, validation_loss=loss(lr))
                record["marks"][str(share)] = mark
            else:
                record["sampling"] = {"guidance": 2.0, "tried": []}
                record["scores"][str(share)] = fake_scores(seed, share)
    return records, done


def fake_scores(seed, share):
    of = {f: "1101" if share == 1 else "0001" for f in scenes.FACTORS}
    return dict(drawing=of, caption=of, words=[4, 4, 4, 4], nll=[4.0 + seed, 4, 4, 4],
                nll_seen=[2.0] * 4, image=[0.5] * 4)  # fmt: skip


def test_jobs_tune_first_and_score_last():
    low, high = SIZE.rates
    records, done = do_all("causal", lambda lr: -lr, seeds=(0, 1))
    assert done == [
        (0, "train", low, 0.25), (0, "train", high, 0.25), (0, "train", high, 0.5),
        (0, "train", high, 1.0), (0, "score", high, 1.0), (1, "train", high, 0.25),
        (1, "train", high, 0.5), (1, "train", high, 1.0), (1, "score", high, 1.0),
    ]  # fmt: skip
    assert jobs.best_rate("causal", records, SIZE.rates) == high
    upward = do_all("causal", lambda lr: lr, seeds=(0,))[0]
    assert jobs.best_rate("causal", upward, SIZE.rates) == low
    assert jobs.next_job("causal", 1, [], SIZE.rates) is None  # seed 0 chooses
    assert jobs.spent("causal", records) == 3 * 66.0
    _, done = do_all("base", lambda lr: lr, seeds=(0,))
    assert [job[3] for job in done if job[1] == "score"] == [1.0, 0.5, 0.25]


def test_a_record_of_other_settings_is_refused(tmp_path):
    """Another rate, or as many steps more: it says so, and which folder."""
    config, file = arms.make_config("base", SIZE, 1e-3, 0), tmp_path / "record.json"
    of = jobs.digest("base", SIZE, config)
    assert jobs.read_record(file, of) is None
    file.write_text(json.dumps({"config": of}))
    assert jobs.read_record(file, of) == {"config": of}
    others = [
        jobs.digest("base", SIZE, arms.make_config("base", SIZE, 2e-3, 0)),
        jobs.digest("base", dataclasses.replace(SIZE, steps=SIZE.steps + 1), config),
        jobs.digest("causal", SIZE, config),
    ]
    for other in others:
        with pytest.raises(UserError, match=r"record\.json: a run of other settings; give another"):
            jobs.read_record(file, other)


def test_a_folder_of_other_scenes_or_tokenizers_is_refused(tmp_path):
    file = tmp_path / "inputs.json"
    codecs = lambda x: {"latents": (None, {"w": np.full(3, x)}), "codes": (None, {"w": np.ones(2)})}
    scenes._check_inputs(file, 8, codecs(1.0))
    scenes._check_inputs(file, 8, codecs(1.0))
    for every, x in ((4, 1.0), (8, 2.0)):
        with pytest.raises(UserError, match="of another size or other tokenizers"):
            scenes._check_inputs(file, every, codecs(x))


def test_processes_that_share_a_device_count_their_part(monkeypatch):
    monkeypatch.setattr(training.time, "monotonic", lambda: 12.0)
    monkeypatch.setattr(training.time, "process_time", lambda: 5.0)
    assert training.clock(4) == 5.0  # a CPU's seconds are its own
    monkeypatch.setattr(training.jax, "default_backend", lambda: "gpu")
    assert training.clock(4) == 3.0


def test_intervals_speak_of_scenes_and_seeds():
    marks = statistic.Table.of_marks(["11-0" * 9, "10-0" * 9])
    same = lambda x: x
    assert statistic.estimate(same, marks).value == pytest.approx(0.5)
    mean = statistic.Table.mean_of([marks, statistic.Table.of_marks(["1" * 36] * 2)])
    assert statistic.estimate(same, mean).value == pytest.approx(0.75)
    # The mean of n normal numbers of one seed: half of the interval is 1.96 / sqrt(n).
    x = np.random.default_rng(0).normal(size=(1, 400))
    x = (x - x.mean()) / x.std()
    one = statistic.estimate(same, statistic.Table(x, np.ones_like(x)))
    assert (one.high - one.low) / 2 == pytest.approx(1.96 / 20, rel=0.08)
    # Seeds that differ by a constant: wider, and the difference of an arm from itself is narrow
    # in scenes, which are the same, and not in seeds.
    three = statistic.Table(np.array([[0.0], [1.0], [2.0]]) + 0 * x, np.ones((3, 400)))
    assert statistic.estimate(same, three).low < 0.4 < 1.6 < statistic.estimate(same, three).high
    minus = statistic.estimate(lambda a, b: a - b, *[statistic.Table(x, np.ones_like(x))] * 2)
    assert (minus.low, minus.high) == (0.0, 0.0)


def test_a_table_says_what_is_unfinished():
    ceiling = {f: "1111" for f in scenes.FACTORS}
    records = do_all("base", lambda lr: lr)[0] + do_all("discrete", lambda lr: lr, seeds=(0,))[0]
    results = {"size": "cpu", "ceilings": {"latents": ceiling, "codes": ceiling}, "runs": records}
    text = report.table(results)
    assert "| causal | unfinished: 0 of 3 |" in text and "| base | 3 | 0.75 [" in text
    assert "| discrete | unfinished: 1 of 3 | 0.75 [" in text
    assert "| discrete | 0.25 | unfinished: 1 of 3 | 0.25 [" in text
    # Level at the same budget, by drawing; discrete has but the first seed, whose captions are as
    # likely as base's are at most, at its first mark.
    assert "| drawing | 1.00 |" in text
    perplexity = report.value(report.scored("base", results), "perplexity")
    assert perplexity.value == pytest.approx(np.exp((4 + 5 + 6 + 36) / 48))


@pytest.mark.parametrize("size", sizes.SIZES)
def test_what_was_measured_is_what_is_said(size):
    """The table agrees with the results of the JSON beside it."""
    results = json.loads((report.HERE / f"results_{size}.json").read_text())
    assert (report.HERE / f"table_{size}.md").read_text() == report.table(results)
    assert results["size"] == size
    assert {record["arm"] for record in results["runs"]} <= set(arms.ARMS)
