"""Who says which words an image is like, and the words that a run takes from a language model."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from mmx.core import config as configs
from mmx.core import rng as rngs
from mmx.core.errors import UserError
from mmx.core.run_dir import RunDir
from mmx.models import stages, teachers
from mmx.models import words as kept
from mmx.models.registry import make_task
from mmx.models.rows import to_float
from mmx.pretrained.causal_lm import load_embeddings
from mmx.pretrained.hub import Repository
from tests.tokenizer_fakes import known_tokens


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_a_words_features_are_the_mean_over_its_prompts_at_unit_length():
    """Each prompt counts alike: its features are of unit length before they are averaged."""
    dog = {"a dog": [1.0, 0, 0], "the dog": [0, 1.0, 0]}
    space = dog | {"a cat": [0, 0, 1.0], "the cat": [0, 0.6, 0.8]}
    embed = lambda texts: np.array([space[text] for text in texts])
    features = teachers.word_features(embed, ["dog", "cat"], ("a {}", "the {}"), "words")
    np.testing.assert_allclose(features, unit(np.array([[1, 1, 0], [0, 0.6, 1.8]])))
    for bad in ((), ("a word",)):
        with pytest.raises(UserError, match=r"config.guidance.prompts"):
            teachers.word_features(embed, ["dog"], bad, "words")
    with pytest.raises(UserError, match=r"config.guidance.teacher: it has no captions to read"):
        teachers.word_features(embed, [], ("a {}",), "captions")


def by_letters(texts):
    """By how often texts hold each letter."""
    counts = [[text.count(letter) for letter in "abcdefghijklmnopqrst"] for text in texts]
    return unit(np.array(counts, np.float32) + 0.01)


def test_a_long_vocabulary_tells_how_far_it_is(monkeypatch, capsys):
    """In one line over all prompts; to the same features, and a short one says nothing."""
    prompts, words = ("a {}", "the {}"), [f"{letter}ox" for letter in "abcde"]
    whole = teachers.word_features(by_letters, words, prompts, "words")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(teachers, "_AT_ONCE", 2)
    parts = teachers.word_features(by_letters, words, prompts, "words")
    assert parts.tobytes() == whole.tobytes() and parts.flags.c_contiguous
    lines = capsys.readouterr().err.splitlines()
    done = [line.removeprefix("embed words in prompts ").split(" eta ")[0] for line in lines]
    assert done == ["2/10", "4/10", "6/10", "8/10", "10/10"]
    assert lines[-1].endswith("eta 0:00")
    # Never more than ten lines, the last one by fewer texts: here every fourth of 38.
    teachers.word_features(by_letters, [*"abcdefghijklmnopqrs"], prompts, "words")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10 and lines[-1].startswith("embed words in prompts 38/38")


class Letters:
    """As a sentence encoder, :func:`by_letters`; it counts what it was asked."""

    asked = 0

    def embed(self, texts):
        Letters.asked += len(texts)
        return by_letters(texts)


def test_captions_are_read_at_the_first_start_only(tmp_path, monkeypatch):
    config = configs.load_config("spae/openmoji32:tiny")
    examples = [{"text": text} for text in ("a dog", "a cat", "a dog", "the sea")]
    source = SimpleNamespace(outlines=lambda: iter(examples))
    monkeypatch.setattr(teachers, "open_training", lambda data: source)
    monkeypatch.setattr(teachers, "load_sentences", lambda name, data_dir: Letters())
    make = lambda: teachers.make_teacher(config, RunDir(tmp_path), ["dog", "cat", "sea"])
    teacher, asked = make(), Letters.asked
    assert asked == 3 + 3  # words, and each caption once
    again = make()
    assert Letters.asked == asked
    for one in (teacher, again):
        rows = np.stack([one.row(example)["teacher"] for example in examples])
        assert rows.shape == (4, 20) and (rows[0] == rows[2]).all()
        assert (rows @ one.words().T).argmax(-1).tolist() == [0, 1, 0, 2]
        spec = one.row_spec()["teacher"]
        assert spec.dtype == rows.dtype
        assert one.images(one.frozen(), {"teacher": rows}, None) is rows


@pytest.fixture(scope="module")
def guided(build):
    """A task that a tiny CLIP guides, and its run."""
    run = build.run_dir()
    return build.spae("spae/imagenet128:tiny", {"loss.adversarial": 0.0}, run), run


def test_clips_words_are_its_own_of_all_prompts(guided, monkeypatch):
    """By the model itself, and once: a later start reads them from the run."""
    task, run = guided
    clip, prompts = task.teacher.task, task.config.guidance.prompts
    strings = task.vocabulary.words(np.arange(48))
    weights = stages.load_weights(run.stage("guidance"))
    ids = clip.text_ids([prompt.format(word) for prompt in prompts for word in strings])
    embed = jax.jit(lambda p, ids: clip.model.apply({"params": p}, ids, method="embed_text"))
    features = np.asarray(embed(weights["params"], ids)).reshape(len(prompts), 48, -1)
    expected = unit(features.mean(0))
    np.testing.assert_allclose(task.teacher.words(), expected, atol=1e-5)
    assert task.teacher.width == expected.shape[1] == 32
    monkeypatch.setattr(type(clip), "embedding", None)
    again = teachers.make_teacher(task.config, run, strings)
    assert again.words().tobytes() == task.teacher.words().tobytes()


def test_clip_guides_by_the_image_and_stands(guided, build):
    """Its similarities are those of the images as it sees them; no gradient is of its weights,
    which have no text tower; the guidance is as heavy as the appearance."""
    task, _ = guided
    params, extra = build.params(task)
    batch, frozen = build.rows(task, 4), task._frozen_host()
    assert set(batch) == {"image", "position"} == set(task.batch_spec())

    def loss(params, teacher):
        kept = frozen | {"teacher": teacher}
        return task.loss(params, extra, kept, batch, rngs.base_key(0), jnp.int32(1))

    grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (total, (metrics, _)), (gradient, of_clip) = grad(params, frozen["teacher"])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((total, metrics, gradient)))
    assert not any(np.any(x) for x in jax.tree.leaves(of_clip))
    assert max(np.abs(x).max() for x in jax.tree.leaves(gradient["encoder"])) > 0
    appearance = metrics["loss/l2"] + 0.33 * metrics["loss/commitment"]
    assert total == pytest.approx(float(2 * appearance), rel=1e-5)
    clip, teacher = task.teacher.task, frozen["teacher"]
    assert set(teacher["params"]) == {"image", "logit_scale"}
    image = to_float(jnp.asarray(batch["image"]))
    seen = jax.jit(lambda x: task.teacher.images(teacher, batch, x))(image)
    resized = jax.image.resize(image, (4, 64, 64, 3), "bicubic")
    plain = jax.jit(lambda p, x: clip.model.apply({"params": p}, x, method="embed_image"))
    np.testing.assert_allclose(seen, plain(teacher["params"], resized), atol=1e-5)
    # By brute force, which words of the first layer are as alike as its threshold asks.
    alike = np.asarray(seen) @ frozen["words"].T
    alike = (alike - alike.min(1, keepdims=True)) / np.ptp(alike, axis=1, keepdims=True)
    words = jax.jit(lambda x: task.codec.to_words(params, extra, frozen["table"], 48, x))(image)
    first = np.take_along_axis(alike, np.asarray(words[:, :1]), 1)
    assert metrics["words/alike_1"] == pytest.approx(first.mean(), abs=1e-4)
    assert metrics["words/pool_hit_1"] == (first >= 0.98).mean()


def test_clip_without_weights_has_their_shapes(guided):
    task, run = guided
    config = task.config.copy_and_resolve_references()
    config.guidance.run = ""  # of the config that it names
    config.words.size = 48
    shapes = make_task(config, None, abstract=True).abstract_frozen()
    real = task.abstract_frozen()
    for name in ("teacher", "words"):
        assert jax.tree.map(str, shapes[name]) == jax.tree.map(str, real[name])
    with pytest.raises(UserError, match=r"config.guidance.run is empty"):
        teachers.make_teacher(config, RunDir(run.path / "other"), ["dog"])


@pytest.fixture(scope="module")
def lm_folder(tmp_path_factory):
    """A Llama of 8 numbers a row, whose tokenizer has some whole words."""
    folder = tmp_path_factory.mktemp("lm")
    text = known_tokens().to_str()
    size = known_tokens().vocab_size + 3  # rows of no token
    (folder / "tokenizer.json").write_text(text)
    (folder / "config.json").write_text(
        json.dumps(
            dict(model_type="llama", vocab_size=size, hidden_size=8, num_hidden_layers=1,
                 num_attention_heads=2, num_key_value_heads=2, intermediate_size=16,
                 max_position_embeddings=64, rms_norm_eps=1e-5, rope_theta=1e4,
                 tie_word_embeddings=True, hidden_act="silu")
        )
    )  # fmt: skip
    rows = np.random.default_rng(0).normal(size=(size, 8)).astype(np.float32)
    # Its embedding alone: no other tensor is needed for words.
    save_file({"model.embed_tokens.weight": rows}, folder / "model.safetensors")
    return folder, rows


def test_the_embedding_is_read_alone(lm_folder):
    folder, rows = lm_folder
    np.testing.assert_array_equal(load_embeddings(Repository(str(folder))), rows)


def test_a_run_takes_its_words_once(lm_folder, tmp_path):
    folder, rows = lm_folder
    config = configs.load_config("spae/openmoji32:tiny")
    config.words.update(
        lm=str(folder), width=8, code_dim=8, table="raw", size=2, min_letters=3, list="",
        filters=("ordinary", "valid", "word_initial", "letters", "lowercase"),
    )  # fmt: skip
    made = kept.keep_words(config, RunDir(tmp_path / "run"))
    assert made.vocabulary.strings == (" cat", " dog")
    np.testing.assert_array_equal(made.table_VW, rows[made.vocabulary.ids])
    assert made.vocabulary.lm_hash == known_tokens().vocab_hash
    # The language model may go.
    config.words.lm = "gone"
    again = kept.keep_words(config, RunDir(tmp_path / "run"))
    assert again.vocabulary == made.vocabulary
    assert again.table_VW.tobytes() == made.table_VW.tobytes()
    assert kept.load_vocabulary(RunDir(tmp_path / "run")) == made.vocabulary
    with pytest.raises(UserError, match="gone"):
        kept.keep_words(config, RunDir(tmp_path / "other"))
    config.words.update(lm=str(folder), width=9, code_dim=9)
    with pytest.raises(UserError, match=r"config.words.width=9: the rows of .* have 8 numbers"):
        kept.keep_words(config, RunDir(tmp_path / "other"))
