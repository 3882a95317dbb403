"""Sentence encoders without a network: the golden's BERT, and a table of eight tokens."""

from pathlib import Path

import numpy as np
import tokenizers
from safetensors.numpy import save_file
from tokenizers import models, normalizers, processors

from experiments.parity.lm_weights import lay_down

GOLDEN = Path(__file__).parent / "goldens/pretrained/bert"


def table():
    return np.random.default_rng(0).normal(size=(8, 5)).astype(np.float16)


def llama_tokenizer():
    """As Llama 2's: a space before the first word, and a start that only some readers want."""
    vocab = ["<unk>", "<s>", "▁", "a", "b", "▁a", "▁b", "ab"]
    merges = [("▁", "a"), ("▁", "b"), ("a", "b")]
    bpe = tokenizers.Tokenizer(
        models.BPE({token: n for n, token in enumerate(vocab)}, merges, unk_token="<unk>")
    )
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return bpe.to_str()


def lay_encoders(weights):
    """Both into a folder of prepared weights, under their names."""
    lay_down(GOLDEN, weights / "minilm")
    llama = weights / "wordllama"
    llama.mkdir()
    save_file({"embedding.weight": table()}, llama / "model.safetensors")
    (llama / "tokenizer.json").write_text(llama_tokenizer())
