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

from mmx.core import tree
from mmx.core.errors import UserError, choose
from mmx.nn.causal_lm import Architecture, CausalLM
from mmx.nn.rope import Rope
from mmx.pretrained.config_json import check_sizes, read_json
from mmx.pretrained.hub import Repository
from mmx.pretrained.tensors import LINEAR, MATRIX, VECTOR, Source, TensorFiles, read_tree

# model_type -> what a field that config.json leaves out is (transformers 5.23), by Llama's names.
_GEMMA = dict(
    num_attention_heads=8, num_key_value_heads=4, head_dim=256, max_position_embeddings=8192,
    rms_norm_eps=1e-6, tie_word_embeddings=True,
)  # fmt: skip
_GEMMA_2 = dict(_GEMMA, query_pre_attn_scalar=256, sliding_window=4096)
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gpt2": dict(
        vocab_size=50257, hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
        max_position_embeddings=1024, rms_norm_eps=1e-5, hidden_act="gelu_new",
        tie_word_embeddings=True,
    ),
    "llama": dict(max_position_embeddings=2048, rms_norm_eps=1e-6),
    "qwen2": dict(max_position_embeddings=32768, rms_norm_eps=1e-6),
    "qwen3": dict(max_position_embeddings=32768, rms_norm_eps=1e-6, head_dim=128),
    "gemma": dict(_GEMMA, num_attention_heads=16, num_key_value_heads=16),
    "gemma2": dict(_GEMMA_2, final_logit_softcapping=30.0, attn_logit_softcapping=50.0),
    "gemma3_text": dict(
        _GEMMA_2, vocab_size=262_208, max_position_embeddings=131_072, rope_theta=1e6,
        rope_local_base_freq=1e4, sliding_window_pattern=6,
    ),
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
# Fields that change what is computed, each with the one value that is read.
_FIXED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "use_bidirectional_attention": False,
}
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
        kind, config = "gemma3_text", config.get("text_config") or {}
    choose(f"{file}: model_type", _DEFAULTS, kind)
    given = {_GPT2_NAMES.get(name, name): value for name, value in config.items()}
    c = {**_DEFAULTS[kind], **{name: v for name, v in given.items() if v is not None}}
    for name, only in _FIXED.items():
        if c.get(name, only) != only:
            raise UserError(f"{file}: {name}={c[name]!r}: mmx reads models of {name}={only} alone")
    c.setdefault("num_key_value_heads", c.get("num_attention_heads"))
    check_sizes(file, {f: c.get(f) for f in ("hidden_size", "num_attention_heads")})
    width, heads = c["hidden_size"], c["num_attention_heads"]
    c.setdefault("head_dim", width // heads)
    if kind == "gpt2":
        c.setdefault("intermediate_size", 4 * width)
    check_sizes(file, {f: c.get(f) for f in _SIZES})
    for name, size, parts in (
        ("num_key_value_heads", heads, c["num_key_value_heads"]),
        ("num_attention_heads", width, heads if "head_dim" not in given else 1),
    ):
        if size % parts:
            raise UserError(f"{file}: {name}={parts} does not divide {size}")
    gemma, latest = kind.startswith("gemma"), kind == "gemma3_text"
    activation = c.get("hidden_activation" if kind != "gemma" and gemma else "hidden_act")
    if gemma and activation in (None, "gelu"):  # as the library reads files that say so
        activation = "gelu_pytorch_tanh"
    biases = bool(c.get("attention_bias", False))
    layers = _layer_types(file, kind, c)
    ropes = {t: _rope(file, c, t, latest) for t in set(layers)} if kind != "gpt2" else {}
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
        mlp_bias=bool(c.get("mlp_bias", kind == "gpt2")),
        gated=kind != "gpt2",
        activation=choose(f"{file}: activation", _ACTIVATIONS, activation or "silu"),
        tied=bool(c.get("tie_word_embeddings", False)),
        embed_scale=width**0.5 if gemma else 1.0,
        attention_cap=float(c.get("attn_logit_softcapping", 0.0)),
        logit_cap=float(c.get("final_logit_softcapping", 0.0)),
    )


_SLIDING, _FULL = "sliding_attention", "full_attention"


def _layer_types(file, kind: str, c: dict) -> list[str]:
    """Of each layer: does it read all, or a window of the last positions."""
    number = range(c["num_hidden_layers"])
    if kind.startswith("qwen") and not c.get("use_sliding_window", False):
        return [_FULL for _ in number]
    if types := c.get("layer_types"):
        if len(types) != len(number) or not {*types} <= {_SLIDING, _FULL}:
            raise UserError(f"{file}: layer_types={types}: {_SLIDING} or {_FULL} for each layer")
    elif kind.startswith("qwen"):
        first = c.get("max_window_layers", 28)
        types = [_SLIDING if layer >= first else _FULL for layer in number]
    elif kind in ("gemma2", "gemma3_text"):
        every = c.get("sliding_window_pattern", 2)
        types = [_SLIDING if (layer + 1) % every else _FULL for layer in number]
    else:
        types = [_FULL for _ in number]
    if _SLIDING in types:
        check_sizes(file, {"sliding_window": c.get("sliding_window")})
    return types


def _rope(file, c: dict, layer_type: str, local: bool) -> Rope:
    """Of the layers of one type, as transformers 5 spells it (``rope_parameters``) or 4 did.

    ``local``: layers with a window have a base of their own, and no scaling.
    """
    told = c.get("rope_parameters")
    if told is None:
        told = dict(c.get("rope_scaling") or {}, rope_theta=c.get("rope_theta", 10_000.0))
        if local and layer_type == _SLIDING:
            told = dict(rope_theta=c["rope_local_base_freq"])
    told = told.get(layer_type, told)
    kind = told.get("rope_type", told.get("type", "default"))
    choose(f"{file}: rope_type", dict.fromkeys(("default", "linear", "llama3")), kind)
    try:
        theta = float(told["rope_theta"])
        if kind == "default":
            return Rope(theta)
        if kind == "linear":
            return Rope(theta, float(told["factor"]))
        return Rope(
            theta,
            float(told["factor"]),
            float(told["low_freq_factor"]),
            float(told["high_freq_factor"]),
            int(told["original_max_position_embeddings"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: rope parameters {told}: not those of {kind} ({error})") from error


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
            return Source(head, LINEAR, padded=True)
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
