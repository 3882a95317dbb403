"""Tiny causal language models of `transformers`, each switch on in one, and their logits.

The goldens are two files: ``configs.json``, each model's config.json and the shapes of its tensors
as the library saves them, and ``logits.safetensors``. The weights are of a rule (lm_weights.py).
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from lm_weights import weights
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import AutoConfig, AutoModelForCausalLM

FOLDER = "language_models"
VOCAB, ROWS, T = 61, 2, 12
_SHAPE = dict(
    vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
)  # fmt: skip
# Windows of fewer positions than the rows have; head sizes other than width / heads.
_GEMMA = dict(_SHAPE, head_dim=6)
_GEMMA_2 = dict(_GEMMA, query_pre_attn_scalar=10, sliding_window=5)
MODELS = {
    "gpt2": ("gpt2", dict(vocab_size=VOCAB, n_embd=16, n_layer=3, n_head=4, n_positions=32)),
    "llama2": ("llama", dict(_SHAPE, num_key_value_heads=4, rms_norm_eps=1e-5)),
    "smollm2": ("llama", dict(_SHAPE, tie_word_embeddings=True, rope_parameters=dict(
        rope_type="default", rope_theta=1e5))),
    # original_max_position_embeddings so short that pairs are kept, slowed and in between.
    "llama3": ("llama", dict(_SHAPE, head_dim=8, attention_bias=True, mlp_bias=True,
        rope_parameters=dict(rope_type="llama3", rope_theta=50.0, factor=8.0, low_freq_factor=1.0,
        high_freq_factor=4.0, original_max_position_embeddings=32))),
    "qwen2": ("qwen2", dict(_SHAPE, use_sliding_window=True, sliding_window=5,
        max_window_layers=1)),
    "qwen3": ("qwen3", dict(_SHAPE, head_dim=8, rope_parameters=dict(
        rope_type="default", rope_theta=1e6))),
    "gemma": ("gemma", dict(_GEMMA, num_key_value_heads=1)),
    "gemma2": ("gemma2", dict(_GEMMA_2, attn_logit_softcapping=1.5, final_logit_softcapping=3.0)),
    "gemma3": ("gemma3_text", dict(_GEMMA_2, rope_parameters=dict(
        sliding_attention=dict(rope_type="default", rope_theta=1e4),
        full_attention=dict(rope_type="linear", rope_theta=1e6, factor=8.0)),
        layer_types=["sliding_attention", "sliding_attention", "full_attention"])),
}  # fmt: skip


@torch.no_grad()
def write_goldens(folder: Path) -> None:
    """``configs.json`` and ``logits.safetensors`` into folder/language_models."""
    folder = folder / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    configs, golden = {}, {}
    rng = np.random.default_rng(4)
    for name, (kind, fields) in MODELS.items():
        config = AutoConfig.for_model(kind, **fields)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        with tempfile.TemporaryDirectory() as saved:
            model.save_pretrained(saved)
            told = json.loads((Path(saved) / "config.json").read_text())
            with safe_open(Path(saved) / "model.safetensors", "np") as file:
                shapes = {k: file.get_slice(k).get_shape() for k in sorted(file.keys())}
            save_file(weights(shapes), Path(saved) / "model.safetensors", {"format": "pt"})
            model = AutoModelForCausalLM.from_pretrained(saved, attn_implementation="eager")
        for field in ("architectures", "dtype", "transformers_version"):
            told.pop(field, None)
        configs[name] = {"config": told, "tensors": shapes}
        ids = rng.integers(0, VOCAB, (ROWS, T))
        golden[f"{name}/ids"] = ids.astype(np.int32)
        golden[f"{name}/logits"] = model.float().eval()(torch.from_numpy(ids)).logits.numpy()
    save_file(golden, folder / "logits.safetensors")
    lines = [f"{json.dumps(name)}: {json.dumps(told)}" for name, told in configs.items()]
    (folder / "configs.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
