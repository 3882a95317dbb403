"""What is said of a Transfusion run: losses on fixed draws, likelihoods, texts beside n-grams."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from mmx.core import rng as rngs
from mmx.eval.ngram import NGram
from mmx.models.transfusion import loss as losses
from mmx.models.transfusion import report as reports
from mmx.models.transfusion import validation
from mmx.models.transfusion.likelihood import text_nll
from mmx.models.transfusion.rows import pack
from mmx.train.sharding import make_mesh


@pytest.fixture(scope="module")
def ready(build):
    """(task, weights, frozen, mesh of one device)."""
    task = build.transfusion(changes={"batch_size": 4})
    params, _ = build.params(task)
    noise = lambda x: x + 0.05 * jax.random.normal(jax.random.key(1), x.shape)
    mesh = make_mesh({"slice": 1, "data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    return task, jax.tree.map(noise, params), task.load_frozen(mesh), mesh


@pytest.fixture(scope="module")
def rater(ready):
    return validation.Rater(ready[0], ready[-1])


def pairs(build, count):
    images = build.images(count, 32)
    return [{"text": build.captions[i % 8], "image": image} for i, image in enumerate(images)]


def test_documents_are_rated_on_fixed_draws(build, ready, rater):
    """As the loss has them, each by itself, whatever shares its batch; a text has no image."""
    task, params, frozen, _ = ready
    examples = [*pairs(build, 5), {"text": "a tree"}]
    rated = rater.rate(params, frozen, examples)
    few = rater.rate(params, frozen, examples[:3])
    for name, whole in rated._asdict().items():
        np.testing.assert_allclose(getattr(few, name), whole[:3], rtol=1e-5, err_msg=name)
    assert rated.learned[:, 0].tolist() == [True] * 5 + [False]
    ids = [task.rules.encode(example["text"]) for example in examples]
    # Of a pair the image's marker is learned too.
    assert rated.tokens.tolist() == [len(i) + 1 + ("image" in e) for i, e in zip(ids, examples)]

    rules = dataclasses.replace(task.rules, image_first=0.0, noise_limit=0.0, drop=0.0)
    packed = [pack([example], rules, np.random.default_rng(0)) for example in examples[:4]]
    batch = {name: np.stack([row[name] for row in packed]) for name in packed[0]}
    x = task.latents(frozen, batch["images"])
    # Slots that are not there take part in the draws: those of rows with one slot.
    one = {name: batch[name][:, :1] for name in ("images", "first", "noise_limit")}
    batch |= one | {"position": np.arange(4, dtype=np.uint32)}
    key = rngs.base_key(validation._EVAL_SEED)
    limit = batch["noise_limit"]
    noised = losses.noise_images(key, batch["position"], x[:, :1], limit, task.process)
    text, diffusion, _ = task.losses(params, batch, x[:, :1], noised)
    np.testing.assert_allclose(rated.nll[:4].sum() / rated.tokens[:4].sum(), text, rtol=1e-4)
    np.testing.assert_allclose(rated.error[:4].mean(), diffusion, rtol=1e-4)
    np.testing.assert_allclose(rated.t[:4], noised.t, rtol=1e-5)


def test_validation(build, ready, rater):
    _, params, frozen, _ = ready
    examples = pairs(build, 8)
    scores = dict(validation.Validation(rater, "test", examples).run(params, {}, frozen))
    rated = rater.rate(params, frozen, examples)
    assert scores["test/text_perplexity"] == pytest.approx(np.exp(scores["test/text_loss"]))
    assert scores["test/text_loss"] == pytest.approx(rated.nll.sum() / rated.tokens.sum())
    assert scores["test/diffusion_loss"] == pytest.approx(rated.error.mean(), rel=1e-5)
    names = [name for name in scores if "_t_" in name]
    inside = [
        ((low <= rated.t) & (rated.t < low + 0.25)).sum()
        for name in names
        for low in [int(name.split("_")[-2]) / 100]
    ]
    assert sum(inside) == 8 and len(names) >= 2
    total = sum(scores[name] * count for name, count in zip(names, inside)) / 8
    assert total == pytest.approx(scores["test/diffusion_loss"], rel=1e-5)
    # The gap is of the captions alone: there is none where all are the same.
    assert abs(scores["test/conditioning_gap"]) > 1e-6
    same = [example | {"text": "red heart"} for example in examples]
    scores = dict(validation.Validation(rater, "test", same).run(params, {}, frozen))
    assert "test/conditioning_gap" not in scores
    texts = [{"text": text} for text in build.captions]
    scores = dict(validation.Validation(rater, "glosses/test", texts).run(params, {}, frozen))
    assert list(scores) == ["glosses/test/text_loss", "glosses/test/text_perplexity"]


def test_shuffled_documents_keep_their_images():
    image = lambda n: np.full((2, 2, 3), n, np.uint8)
    documents = [{"parts": [image(n), f"text {n}", image(n)]} for n in range(5)]
    shuffled = validation.Shuffled(documents, 4, lambda document: True)
    assert [document["parts"][1] for document in shuffled] == [
        "text 2",
        "text 3",
        "text 0",
        "text 1",
    ]
    assert [document["parts"][2][0, 0, 0] for document in shuffled] == [0, 1, 2, 3]


def test_shuffled_documents_fit_a_row_and_have_texts():
    image = np.zeros((2, 2, 3), np.uint8)
    documents = [{"parts": [image, text, image]} for text in ("a", "bb", "c" * 9, "d")]
    documents[3] = {"parts": [image]}
    fits = lambda document: sum(len(p) for p in document["parts"] if isinstance(p, str)) < 5
    shuffled = validation.Shuffled(documents, 4, fits)
    # Two further: too long for the first; no text at all for the second; the third takes any.
    assert [document["parts"][1] for document in list(shuffled)[:3]] == ["bb", "a", "a"]
    alone = validation.Shuffled(documents, 4, lambda document: False)
    assert [document["parts"][1] for document in list(alone)[:3]] == ["a", "bb", "c" * 9]
    assert not alone.changed().any() and shuffled.changed().tolist() == [True] * 3 + [False]
    # Half of them away is the same text.
    again = [{"parts": [image, text, image]} for text in ("a", "b", "a", "a")]
    shuffled = validation.Shuffled(again, 4, lambda document: True)
    assert [document["parts"][1] for document in shuffled] == ["b", "a", "b", "b"]


def test_rows_are_as_long_as_the_longest_document_needs(build, ready, monkeypatch):
    """Whichever comes first; and texts or pairs alone have short ones."""
    task, params, frozen, mesh = ready
    (pair,) = pairs(build, 1)
    monkeypatch.setattr(task, "rules", dataclasses.replace(task.rules, length=512))
    rater = validation.Rater(task, mesh)
    shapes = []

    def scores(params, frozen, batch, key):
        (B, L), M = batch["tokens"].shape, batch["first"].shape[1]
        shapes.append((L, M))
        whole, each = np.zeros(B), np.zeros((B, M))
        return whole, whole, each, each, each, batch["_mask"]

    monkeypatch.setattr(rater, "_fn", scores)
    text, two = {"text": "a tree"}, {"parts": [pair["image"], pair["image"]]}
    series = {"parts": [*(pair["image"], "a tree") * 4]}
    for examples in ([text], [text, pair], [text, two], [pair, text, series], [series, text]):
        assert len(rater.rate(params, frozen, examples).nll) == len(examples)
    assert shapes == [(128, 1), (128, 1), (128, 2), (512, 4), (512, 4)]
    assert rater.rate(params, frozen, [text, series], 1) and shapes[-1] == (128, 1)
    assert rater.fits(series) and not rater.fits({"parts": [pair["image"]] * 9})


def test_a_model_that_reads_captions_has_a_gap_above_zero():
    """An error of how far the text is from its image's: 4 with another's of eight, by two."""
    image = lambda n: np.full((2, 2, 3), n, np.uint8)
    examples = [{"text": str(n), "image": image(n)} for n in range(8)]

    def rate(params, frozen, examples, limit=None):
        texts, images = zip(*(validation.parts_of(examples[n]) for n in range(8)))
        error = np.array([[abs(int(t) - int(x[0, 0, 0]))] for t, x in zip(texts, images)])
        return validation.Rated(np.ones(8), np.ones(8), error, error >= 0, error / 8)

    config = SimpleNamespace(eval=SimpleNamespace(examples=8))
    rater = SimpleNamespace(rate=rate, fits=lambda _: True, task=SimpleNamespace(config=config))
    scores = dict(validation.Validation(rater, "test", examples).run({}, {}, {}))
    assert scores["test/diffusion_loss"] == 0 and scores["test/conditioning_gap"] == 4


def test_each_text_after_each_prompt_is_what_the_whole_model_says(build, ready, rater):
    """-ln p of captions after images, with the cache, against one pass a pair."""
    task, params, frozen, _ = ready
    images, texts = build.images(3, 32), ["red heart", "a tree", "woman health worker", "dog"]
    ids = [task.rules.encode(text) for text in texts]
    length = np.array([len(text) for text in ids])
    tokens = np.zeros((4, length.max()), np.int32)
    for row, text in zip(tokens, ids):
        row[: len(text)] = text
    prompts = task.prompt_rows([[image] for image in images], draw=False)
    options = task.options(images=0, text=0)

    boi, eos = task.markers.boi, task.markers.eos

    @jax.jit
    def fn(params, frozen, prompts):
        read = task.read(params, frozen, prompts, options)
        return [text_nll(*read, tokens, length, ends) for ends in ((eos,), (boi,), (eos, boi))]

    nll, by_image, either = map(np.asarray, fn(params, frozen, prompts))
    np.testing.assert_allclose(-either, np.logaddexp(-nll, -by_image), rtol=1e-5)
    documents = [{"parts": [image, text]} for image in images for text in texts]
    rated = rater.rate(params, frozen, documents)
    # A document says besides that an image begins, which the prompt has said.
    begins = rated.nll.reshape(3, 4) - nll
    assert nll.shape == (3, 4) and np.isfinite(nll).all()
    assert len(np.unique(nll)) == 12
    np.testing.assert_allclose(begins, begins[0, 0], rtol=1e-4)


def test_perplexity_stands_beside_an_n_gram_of_the_same_tokens(build, ready, monkeypatch):
    task, params, frozen, mesh = ready
    learned = [{"text": text} for text in build.captions]
    part = SimpleNamespace(info=SimpleNamespace(name="glosses"), outlines=lambda: iter(learned))
    other = SimpleNamespace(info=SimpleNamespace(name="pairs"), outlines=lambda: iter([{}]))
    opened = SimpleNamespace(parts=[other, part, part])
    monkeypatch.setattr(reports, "open_mixture", lambda data: opened)
    run = SimpleNamespace(params=params, frozen=frozen, mesh=mesh)
    writer = reports._Writer(task, run)
    held_out = [{"text": "red violin"}, {"text": "the dog and the heart"}]
    scores = reports._perplexity(writer, "glosses", held_out)

    ended = [[*task.rules.encode(example["text"]), 1] for example in held_out]
    rated = writer.rate([example["text"] for example in held_out])
    count = sum(map(len, ended))
    assert rated.tokens.sum() == count
    assert scores["perplexity_token"].value == pytest.approx(np.exp(rated.nll.sum() / count))
    model = NGram([[*task.rules.encode(t), 1] for t in build.captions], task.tokenizer.vocab_size)
    nats = model.nats(ended).sum()
    assert scores["perplexity_token_ngram"].value == pytest.approx(np.exp(nats / count))
    letters = sum(len(example["text"]) for example in held_out)
    assert scores["perplexity_byte_ngram"].value == pytest.approx(np.exp(nats / letters))
