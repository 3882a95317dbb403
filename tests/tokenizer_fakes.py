"""Tokenizers of language models, trained or written down here; each an `LmTokenizer`."""

import functools

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from mmx.data.lm_text import LmTokenizer

TEXTS = ["Input: red dog\nOutput: dog", "Output: a cat and 12 dogs", "the red cat, the dog"] * 3


@functools.cache
def byte_level():
    """As GPT-2's, Llama 3's and Qwen's are: here with a start (id 0) and an end (1) as Llama 3
    has."""
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
    return LmTokenizer(bpe.to_str(), 0, [1])


@functools.cache
def with_byte_fallback():
    """As Llama 2's and Gemma's are: spaces are U+2581, and what is in no token is bytes. A start
    (id 1) and an end (2)."""
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
    return LmTokenizer(bpe.to_str(), 1, [2])


def _in_bytes(text):
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return whole.pre_tokenize_str(text)[0][0]


def byte_pairs(texts, joined=(), unmerged=(), special=(), added=()):
    """Byte-level, with a token of each text and of what only begins one, the first ones first.

    Args:
      texts: tokens.
      joined: pairs of texts that are one token together.
      unmerged: tokens that no merge makes.
      special, added: tokens beside those.
    """
    vocab = {token: n for n, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = []
    for text in texts:
        token = _in_bytes(text)
        for end in range(2, len(token) + 1):
            if token[:end] not in vocab:
                vocab[token[:end]] = len(vocab)
                merges.append((token[: end - 1], token[end - 1]))
    for parts in joined:
        merges.append(tuple(map(_in_bytes, parts)))
        vocab["".join(merges[-1])] = len(vocab)
    for text in unmerged:
        vocab[_in_bytes(text)] = len(vocab)
    bpe = tokenizers.Tokenizer(models.BPE(vocab, merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(list(special))
    bpe.add_tokens(list(added))
    return LmTokenizer(bpe.to_str())


# The most frequent first.
TOKENS = (
    *(" cat", " dog", "dog", " Red", " да", " кот", " हिन्दी", "日", "本", "ha"),
    *(" 12", " #", " |", "\n"),
)
UNREACHABLE = " cow"  # a vocabulary may hold what its merges do not make
NOT_WORDS = ["<|end|>", "<tool>", "<0x41>"]  # the last spells it, and is no byte


@functools.cache
def known_tokens():
    """Of the tokens above, so that what each filter lets pass is known."""
    joined = [("日", "本"), ("ha", "ha")]
    return byte_pairs(TOKENS, joined, [UNREACHABLE], NOT_WORDS[:1], NOT_WORDS[1:])
