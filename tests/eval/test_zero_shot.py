"""Classes by their names and by a ridge probe, against direct computations."""

import numpy as np
import pytest

from mmx.core.errors import UserError
from mmx.eval import ranking, zero_shot


def embed(texts):
    """A unit vector a text, the same for the same text."""
    out = []
    for text in texts:
        seed = np.frombuffer(text.encode(), np.uint8).astype(int).tolist()
        out.append(np.random.default_rng(seed).normal(size=8))
    return np.stack([x / np.linalg.norm(x) for x in out])


def test_prompts_are_averaged_as_embeddings():
    """B23: one template is no ensemble, a repeated one is no vote, and the mean has length 1."""
    names = ["dog", "cat", "red heart"]
    one = zero_shot.class_embeddings(embed, names, ["a {}."])
    np.testing.assert_allclose(one, embed([f"a {name}." for name in names]))
    twice = zero_shot.class_embeddings(embed, names, ["a {}.", "a {}."])
    np.testing.assert_allclose(twice, one)
    both = zero_shot.class_embeddings(embed, names, ["a {}.", "the {}"])
    for row, name in zip(both, names):
        mean = embed([f"a {name}.", f"the {name}"]).mean(0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean))
    for bad in ("a dog", "{} or {}"):
        with pytest.raises(UserError, match=r"--templates=f: .* needs one"):
            zero_shot.check_templates([bad], "--templates=f")
    with pytest.raises(UserError, match="no template in it"):
        zero_shot.check_templates([], "--templates=f")
    zero_shot.check_templates(zero_shot.TEMPLATES, "ours")


def test_only_classes_that_occur_are_answers():
    """B24: of a thousand names with pictures of two hundred, chance is one in two hundred."""
    label_N = np.repeat(np.arange(0, 1000, 5), 3)
    flat = zero_shot.accuracy(np.zeros((600, 1000)), label_N)
    assert flat["top1"].value == pytest.approx(1 / 200) and flat["chance"] == 1 / 200
    assert flat["top5"].value == pytest.approx(5 / 200) and flat["top1"].n == 600
    random = np.random.default_rng(0).normal(size=(600, 1000))
    assert zero_shot.accuracy(random, label_N)["top1"].value < 0.03
    random[:, np.arange(1000) % 5 != 0] += 10  # better, but of classes that do not occur
    random[np.arange(600), label_N] += 8
    assert zero_shot.accuracy(random, label_N)["top1"].value > 0.95


def test_the_mean_over_classes_weighs_each_the_same():
    likeness = np.eye(2)[[0, 0, 0, 0]]
    scores = zero_shot.accuracy(likeness, np.array([0, 0, 0, 1]))
    assert scores["top1"].value == 0.75 and scores["mean_per_class"] == 0.5
    assert "top5" not in scores


def test_the_ridge_is_the_closed_form():
    rng = np.random.default_rng(0)
    feature_ND, label_N = rng.normal(size=(40, 6)) * 3 + 1, rng.integers(0, 3, 40)
    x = (feature_ND - feature_ND.mean(0)) / feature_ND.std(0)
    x1, y = np.concatenate([x, np.ones((40, 1))], 1), np.eye(3)[label_N]
    for penalty in (1e-3, 0.5):
        free = np.diag([penalty] * 6 + [0.0])  # the bias is not penalised
        weight = np.linalg.solve(x1.T @ x1 / 40 + free, x1.T @ y / 40)
        got = zero_shot.Ridge(feature_ND, label_N, 3).at(penalty)(feature_ND)
        np.testing.assert_allclose(got, x1 @ weight, atol=1e-6)


def test_the_probe_learns_what_is_linear_and_nothing_of_noise():
    rng = np.random.default_rng(0)
    label_N = rng.integers(0, 4, 400)
    centre = rng.normal(size=(4, 20))
    feature_ND = centre[label_N] + 0.5 * rng.normal(size=(400, 20))
    classify = zero_shot.fit_probe(feature_ND[:200], label_N[:200], 4)
    assert (classify(feature_ND[200:]).argmax(1) == label_N[200:]).mean() > 0.95
    noise = rng.normal(size=(400, 300))
    classify = zero_shot.fit_probe(noise[:200], label_N[:200], 4)
    assert (classify(noise[200:]).argmax(1) == label_N[200:]).mean() < 0.4


def test_reranking_orders_by_cosine():
    """B14: of one picture nothing changes; the best only gets better with more of them."""
    rng = np.random.default_rng(0)
    image_NE = rng.normal(size=(20, 5))
    image_NE /= np.linalg.norm(image_NE, axis=1, keepdims=True)
    text_E = image_NE[7]
    best = [ranking.rerank(image_NE[:n], text_E)[1][0] for n in range(1, 21)]
    assert best == sorted(best) and best[-1] == pytest.approx(1)
    order, cosine = ranking.rerank(image_NE, text_E)
    assert order[0] == 7 and sorted(order) == list(range(20))
    np.testing.assert_allclose(cosine, [image_NE[i] @ text_E for i in order])
    assert (np.diff(cosine) <= 0).all()
    assert ranking.rerank(image_NE[:1], text_E)[0].tolist() == [0]
    assert ranking.rerank(image_NE[[3, 3, 3]], text_E)[0].tolist() == [0, 1, 2]
