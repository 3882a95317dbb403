"""GGUF files, written here byte by byte: numbers, fields, and a model that equals the library's."""

import json
import struct
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from experiments.parity.lm_weights import weights
from mmx.cli.main import main
from mmx.core.errors import UserError
from mmx.data.lm_text import LmTokenizer
from mmx.nn.causal_lm import CausalLM
from mmx.pretrained import lm_packages
from mmx.pretrained.causal_lm import load_causal_lm
from mmx.pretrained.gguf import Gguf
from mmx.pretrained.hub import Repository
from mmx.pretrained.lm_tokenizer import load_tokenizer

FOLDER = Path(__file__).parents[1] / "goldens/pretrained/language_models"
MODEL = json.loads((FOLDER / "configs.json").read_text())["smollm2"]
RNG = np.random.default_rng(0)


def text(value):
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value(x):
    """Type and bytes of a field."""
    if isinstance(x, bool):
        return 7, struct.pack("<?", x)
    if isinstance(x, int):
        return 4, struct.pack("<I", x)
    if isinstance(x, float):
        return 6, struct.pack("<f", x)
    if isinstance(x, str):
        return 8, text(x)
    kind = value(x[0])[0]
    return 9, struct.pack("<IQ", kind, len(x)) + b"".join(value(e)[1] for e in x)


def gguf(fields, tensors, version=3):
    """tensors: name -> (number of its kind, shape as numpy has it, bytes)."""
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(fields))
    for name, x in fields.items():
        kind, data = value(x)
        out += text(name) + struct.pack("<I", kind) + data
    data = b""
    for name, (kind, shape, raw) in tensors.items():
        out += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        out += struct.pack("<IQ", kind, len(data))
        data += raw + b"\0" * (-len(raw) % 32)
    return out + b"\0" * (-len(out) % 32) + data


def test_blocks_of_quantised_numbers():
    """What each format says a block is, number by number."""
    scale, least = np.float16(0.37), np.float16(-1.5)
    small, wide = RNG.integers(0, 16, (4, 32)), RNG.integers(-128, 128, (4, 32))
    low_high = lambda row: (row[:16] | row[16:] << 4).astype(np.uint8).tobytes()
    exact = RNG.normal(size=(4, 32)).astype(np.float32)
    raw = {
        "q4_0": (2, b"".join(scale.tobytes() + low_high(row) for row in small)),
        "q4_1": (3, b"".join(scale.tobytes() + least.tobytes() + low_high(r) for r in small)),
        "q8_0": (8, b"".join(scale.tobytes() + r.astype(np.int8).tobytes() for r in wide)),
        "f16": (1, exact.astype(np.float16).tobytes()),
        "f32": (0, exact.tobytes()),
    }
    file = Gguf(gguf({}, {k: (kind, (2, 64), data) for k, (kind, data) in raw.items()}), "x")
    s, m = np.float32(scale), np.float32(least)
    for name, wanted in {
        "q4_0": s * (small - 8),
        "q4_1": s * small + m,
        "q8_0": s * wide,
        "f16": exact.astype(np.float16),
        "f32": exact,
    }.items():
        got = file.read(name)
        assert got.dtype == np.float32 and got.shape == (2, 64)
        np.testing.assert_array_equal(got, wanted.astype(np.float32).reshape(2, 64), name)


TOKENS = ["<|end|>", "<|start|>", *"abcdefgh0123456789", "Ġ", "ab", "Ġab", "Ġa"]
TOKENS += [f"<{n}>" for n in range(61 - len(TOKENS))]
FIELDS = {
    "general.architecture": "llama",
    "llama.block_count": 3,
    "llama.embedding_length": 16,
    "llama.feed_forward_length": 24,
    "llama.context_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-6,
    "llama.rope.freq_base": 1e5,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3, 3] + [1] * 59,
    "tokenizer.ggml.merges": ["a b", "Ġ ab", "Ġ a"],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 0,
    "tokenizer.ggml.add_bos_token": True,
}
NAMES = {
    "embed_tokens": "token_embd", "model.norm": "output_norm", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "gate_proj": "ffn_gate", "up_proj": "ffn_up",
    "down_proj": "ffn_down", "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v",
    "o_proj": "attn_output",
}  # fmt: skip


def llama_file(fields=FIELDS):
    """The golden's weights as llama.cpp's converter lays them down."""
    tensors = {}
    for name, x in weights(MODEL["tensors"]).items():
        layer = name.split(".")[2] if ".layers." in name else None
        theirs = next(v for k, v in NAMES.items() if k in name)
        if heads := {"attn_q": 4, "attn_k": 2}.get(theirs):
            # convert_hf_to_gguf.py, LlamaModel.permute: halves of a head become neighbours.
            x = x.reshape(heads, 2, -1, x.shape[1]).swapaxes(1, 2).reshape(x.shape)
        full = f"{theirs}.weight" if layer is None else f"blk.{layer}.{theirs}.weight"
        tensors[full] = (0, x.shape, x.tobytes())
    return gguf(fields, tensors)


def test_a_llama_of_a_file_gives_the_logits_of_the_library(tmp_path, capsys):
    (tmp_path / "tiny.gguf").write_bytes(llama_file())
    command = ["prepare", "lm", "tiny", "--data_dir", str(tmp_path), "--gguf"]
    assert main([*command, str(tmp_path / "tiny.gguf")]) == 0
    folder = tmp_path / "weights/tiny"
    assert capsys.readouterr().out == f"tiny: prepared {folder}\n"
    assert main([*command, "gone"]) == 0  # it is there: nothing is read
    assert capsys.readouterr().out == f"tiny: already prepared {folder}\n"
    arch, params = load_causal_lm(Repository(folder))
    assert arch.eps == 1e-6 and arch.ropes[0].theta == 1e5
    golden = load_file(FOLDER / "logits.safetensors")
    logits = jax.jit(CausalLM(arch).apply)({"params": params}, golden["smollm2/ids"])
    np.testing.assert_allclose(logits, golden["smollm2/logits"], atol=1e-4, rtol=0)


def test_the_tokenizer_of_a_file(tmp_path):
    (tmp_path / "tiny.gguf").write_bytes(llama_file())
    folder, _ = lm_packages.prepare("tiny", tmp_path, str(tmp_path / "tiny.gguf"))
    tokenizer = load_tokenizer(Repository(folder))
    assert (tokenizer.start_ids, tokenizer.eos_ids, tokenizer.special_ids) == ((1,), (0,), {0, 1})
    spelt = [tokenizer.token(i) for i in tokenizer.encode("ab ab 12")]
    assert spelt == ["ab", "Ġab", "Ġ", "1", "2"]  # digits one by one
    assert isinstance(tokenizer, LmTokenizer) and tokenizer.string(TOKENS.index("Ġab")) == " ab"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"PK", "cut off"),
        (b"PK\3\4" + b"\0" * 20, "not a GGUF file"),
        (gguf({}, {}, version=1), "GGUF of version 1"),
        (llama_file()[:-100], "cut off: .* ends beyond the file"),
        (llama_file()[:900], "cut off"),
        (gguf({}, {"a": (12, (256,), b"")}), "a is kept in the way number 12: mmx reads F32"),
        (gguf({}, {"a": (8, (2, 33), b"\0" * 99)}), r"a of shape \(2, 33\) is no Q8_0"),
        (llama_file({**FIELDS, "general.architecture": "mamba"}), "architecture='mamba': use one"),
        (llama_file({**FIELDS, "tokenizer.ggml.model": "llama"}), "model='llama': use one of gpt2"),
        (llama_file({**FIELDS, "tokenizer.ggml.pre": "qwen2"}), "pre='qwen2': use one of smollm"),
        (llama_file({k: v for k, v in FIELDS.items() if "block" not in k}), "'llama.block_count'"),
    ],
)
def test_files_that_are_not_read(data, words, tmp_path):
    (tmp_path / "x.gguf").write_bytes(data)
    with pytest.raises(UserError, match=words):
        lm_packages.prepare("x", tmp_path, str(tmp_path / "x.gguf"))


def test_a_name_without_a_package_or_a_file(tmp_path):
    with pytest.raises(UserError, match="lm='gpt5': use one of smollm2-135m-instruct"):
        lm_packages.prepare("gpt5", tmp_path)
    with pytest.raises(UserError, match=r"--gguf=gone\.gguf: no such file"):
        lm_packages.prepare("x", tmp_path, "gone.gguf")
