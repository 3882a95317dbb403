"""The metrics by name: batches, padding and shards change nothing, controls are always beside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from experiments.parity import metric_inputs as inputs
from mmx.core import tree
from mmx.core.errors import UserError
from mmx.eval import evaluator, images, metrics, retrieval, sets
from mmx.pretrained import mobilenet
from mmx.pretrained.weights import weights_file

KIND = {"kid": "kid_mobilenetv2_96px", "fd": "fd_mobilenetv2_96px",
        "precision": "precision_recall_mobilenetv2_96px",
        "density": "density_coverage_mobilenetv2_96px"}  # fmt: skip
SMALL = metrics.Embedder(
    "mine@7",
    lambda x: images.as_float(x)[:, ::8, ::8].reshape(len(x), -1),
    lambda texts: np.stack([np.full(48, len(t)) - 2.0 * np.arange(48) for t in texts]),
)
ALL = ("psnr", "ssim", "captions", "perplexity", "clip_score", "cmmd")


def pixels(image):
    """Features without a network: the picture's own colours, 8 x 8."""
    return retrieval.shrink(image)[:, ::4, ::4].reshape(len(image), -1)


def table(count=23, size=32):
    """Rows of all that an evaluator may ask for; what is drawn is near to what is real."""
    rng = np.random.default_rng(0)
    real, other = np.split(inputs.images(2 * count, size, size), 2)
    return {
        "image": inputs.noisy(real),
        "real": real,
        "reference": other,
        "text": [f"{i} words " * (1 + i % 3) for i in range(count)],
        "caption": [inputs.CAPTIONS[i % 5] for i in range(count)],
        "references": [inputs.REFERENCES[i % 5] for i in range(count)],
        "nll": rng.uniform(1, 9, count),
        "tokens": rng.integers(1, 5, count),
    }


def cut(rows, size):
    """Batches of one size, the last filled up with rows that must not count."""
    count = len(rows["image"])
    for start in range(0, count, size):
        take = [i if i < count else 0 for i in range(start, start + size)]
        batch = {k: v[take] if hasattr(v, "shape") else [v[i] for i in take]
                 for k, v in rows.items()}  # fmt: skip
        yield batch | {"_mask": np.arange(start, start + size) < count}


def net(extract=pixels):
    return metrics.PerBatch("net", extract)


def all_evaluators():
    features = net()
    moments = metrics.SetMetric("net", metrics._frechet, moments=True)
    return [
        *(
            metrics.of_sets(
                name.replace("mobilenetv2_96px", "net"), metrics.SET_METRICS[name], features
            )
            for name in KIND.values()
        ),
        metrics.of_sets("fid_net", moments, net(lambda x: pixels(x)[:, :10])),
        *metrics.make(ALL, embedder=SMALL),
    ]


def flat(scores):
    values = {}
    for name, score in scores.items():
        ends = (
            (score,) if isinstance(score, float) else (score.value, score.low, score.high, score.n)
        )
        values |= {f"{name}:{i}": v for i, v in enumerate(ends)}
    return values


def test_neither_batches_nor_padding_nor_shards_change_a_result():
    rows = table()
    whole = flat(evaluator.run(all_evaluators(), [rows]))
    assert len(whole) > 60
    for size in (1, 7, 64):
        cut_up = flat(evaluator.run(all_evaluators(), cut(rows, size)))
        assert cut_up == pytest.approx(whole, rel=1e-9, abs=1e-9)
    batches = list(cut(rows, 3))
    for e in all_evaluators():
        hosts = [batches[i::4] for i in range(4)]
        states = []
        for mine in hosts:
            state = e.init()
            for batch in mine:
                state = e.update(state, batch)
            states.append(state)
        merged = flat(e.result(evaluator.merged(e, states)))
        for name in merged:
            # A bootstrap's interval is drawn by place, and a host's rows lie together.
            if not name.startswith("cider") or name.endswith(":0"):
                assert merged[name] == pytest.approx(whole[name], rel=1e-9, abs=1e-9), name


def test_updates_leave_the_state_before_as_it_was():
    rows = table(6)
    for e in all_evaluators():
        once = e.update(e.init(), rows)
        before = flat(e.result(once))
        e.update(once, rows)
        e.merge(once, once)
        assert flat(e.result(once)) == before


def test_a_floor_and_a_control_stand_beside_each_distance():
    rows = table(60)
    made, real = all_evaluators()[: len(KIND)], rows["real"]
    scores = evaluator.run(made, [rows])
    blurred = evaluator.run(made, [rows | {"image": metrics.blur(real)}])
    value = lambda s: getattr(s, "value", s)
    for name in ("kid_net", "fd_net_n60"):
        assert value(scores[f"{name}/real_vs_real"]) < value(scores[name])
        assert scores[f"{name}/blurred"] == blurred[name] != scores[f"{name}/real_vs_real"]
    assert {"precision_net", "recall_net", "density_net", "coverage_net"} <= scores.keys()
    # A model that draws the true images scores what true images score.
    perfect = evaluator.run(made, [rows | {"image": real}])
    assert perfect["kid_net"] == perfect["kid_net/real_vs_real"]
    assert scores["kid_net/real_vs_real"] == perfect["kid_net"]


def test_numbers_of_a_row_are_averaged_not_pooled():
    rows = table()
    psnr, ssim = metrics.make(("psnr", "ssim"))
    scores = evaluator.run([psnr, ssim], cut(rows, 5))
    each = images.psnr(rows["real"], rows["image"])
    assert scores["psnr"].value == pytest.approx(each.mean(), rel=1e-12)
    half = 1.959963984540054 * each.std(ddof=1) / len(each) ** 0.5
    assert scores["psnr"].high - scores["psnr"].value == pytest.approx(half, rel=1e-9)
    assert scores["psnr"].n == len(each)
    pooled = -10 * np.log10(np.mean((images.as_float(rows["real"]).astype(float)
                                     - images.as_float(rows["image"])) ** 2) / 4)  # fmt: skip
    assert abs(scores["psnr"].value - pooled) > 0.1


def test_known_values_of_rows():
    grey = np.full((4, 16, 16, 3), 100, np.uint8)
    shifted = np.full((4, 16, 16, 3), 110, np.uint8)
    scores = evaluator.run(metrics.make(("psnr", "ssim")), [{"real": grey, "image": shifted}])
    assert scores["psnr"].value == pytest.approx(-20 * np.log10(10 / 255), rel=1e-6)
    same = evaluator.run(metrics.make(("ssim",)), [{"real": grey, "image": grey}])
    assert same["ssim"].value == pytest.approx(1, rel=1e-12)

    (perplexity,) = metrics.make(("perplexity",))
    texts = {"nll": np.array([2.0, 6.0, 9.0]), "tokens": np.array([1, 3, 9]),
             "_mask": np.array([True, True, False])}  # fmt: skip
    assert evaluator.run([perplexity], [texts]) == {"perplexity": pytest.approx(np.exp(8 / 4))}


def test_clip_score_stands_between_the_true_pictures_and_the_captions_of_others():
    """All cosines by hand: 4 pictures of 3 captions, one of them twice."""
    of_image = {1: [2.0, 0], 2: [0, 3], 3: [1, 1], 4: [-1, 0], 5: [5, 0]}
    of_text = {"a": [1.0, 0], "b": [0, 1], "c": [-1, 0]}
    towards = metrics.Embedder(
        "m@7",
        lambda images: np.array([of_image[int(x[0, 0, 0])] for x in images]),
        lambda texts: np.array([of_text[t] for t in texts]),
    )
    picture = lambda *levels: np.stack([np.full((16, 16, 3), x, np.uint8) for x in levels])
    batch = {
        "image": picture(1, 2, 3, 4),
        "real": picture(5, 5, 5, 1),
        "text": ["a", "a", "b", "c"],
    }
    (made,) = metrics.make(("clip_score",), embedder=towards)
    scores = evaluator.run([made], [batch])
    root = 2**-0.5
    own = np.array([1, 0, root, 1])
    assert scores["clip_score_m@7"].value == pytest.approx(2.5 * own.mean())
    assert scores["clip_score_m@7/real"].value == pytest.approx(2.5 * np.mean([1, 1, 0, 0]))
    # Of each picture the mean over other captions: b c; b c; a a c; a a b.
    others = np.array([0, 1 / 2, 2 * root / 3, 0])
    assert scores["clip_score_m@7/shuffled"].value == pytest.approx(2.5 * others.mean())
    half = 1.959963984540054 * 2.5 * own.std(ddof=1) / 2
    assert scores["clip_score_m@7"].high - scores["clip_score_m@7"].value == pytest.approx(half)
    same = evaluator.run([made], [batch | {"text": ["a"] * 4}])
    assert "clip_score_m@7/shuffled" not in same and same["clip_score_m@7/real"].n == 4


def test_a_network_is_asked_once_for_all_its_metrics(tmp_path, monkeypatch):
    monkeypatch.setattr("mmx.eval.features._AT_ONCE", 1)
    file = weights_file("mobilenetv2", tmp_path)
    file.parent.mkdir()
    save_file(tree.flatten(mobilenet.convert(inputs.network(mobilenet.plan(), 1), "x")), file)
    made = metrics.make((*KIND.values(), "psnr"), tmp_path)
    assert [e.name for e in made] == [*KIND.values(), "psnr"]
    rows = table(7, 20)
    calls = []
    of = made[0].update.__closure__
    (features,) = (c.cell_contents for c in of if isinstance(c.cell_contents, metrics.PerBatch))
    extract = features._extract
    monkeypatch.setattr(features, "_extract", lambda x: calls.append(len(x)) or extract(x))
    for e in made:
        state = e.update(e.init(), rows)
        if e.name == KIND["kid"]:
            assert state["blurred"].n == 7 and state["image"].parts[0].shape == (7, 1280)
    assert calls == [7] * 4  # image, real, reference, blurred; and not again for another metric
    made[0].update(made[0].init(), dict(rows))
    assert len(calls) == 8


def test_lpips_runs_in_float32_and_is_compiled_once(monkeypatch):
    traced = []

    def distance(weights, a, b):
        traced.append((jax.config.jax_default_matmul_precision, a.shape))
        return weights * jnp.abs(a - b).mean((1, 2, 3))

    monkeypatch.setattr("mmx.eval.features._AT_ONCE", 1)
    monkeypatch.setattr("mmx.pretrained.lpips.distance", distance)
    monkeypatch.setattr("mmx.pretrained.networks.load", lambda *args: np.float32(3))
    rows = table(11)
    scores = evaluator.run(metrics.make(("lpips_vgg",)), cut(rows, 9))
    a, b = (images.as_float(rows[name]) for name in ("real", "image"))
    assert scores["lpips_vgg"].value == pytest.approx(3 * np.abs(a - b).mean(), rel=1e-5)
    assert traced == [("highest", (len(jax.devices()), 32, 32, 3))]


def test_the_blur_is_a_gaussian_of_a_32nd_of_the_width():
    dot = np.zeros((1, 64, 64, 3), np.uint8)
    dot[0, 28:37, 28:37] = 255
    blurred = metrics.blur(dot)[0, :, :, 0].astype(float)
    at = np.arange(64)
    spread = lambda image: np.average((at - 32) ** 2, weights=image.sum(0))
    assert spread(blurred) - spread(dot[0, :, :, 0]) == pytest.approx(2**2, rel=0.1)
    assert metrics.blur(dot[:0]).shape == (0, 64, 64, 3)


def test_mistakes_are_said():
    with pytest.raises(
        UserError, match=r"config\.eval\.metrics='fid': use one of fd_mobilenetv2_96px"
    ):
        metrics.make(("fid",))
    for name in ("clip_score", "cmmd"):
        with pytest.raises(UserError, match=f"{name} needs an image-text model"):
            metrics.make((name,))
    with pytest.raises(UserError, match="ssim needs real, which is not measured here"):
        evaluator.run(metrics.make(("ssim",)), [{"image": table(2)["image"]}])
    for name in ("psnr", "perplexity", "captions"):
        with pytest.raises(UserError):
            evaluator.run(metrics.make((name,)), [])
    with pytest.raises(ValueError, match="11 pixels"):
        images.ssim(*np.zeros((2, 1, 10, 20, 3), np.uint8))


def test_a_config_names_only_what_a_report_can_compute():
    metrics.check_config((*metrics.SET_METRICS, "psnr", "ssim", "lpips_vgg"))
    metrics.check_config(("clip_score", "cmmd"), scorer="runs/clip")
    for name, lacks in (
        ("clip_score", "it needs an image-text model that scores: name the run of a CLIP"),
        ("cmmd", "it needs an image-text model that scores: name the run of a CLIP"),
        ("captions", "it scores texts that a run writes, and a run of this family writes none"),
        ("perplexity", "it scores texts that a run writes, and a run of this family writes none"),
    ):
        with pytest.raises(UserError, match=f"config.eval.metrics='{name}': {lacks}"):
            metrics.check_config(("psnr", name))
        (made,) = metrics.make((name,), embedder=SMALL)
        assert sorted(made.needs) == sorted(metrics.ROW_METRICS[name].needs)
    metrics.check_config(("captions", "perplexity"), writes=True)
    with pytest.raises(UserError, match=r"config\.eval\.metrics='fid': use one of"):
        metrics.check_config(("fid",))
    metrics.check_config(("kid_mobilenetv2_96px", "psnr"), teachers=["lpips_vgg"])
    with pytest.raises(UserError, match=r"lpips_vgg taught the tokenizer .*taught never scores"):
        metrics.check_config(("psnr", "lpips_vgg"), teachers=["lpips_vgg"])


def test_a_recipe_names_the_network_and_its_weights(tmp_path):
    file = weights_file("mobilenetv2", tmp_path)
    assert metrics.missing_file("kid_mobilenetv2_96px", tmp_path) == "mobilenetv2"
    assert metrics.missing_file("lpips_vgg", tmp_path) == "lpips_vgg"
    assert metrics.network_of("psnr", tmp_path) == "" and not metrics.missing_file("psnr", tmp_path)
    file.parent.mkdir()
    file.write_bytes(b"abc")  # of which sha256's test vector is
    recipe = metrics.network_of("kid_mobilenetv2_96px", tmp_path)
    assert recipe == "mobilenetv2_96px (weights ba7816bf)"


def test_moments_and_features_give_one_frechet_distance():
    rows = table(40)
    first = lambda x: pixels(x)[:, :10]
    kept, summed = (
        metrics.of_sets("f", metrics.SetMetric("net", metrics._frechet, True, moments), net(first))
        for moments in (False, True)
    )
    assert isinstance(summed.init()["image"], sets.Moments)
    assert flat(evaluator.run([summed], cut(rows, 9))) == pytest.approx(
        flat(evaluator.run([kept], [rows])), rel=1e-6
    )
