"""The study clip_transfer: its attack, its words, its pools, and the table that it prints."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import studies

HERE = Path(__file__).resolve().parents[2] / "experiments" / "clip_transfer"
NAMES = ("arms", "attacks", "drawings", "report", "scores")
arms, attacks, drawings, report, scores = studies.load("clip_transfer", *NAMES)


def drawing(name, base, split, tone="", concept=None, flag=False, grey=None):
    caption = f"{base}, {tone} skin tone" if tone else base
    rng = np.random.default_rng(abs(hash_of(grey or name)))
    pictures = {a: rng.integers(0, 256, (64, 64, 3)).astype(np.uint8) for a in drawings.ARTISTS}
    return drawings.Drawing(name, caption, base, concept or base, flag, split, pictures)


def hash_of(text: str) -> int:
    return int.from_bytes(text.encode()[:8], "big")


def test_the_attack_finds_the_optimum_of_a_linear_model():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(2, 5, 5, 3)).astype(np.float32)
    image = rng.uniform(0, 255, weight.shape).astype(np.float32)
    image[0, 0], image[1, 1] = 255.0, 0.0  # where the ball reaches beyond what a pixel can be
    score = lambda w, x, label: (w * x).sum((1, 2, 3)) + 0.0 * label
    for start in (np.zeros_like(image), rng.uniform(-1, 1, image.shape).astype(np.float32)):
        found, value = attacks.pgd(score, weight, image, np.zeros(2, int), 3.0, start, 20)
        best = np.clip(image + 3.0 * np.sign(weight), 0, 255)
        np.testing.assert_allclose(found, best, atol=1e-3)
        np.testing.assert_allclose(value, (weight * best).sum((1, 2, 3)), rtol=1e-4)


def test_the_attack_keeps_the_best_on_its_way_and_stays_in_the_ball():
    # Steps of 2.9 jump to and fro over a peak 3 above the image: the first comes nearest to it.
    peak = lambda _, x, label: -jnp.abs(x - 103.0).sum((1, 2, 3))
    image = np.full((1, 2, 2, 3), 100.0, np.float32)
    zero = np.zeros_like(image)
    found, value = attacks.pgd(peak, 0, image, np.zeros(1, int), 8.0, zero, 7)
    np.testing.assert_allclose(found, 100 + 2.5 * 8 / 7, rtol=1e-6)
    np.testing.assert_allclose(value, peak(0, np.asarray(found), 0))
    nothing, _ = attacks.pgd(peak, 0, image, np.zeros(1, int), 0.0, zero, 3)
    np.testing.assert_array_equal(nothing, image)


def test_the_margin_has_a_slope_where_a_softmax_has_none():
    logits, label = jnp.array([[300.0, 0.0, -5.0], [1.0, 4.0, 2.0]]), jnp.array([0, 0])
    np.testing.assert_allclose(attacks.margin(logits, label), [-300, 3])
    slope = jax.jit(jax.grad(lambda x: attacks.margin(x, label).sum()))(logits)
    np.testing.assert_array_equal(slope, [[-1, 1, 0], [-1, 1, 0]])
    cross_entropy = lambda x: -jax.nn.log_softmax(x)[0, 0]
    assert not np.any(jax.jit(jax.grad(cross_entropy))(logits))


def test_ink_in_pieces_is_the_same_ink_elsewhere():
    for pixels, height in ((64, 20), (32, 10)):
        dark = attacks.darkness("cat", pixels)
        pieces = attacks.scrambled(dark, np.random.default_rng(0))
        assert dark.shape == pieces.shape == (height, 3 * height * 8 // 10)
        np.testing.assert_array_equal(np.sort(dark, None), np.sort(pieces, None))
        assert np.abs(dark - pieces).mean() > 0.1
        picture = np.full((64, 64, 3), 200, np.uint8)
        written = attacks.write(picture, dark)
        changed = (written != picture).any(-1)
        rows, columns = np.nonzero(changed)
        assert rows.max() == 62 and rows.min() == 61 - height
        assert columns.max() - columns.min() == dark.shape[1] + 1
        assert 29 <= written.min() < 50 and written[changed].max() == 255
        assert (written < 142).all(-1).sum() == (dark > 0.5).sum() > 20


def test_pools_are_alike_and_leave_out_what_leaked():
    both = [drawing(f"s{i}", f"seen {i}", "train") for i in range(6)]
    both += [drawing(f"f{i}", f"flag {i}", "train", flag=True) for i in range(3)]
    for base in ("waver", "runner"):
        both.append(drawing(base, base, "train"))
        both += [drawing(f"{base}{t}", base, "train_toned", t) for t in ("light", "dark")]
    both += [drawing("u0", "new 0", "test"), drawing("uf", "flag u", "test", flag=True)]
    both += [drawing("u1", "new 1", "test", t) for t in ("light", "")]
    both.append(drawing("1F436", "dog face", "test"))  # a kind of the scenes
    both.append(drawing("copy", "copied", "test", grey="s3"))  # the picture of "seen 3"
    leaks = drawings.leaks(both)
    assert leaks == {"scenes": ["dog face"], "picture": ["copied"]}
    pools = drawings.pools(both, {"dog face", "copied"}, seed=0)
    assert {d.base for d in pools["unseen"]} == {"new 0", "new 1", "flag u"}
    shape = lambda pool: sorted(
        (sum(d.base == base for d in pool), sum(d.is_flag for d in pool if d.base == base))
        for base in {d.base for d in pool}
    )
    assert shape(pools["seen"]) == shape(pools["unseen"]) == [(1, 0), (1, 1), (2, 0)]
    assert all(d.split in drawings.TRAINED for d in pools["seen"])
    two = [d for d in pools["seen"] if d.base in ("waver", "runner")]
    assert len(two) == 2 and not two[0].is_toned
    with pytest.raises(ValueError, match="no base of 1"):
        drawings.pools([d for d in both if not (d.is_flag and d.split == "train")], set(), 0)


def test_a_tone_sibling_is_right_and_other_views_are_found():
    pool = [
        drawing("a", "a", "test"),
        drawing("a1", "a", "test", "dark"),
        drawing("b", "b", "test"),
    ]
    likeness = np.array([[0, 1, 0.5], [0.2, 0.1, 0.9], [0.3, 0.2, 0.9]])
    found = scores.ranks(likeness, scores.same_base(pool))
    np.testing.assert_allclose(found["r1"], [1, 0, 1])
    hits, nearest = scores.matches(scores.pixel_likeness, {"unseen": pool})
    assert set(hits) == {f"match/unseen/{a}/r{k}" for a in ("same", "new") for k in (1, 5)}
    assert nearest["unseen"].shape == (3, 3)
    blank = np.full((64, 64, 3), 255, np.uint8)
    blank[8:56, 8:56] = 0
    view = drawings.other_view(blank, np.random.default_rng(0))
    assert view.shape == blank.shape and view.dtype == np.uint8
    assert (view < 128).sum() == (blank < 128).sum() * 9 / 16


def test_the_classifier_learns_and_its_margin_is_that_of_its_logits(build):
    """The control: steps against the gradient lower the loss, and reach the image tower."""
    config = build.changed("clip/openmoji64:tiny", {"model.image.depth": 1})
    task = arms.ClassifierTask(config, build.run_dir(), ["dog", "cat", "sun"])
    example = {"image": build.images(1, 64)[0], "text": "a cat", "concept": "cat"}
    row = task.transform(example, np.random.default_rng(0))
    assert row["label"] == 1 and row["image"].shape == (64, 64, 3)
    batch = {"image": build.images(3, 64), "label": np.arange(3)}

    @jax.jit
    def step(params):
        loss = lambda params: task.loss(params, {}, {}, batch, None, 0)
        (value, (metrics, _)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        patches = jnp.abs(grads["image"]["tower"]["patches"]["kernel"]).max()
        new = jax.tree.map(lambda x, g: x - 0.1 * g, params, grads)
        return new, (value, metrics["accuracy"], patches)

    params, _ = build.params(task)
    losses = []
    for _ in range(12):
        params, (value, accuracy, patches) = step(params)
        losses.append(float(value))
    assert abs(losses[0] - np.log(3)) < 0.7 and losses[-1] < losses[0] - 0.2
    assert patches > 0 and accuracy == 1
    nets = arms.Nets(task, {"dog": ["a dog"], "cat": ["cat", "a cat"], "sun": ["sun"]})
    # Of CLIP: the nearest caption of a class counts.
    np.testing.assert_array_equal(nets._nearest(np.array([[3, 1, 5, 4]])), [[3, 5, 4]])
    net = nets.net(params)
    logits, label = net.logits(batch["image"]), batch["label"]
    found = jax.jit(net.margin)(net.weights, batch["image"].astype(np.float32), label)
    np.testing.assert_allclose(found, attacks.margin(logits, label), atol=1e-4)
    assert (logits.argmax(1) == label).all() and (found < 0).all()


def test_the_table_is_of_the_results_and_the_readme_of_the_table():
    results = json.loads((HERE / "results.json").read_text())
    table = report.table(results)
    assert (HERE / "table.md").read_text() == table
    lines = (HERE / "README.md").read_text().splitlines()
    shown = [line for line in lines if line.startswith("|")]
    assert shown and set(shown) <= set(table.splitlines())
    # What is not finished is said, whichever it is.
    del results["arms"]["clip"]["seeds"]["0"]
    assert "clip-0" in report.table(results).partition("\n")[0]
