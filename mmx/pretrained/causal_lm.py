"""Causal language models as Hugging Face's `transformers` publishes them -> `mmx.nn.causal_lm`.

    arch, params = load_causal_lm(Repository("HuggingFaceTB/SmolLM2-135M"))
    logits_BTV = CausalLM(arch).apply({"params": params}, ids_BT)

A ``config.json`` says the architecture; its tensors are those of ``model.safetensors``, whole or in
parts. Compared with the library: `make parity`.
"""

from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmx.core import tree
from mmx.core.errors import UserError, choose
from mmx.nn.causal_lm import Architecture, CausalLM
from mmx.nn.rope import Rope
from mmx.pretrained.config_json import check_flags, check_numbers, check_sizes, read_json
from mmx.pretrained.hub import Repository
from mmx.pretrained.tensors import LINEAR, MATRIX, VECTOR, Source, TensorFiles, read_tree

# model_type -> what a field that config.json leaves out is (transformers 5.23), by Llama's names.
_WINDOWS = dict(layer_types=None, sliding_window=4096)
_QWEN = dict(
    _WINDOWS, num_key_value_heads=32, max_position_embeddings=32768, rms_norm_eps=1e-6,
    hidden_act="silu", use_sliding_window=False, max_window_layers=28,
)  # fmt: skip
_GEMMA = dict(
    num_attention_heads=8, num_key_value_heads=4, head_dim=256, max_position_embeddings=8192,
    rms_norm_eps=1e-6, attention_bias=False, tie_word_embeddings=True,
)  # fmt: skip
_GEMMA_2 = dict(
    _GEMMA, **_WINDOWS, hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=256,
    attn_logit_softcapping=50.0, final_logit_softcapping=30.0,
)  # fmt: skip
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gpt2": dict(
        vocab_size=50257, hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
        max_position_embeddings=1024, rms_norm_eps=1e-5, hidden_act="gelu_new",
        tie_word_embeddings=True,
    ),
    "llama": dict(
        max_position_embeddings=2048, rms_norm_eps=1e-6, hidden_act="silu", attention_bias=False,
        mlp_bias=False,
    ),
    "qwen2": _QWEN,
    "qwen3": dict(_QWEN, head_dim=128, attention_bias=False),
    "gemma": dict(
        _GEMMA, num_attention_heads=16, num_key_value_heads=16, hidden_act="gelu_pytorch_tanh"
    ),
    "gemma2": _GEMMA_2,
    "gemma3_text": dict(
        _GEMMA_2, vocab_size=262_208, max_position_embeddings=131_072, rope_theta=1e6,
        rope_local_base_freq=1e4, sliding_window_pattern=6, attn_logit_softcapping=None,
        final_logit_softcapping=None,
    ),
}  # fmt: skip
# Fields that the library reads of those kinds alone that have them above.
_OF_SOME = {
    "layer_types", "sliding_window", "sliding_window_pattern", "query_pre_attn_scalar",
    "attn_logit_softcapping", "final_logit_softcapping", "attention_bias", "mlp_bias",
}  # fmt: skip
# GPT-2's names for them.
_GPT2_NAMES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "n_inner": "intermediate_size",
    "layer_norm_epsilon": "rms_norm_eps",
    "activation_function": "hidden_act",
}
_ACTIVATIONS = {"silu": "silu", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu"}
# Fields that change what is computed, each with the values that are read.
_FIXED: dict[str, tuple] = {
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "use_bidirectional_attention": (False, None),
    "partial_rotary_factor": (1, None),
    "quantization_config": (None,),
}
_CAPS = ("attn_logit_softcapping", "final_logit_softcapping")  # null: none
_FLAGS = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window")
_SIZES = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "intermediate_size", "max_position_embeddings",
)  # fmt: skip


def read_architecture(repository: Repository) -> Architecture:
    """Of a repository's ``config.json``.

    Raises:
      UserError: no such file, or another kind of model; names the field.
    """
    file = repository.get("config.json")
    config = read_json(file)
    kind = config.get("model_type")
    if kind == "gemma3":  # with a tower for images, which is left out
        kind, config = "gemma3_text", _text_config(file, config)
    choose(f"{file}: model_type", _DEFAULTS, kind)
    defaults = _DEFAULTS[kind]
    given = {_GPT2_NAMES.get(name, name): value for name, value in config.items()}
    # A null stays: it is no default, but "none" or, where a kind has no value for that, refused.
    c = defaults | {f: v for f, v in given.items() if f in defaults or f not in _OF_SOME}
    _check_fixed(file, c)
    check_flags(file, {f: c[f] for f in _FLAGS if f in c})
    check_sizes(file, {f: c.get(f) for f in ("hidden_size", "num_attention_heads")})
    width, heads = c["hidden_size"], c["num_attention_heads"]
    gemma, latest = kind.startswith("gemma"), kind == "gemma3_text"
    if c.get("num_key_value_heads") is None and not gemma:
        c["num_key_value_heads"] = heads
    if split := c.get("head_dim") is None and "head_dim" not in defaults:
        c["head_dim"] = width // heads
    if kind == "gpt2" and c.get("intermediate_size") is None:
        c["intermediate_size"] = 4 * width
    for name, size, parts in (
        ("num_key_value_heads", heads, c["num_key_value_heads"]),
        ("num_attention_heads", width, heads if split else 1),
    ):
        check_sizes(file, {name: parts})
        if size % parts:
            raise UserError(f"{file}: {name}={parts} does not divide {size}")
    check_sizes(file, {f: c.get(f) for f in _SIZES})
    caps = [f for f in _CAPS if c.get(f) is not None]
    numbers = ("rms_norm_eps", "query_pre_attn_scalar", *caps)
    check_numbers(file, {f: c[f] for f in numbers if f in c})
    act = "hidden_activation" if "hidden_activation" in defaults else "hidden_act"
    if kind == "gemma" and c[act] == "gelu":  # Gemma 1 alone: the library reads its files so
        c[act] = "gelu_pytorch_tanh"
    biases = c.get("attention_bias", False)
    layers = _layer_types(file, kind, c)
    ropes = {t: _rope(file, c, t, latest) for t in dict.fromkeys(layers)} if kind != "gpt2" else {}
    return Architecture(
        vocab_size=c["vocab_size"],
        width=width,
        depth=c["num_hidden_layers"],
        heads=heads,
        kv_heads=c["num_key_value_heads"],
        head_size=c["head_dim"],
        mlp=c["intermediate_size"],
        context=c["max_position_embeddings"],
        eps=c["rms_norm_eps"],
        windows=tuple(c["sliding_window"] if t == _SLIDING else 0 for t in layers),
        ropes=tuple(ropes[t] for t in layers) if ropes else (),
        query_scale=c.get("query_pre_attn_scalar", c["head_dim"]) ** -0.5,
        layer_norm=kind == "gpt2",
        norm_offset=1.0 if gemma else 0.0,
        post_norms=kind in ("gemma2", "gemma3_text"),
        qk_norm=kind in ("qwen3", "gemma3_text"),
        qkv_bias=biases or kind in ("gpt2", "qwen2"),
        out_bias=biases or kind == "gpt2",
        mlp_bias=c.get("mlp_bias", kind == "gpt2"),
        gated=kind != "gpt2",
        activation=choose(f"{file}: {act}", _ACTIVATIONS, c[act]),
        tied=c.get("tie_word_embeddings", False),
        embed_scale=width**0.5 if gemma else 1.0,
        attention_cap=float(c.get("attn_logit_softcapping") or 0.0),
        logit_cap=float(c.get("final_logit_softcapping") or 0.0),
    )


_SLIDING, _FULL = "sliding_attention", "full_attention"
# rope_type -> the fields that it needs beside rope_theta, in the order of Rope's.
_ROPES: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def _text_config(file, config: dict) -> dict:
    """The decoder's part of a config with a tower; whose head is tied the whole says."""
    text = config.get("text_config") or {}
    _check_object(file, "text_config", text)
    outer = {"tie_word_embeddings": True} | config
    shared = ("tie_word_embeddings", "quantization_config")
    return text | {f: outer[f] for f in shared if f in outer}


def _check_object(file, field: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise UserError(f"{file}: {field}={value!r}: it has to be an object of fields")


def _check_fixed(file, c: dict) -> None:
    for name, read in _FIXED.items():
        if c.get(name, read[0]) not in read:
            raise UserError(
                f"{file}: {name}={c[name]!r}: mmx reads models of {name}={read[0]} alone"
            )


def _layer_types(file, kind: str, c: dict) -> list[str]:
    """Of each layer: does it read all, or a window of the last positions."""
    number = range(c["num_hidden_layers"])
    if "layer_types" not in c:
        return [_FULL for _ in number]
    types, window = c["layer_types"], c["sliding_window"]
    used = c.get("use_sliding_window", True)
    if types is not None:
        fits = isinstance(types, list) and len(types) == len(number)
        if not fits or any(t not in (_SLIDING, _FULL) for t in types):
            raise UserError(f"{file}: layer_types={types}: {_SLIDING} or {_FULL} for each layer")
    elif kind.startswith("qwen"):
        first = c["max_window_layers"]
        if type(first) is not int:
            raise UserError(f"{file}: max_window_layers={first!r}: it has to be a whole number")
        windows = used and window is not None
        types = [_SLIDING if windows and layer >= first else _FULL for layer in number]
    else:
        every = c.get("sliding_window_pattern", 2)
        check_sizes(file, {"sliding_window_pattern": every})
        types = [_SLIDING if (layer + 1) % every else _FULL for layer in number]
    if _SLIDING in types:
        check_sizes(file, {"sliding_window": window})
        if not used:
            raise UserError(f"{file}: use_sliding_window=False: its layer_types have {_SLIDING}")
    return types


def _rope(file, c: dict, layer_type: str, local: bool) -> Rope:
    """Of the layers of one type, as transformers 5 spells it (``rope_parameters``) or 4 did.

    ``local``: layers with a window have a base of their own, and no scaling.
    """
    field, told = "rope_parameters", c.get("rope_parameters")
    if told is None:
        field, told = "rope_scaling", c.get("rope_scaling") or {}
        _check_object(file, field, told)
        told = told | dict(rope_theta=c.get("rope_theta", 10_000.0))
        if local and layer_type == _SLIDING:
            told = dict(rope_theta=c["rope_local_base_freq"])
    _check_object(file, field, told)
    told = told.get(layer_type, told)
    _check_object(file, f"{field}.{layer_type}", told)
    _check_fixed(f"{file}: {field}", told)
    kind = told.get("rope_type", told.get("type", "default"))
    fields = choose(f"{file}: rope_type", _ROPES, kind)
    numbers = {f: told.get(f) for f in ("rope_theta", *fields)}
    check_numbers(f"{file}: {field}", numbers)
    return Rope(*numbers.values())


def load_causal_lm(
    repository: Repository,
    shardings: Callable[[Any], Any] | None = None,
    param_dtype: jnp.dtype = jnp.float32,
) -> tuple[Architecture, Any]:
    """A published model, ready for ``CausalLM(arch).apply({"params": params}, ids)``.

    Args:
      repository: of `transformers`' form.
      shardings: shapes whose leaves carry logical names -> shardings, for instance
        ``lambda boxed: infer_shardings(boxed, mesh)``; each device then reads its own part. None:
        arrays of the host.
      param_dtype: in which the parameters are kept.

    Raises:
      UserError: not such a repository; tensors that do not fit, all of them listed.
    """
    arch = read_architecture(repository)
    boxed = abstract_params(arch)
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, param_dtype), nn.unbox(boxed))
    if shardings is not None:
        place = lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s)
        target = jax.tree.map(place, target, shardings(boxed))
    with TensorFiles(repository) as files:
        sources, ignored = _sources(arch, target, files.shapes)
        return arch, read_tree(files, sources, target, ignored)


def load_embeddings(repository: Repository) -> np.ndarray:
    """float32 [vocab_size, D]: the rows of a model's embedding alone, on the host.

    Raises:
      UserError: not such a repository; no embedding, or one of another shape.
    """
    arch = read_architecture(repository)
    rows = nn.unbox(abstract_params(arch))["tokens"]["embedding"].shape
    target = {"tokens": {"embedding": jax.ShapeDtypeStruct(rows, jnp.float32)}}
    with TensorFiles(repository) as files:
        sources, _ = _sources(arch, target, files.shapes)
        others = set(files.shapes) - {sources["tokens/embedding"].name}
        table_VD = read_tree(files, sources, target, others)["tokens"]["embedding"]
    return table_VD[: arch.vocab_size]


def abstract_params(arch: Architecture) -> Any:
    """Shapes of the parameters, with their logical names."""
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(CausalLM(arch).init, jax.random.key(0), ids)["params"]


# Paths of ours -> tensors; the leaves of norms and dense layers have the same names everywhere.
_LEAVES = {"scale": "weight", "bias": "bias", "kernel": "weight", "embedding": "weight"}
_LLAMA = {
    "tokens": "embed_tokens",
    "final_norm": "norm",
    "blocks/attention_norm": "layers.{}.input_layernorm",
    "blocks/mlp_norm": "layers.{}.post_attention_layernorm",
    "blocks/attention/out": "layers.{}.self_attn.o_proj",
    **{f"blocks/attention/{x}": f"layers.{{}}.self_attn.{x}_proj" for x in "qkv"},
    **{f"blocks/attention/{x}_norm": f"layers.{{}}.self_attn.{x}_norm" for x in "qk"},
    **{f"blocks/mlp/{x}": f"layers.{{}}.mlp.{x}_proj" for x in ("gate", "up", "down")},
}
_POST_NORMS = {  # the second name is of another norm than in a Llama
    "blocks/attention_post_norm": "layers.{}.post_attention_layernorm",
    "blocks/mlp_norm": "layers.{}.pre_feedforward_layernorm",
    "blocks/mlp_post_norm": "layers.{}.post_feedforward_layernorm",
}
_GPT2 = {
    "tokens": "wte",
    "positions": "wpe",
    "final_norm": "ln_f",
    "blocks/attention_norm": "h.{}.ln_1",
    "blocks/mlp_norm": "h.{}.ln_2",
    "blocks/attention/out": "h.{}.attn.c_proj",
    **{f"blocks/attention/{x}": "h.{}.attn.c_attn" for x in "qkv"},
    "blocks/mlp/up": "h.{}.mlp.c_fc",
    "blocks/mlp/down": "h.{}.mlp.c_proj",
}
# Of no parameter: masks and frequencies that older files hold, and the tower of a Gemma for images.
_BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
_TOWERS = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.",
           "model.multi_modal_projector.")  # fmt: skip


def _sources(arch: Architecture, target, names: Iterable[str]) -> tuple[dict[str, Source], list]:
    """(path of ours -> where it lies, tensors that are of no parameter)."""
    gpt2 = arch.layer_norm
    modules = _GPT2 if gpt2 else {**_LLAMA, **(_POST_NORMS if arch.post_norms else {})}
    tokens = f"{modules['tokens']}.weight"
    # "", "transformer.", "model.", "language_model.model." ...: whatever precedes the embeddings.
    found = [name.removesuffix(tokens) for name in names if name.endswith(tokens)]
    prefix = found[0] if len(found) == 1 else ("" if gpt2 else "model.")
    head = ("language_model." if prefix.startswith("language_model.") else "") + "lm_head.weight"

    def source(path: str) -> Source:
        module, _, leaf = path.rpartition("/")
        if module == "head":
            return Source(head, MATRIX, padded=True)
        name = f"{prefix}{modules[module]}.{_LEAVES[leaf]}"
        if leaf == "embedding":
            return Source(name, MATRIX, padded=module == "tokens")
        if not gpt2:
            return Source(name, LINEAR if leaf == "kernel" else VECTOR)
        # Its dense layers are stored [in, out], q, k and v side by side.
        layout, last = (MATRIX, 1) if leaf == "kernel" else (VECTOR, 0)
        part = ("qkv".find(module[-1]), 3) if modules[module].endswith("c_attn") else (0, 1)
        return Source(name, layout, part, part_of=last)

    ignored = [n for n in names if n.endswith(_BUFFERS) or n.startswith(_TOWERS)]
    if arch.tied:
        ignored.append(head)  # a copy of the embeddings
    return {path: source(path) for path in tree.flatten(target)}, ignored
