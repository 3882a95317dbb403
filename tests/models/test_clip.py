"""CLIP's towers beside plain numpy ones, its pooling rules, its losses and its gradient cache."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmx.core import tree
from mmx.core.errors import UserError
from mmx.models.clip.loss import embed_cached
from mmx.models.clip.model import PIXELS, make_model
from mmx.models.texts import clip_tokenizer
from mmx.nn.resnet import AttentionPool
from mmx.nn.transformer import ACTIVATIONS
from mmx.ops.contrastive import contrastive_loss, unit

TEXT = dict(width=12, depth=2, heads=3, mlp=20)
VIT = dict(kind="vit", pixels="half", patch=4, width=8, depth=2, heads=2, mlp=16, pool="cls")
SHARED = dict(features=6, activation="quick_gelu", eps=1e-5, remat="none", scale_start=1 / 0.07)
CLIP = dict(SHARED, image=VIT, text=dict(TEXT, pool="eot"))
SIGLIP = dict(
    SHARED,
    features=8,
    activation="gelu",
    eps=1e-6,
    bias_start=-10.0,
    image=dict(VIT, pool="map"),
    text=dict(TEXT, pool="last"),
)
RESNET = dict(
    SHARED,
    image=dict(kind="resnet", pixels="clip", blocks=(1, 2, 1, 1), width=8),
    text=dict(TEXT, pool="eot"),
)
VOCAB, T = 50, 9


def inputs(size=8, rows=3, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.uniform(-1, 1, (rows, size, size, 3)).astype(np.float32)
    ids = rng.integers(1, VOCAB - 1, (rows, T))
    for row in range(rows):
        ids[row, 3 + row :] = [VOCAB - 1, *[0] * (T - 4 - row)]
    return image, ids


def make(config, size=8, **kwargs):
    """(model, random weights, image, ids)."""
    model = make_model(config, image_size=size, vocab_size=VOCAB, **kwargs)
    image, ids = inputs(size)
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), image, ids))
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        spread = 0.3 * rng.normal(size=leaf.shape)
        positive = path.endswith(("/scale", "/var"))
        return np.asarray(1 + np.abs(spread) if positive else spread, np.float32)

    return model, tree.map_with_path(draw, shapes), image, ids


# The published formulas in float64, one image or text at a time.


def f64(params):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), params)


def norm(p, x, eps):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * p["scale"] + p["bias"]


def dense(p, x):
    return x @ p["kernel"] + p.get("bias", 0.0)


def attention(p, query_LD, x_MD, heads, causal=False):
    q, k, v = dense(p["q"], query_LD), dense(p["k"], x_MD), dense(p["v"], x_MD)
    out = np.zeros((len(q), v.shape[1]))
    for part in np.split(np.arange(q.shape[1]), heads):
        score = q[:, part] @ k[:, part].T / np.sqrt(len(part))
        if causal:
            score = np.where(np.tri(len(score), dtype=bool), score, -np.inf)
        weight = np.exp(score - score.max(1, keepdims=True))
        out[:, part] = weight / weight.sum(1, keepdims=True) @ v[:, part]
    return dense(p["out"], out)


def mlp(p, x, config):
    x = dense(p["in"], x)
    if config["activation"] == "quick_gelu":
        x = x / (1 + np.exp(-1.702 * x))
    else:
        x = x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return dense(p["out"], x)


def encoder(p, x, part, config, causal=False):
    eps = config["eps"]
    for layer in range(part["depth"]):
        b = jax.tree.map(lambda leaf, layer=layer: leaf[layer], p["blocks"])
        h = norm(b["attention_norm"], x, eps)
        x = x + attention(b["attention"], h, h, part["heads"], causal)
        x = x + mlp(b["mlp"], norm(b["mlp_norm"], x, eps), config)
    return x


def vit_by_hand(params, config, image_HWC):
    p, part, eps = params["image"]["tower"], config["image"], config["eps"]
    patch = part["patch"]
    rows = [
        image_HWC[y : y + patch, x : x + patch].ravel()
        for y in range(0, len(image_HWC), patch)
        for x in range(0, len(image_HWC), patch)
    ]
    x = dense(p["patches"], np.stack(rows))
    if part["pool"] == "cls":
        x = np.concatenate([p["cls"][None], x]) + p["positions"]
        x = encoder(p["encoder"], norm(p["pre_norm"], x, eps), part, config)
        x = norm(p["post_norm"], x[0], eps)
        return dense(params["image"]["projection"], x)
    x = norm(p["post_norm"], encoder(p["encoder"], x + p["positions"], part, config), eps)
    h = p["head"]
    y = attention(h["attention"], h["probe"][None], x, part["heads"])
    return (y + mlp(h["mlp"], norm(h["norm"], y, eps), config))[0]


def text_by_hand(params, config, ids_T):
    p, part = params["text"], config["text"]
    by_eot = part["pool"] == "eot"
    x = p["tokens"]["embedding"][ids_T] + p["positions"]
    x = norm(p["final_norm"], encoder(p["encoder"], x, part, config, by_eot), config["eps"])
    return dense(p["projection"], x[ids_T.argmax() if by_eot else -1])


@pytest.mark.parametrize("config", [CLIP, SIGLIP], ids=["clip", "siglip"])
def test_towers_are_the_published_formulas(config):
    model, variables, image, ids = make(config)
    image_BE, text_BE, log_scale, bias = jax.jit(model.apply)(variables, image, ids)
    params = f64(variables["params"])
    unit = lambda x: x / np.linalg.norm(x)
    for row in range(len(ids)):
        np.testing.assert_allclose(
            image_BE[row], unit(vit_by_hand(params, config, image[row])), atol=2e-6
        )
        np.testing.assert_allclose(
            text_BE[row], unit(text_by_hand(params, config, ids[row])), atol=2e-6
        )
    assert ("logit_bias" in params) == (config is SIGLIP)
    assert float(log_scale) == pytest.approx(float(params["logit_scale"]))
    assert float(bias) == pytest.approx(float(params.get("logit_bias", 0.0)))


def conv(x, kernel, stride=1):
    """Padded by half of the window, which is moved by the stride."""
    half, length = len(kernel) // 2, len(x) // stride
    padded = np.pad(x, ((half, half), (half, half), (0, 0)))
    out = np.zeros((length, length, kernel.shape[3]))
    for i in range(len(kernel)):
        for j in range(len(kernel)):
            out += padded[i::stride, j::stride][:length, :length] @ kernel[i, j]
    return out


def resnet_by_hand(params, stats, config, image_HWC):
    p, s = params["image"]["tower"], stats["image"]["tower"]
    mean, std = PIXELS["clip"]
    x = (image_HWC / 2 + 0.5 - mean) / std

    def bn(p, s, x):
        return (x - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]

    relu = lambda x: np.maximum(x, 0)
    half = lambda x: x.reshape(len(x) // 2, 2, len(x) // 2, 2, -1).mean((1, 3))
    for i in (1, 2, 3):
        x = conv(x, p[f"conv_{i}"]["kernel"], 2 if i == 1 else 1)
        x = relu(bn(p[f"norm_{i}"], s[f"norm_{i}"], x))
    x = half(x)
    for stage, count in enumerate(config["image"]["blocks"], start=1):
        for i in range(count):
            b, t = p[f"stage_{stage}_block_{i}"], s[f"stage_{stage}_block_{i}"]
            pool = half if stage > 1 and i == 0 else lambda x: x
            y = relu(bn(b["norm_1"], t["norm_1"], conv(x, b["conv_1"]["kernel"])))
            y = pool(relu(bn(b["norm_2"], t["norm_2"], conv(y, b["conv_2"]["kernel"]))))
            y = bn(b["norm_3"], t["norm_3"], conv(y, b["conv_3"]["kernel"]))
            if i == 0:
                x = conv(pool(x), b["shortcut"]["kernel"])
                x = bn(b["shortcut_norm"], t["shortcut_norm"], x)
            x = relu(x + y)
    x = x.reshape(-1, x.shape[-1])
    x = np.concatenate([x.mean(0, keepdims=True), x]) + p["pool"]["positions"]
    return attention(p["pool"]["attention"], x[:1], x, config["image"]["width"] // 2)[0]


def test_the_resnet_is_the_published_one_and_keeps_its_statistics():
    model, variables, image, ids = make(RESNET, size=32)
    got = jax.jit(lambda v, x: model.apply(v, x, method="embed_image"))(variables, image)
    params, stats = f64(variables["params"]), f64(variables["batch_stats"])
    for row in range(2):
        want = resnet_by_hand(params, stats, RESNET, image[row].astype(np.float64))
        np.testing.assert_allclose(got[row], want / np.linalg.norm(want), atol=1e-5)
    # In training: the batch's own statistics, and a tenth of them into the running ones.
    train = jax.jit(lambda v: model.apply(v, image, ids, True, mutable=["batch_stats"])[1])
    moved = train(variables)["batch_stats"]["image"]["tower"]["norm_1"]
    mean, std = (np.float32(x) for x in PIXELS["clip"])
    first = variables["params"]["image"]["tower"]["conv_1"]["kernel"]
    x = np.stack([conv((one / 2 + 0.5 - mean) / std, first, 2) for one in image])
    before = stats["image"]["tower"]["norm_1"]
    np.testing.assert_allclose(
        moved["mean"], 0.9 * before["mean"] + 0.1 * x.mean((0, 1, 2)), rtol=1e-4, atol=1e-5
    )
    unbiased = x.reshape(-1, x.shape[-1]).var(0, ddof=1)
    np.testing.assert_allclose(moved["var"], 0.9 * before["var"] + 0.1 * unbiased, rtol=1e-4)


def test_attention_pooling_asks_with_the_mean_of_all_positions():
    """Of 3x3 positions and small numbers: in the whole ResNet there is one, which drowns it."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 3, 8)).astype(np.float32)
    layer = AttentionPool(heads=2, features=5)
    shapes = nn.unbox(jax.eval_shape(layer.init, jax.random.key(0), x))["params"]
    params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)
    got = jax.jit(layer.apply)({"params": params}, x)
    for row, want in zip(x, got):
        flat = row.reshape(9, 8).astype(np.float64)
        flat = np.concatenate([flat.mean(0, keepdims=True), flat]) + params["positions"]
        np.testing.assert_allclose(
            want, attention(f64(params)["attention"], flat[:1], flat, heads=2)[0], atol=1e-4
        )


def test_a_text_ends_at_its_first_end_of_text():
    """B22: what comes after the end, whatever it is, changes nothing."""
    model, variables, _, ids = make(CLIP)
    embed = jax.jit(lambda ids: model.apply(variables, ids, method="embed_text"))
    padded = np.where(np.cumsum(ids == VOCAB - 1, axis=1) > 0, VOCAB - 1, ids)  # by end of text
    np.testing.assert_allclose(embed(padded), embed(ids), atol=1e-6)
    longer = np.where(np.arange(T) > ids.argmax(1)[:, None], 7, ids)
    np.testing.assert_allclose(embed(longer), embed(ids), atol=1e-6)
    other = ids.copy()
    other[:, 0] = 7
    assert np.abs(np.asarray(embed(other) - embed(ids))).max(1).min() > 1e-3
    # Of a tokenizer whose end of text is not its largest id.
    own = make_model(CLIP, image_size=8, vocab_size=VOCAB, eot_id=1)
    swapped = np.where(ids == VOCAB - 1, 1, np.where(ids == 1, VOCAB - 1, ids))
    table = variables["params"]["text"]["tokens"]["embedding"]
    table = table.copy()
    table[[1, VOCAB - 1]] = table[[VOCAB - 1, 1]]
    params = tree.flatten(variables["params"]) | {"text/tokens/embedding": table}
    got = own.apply({"params": tree.unflatten(params)}, swapped, method="embed_text")
    np.testing.assert_allclose(got, embed(ids), atol=1e-6)


def test_activations_that_published_towers_have():
    x = np.linspace(-4, 4, 33)
    quick, erf = (np.asarray(ACTIVATIONS[n](jnp.asarray(x))) for n in ("quick_gelu", "gelu_erf"))
    np.testing.assert_allclose(quick, x / (1 + np.exp(-1.702 * x)), atol=1e-6)
    from math import erf as exact

    np.testing.assert_allclose(erf, [v * (1 + exact(v / 2**0.5)) / 2 for v in x], atol=1e-6)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_the_gradient_cache_changes_nothing(kind):
    """Sixteen pairs in parts of four, float64: negatives of the whole batch, not of a part."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        rows = {"image": rng.normal(size=(16, 6)), "text": rng.normal(size=(16, 5))}
        params = {"image": rng.normal(size=(6, 3)), "text": rng.normal(size=(5, 3))}

        def loss(params, parts, rows=rows):
            embed = lambda rows: [unit(jnp.tanh(rows[k] @ params[k])) for k in ("image", "text")]
            embeddings = embed_cached(embed, rows, parts)
            return contrastive_loss(kind, "gather", *embeddings, jnp.float64(1.5), -0.5)

        grad = jax.jit(jax.value_and_grad(loss), static_argnums=1)
        whole, cached = grad(params, 1), grad(params, 4)
        for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(cached), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)
        # Its backward pass embeds again: one part's activations at a time, and no other's.
        text = str(jax.make_jaxpr(lambda p: jax.grad(loss)(p, 4))(params))
        assert text.count("tanh") == 4 and "f64[16,3] = tanh" not in text


def test_a_tiny_clip_learns_its_pairs(build):
    """With the gradient cache: it starts at the ln of the whole batch, and ends near 0."""
    changes = {"steps": 60, "optim.lr": 3e-3, "optim.warmup_steps": 5, "loss.cached": 4}
    changes["optim.upper"] = {"logit_scale": np.log(14.5)}  # it starts at 14.3, and would rise
    task = build.clip(changes=changes)
    state, update = build.trainer(task)
    batch = build.rows(task, 16)
    found, scales = [], []
    for _ in range(30):
        state, metrics = update(state, batch)
        found.append(float(metrics["loss/total"]))
        scales.append(float(metrics["logits/scale"]))
    assert found[0] == pytest.approx(np.log(16), abs=0.9)
    assert found[-1] < 0.1
    assert scales[0] == pytest.approx(1 / 0.07) and max(scales) == pytest.approx(14.5)
    assert metrics.keys() >= {"logits/scale", "pairs/cosine"} and "logits/bias" not in metrics


def test_what_cannot_work_is_refused_by_name(build):
    for changes, message in (
        ({"model.image.kind": "cnn"}, r"config.model.image.kind='cnn': use one of vit, resnet"),
        ({"model.image.patch": 7}, r"config.model.image.patch=7: does not divide .* 64"),
        ({"model.text.heads": 3}, r"config.model.text.heads=3: does not divide width=32"),
        ({"model.image.pool": "map", "model.features": 16}, r"config.model.features=16"),
        ({"loss.kind": "sigmoid"}, r"config.loss.kind='sigmoid': sigmoid needs .*bias_start"),
        ({"loss.form": "star"}, r"config.loss.form='star': use one of gather, ring"),
        ({"loss.cached": 3}, r"config.loss.cached=3: .* divides config.batch_size=16"),
        ({"text.vocab_size": 64}, r"config.text.vocab_size=64: the tokenizer has"),
        ({"data.crop": "left"}, r"config.data.crop='left'"),
    ):
        with pytest.raises(UserError, match=message):
            build.clip(changes=changes)
    with pytest.raises(UserError, match="batch norm sees all rows"):
        build.clip("clip/rn50:tiny", {"loss.cached": 2})
    task = build.clip()
    with pytest.raises(UserError, match=r"is too long: .* at most 23 fit"):
        task.text_ids(["red heart " * 30], strict=True)
    assert task.text_ids(["red heart " * 30])[0, -1] == 1  # in training the tail is cut


def test_embedding_any_number_of_images(build):
    from mmx.train.sharding import make_mesh

    task = build.clip()
    mesh = make_mesh({"slice": 1, "data": -1, "fsdp": 1, "tensor": 1})
    params, extra = build.params(task)
    image = build.images(11, 64)
    got = task.embedder(mesh, "embed_image")(params, extra, image)
    assert got.shape == (11, 32) and got.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-5)
    features = task.embedder(mesh, "features")(params, extra, image)
    kernel = params["image"]["projection"]["kernel"]
    joint = features @ kernel
    np.testing.assert_allclose(joint / np.linalg.norm(joint, axis=1)[:, None], got, atol=1e-5)


def test_a_split_is_embedded_in_batches_of_its_own(build):
    """Of a config for a pod: each example is made once, a batch is no more than it takes."""
    from mmx.models.clip.report import embed_split
    from mmx.train.sharding import make_mesh

    task = build.clip()
    task.config.batch_size = 32_768
    mesh = make_mesh({"slice": 1, "data": -1, "fsdp": 1, "tensor": 1})
    params, extra = build.params(task)
    image, made, seen = build.images(11, 64), [], []
    source = [{"image": one, "text": "red heart"} for one in image]

    def plain(example, rng, plain=task.plain):
        made.append(1)
        return plain(example)

    embed = task.embedder(mesh, "embed_image")

    def watched(params, extra, rows):
        seen.append(rows.shape[0])
        return embed(params, extra, rows)

    task.plain, task.embedder = plain, lambda mesh, what: watched
    (image_NE,) = embed_split(task, mesh, source, 99, params, extra, ("embed_image",))
    assert len(made) == 11 and seen == [16]
    np.testing.assert_allclose(image_NE, embed(params, extra, image), atol=1e-6)


def test_clips_own_texts_are_kept_with_the_run(build):
    task = build.clip("clip/vit_b32:tiny")
    ids = task.text_ids(["a photo of a cat"])
    assert ids[0, :7].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert task.model.text.eot_id is None and build.clip().model.text.eot_id == 1
    with pytest.raises(UserError, match="not CLIP's"):
        clip_tokenizer(None, build.run_dir())
