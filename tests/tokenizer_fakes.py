"""Tokenizers of language models, trained or written down here: tokenizer.json as text."""

import functools

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = ["Input: red dog\nOutput: dog", "Output: a cat and 12 dogs", "the red cat, the dog"] * 3


@functools.cache
def byte_level():
    """As GPT-2's, Llama 3's and Qwen's are: here with a start as Llama 3 has."""
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=282,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(TEXTS, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
    )
    return bpe.to_str()


@functools.cache
def with_byte_fallback():
    """As Llama 2's and Gemma's are: spaces are U+2581, and what is in no token is bytes."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    tokens += ["▁", "d", "o", "g", "a", "do", "dog", "▁dog", "▁a"]
    merges = [("d", "o"), ("do", "g"), ("▁", "dog"), ("▁", "a")]
    vocab = {token: n for n, token in enumerate(tokens)}
    bpe = tokenizers.Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    bpe.decoder = decoders.Sequence([*strip, decoders.Strip(" ", 1, 0)])
    bpe.add_special_tokens(["<unk>", "<s>", "</s>"])
    return bpe.to_str()
