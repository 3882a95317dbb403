"""Published weights and tokenizers beside the libraries that publish them: `make parity`.

    make parity                                      # an environment with torch of its own
    python experiments/parity/run.py --write         # the goldens of tests/ anew
    python experiments/parity/run.py --images DIR    # and the published logits, see ANCHORS

Three comparisons, each to 1e-5: the libraries now with the goldens that `make test` reads; mmx with
the libraries now; and, where the weights lie in the cache of huggingface_hub, mmx with the logits
that their makers publish. Prints one line each; stops at the first that fails.
"""

import argparse
import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import language_models
import numpy as np
import pictures
import sentences
import texts
import towers
from lm_weights import lay_down, weights
from safetensors.numpy import load_file, save_file

from mmx.core.errors import UserError
from mmx.data.clip_bpe import ClipTokenizer
from mmx.data.image import decode, resize_crop, stretch
from mmx.data.siglip_text import SiglipTokenizer
from mmx.models.clip.published import load_published
from mmx.nn.causal_lm import CausalLM
from mmx.pretrained.causal_lm import load_causal_lm
from mmx.pretrained.hub import Repository
from mmx.pretrained.sentences import load_sentences

REPO = Path(__file__).resolve().parents[2]
GOLDENS = REPO / "tests/goldens/pretrained"

# What the makers of the weights print for a picture: (id, picture, texts, logits or probabilities).
# Logits: transformers' tests/models/{clip,siglip}/test_modeling_*.py, tolerance 1e-3 there.
# Probabilities: the README of github.com/openai/CLIP (in half precision: 1e-2 here).
ANCHORS = (
    ("openai/clip-vit-base-patch32", "000000039769", ("a photo of a cat", "a photo of a dog"),
     (24.5701, 19.3049), "logits"),
    ("google/siglip-base-patch16-224", "000000039769", ("a photo of 2 cats", "a photo of 2 dogs"),
     (-0.7567, -10.3354), "logits"),
    ("openai/clip-vit-base-patch32", "CLIP", ("a diagram", "a dog", "a cat"),
     (0.9927937, 0.00421068, 0.00299572), "probabilities"),
)  # fmt: skip


def write_goldens(folder: Path) -> None:
    """All that the libraries say, into a folder laid out as the goldens."""
    towers.write_all(folder)
    language_models.write_goldens(folder)
    sentences.write_goldens(folder)
    save_file(pictures.pictures_golden(), folder / "pictures.safetensors")
    _write_texts(folder / "clip_bpe.json", texts.clip_golden())
    (folder / "siglip_text").mkdir(exist_ok=True)
    golden = texts.siglip_golden(folder / "siglip_text/tokenizer.json")
    _write_texts(folder / "siglip_text/golden.json", golden)


def _write_texts(file: Path, golden: dict) -> None:
    text = json.dumps(golden, separators=(",", ":")).replace("],[", "],\n[")
    file.write_text(text + "\n")


def compare_goldens(live: Path) -> None:
    """The committed goldens are what the libraries say today."""
    for file in sorted(live.rglob("*.safetensors")):
        kept, now = load_file(GOLDENS / file.relative_to(live)), load_file(file)
        assert kept.keys() == now.keys(), file
        for name, value in now.items():
            np.testing.assert_allclose(kept[name], value, atol=1e-5, rtol=1e-5, err_msg=name)
    for name in ("clip_bpe.json", "siglip_text/golden.json", "bert/golden.json"):
        kept, now = (json.loads((folder / name).read_text())["texts"] for folder in (GOLDENS, live))
        assert kept == now, name
    print(f"goldens: {GOLDENS.relative_to(REPO)} is what the libraries say now")


def compare_towers(live: Path) -> None:
    for name in towers.GOLDENS:
        golden = load_file(live / name / "golden.safetensors")
        model, params, extra = load_published(Repository(str(live / name)))
        logits, image_emb, text_emb = _logits(
            model, params, extra, golden["image_u8"], golden["text_ids"]
        )
        worst = 0.0
        for key, value in (("logits", logits), ("image_emb", image_emb), ("text_emb", text_emb)):
            np.testing.assert_allclose(value, golden[key], atol=1e-5, rtol=1e-5, err_msg=key)
            worst = max(worst, float(np.abs(value - golden[key]).max()))
        print(f"towers: {name}: embeddings and logits equal, the worst differs by {worst:.1e}")


def compare_language_models(live: Path) -> None:
    """Live logits, to 1e-4; the committed ones are compared as all goldens are."""
    golden = load_file(live / "logits.safetensors")
    kept, now = (
        json.loads((folder / "configs.json").read_text()) for folder in (GOLDENS / live.name, live)
    )
    assert kept == now, "configs.json"
    for name, model in now.items():
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(model["config"]))
            save_file(weights(model["tensors"]), Path(folder) / "model.safetensors")
            arch, params = load_causal_lm(Repository(folder))
        run = jax.jit(CausalLM(arch).apply)
        logits, wanted = run({"params": params}, golden[f"{name}/ids"]), golden[f"{name}/logits"]
        np.testing.assert_allclose(logits, wanted, atol=1e-4, rtol=0, err_msg=name)
        print(
            f"language models: {name}: the worst logit differs by {abs(logits - wanted).max():.1e}"
        )


def compare_sentences(live: Path) -> None:
    golden = load_file(live / "golden.safetensors")["sentences"]
    told = json.loads((live / "golden.json").read_text())["texts"]
    with tempfile.TemporaryDirectory() as folder:
        lay_down(live, Path(folder) / "weights/minilm")
        rows = load_sentences("minilm", folder).embed([text for text, _ in told])
    np.testing.assert_allclose(rows, golden, atol=1e-5, rtol=0)
    print(f"sentences: the worst number differs by {np.abs(rows - golden).max():.1e}")


def _logits(model, params, extra, image_u8, text_ids):
    @jax.jit
    def run(variables):
        image = image_u8.astype(jnp.float32) / 127.5 - 1.0
        image_emb, text_emb, log_scale, bias = model.apply(variables, image, text_ids)
        return jnp.exp(log_scale) * image_emb @ text_emb.T + bias, image_emb, text_emb

    with jax.default_matmul_precision("highest"):
        return run({"params": params, **extra})


def compare_anchors(images: Path | None) -> None:
    for name, picture, prompts, wanted, what in ANCHORS:
        files = sorted(images.glob(f"{picture}.*")) if images else []
        repository = Repository(name)
        try:
            repository.get("config.json")
            model, params, extra = load_published(repository)
        except UserError as error:
            print(f"published {what} of {name}: not compared, weights not present ({error})")
            continue
        if not files:
            print(f"published {what} of {name}: not compared, no {picture}.* in --images")
            continue
        image, size = decode(files[0].read_bytes()), 224
        if name.startswith("google/siglip"):
            tokenizer, length = SiglipTokenizer.load(repository.get("tokenizer.json")), 64
            image = stretch(image, size)
        else:
            tokenizer, length = ClipTokenizer.published(), 77
            image = resize_crop(image, size)
        ids, _ = tokenizer.encode(prompts, length)
        logits = _logits(model, params, extra, image[None], ids)[0][0]
        got = jax.nn.softmax(logits) if what == "probabilities" else logits
        tolerance = 1e-2 if what == "probabilities" else 1e-3
        np.testing.assert_allclose(got, wanted, atol=tolerance, rtol=tolerance)
        print(f"published {what} of {name}: {np.asarray(got).tolist()}, as published {wanted}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write the goldens anew, then compare")
    parser.add_argument("--images", type=Path, help="a folder with 000000039769.* and CLIP.*")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        live = Path(folder)
        write_goldens(live)
        if args.write:
            write_goldens(GOLDENS)
        compare_goldens(live)
        compare_towers(live)
        compare_language_models(live / language_models.FOLDER)
        compare_sentences(live / sentences.FOLDER)
        golden = json.loads((live / "siglip_text/golden.json").read_text())
        print("texts:", texts.check_siglip(golden, live / "siglip_text/tokenizer.json"))
    print("texts:", texts.check_clip_live())
    compare_anchors(args.images)


if __name__ == "__main__":
    main()
