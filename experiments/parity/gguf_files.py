"""SmolLM2-135M out of its package, beside `gguf`: `make parity`.

    python experiments/parity/gguf_files.py [--data_dir DIR]

Every tensor as `gguf` dequantises it, number by number; the names and merges of its vocabulary; and
what the model answers. The package (93 MB) is downloaded for it.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

from mmx.core.rng import base_key
from mmx.models.language_model import FrozenLM
from mmx.pretrained import lm_packages
from mmx.pretrained.causal_lm import load_causal_lm
from mmx.pretrained.gguf import Gguf
from mmx.pretrained.hub import Repository
from mmx.pretrained.lm_tokenizer import load_tokenizer
from mmx.pretrained.networks import from_wheel

NAME = "smollm2-135m-instruct"
# Prompt -> what the greedy answer begins with.
ANSWERS = {
    "The capital of France is": " Paris",
    "apple -> fruit\ncarrot -> vegetable\nbanana -> fruit\nonion ->": " vegetable",
}


def compare_tensors(data: bytes) -> None:
    ours = Gguf(data, NAME)
    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        file.write(data)
        file.flush()
        theirs = GGUFReader(file.name)
        assert ours.tensors.keys() == {t.name for t in theirs.tensors}
        for tensor in theirs.tensors:
            wanted = dequantize(tensor.data, tensor.tensor_type)
            np.testing.assert_array_equal(ours.read(tensor.name), wanted, tensor.name)
        for name in ("tokens", "merges"):
            field = theirs.get_field(f"tokenizer.ggml.{name}")
            assert field.contents() == ours.fields[f"tokenizer.ggml.{name}"], name
    kinds = {t.kind for t in ours.tensors.values()}
    print(f"gguf: {len(ours.tensors)} tensors ({', '.join(sorted(kinds))}) equal gguf's")


def compare_answers(folder: Path) -> None:
    repository = Repository(str(folder))
    tokenizer, lm = load_tokenizer(repository), FrozenLM(*load_causal_lm(repository))
    prompts = [tokenizer.encode(prompt) for prompt in ANSWERS]
    drawn = lm.generate(prompts, 4, base_key(0), stop_ids=tokenizer.eos_ids)
    for row, (prompt, wanted) in zip(drawn, ANSWERS.items(), strict=True):
        answer = tokenizer.decode(row.ids)
        assert answer.startswith(wanted), (prompt, answer)
        print(f"language models: {NAME}: {prompt!r} -> {answer!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data_dir", help="where the model lies or goes (default: nowhere kept)")
    args = parser.parse_args()
    data = from_wheel(lm_packages.PACKAGES[NAME])
    compare_tensors(data)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "model.gguf"
        file.write_bytes(data)
        compare_answers(lm_packages.prepare(NAME, args.data_dir or scratch, str(file))[0])


if __name__ == "__main__":
    main()
