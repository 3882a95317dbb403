"""The words of a run: a vocabulary of a frozen language model and its table, kept by the run.

The first start reads the language model's tokenizer and embedding once and lays ``stages/words/``
down: the run needs neither again.
Legend: V words, W width of the language model, Z width of the codec's latents.
"""

from typing import NamedTuple

import numpy as np
from safetensors.numpy import load, save

from mmx.core.errors import UserError, choose
from mmx.core.run_dir import RunDir
from mmx.data.vocabulary import Vocabulary, make_vocabulary, read_words
from mmx.models import kept

_STAGE = "words"
_TABLE, _WORDS = "table.safetensors", "vocabulary.json"


class Words(NamedTuple):
    """Words and their rows, which are codes.

    vocabulary: of V words.
    table_VW: float32; W is ``config.words.width`` or, of a map that is fixed, its ``code_dim``.
    """

    vocabulary: Vocabulary
    table_VW: np.ndarray


def raw_table(rows_VW: np.ndarray, code_dim: int) -> np.ndarray:
    """The rows as they are (SPAE's own)."""
    del code_dim
    return rows_VW


def whiten_table(rows_VW: np.ndarray, code_dim: int) -> np.ndarray:
    """The rows in their first ``code_dim`` principal directions, each of unit variance, at the
    common length sqrt(Z).

    Ours. Rows of a language model share a large mean and a few strong directions, in which all
    words are alike; and with lengths that differ a long word is nearest to nothing.
    """
    centred_VW = rows_VW.astype(np.float64) - rows_VW.mean(0, dtype=np.float64)
    variance_W, axes_WW = np.linalg.eigh(centred_VW.T @ centred_VW / len(rows_VW))
    # The last are the largest.
    scores_VZ = centred_VW @ axes_WW[:, : -code_dim - 1 : -1]
    scores_VZ /= np.sqrt(variance_W[: -code_dim - 1 : -1])
    length_V1 = np.linalg.norm(scores_VZ, axis=-1, keepdims=True)
    return (scores_VZ * (code_dim**0.5 / length_V1)).astype(np.float32)


# How rows of the language model become the table. The width of "linear", as of "raw", is the
# model's: what a trained projection makes of it is a parameter.
TABLES = {"raw": raw_table, "whiten": whiten_table, "linear": raw_table}


def table_width(words) -> int:
    """W of ``config.words``.

    Raises:
      UserError: an unknown table, or widths that do not go together.
    """
    kind = choose("config.words.table", {name: name for name in TABLES}, words.table)
    if kind == "raw" and words.code_dim != words.width:
        raise UserError(
            f"config.words.code_dim={words.code_dim}: with config.words.table='raw' a code is a "
            f"row of the language model, of {words.width} numbers; use table='whiten' or 'linear'"
        )
    if kind == "whiten" and not 1 <= words.code_dim <= words.width:
        raise UserError(
            f"config.words.code_dim={words.code_dim}: from 1 to config.words.width={words.width}"
        )
    return words.code_dim if kind == "whiten" else words.width


def keep_words(config, run) -> Words:
    """The words of ``config.words``, made at the run's first start and read later.

    Raises:
      UserError: no such language model; another width than ``config.words.width``; filters that
        leave too little (`mmx.data.vocabulary.make_vocabulary`); files that were changed since.
    """
    table_width(config.words)
    if not kept.is_kept(run.stage(_STAGE)):
        _make(config, run.stage(_STAGE))
    return load_words(run)


def load_words(run: RunDir) -> Words:
    """The words that a run keeps. Raises UserError as :func:`mmx.models.kept.read`."""
    files = kept.read(run.stage(_STAGE))
    return Words(Vocabulary.from_json(files[_WORDS].decode()), load(files[_TABLE])["table"])


def load_vocabulary(run: RunDir) -> Vocabulary:
    """The words of a trained run, without jax. Raises UserError as :func:`load_words`."""
    return load_words(run).vocabulary


def _make(config, folder) -> None:
    from mmx.ops.lookup import distinct_rows
    from mmx.pretrained.causal_lm import load_embeddings
    from mmx.pretrained.lm_packages import open_lm
    from mmx.pretrained.lm_tokenizer import load_tokenizer

    words = config.words
    repository = open_lm(words.lm, config.data.data_dir)
    tokenizer, rows_VW = load_tokenizer(repository), load_embeddings(repository)
    if rows_VW.shape[1] != words.width:
        raise UserError(
            f"config.words.width={words.width}: the rows of config.words.lm={words.lm!r} have "
            f"{rows_VW.shape[1]} numbers"
        )
    vocabulary = make_vocabulary(
        tokenizer,
        distinct_rows(rows_VW),
        words.filters,
        words.min_letters,
        words.size,
        read_words(words.list) if words.list else None,
    )
    table_VW = TABLES[words.table](rows_VW[vocabulary.ids], words.code_dim)
    files = {
        _WORDS: vocabulary.to_json().encode(),
        _TABLE: save({"table": np.ascontiguousarray(table_VW)}),
    }
    kept.keep(folder, files, lm=words.lm)
