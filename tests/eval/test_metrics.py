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


def all_evaluators():
    of_sets = {
        name.replace("mobilenetv2_96px", "net"): metrics.SET_METRICS[name] for name in KIND.values()
    }
    return [
        metrics.of_sets("net", of_sets, pixels),
        metrics.of_sets("net", {"fid_net": metrics.SetMetric("net", metrics._frechet, True, True)},
                        lambda x: pixels(x)[:, :10]),
        *metrics.make(ALL, embedder=SMALL),
    ]  # fmt: skip


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
    (e, *_), real = all_evaluators(), rows["real"]
    scores = evaluator.run([e], [rows])
    blurred = evaluator.run([e], [rows | {"image": metrics.blur(real)}])
    value = lambda s: getattr(s, "value", s)
    for name in ("kid_net", "fd_net_n60"):
        assert value(scores[f"{name}/real_vs_real"]) < value(scores[name])
        assert scores[f"{name}/blurred"] == blurred[name] != scores[f"{name}/real_vs_real"]
    assert {"precision_net", "recall_net", "density_net", "coverage_net"} <= scores.keys()
    # A model that draws the true images scores what true images score.
    perfect = evaluator.run([e], [rows | {"image": real}])
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

    image_emb, text_emb = (
        np.array([[2.0, 0], [0, 3], [1, 1]]),
        np.array([[1.0, 0], [1, 0], [-1, 0]]),
    )
    towards = metrics.Embedder("m", lambda images: image_emb, lambda texts: text_emb)
    (score,) = metrics.make(("clip_score",), embedder=towards)
    batch = {"image": grey[:3], "text": ["a", "b", "c"]}
    assert evaluator.run([score], [batch])["clip_score_m"].value == pytest.approx(2.5 / 3)


def test_a_network_is_asked_once_for_all_its_metrics(tmp_path, monkeypatch):
    monkeypatch.setattr("mmx.eval.features._AT_ONCE", 1)
    file = weights_file("mobilenetv2", tmp_path)
    file.parent.mkdir()
    save_file(tree.flatten(mobilenet.convert(inputs.network(mobilenet.plan(), 1), "x")), file)
    made = metrics.make((*KIND.values(), "psnr"), tmp_path)
    assert [e.name for e in made] == ["psnr", "mobilenetv2_96px"]
    rows = table(7, 20)
    state = made[1].update(made[1].init(), rows)
    assert state["blurred"].n == 7 and state["image"].parts[0].shape == (7, 1280)


def test_lpips_runs_in_float32_and_is_compiled_once(monkeypatch):
    traced = []

    def distance(weights, a, b):
        traced.append((jax.config.jax_default_matmul_precision, a.shape))
        return weights * jnp.abs(a - b).mean((1, 2, 3))

    monkeypatch.setattr("mmx.eval.features._AT_ONCE", 1)
    monkeypatch.setattr(metrics.lpips, "distance", distance)
    monkeypatch.setattr(metrics.networks, "load", lambda *args: np.float32(3))
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
    for name, lacks in (
        ("clip_score", "an image-text model"),
        ("cmmd", "an image-text model"),
        ("captions", "caption and references"),
        ("perplexity", "nll and tokens"),
    ):
        want = f"config.eval.metrics='{name}': it needs {lacks}, which a report has not"
        with pytest.raises(UserError, match=want):
            metrics.check_config(("psnr", name))
        (made,) = metrics.make((name,), embedder=SMALL)
        assert sorted(made.needs) == sorted(metrics.ROW_METRICS[name].needs)
    with pytest.raises(UserError, match=r"config\.eval\.metrics='fid': use one of"):
        metrics.check_config(("fid",))


def test_moments_and_features_give_one_frechet_distance():
    rows = table(40)
    first = lambda x: pixels(x)[:, :10]
    kept, summed = (
        metrics.of_sets(
            "net", {"f": metrics.SetMetric("net", metrics._frechet, True, moments)}, first
        )
        for moments in (False, True)
    )
    assert isinstance(summed.init()["image"], sets.Moments)
    assert flat(evaluator.run([summed], cut(rows, 9))) == pytest.approx(
        flat(evaluator.run([kept], [rows])), rel=1e-6
    )
