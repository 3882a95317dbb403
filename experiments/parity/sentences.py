"""A tiny BERT of `transformers`, read as a sentence encoder, and what it says of some texts.

The golden is a folder as `mmx prepare sentences` lays it down, but for the weights, which are of a
rule (lm_weights.py): ``config.json``, ``tokenizer.json``, ``tensors.json`` (their shapes), and
``golden.json`` (texts with their ids), ``golden.safetensors`` (vectors of tokens and texts).
"""

import json
import tempfile
from pathlib import Path

import torch
from lm_weights import weights
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import AutoModel, BertConfig, BertTokenizerFast

FOLDER = "bert"
MAX_TOKENS = 256  # of all-MiniLM-L6-v2, see mmx/pretrained/sentences.py
TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "##s", "cat", "face", "red",
          "##dish", "of", "the", "flag", ":", ",", "-", "1", "2")  # fmt: skip
# Upper case, accents, pieces of words, signs, unknown words, a special token spelled out, and more
# words than are read.
TEXTS = ("dog", "A Dog's face", "reddish cats, the flag of: Croatia", "càt-face 12", "[MASK] dog",
         "the red cat of a dog, the reddish dog of the cats", "red dog " * 200)  # fmt: skip


@torch.no_grad()
def write_goldens(folder: Path) -> None:
    """The files above, into folder/bert."""
    folder = folder / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    config = BertConfig(
        vocab_size=len(TOKENS), hidden_size=16, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=24, max_position_embeddings=260,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as saved:
        saved = Path(saved)
        (saved / "vocab.txt").write_text("\n".join(TOKENS) + "\n")
        tokenizer = BertTokenizerFast(str(saved / "vocab.txt"))
        tokenizer.save_pretrained(saved)
        AutoModel.from_config(config, attn_implementation="eager").save_pretrained(saved)
        told = json.loads((saved / "config.json").read_text())
        with safe_open(saved / "model.safetensors", "np") as file:
            shapes = {k: file.get_slice(k).get_shape() for k in sorted(file.keys())}
        save_file(weights(shapes), saved / "model.safetensors", {"format": "pt"})
        model = AutoModel.from_pretrained(saved, attn_implementation="eager").float().eval()
    for field in ("architectures", "dtype", "transformers_version"):
        told.pop(field, None)
    (folder / "config.json").write_text(json.dumps(told) + "\n")
    (folder / "tensors.json").write_text(json.dumps(shapes) + "\n")
    # all-MiniLM-L6-v2's file has the length and the padding of its training in it; so has this one.
    tokenizer("", padding="max_length", truncation=True, max_length=128)
    (folder / "tokenizer.json").write_text(tokenizer.backend_tokenizer.to_str() + "\n")
    batch = tokenizer(
        list(TEXTS), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
    )
    x, real = model(**batch).last_hidden_state, batch["attention_mask"]
    # As the card of all-MiniLM-L6-v2 has it: mean over real tokens, unit length.
    mask = real.unsqueeze(-1).expand(x.size()).float()
    mean = (x * mask).sum(1) / torch.clamp(mask.sum(1), min=1e-9)
    unit = torch.nn.functional.normalize(mean, p=2, dim=1)
    few = x[2, : real[2].sum()].contiguous()  # of a text with all kinds of tokens
    save_file(dict(tokens=few.numpy(), sentences=unit.numpy()), folder / "golden.safetensors")
    ids = [row[:count] for row, count in zip(batch["input_ids"].tolist(), real.sum(1))]
    golden = json.dumps(dict(texts=list(zip(TEXTS, ids))), separators=(",", ":"))
    (folder / "golden.json").write_text(golden.replace("],[", "],\n[") + "\n")
