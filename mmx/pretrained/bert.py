"""BERT encoders as Hugging Face's `transformers` publishes them -> `mmx.nn.bert`.

    arch, params = load_bert(Repository(folder))
    x_BTD = Bert(arch).apply({"params": params}, ids_BT, mask_BT)

Compared with the library: `make parity`.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmx.core import tree
from mmx.core.errors import UserError
from mmx.nn.bert import Architecture, Bert
from mmx.pretrained.config_json import check_numbers, check_sizes, read_json
from mmx.pretrained.hub import Repository
from mmx.pretrained.tensors import LINEAR, MATRIX, VECTOR, Source, TensorFiles, read_tree

_SIZES = {  # ours -> config.json's
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp": "intermediate_size",
    "context": "max_position_embeddings",
    "types": "type_vocab_size",
}
# Fields that change what is computed, each with the values that are read; None: not told.
_FIXED: dict[str, tuple] = {
    "model_type": ("bert",),
    "hidden_act": ("gelu",),  # in its exact form
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
}


def read_architecture(repository: Repository) -> Architecture:
    """Of a repository's ``config.json``.

    Raises:
      UserError: no such file, or another kind of model; names the field.
    """
    file = repository.get("config.json")
    config = read_json(file)
    for field, read in _FIXED.items():
        if config.get(field) not in read:
            raise UserError(f"{file}: {field}={config.get(field)!r}: only {read[0]!r} is read")
    check_sizes(file, {field: config.get(field) for field in _SIZES.values()})
    check_numbers(file, {"layer_norm_eps": config.get("layer_norm_eps")})
    sizes = {ours: config[field] for ours, field in _SIZES.items()}
    if sizes["width"] % sizes["heads"]:
        raise UserError(
            f"{file}: num_attention_heads={sizes['heads']} does not divide {sizes['width']}"
        )
    return Architecture(**sizes, eps=config["layer_norm_eps"])


_MODULES = {
    "tokens": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "types": "embeddings.token_type_embeddings",
    "embed_norm": "embeddings.LayerNorm",
    "blocks/q": "encoder.layer.{}.attention.self.query",
    "blocks/k": "encoder.layer.{}.attention.self.key",
    "blocks/v": "encoder.layer.{}.attention.self.value",
    "blocks/out": "encoder.layer.{}.attention.output.dense",
    "blocks/attention_norm": "encoder.layer.{}.attention.output.LayerNorm",
    "blocks/mlp_in": "encoder.layer.{}.intermediate.dense",
    "blocks/mlp_out": "encoder.layer.{}.output.dense",
    "blocks/mlp_norm": "encoder.layer.{}.output.LayerNorm",
}
_LEAVES = {  # of ours -> (of theirs, layout)
    "embedding": ("weight", MATRIX),
    "kernel": ("weight", LINEAR),
    "scale": ("weight", VECTOR),
    "bias": ("bias", VECTOR),
}
# Of no parameter: the numbers 0..context-1, and the head of the task that BERT was first trained
# for, which stands on the first token and which sentence encoders do not read.
_IGNORED = ("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias")


def load_bert(repository: Repository) -> tuple[Architecture, Any]:
    """A published encoder, ready for ``Bert(arch).apply({"params": params}, ids, mask)``.

    Raises:
      UserError: not such a repository; tensors that do not fit, all of them listed.
    """
    arch = read_architecture(repository)
    ids, mask = (jax.ShapeDtypeStruct((1, 1), t) for t in (jnp.int32, bool))
    boxed = jax.eval_shape(Bert(arch).init, jax.random.key(0), ids, mask)["params"]
    target = nn.unbox(boxed)

    def source(path: str) -> Source:
        module, _, leaf = path.rpartition("/")
        name, layout = _LEAVES[leaf]
        return Source(f"{_MODULES[module]}.{name}", layout, padded=module == "tokens")

    with TensorFiles(repository) as files:
        sources = {path: source(path) for path in tree.flatten(target)}
        return arch, read_tree(files, sources, target, _IGNORED)
