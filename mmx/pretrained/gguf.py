"""GGUF, the files of llama.cpp: read, dequantised, and written anew as Hugging Face has a model.

The format is told in docs/gguf.md of github.com/ggml-org/ggml, blocks of quantised numbers in its
src/ggml-common.h. Nothing of either library is needed; `make parity` compares with `gguf`'s own.
"""

import math
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mmx.core.errors import UserError, choose

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q",
            12: "d"}  # fmt: skip
_STRING, _ARRAY = 8, 9


class _Kind(NamedTuple):
    """A way to keep numbers: bytes of a block, numbers in it, bytes [blocks, bytes] -> float32."""

    size: int
    numbers: int
    read: Callable[[np.ndarray], np.ndarray]


def _half(raw: np.ndarray) -> np.ndarray:
    return raw.copy().view("<f2").astype(np.float32)


def _nibbles(raw: np.ndarray) -> np.ndarray:
    """Two numbers a byte: all low halves of a block, then all high ones."""
    return np.concatenate([raw & 15, raw >> 4], axis=1).astype(np.float32)


_KINDS = {
    "F32": _Kind(4, 1, lambda raw: raw.copy().view("<f4")),
    "F16": _Kind(2, 1, _half),
    "Q4_0": _Kind(18, 32, lambda raw: _half(raw[:, :2]) * (_nibbles(raw[:, 2:]) - 8)),
    "Q4_1": _Kind(
        20, 32, lambda raw: _half(raw[:, :2]) * _nibbles(raw[:, 4:]) + _half(raw[:, 2:4])
    ),
    "Q8_0": _Kind(
        34, 32, lambda raw: _half(raw[:, :2]) * raw[:, 2:].view(np.int8).astype(np.float32)
    ),
}
_KIND_NAMES = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 8: "Q8_0"}


class Tensor(NamedTuple):
    """Where one lies: its kind, shape (rows first, as numpy has it) and place in the data."""

    kind: str
    shape: tuple[int, ...]
    offset: int


class Gguf:
    """A file's fields and tensors; numbers are read when they are asked for.

    Args:
      data: of the file, bytes or what maps them.
      name: of the file, for messages.

    Attributes:
      fields: name -> value, as ``llama.block_count`` or ``tokenizer.ggml.tokens``.
      tensors: name -> :class:`Tensor`.

    Raises:
      UserError: no such file, cut off, or numbers kept in a way that is not read.
    """

    def __init__(self, data: bytes | memoryview, name: str):
        self._data, self._at, self._name = memoryview(data), 0, name
        try:
            if bytes(self._take(4)) != _MAGIC:
                raise UserError(f"{name}: not a GGUF file")
            if (version := self._scalar("I")) not in _VERSIONS:
                raise UserError(f"{name}: GGUF of version {version}: mmx reads {_VERSIONS}")
            tensors, fields = self._scalar("Q"), self._scalar("Q")
            self.fields = dict(self._field() for _ in range(fields))
            self.tensors = dict(self._tensor() for _ in range(tensors))
            alignment = self.fields.get("general.alignment", 32)
            self._start = -(-self._at // alignment) * alignment
            for tensor, where in self.tensors.items():
                if self._start + where.offset + self._size(where) > len(self._data):
                    raise UserError(f"{name}: cut off: {tensor} ends beyond the file")
        except (struct.error, UnicodeDecodeError, KeyError) as error:
            raise UserError(f"{name}: a damaged GGUF file ({error})") from error

    def read(self, name: str) -> np.ndarray:
        """float32, of the tensor's shape."""
        tensor = self.tensors[name]
        kind, at = _KINDS[tensor.kind], self._start + tensor.offset
        raw = np.frombuffer(self._data[at : at + self._size(tensor)], np.uint8)
        return kind.read(raw.reshape(-1, kind.size)).reshape(tensor.shape)

    def _size(self, tensor: Tensor) -> int:
        kind = _KINDS[tensor.kind]
        return math.prod(tensor.shape) // kind.numbers * kind.size

    def _take(self, count: int) -> memoryview:
        if count > len(self._data) - self._at:
            raise UserError(f"{self._name}: cut off: no whole GGUF file")
        self._at += count
        return self._data[self._at - count : self._at]

    def _scalar(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self._take(struct.calcsize(f"<{code}")))[0]

    def _string(self) -> str:
        return bytes(self._take(self._scalar("Q"))).decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._scalar(_SCALARS[kind])
        inner, count = self._scalar("I"), self._scalar("Q")
        if inner in (_STRING, _ARRAY):
            return [self._value(inner) for _ in range(count)]
        size = struct.calcsize(f"<{_SCALARS[inner]}")
        return list(struct.unpack(f"<{count}{_SCALARS[inner]}", self._take(count * size)))

    def _field(self) -> tuple[str, Any]:
        return self._string(), self._value(self._scalar("I"))

    def _tensor(self) -> tuple[str, Tensor]:
        name, count = self._string(), self._scalar("I")
        shape = tuple(self._scalar("Q") for _ in range(count))[::-1]  # fastest first
        number, offset = self._scalar("I"), self._scalar("Q")
        if number not in _KIND_NAMES:
            raise UserError(
                f"{self._name}: {name} is kept in the way number {number}: mmx reads "
                f"{', '.join(_KINDS)}; take a file of one of those"
            )
        kind = _KIND_NAMES[number]
        if not shape or shape[-1] % _KINDS[kind].numbers:
            raise UserError(f"{self._name}: {name} of shape {shape} is no {kind}")
        return name, Tensor(kind, shape, offset)


def hugging_face(file: Gguf, name: str) -> tuple[dict, dict[str, np.ndarray], dict]:
    """What a folder of the hub would hold.

    Args:
      file: of a Llama (SmolLM2 is one) with a byte-level vocabulary.
      name: of the file, for messages.

    Returns:
      (config.json, float32 tensors of model.safetensors, tokenizer.json).

    Raises:
      UserError: another kind of model or tokenizer; a field that is not there.
    """
    fields = file.fields
    choose(f"{name}: general.architecture", {"llama": 1}, fields.get("general.architecture"))
    try:
        layers = fields["llama.block_count"]
        heads = fields["llama.attention.head_count"]
        key_heads = fields.get("llama.attention.head_count_kv", heads)
        config = dict(
            model_type="llama",
            vocab_size=len(fields["tokenizer.ggml.tokens"]),
            hidden_size=fields["llama.embedding_length"],
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=key_heads,
            intermediate_size=fields["llama.feed_forward_length"],
            max_position_embeddings=fields["llama.context_length"],
            rms_norm_eps=float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.7g}"),
            rope_theta=fields.get("llama.rope.freq_base", 10_000.0),
            tie_word_embeddings="output.weight" not in file.tensors,
            bos_token_id=fields.get("tokenizer.ggml.bos_token_id"),
            eos_token_id=fields.get("tokenizer.ggml.eos_token_id"),
        )
        tokenizer = _tokenizer(fields, name)
    except KeyError as error:
        raise UserError(f"{name}: no field {error} in it") from error
    names = {f"{theirs}.weight": f"{ours}.weight" for theirs, ours in _WHOLE.items()}
    for layer in range(layers):
        names |= {f"blk.{layer}.{theirs}.weight": f"model.layers.{layer}.{ours}.weight"
                  for theirs, ours in _LAYER.items()}  # fmt: skip
    turned = {"attn_q": heads, "attn_k": key_heads}
    tensors = {}
    for theirs in file.tensors:
        x = file.read(theirs)
        if heads_of := turned.get(theirs.split(".")[-2]):
            x = _halves(x, heads_of)
        # What has no name of ours keeps its own: whoever loads the weights lists it.
        tensors[names.get(theirs, theirs)] = x
    return config, tensors, tokenizer


_WHOLE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _halves(x: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head in the order in which :func:`mmx.nn.rope.rotate` pairs them.

    llama.cpp turns neighbours, and so its converter lays the two of a pair side by side; here (and
    at Hugging Face) the first half of a head pairs with the second.
    """
    return x.reshape(heads, -1, 2, x.shape[1]).swapaxes(1, 2).reshape(x.shape)


_CONTROL, _USER_DEFINED = 3, 4  # of tokenizer.ggml.token_type
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_DIGITS = {"type": "Digits", "individual_digits": True}
# tokenizer.ggml.pre -> how a text is cut before it is merged
_CUTS = {
    "smollm": {"type": "Sequence", "pretokenizers": [_DIGITS, _BYTES]},
    "gpt-2": _BYTES,
}


def _tokenizer(fields: dict, name: str) -> dict:
    """A ``tokenizer.json`` of byte pairs, from the fields of the file."""
    choose(f"{name}: tokenizer.ggml.model", {"gpt2": 1}, fields["tokenizer.ggml.model"])
    cut = choose(f"{name}: tokenizer.ggml.pre", _CUTS, fields.get("tokenizer.ggml.pre", "gpt-2"))
    tokens = fields["tokenizer.ggml.tokens"]
    kinds = fields.get("tokenizer.ggml.token_type", [1] * len(tokens))
    added = [
        dict(id=number, content=token, single_word=False, lstrip=False, rstrip=False,
             normalized=False, special=kind == _CONTROL)
        for number, (token, kind) in enumerate(zip(tokens, kinds))
        if kind in (_CONTROL, _USER_DEFINED)
    ]  # fmt: skip
    start = None
    if fields.get("tokenizer.ggml.add_bos_token", False):
        number = fields["tokenizer.ggml.bos_token_id"]
        bos = {"SpecialToken": {"id": tokens[number], "type_id": 0}}
        start = dict(
            type="TemplateProcessing",
            single=[bos, {"Sequence": {"id": "A", "type_id": 0}}],
            pair=[],
            special_tokens={tokens[number]: dict(
                id=tokens[number], ids=[number], tokens=[tokens[number]])},
        )  # fmt: skip
    return dict(
        version="1.0",
        added_tokens=added,
        pre_tokenizer=cut,
        post_processor=start,
        decoder=_BYTES,
        model=dict(
            type="BPE",
            vocab={token: number for number, token in enumerate(tokens)},
            merges=[merge.split(" ") for merge in fields["tokenizer.ggml.merges"]],
        ),
    )
