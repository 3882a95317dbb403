"""The study of `experiments/clip_efficiency`: its models, its questions, its arithmetic."""

import dataclasses
import functools
import itertools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import studies

from mmx.core import tree
from mmx.data import scene_grammar as grammar
from mmx.data.scene_splits import broken_rules, make_scene
from mmx.nn.vit import VisionTransformer

NAMES = ("choices", "objectives", "predictors", "report", "run")
choices, objectives, predictors, report, run = studies.load("clip_efficiency", *NAMES)

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)


def tower(pool):
    return VisionTransformer(patch=16, width=8, depth=1, heads=2, mlp=16, pool=pool)


def fill(shapes, std):
    """Parameters without a compiled init: normal, and norms as they start."""
    rng = np.random.default_rng(1)

    def one(path, leaf):
        is_scale = path.rsplit("/", 1)[-1] == "scale"
        value = np.ones(leaf.shape) if is_scale else std * rng.normal(size=leaf.shape)
        return value.astype(np.float32)

    return tree.map_with_path(one, nn.unbox(shapes))


@functools.cache
def captioner():
    """(model, parameters so large that its probabilities are far from uniform)."""
    model = predictors.Captioner(tower("none"), 4, 3, 8, 2, 2, 16, "gelu")
    args = jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 3), int)
    return model, fill(jax.eval_shape(model.init, KEY, *args)["params"], 0.7)


def test_probabilities_of_all_captions_sum_to_one():
    """So no token sees itself or what comes after it."""
    model, params = captioner()
    ids_BT = np.array([*itertools.product(range(4), repeat=3)])
    images = np.repeat(IMAGES[:1] / 255.0, len(ids_BT), 0)
    hidden, head = jax.jit(model.apply)({"params": params}, images, ids_BT)
    logs_B = predictors.token_log_probs(hidden, head, ids_BT, 4).sum(-1)
    assert np.exp(logs_B).max() > 2 / 64  # far from uniform
    np.testing.assert_allclose(np.exp(logs_B).sum(), 1.0, rtol=1e-5)


def test_all_tokens_are_those_of_clips_tower():
    """Its class token is the vector that the contrastive arm has."""
    args = fill(jax.eval_shape(tower("cls").init, KEY, IMAGES / 255.0), 0.5), IMAGES / 255.0
    tokens_BLD = jax.jit(tower("none").apply)(*args)
    assert tokens_BLD.shape == (2, 5, 8)
    np.testing.assert_allclose(tokens_BLD[:, 0], jax.jit(tower("cls").apply)(*args), rtol=1e-4)


def test_a_caption_is_scored_as_it_is_trained_on():
    """The scorer's likelihoods, candidate by candidate, and the loss of the same rows."""
    model, params = captioner()
    ids_NT = np.array([[2, 1, 0], [3, 2, 1], [1, 0, 0]])
    of_image, of_text = np.array([0, 1, 1, 0]), np.array([0, 1, 2, 2])
    found = choices.caption_scores(model, params, IMAGES, ids_NT, of_image, of_text)
    assert abs(found["sum"][2] - found["sum"][3]) > 0.01  # one text, two images
    lengths = np.array([2, 3, 1])[of_text]
    np.testing.assert_allclose(found["sum"], found["mean"] * lengths, rtol=1e-5)
    task = object.__new__(objectives.Captioning)
    task.model, task.config = model, objectives.make_config("captioning", 1, 0, 1, "", tiny=True)
    task.config.text.vocab_size = 4
    loss = jax.jit(lambda batch: task.loss(params, {}, {}, batch, None, 0)[0])
    for i, (image, text) in enumerate(zip(of_image, of_text)):
        one = loss({"image": IMAGES[image, None], "text_ids": ids_NT[text, None]})
        np.testing.assert_allclose(-one, found["mean"][i], rtol=1e-5)


def test_probabilities_of_all_bags_sum_to_one():
    odds = jnp.array([3.0, -3.0, 0.3, -1.0, 2.0])  # of padding, of the end and of three words
    bags = np.array([(0, 0, *words) for words in itertools.product((0, 1), repeat=3)], bool)
    logs = predictors.bag_log_prob(jnp.tile(odds, (8, 1)), bags)
    np.testing.assert_allclose(np.exp(logs).sum(), 1.0, rtol=1e-5)
    ids = jnp.array([[4, 2, 4, 1, 0]])  # twice the same word
    assert predictors.bag_of(ids, 5).tolist() == [[False, False, True, False, True]]


def test_flops_are_those_of_the_products():
    """By hand: three passes; the patches' need no gradient of the pixels."""
    task = objectives.Words(objectives.make_config("words", 1, 0, 1, "", tiny=True), None, True)
    D, L, F = 32, 17, 128
    block = 4 * 2 * L * D * D + 2 * 2 * L * L * D + 2 * 2 * L * D * F
    patches, head = 2 * 16 * 192 * D, 2 * D * 640
    assert task.use_flops() == {"image": patches + block + head, "text": 0.0, "pair": 0.0}
    assert task.step_flops() == 8 * (2 * patches + 3 * (block + head))


def test_candidates_differ_in_one_factor_and_are_of_training():
    scenes = [make_scene("test", i)[0] for i in range(60)]
    questions = choices.make_questions(scenes)
    assert {q.factor for q in questions} == set(choices.FACTORS)
    for q in questions:
        scene = scenes[q.image]
        assert q.captions[0] == grammar.caption(scene)
        assert 2 <= len(set(q.captions)) == len(q.captions) <= choices.CAPTIONS
        for caption in q.captions[1:]:
            other = grammar.parse(caption)
            assert not broken_rules(other)
            if q.factor in ("background", "relation", "word"):
                changed = {f for f in ("groups", "relation", "background", "word")
                           if getattr(other, f) != getattr(scene, f)}  # fmt: skip
                assert changed == {q.factor}
            elif q.factor == "order":
                assert other.groups == scene.groups[::-1] and other.relation == scene.relation
            elif q.factor != "caption":
                field = "kind" if q.factor == "object" else q.factor
                mine, *rest = scene.groups
                changed = dataclasses.replace(mine, **{field: getattr(other.groups[0], field)})
                assert changed != mine and other.groups == (changed, *rest)
    assert questions == choices.make_questions(scenes)
    with pytest.raises(ValueError, match="one of object"):
        choices.variants(scenes[0], "colour")


def test_accuracy_shares_a_tie():
    assert [choices.hit(x) for x in ([2, 1, 0], [1, 2, 0], [1, 1, 0], [1, 1, 1, 1])] == [
        1.0, 0.0, 0.5, 0.25
    ]  # fmt: skip
    questions = [choices.Question("size", 0, ("a", "b")), choices.Question("size", 1, ("a", "c"))]
    assert choices.accuracies(questions, [np.array([1, 0]), np.array([3, 3])]) == {"size": 0.75}
    assert choices.chance(questions) == {"size": 0.5}
    texts, of_image, of_text = choices.pairs(questions)
    assert texts == ["a", "b", "c"]
    assert of_image.tolist() == [0, 0, 1, 1] and of_text.tolist() == [0, 1, 0, 2]


def test_the_interval_of_seeds():
    middle, low, high = report.interval([1.0, np.e, np.e**2])
    # Student's 97.5 % of two degrees of freedom, 4.3027; the deviation of 0, 1, 2 is 1.
    assert np.log([middle, low, high]) == pytest.approx(1 + 4.3027 / 3**0.5 * np.array([0, -1, 1]),
                                                        abs=1e-4)  # fmt: skip


def fake_run(arm, lr, seed, steps, value):
    score = {run.MAIN[arm]: {"size": value}}
    return dict(arm=arm, lr=lr, seed=seed, steps=steps, validation=score, test=score,
                cpu_seconds=1.0, flops=steps * (3.0 if arm == "words" else 1.0), examples=steps,
                test_chance={"size": 0.5}, test_questions={"size": 9},
                use_flops=dict(image=1, text=1, pair=1))  # fmt: skip


def finish(arm, best, value):
    """All runs of an arm, as run.py would do them; ``value``: (lr, steps) -> accuracy."""
    runs = []
    while wanted := run.next_run(arm, runs):
        lr, seed, steps = wanted
        runs.append(fake_run(arm, lr, seed, steps, value(steps) - abs(np.log2(lr / best)) / 100))
    return runs


def test_runs_are_planned_and_an_arm_costs_what_its_curve_says():
    rising = lambda steps: 0.5 + 0.1 * np.log2(steps / 100)  # 0.7 at 400 steps
    runs = finish("contrastive", 8e-3, rising)
    assert [r["lr"] for r in runs[:5]] == [1e-3, 2e-3, 4e-3, 8e-3, 16e-3]  # until no edge is best
    assert len(runs) == 5 + len(run.SEEDS) * len(run.BUDGETS) - 1  # one of them tuned
    assert run.next_run("contrastive", runs[:7] + runs[8:]) == tuple(
        runs[7][k] for k in ("lr", "seed", "steps")
    )
    runs += finish("captioning", 1e-3, lambda steps: rising(steps) - 0.15)
    runs += finish("words", 2e-3, rising)
    assert min(run.rates("captioning", runs)) == 5e-4
    cell = functools.partial(report.ratio_cell, runs=runs, factor="size", level=0.65)
    assert cell("captioning", axis="flops") == "2.83 [2.83, 2.83]"
    assert cell("words", axis="flops") == "3.00 [3.00, 3.00]"
    assert cell("words", axis="examples") == "1.00 [1.00, 1.00]"
    cell = functools.partial(report.ratio_cell, runs=runs, factor="size", axis="flops")
    assert cell("captioning", level=0.75) == "> 1.41"  # 800 steps are not enough; 566 were
    assert cell("captioning", level=0.5) == "> 2.83"  # 100 steps or fewer are enough; 283 were
    assert cell("captioning", level=0.85) == "-" and cell("words", level=0.4) == "-"
    assert "not reached" in report.table(runs) and "unfinished" not in report.table(runs)
    assert "unfinished: 2" in report.table(runs[:-1]) and "| unfinished |" in report.table(
        runs[:-1]
    )


def test_what_was_measured_is_what_is_said():
    """The table agrees with the runs of the JSON beside it."""
    runs = json.loads((report.HERE / "results.json").read_text())
    assert (report.HERE / "table.md").read_text() == report.table(runs)
    assert {r["arm"] for r in runs} == set(run.ARMS)
