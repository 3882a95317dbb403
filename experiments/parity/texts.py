"""Tokenizers beside the published ones: CLIP's of open_clip, SigLIP's of transformers."""

import random
import tempfile
import unicodedata
from pathlib import Path

import numpy as np

from mmx.data.clip_bpe import ClipTokenizer
from mmx.data.siglip_text import SiglipTokenizer

NASTY = [
    "", "   \t\n", "a photo of a cat", "A Photo Of A CAT.", "a diagram", "a dog", "a cat",
    "It's they'RE we've I'm you'll he'd don't 'tis o'clock '' 's IT'S", "it'\u017f 'S",
    "123 4567 3.14 1,000 \uff13\uff14 \u2167 \u00b2 \u00bd \u0663", "abc123def 4k 8K 2x4",
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8 \u4e2d\u6587 \ud55c\uad6d\uc5b4",
    "e\u0301 \u00e9 n\u0303 \u0301 a\u0300\u0301 \u0345 a\u0345b",
    "\U0001f600\U0001f603 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea "
    "\u2764\ufe0f \U0001f44d\U0001f3fd",
    "&amp;amp;lt; &lt;b&gt; &#39; &quot; &nbsp;x &amp &#x1F600; &notanentity;",
    "&amp;amp;amp;amp;", "<b> &amp;amp;lt; x",
    "sch\u00c3\u00b6n \u00e2\u20ac\u0153quoted\u00e2\u20ac\u009d caf\u00c3\u00a9",
    "\u201ccurly\u201d \u2018single\u2019 \u2013 \u2014 \u2026 \u00ab \u00bb",
    "a\u00a0b\u2003c\u200bd\u3000e\tf\ng\r\nh\x0bi\x0cj\x1ck\x85l\u2028m",
    "\x00\x01\x07\x1b[31mred\x1b[0m\x7f", "x" * 300, "supercalifragilisticexpialidocious" * 3,
    "\ufb01 \ufb02 \ufb00 \u01c6", "\uff26\uff35\uff2c\uff2c\u3000\uff57\uff49\uff44\uff54\uff48 "
    "\uff8a\uff9d\uff76\uff78", "\u0391\u03a3 \u03a3\u0391\u03a3 \u03a3", "\u0130stanbul \u0131 I",
    "\u00df \u1e9e STRASSE", "\u212a \u212b \u2126", "\ufeffbom \ufffd",
    "foo_bar-baz.qux@example.com http://a.b/c?d=e&f=g", "!!!???...,,,;;; #hashtag $5 50% (a)[b]{c}",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd",
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u0e44\u0e17\u0e22",
    "\U0001d49c\U0001d4c1 \U00010400 \U00010348", " ".join(["cat"] * 75), " ".join(["cat"] * 76),
    " ".join(["hello world!"] * 40), "a " * 74 + "it's", "naive na\u00efve", "l\u0027\u00e9t\u00e9",
    "<|endoftext|", "</w> <pad> \\n", "\u30ab\u3099", "aaaaaaaaa bbbbbbbb",
]  # fmt: skip


def clip_golden() -> dict:
    """What open_clip makes of the strings: ids of 77, without the zeros at the end."""
    import ftfy
    import open_clip
    import regex

    ids = open_clip.tokenizer.SimpleTokenizer()(NASTY).numpy()
    versions = {"open_clip": open_clip.__version__, "ftfy": ftfy.__version__,
                "regex": regex.__version__}  # fmt: skip
    rows = [[text, np.trim_zeros(row, "b").tolist()] for text, row in zip(NASTY, ids)]
    return {"versions": versions, "texts": rows}


def check_clip_live() -> str:
    """Ours against open_clip: every sign of Unicode by itself, and texts drawn at random."""
    from open_clip.tokenizer import SimpleTokenizer

    theirs, ours = SimpleTokenizer(), ClipTokenizer.published()
    assert theirs.encoder["jekyll</w>"] == 49405 and theirs.vocab_size == ours.vocab_size
    count = 0
    for texts in (_signs(), _drawn(20_000)):
        for text in texts:
            ids, mask = ours.encode([text], 1000)
            got, want = ids[0][mask[0]].tolist()[1:-1], theirs.encode(text)
            assert got == want, (text, got, want)
            count += 1
    return f"CLIP ids equal open_clip's on {count:,} texts"


def _signs():
    """Letters, marks, signs: all but most of the ideographs and syllables, which are alike."""
    for code in range(0x30000):
        many = 0x3400 <= code < 0xA000 or 0xAC00 <= code < 0xD7A4 or code >= 0x20000
        if (many and code % 64) or unicodedata.category(chr(code)) in ("Cs", "Co"):
            continue
        yield f"a{chr(code)}b1{chr(code)}"


def _drawn(count: int):
    draw = random.Random(0)
    kinds = (
        "abcdefghij lmnop", " rstuvwxyz'sd'll", "0123456789 .,!?-", "&amp;<>#39;lt ", "ABCDEFG HIJ",
        "éèñüß ", "\u65e5\u672c\ud55c ", "\U0001f600\u2764\ufe0f\U0001f44d\U0001f3fd\u200d",
        "\u0301\u0300\u00a0\u2003\t\n", "\u00c3\u0192\u00c2\u00a9\u00e2\u20ac\u2122\u00b6",
    )  # fmt: skip
    for _ in range(count):
        yield "".join(draw.choice(draw.choice(kinds)) for _ in range(draw.randint(1, 40)))


SIGLIP_TEXTS = [
    "", "a photo of a cat", "A Photo, of the DOG!!!", "two   birds\n sit", "hello-world", "don't_x",
    "caf\u00e9 CAF\u00c9 e\u0301", "\u65e5\u672c", "\ufb01ne \uff26\uff35\uff2c\uff2c",
    "\U0001f600 cat", " ".join(["cat"] * 63), " ".join(["cat"] * 80), "\u0130 \u00df \u03a3",
]  # fmt: skip


_WORDS = """
teal stork lamp arrow bridge window flower river stone cloud orange yellow purple
below above left right of five seven nine tiny huge old new a photo the small red cat
dog bird house on blue green tree sits under two three big sign that says hello café
naïve 2023
"""


def train_sentencepiece(folder: Path) -> Path:
    """A tiny vocabulary of the published one's kind: ``spiece.model``."""
    import sentencepiece

    words = _WORDS.split()
    draw = random.Random(0)
    text = folder / "text.txt"
    text.write_text("\n".join(" ".join(draw.choice(words) for _ in range(8)) for _ in range(400)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "spiece"), vocab_size=120, model_type="unigram",
        hard_vocab_limit=False, normalization_rule_name="identity", pad_id=0, eos_id=1, unk_id=2,
        bos_id=-1, minloglevel=2,
    )  # fmt: skip
    return folder / "spiece.model"


def write_tokenizer_json(model: Path, file: Path) -> None:
    """The same vocabulary as a ``tokenizer.json``."""
    import sentencepiece
    import tokenizers

    pieces = sentencepiece.SentencePieceProcessor(str(model))
    table = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(pieces.get_piece_size())]
    unigram = tokenizers.models.Unigram(table, unk_id=2, byte_fallback=False)
    out = tokenizers.Tokenizer(unigram)
    out.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    out.add_special_tokens(["</s>", "<unk>", "<pad>"])
    out.save(str(file))


def siglip_golden(tokenizer_json: Path) -> dict:
    """What transformers' SiglipTokenizer makes of the strings; writes the vocabulary."""
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        model = train_sentencepiece(Path(folder))
        write_tokenizer_json(model, tokenizer_json)
        theirs = transformers.SiglipTokenizer(str(model))
        ids = theirs(SIGLIP_TEXTS, padding="max_length", max_length=64, truncation=True)
    rows = [[text, row] for text, row in zip(SIGLIP_TEXTS, ids["input_ids"])]
    return {"versions": {"transformers": transformers.__version__}, "texts": rows}


def check_siglip(golden: dict, tokenizer_json: Path) -> str:
    ours = SiglipTokenizer.load(tokenizer_json)
    for text, want in golden["texts"]:
        assert ours.encode([text])[0][0].tolist() == want, text
    return f"SigLIP ids equal transformers' on {len(golden['texts'])} texts"
