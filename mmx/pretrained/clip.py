"""OpenAI's CLIP, SigLIP and CLIP's ResNets as they are published -> the tree of the family `clip`.

Two forms are read: that of Hugging Face's `transformers` (``config.json``, model_type "clip" or
"siglip", the ViTs), and that of `open_clip` (``open_clip_config.json``, the modified ResNets). Each
is compared with its own library: `make parity`. The tree is told in mmx/models/clip/model.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmx.core import tree
from mmx.core.errors import UserError, choose
from mmx.pretrained.config_json import check_sizes, read_json
from mmx.pretrained.hub import Repository
from mmx.pretrained.tensors import (
    CONV,
    FLAT,
    LINEAR,
    MATRIX,
    PATCH,
    SCALAR,
    VECTOR,
    Source,
    TensorFiles,
    read_tree,
)  # fmt: skip

# A field that a config.json leaves out has the library's default: google/siglip-base-patch16-224
# names none at all. These are of transformers 5.24 (CLIPTextConfig and so on).
_DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "clip": {
        "text_config": dict(
            vocab_size=49408, hidden_size=512, intermediate_size=2048, num_hidden_layers=12,
            num_attention_heads=8, max_position_embeddings=77, hidden_act="quick_gelu",
            layer_norm_eps=1e-5, eos_token_id=49407,
        ),
        "vision_config": dict(
            hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
            num_channels=3, image_size=224, patch_size=32, hidden_act="quick_gelu",
            layer_norm_eps=1e-5,
        ),
    },
    "siglip": {
        "text_config": dict(
            vocab_size=32000, hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
            num_attention_heads=12, max_position_embeddings=64, hidden_act="gelu_pytorch_tanh",
            layer_norm_eps=1e-6,
        ),
        "vision_config": dict(
            hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
            num_channels=3, image_size=224, patch_size=16, hidden_act="gelu_pytorch_tanh",
            layer_norm_eps=1e-6, vision_use_head=True,
        ),
    },
}  # fmt: skip
_ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu_erf",
    "gelu_pytorch_tanh": "gelu",
}
# What is taken off an image in 0..1 and what divides it -> our name for it.
_PIXELS = {
    ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)): "clip",
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)): "half",
}
_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_RESNET_KEYS = {"image_size", "layers", "width", "patch_size"}
_TEXT_KEYS = {"context_length", "vocab_size", "width", "heads", "layers"}


@dataclass(frozen=True)
class Published:
    """What the files of a published model say of it.

    Attributes:
      kind: "clip" or "siglip" (transformers' form), "open_clip".
      model: fields of ``config.model`` that they decide.
      image_size: pixels of a side.
      vocab_size, max_len: ids, and the text's length.
      eot_id: whose first place is read; None: that of the row's largest id.
    """

    kind: str
    model: dict[str, Any]
    image_size: int
    vocab_size: int
    max_len: int
    eot_id: int | None


def read_config(repository: Repository) -> Published:
    """Raises UserError: no config in it, or one of another kind of model; names the field."""
    file = repository.find("config.json")
    if file is None and (ours := repository.find("open_clip_config.json")) is not None:
        return _open_clip_config(ours, read_json(ours))
    file = file or repository.get("config.json")
    config = read_json(file)
    kind = config.get("model_type")
    if kind not in _DEFAULTS:
        raise UserError(f"{file}: model_type={kind!r}: use one of {', '.join(_DEFAULTS)}")
    get = lambda part: {**_DEFAULTS[kind][part], **(config.get(part) or {})}
    text, image = get("text_config"), get("vision_config")
    shared = {}
    for field in ("hidden_act", "layer_norm_eps"):
        if text[field] != image[field]:
            raise UserError(
                f"{file}: {field} is {text[field]!r} for texts and {image[field]!r} for images; "
                "mmx has one for both"
            )
        shared[field] = text[field]
    if image["num_channels"] != 3 or not image.get("vision_use_head", True):
        raise UserError(f"{file}: mmx reads images of 3 channels, and SigLIP with its head")
    activation = choose(f"{file}: hidden_act", _ACTIVATIONS, shared["hidden_act"])
    sizes = {
        f"{name}.{field}": part[field]
        for name, part, more in (
            ("text_config", text, ("vocab_size", "max_position_embeddings")),
            ("vision_config", image, ("image_size", "patch_size")),
        )
        for field in (*_SIZES, *more)
    }
    check_sizes(file, sizes)
    if kind == "siglip" and text["vocab_size"] == 256_000:  # SigLIP 2 says "siglip" as well
        told = f"{file}: text_config.vocab_size=256000 is of SigLIP 2, whose ids are not read"
        raise UserError(f"{told}: take a SigLIP, as google/siglip-base-patch16-224")
    if image["image_size"] % image["patch_size"]:
        raise UserError(
            f"{file}: vision_config.patch_size={image['patch_size']} does not divide "
            f"image_size={image['image_size']}: mmx reads towers whose patches fill the image; "
            "take another of the same kind"
        )
    is_clip = kind == "clip"
    width = config.get("projection_dim", 512) if is_clip else image["hidden_size"]
    model = dict(
        features=width,
        activation=activation,
        eps=shared["layer_norm_eps"],
        image=dict(
            kind="vit",
            pixels=_pixels(repository, "clip" if is_clip else "half"),
            patch=image["patch_size"],
            pool="cls" if is_clip else "map",
            **_tower(image),
        ),
        text=dict(pool="eot" if is_clip else "last", **_tower(text)),
    )
    # Configs written before transformers' pull request 24773 say 2 and mean the largest id.
    eot_id = text["eos_token_id"] if is_clip and text["eos_token_id"] != 2 else None
    return Published(
        kind,
        model,
        image["image_size"],
        text["vocab_size"],
        text["max_position_embeddings"],
        eot_id,
    )


def _tower(part: Mapping[str, Any]) -> dict[str, int]:
    return dict(
        width=part["hidden_size"],
        depth=part["num_hidden_layers"],
        heads=part["num_attention_heads"],
        mlp=part["intermediate_size"],
    )


def _open_clip_config(file, config: dict) -> Published:
    model, pixels = config.get("model_cfg") or {}, config.get("preprocess_cfg") or {}
    image, text = model.get("vision_cfg") or {}, model.get("text_cfg") or {}
    unknown = sorted({*image} - _RESNET_KEYS | {*text} - _TEXT_KEYS)
    if unknown or not isinstance(image.get("layers"), list):
        raise UserError(
            f"{file}: of open_clip's models mmx reads the modified ResNets ({unknown or 'a ViT'}); "
            "a ViT is read in the form of transformers, from its config.json"
        )
    check_sizes(
        file,
        {
            "model_cfg.embed_dim": model.get("embed_dim"),
            **{f"model_cfg.vision_cfg.{f}": image.get(f) for f in ("image_size", "width")},
            **{f"model_cfg.text_cfg.{f}": text.get(f) for f in sorted(_TEXT_KEYS)},
            **{f"model_cfg.vision_cfg.layers[{i}]": n for i, n in enumerate(image["layers"])},
        },
    )
    where = (tuple(pixels.get(name) or ()) for name in ("mean", "std"))
    return Published(
        "open_clip",
        dict(
            features=model["embed_dim"],
            activation="quick_gelu" if model.get("quick_gelu") else "gelu_erf",
            eps=1e-5,  # PyTorch's, which open_clip leaves as it is
            image=dict(
                kind="resnet",
                pixels=choose(f"{file}: (mean, std)", _PIXELS, tuple(where)) if pixels else "clip",
                blocks=tuple(image["layers"]),
                width=image["width"],
            ),
            text=dict(
                width=text["width"],
                depth=text["layers"],
                heads=text["heads"],
                mlp=4 * text["width"],
                pool="eot",
            ),
        ),
        image["image_size"],
        text["vocab_size"],
        text["context_length"],
        None,
    )


def _pixels(repository: Repository, usual: str) -> str:
    file = repository.find("preprocessor_config.json")
    if file is None:
        return usual
    config = read_json(file)
    where = tuple(config.get("image_mean", ())), tuple(config.get("image_std", ()))
    if where not in _PIXELS:
        raise UserError(
            f"{file}: image_mean, image_std = {where}: mmx knows CLIP's and SigLIP's alone"
        )
    return _PIXELS[where]


def read_weights(repository: Repository, published: Published, params: Any, extra: Any) -> Any:
    """The parameters of a published model.

    Args:
      published: of :func:`read_config`.
      params, extra: trees of ``jax.ShapeDtypeStruct`` of the family `clip`, with the shardings
        that the result shall have, or without: then it is of numpy arrays.

    Returns:
      (params, extra); ``extra`` is a ResNet's running statistics, else empty.

    Raises:
      UserError: tensors that are missing, misshapen or too many; lists all of them.
    """
    sources, name, buffers = _FORMS[published.kind]
    with TensorFiles(repository, name) as files:
        ignored = [n for n in files.shapes if n.endswith(buffers)]
        wanted = {"params": params, "extra": extra}
        table = {}
        for path in tree.flatten(wanted):
            table[path] = sources(path.partition("/")[2])
        read = read_tree(files, table, wanted, ignored)
    return read["params"], read["extra"]


# Paths of ours -> tensors. A norm's and a dense layer's leaves have the same names everywhere.
_LEAVES = {"scale": "weight", "bias": "bias", "kernel": "weight"}
_HF_BLOCK = {
    "attention_norm": "layer_norm1",
    "mlp_norm": "layer_norm2",
    "attention/q": "self_attn.q_proj",
    "attention/k": "self_attn.k_proj",
    "attention/v": "self_attn.v_proj",
    "attention/out": "self_attn.out_proj",
    "mlp/in": "mlp.fc1",
    "mlp/out": "mlp.fc2",
}
_HF = {
    "image/tower/pre_norm": "vision_model.pre_layrnorm",  # misspelt there
    "image/tower/post_norm": "vision_model.post_layernorm",
    "image/projection": "visual_projection",
    "text/final_norm": "text_model.final_layer_norm",
    "text/projection": "text_projection",
    "image/tower/head/norm": "vision_model.head.layernorm",
    "image/tower/head/attention/out": "vision_model.head.attention.out_proj",
    "image/tower/head/mlp/in": "vision_model.head.mlp.fc1",
    "image/tower/head/mlp/out": "vision_model.head.mlp.fc2",
    **{f"image/tower/encoder/blocks/{a}": f"vision_model.encoder.layers.{{}}.{b}"
       for a, b in _HF_BLOCK.items()},
    **{f"text/encoder/blocks/{a}": f"text_model.encoder.layers.{{}}.{b}"
       for a, b in _HF_BLOCK.items()},
}  # fmt: skip
_HF_SINGLE = {
    "logit_scale": Source("logit_scale", SCALAR),
    "logit_bias": Source("logit_bias", SCALAR),
    "image/tower/cls": Source("vision_model.embeddings.class_embedding"),
    "image/tower/patches/kernel": Source("vision_model.embeddings.patch_embedding.weight", PATCH),
    "image/tower/patches/bias": Source("vision_model.embeddings.patch_embedding.bias"),
    "image/tower/positions": Source("vision_model.embeddings.position_embedding.weight", MATRIX),
    "image/tower/head/probe": Source("vision_model.head.probe", FLAT),
    "text/tokens/embedding": Source(
        "text_model.embeddings.token_embedding.weight", MATRIX, padded=True
    ),
    "text/positions": Source("text_model.embeddings.position_embedding.weight", MATRIX),
}
_THIRDS = {"q": (0, 3), "k": (1, 3), "v": (2, 3)}


def _clip_source(path: str) -> Source:
    if path in _HF_SINGLE:
        return _HF_SINGLE[path]
    module, _, leaf = path.rpartition("/")
    layout = LINEAR if leaf == "kernel" else VECTOR
    return Source(f"{_HF[module]}.{_LEAVES[leaf]}", layout)


def _siglip_source(path: str) -> Source:
    module, _, leaf = path.rpartition("/")
    if module == "text/projection":
        return Source(f"text_model.head.{_LEAVES[leaf]}", LINEAR if leaf == "kernel" else VECTOR)
    if module.startswith("image/tower/head/attention/") and module[-1] in _THIRDS:
        return _third("vision_model.head.attention.in_proj_", module[-1], leaf)
    return _clip_source(path)


def _third(prefix: str, which: str, leaf: str) -> Source:
    """Of q, k and v that PyTorch's MultiheadAttention keeps in one tensor."""
    layout = LINEAR if leaf == "kernel" else VECTOR
    return Source(f"{prefix}{_LEAVES[leaf]}", layout, _THIRDS[which])


_OPEN_BLOCK = {
    "attention_norm": "ln_1",
    "mlp_norm": "ln_2",
    "attention/out": "attn.out_proj",
    "mlp/in": "mlp.c_fc",
    "mlp/out": "mlp.c_proj",
}
_OPEN_SINGLE = {
    "logit_scale": Source("logit_scale", SCALAR),
    "text/tokens/embedding": Source("token_embedding.weight", MATRIX, padded=True),
    "text/positions": Source("positional_embedding", MATRIX),
    "text/projection/kernel": Source("text_projection", MATRIX),  # as ours: [in, out]
    "image/tower/pool/positions": Source("visual.attnpool.positional_embedding", MATRIX),
}
_STATISTICS = {"mean": "running_mean", "var": "running_var"}


def _open_clip_source(path: str) -> Source:
    path = path.removeprefix("batch_stats/")
    if path in _OPEN_SINGLE:
        return _OPEN_SINGLE[path]
    module, _, leaf = path.rpartition("/")
    layout = LINEAR if leaf == "kernel" else VECTOR
    blocks = "text/encoder/blocks/"
    if module.startswith(blocks):
        inside, layers = module.removeprefix(blocks), "transformer.resblocks.{}."
        if inside in _OPEN_BLOCK:
            return Source(f"{layers}{_OPEN_BLOCK[inside]}.{_LEAVES[leaf]}", layout)
        return _third(f"{layers}attn.in_proj_", inside[-1], leaf)
    if module == "text/final_norm":
        return Source(f"ln_final.{_LEAVES[leaf]}")
    if module.startswith("image/tower/pool/attention/"):
        which = {"out": "c"}.get(last := module.rpartition("/")[2], last)
        return Source(f"visual.attnpool.{which}_proj.{_LEAVES[leaf]}", layout)
    name = "visual." + _resnet_module(module.removeprefix("image/tower/"))
    if leaf in _STATISTICS:
        return Source(f"{name}.{_STATISTICS[leaf]}")
    return Source(f"{name}.{_LEAVES[leaf]}", CONV if leaf == "kernel" else VECTOR)


def _resnet_module(module: str) -> str:
    """``stage_2_block_0/shortcut_norm`` -> ``layer2.0.downsample.1``; ``norm_3`` -> ``bn3``."""
    stage, _, part = module.rpartition("/")
    number = part[-1]
    part = {
        "shortcut": "downsample.0",
        "shortcut_norm": "downsample.1",
        f"conv_{number}": f"conv{number}",
        f"norm_{number}": f"bn{number}",
    }[part]
    if not stage:
        return part
    _, at, _, block = stage.split("_")
    return f"layer{at}.{block}.{part}"


# kind -> (path to source, name of the file, endings of buffers that are no parameters)
_FORMS = {
    "clip": (_clip_source, "model.safetensors", ("position_ids",)),
    "siglip": (_siglip_source, "model.safetensors", ("position_ids",)),
    "open_clip": (_open_clip_source, "open_clip_model.safetensors", ("num_batches_tracked",)),
}
