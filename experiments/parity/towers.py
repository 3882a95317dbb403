"""Tiny models of the published libraries, random in every weight, and what they make of rows.

Each is a folder as the hub has it (half precision, so small), beside ``golden.safetensors``: images
and ids, and the library's vectors and logits in float32.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
VOCAB, T = 99, 12
TEXT = dict(
    vocab_size=VOCAB, hidden_size=16, intermediate_size=40, num_hidden_layers=2,
    num_attention_heads=2, max_position_embeddings=T,
)  # fmt: skip
IMAGE = dict(
    hidden_size=24, intermediate_size=56, num_hidden_layers=2, num_attention_heads=3, image_size=16,
    patch_size=8,
)  # fmt: skip


def write_all(folder: Path) -> None:
    """Every golden into ``folder``/NAME, anew."""
    for name, write in GOLDENS.items():
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True)
        write(folder / name)


@torch.no_grad()
def randomise(model, seed: int) -> None:
    """Every parameter and running statistic drawn anew: none may be 0 or 1 by its start."""
    draw = torch.Generator().manual_seed(seed)
    for name, x in model.state_dict().items():
        if not x.is_floating_point():
            continue
        noise = torch.randn(x.shape, generator=draw)
        if name.endswith("running_var"):
            x.copy_(0.5 + noise.abs())
        elif "logit_scale" in name:
            x.fill_(1.7)
        elif "logit_bias" in name:
            x.fill_(-2.5)
        elif x.ndim < 2:
            x.copy_(0.2 * noise + (1.0 if name.endswith("weight") else 0.0))
        else:
            x.copy_(noise * x[0].numel() ** -0.5 if x.ndim > 1 else noise)
        x.copy_(x.half().float())  # what the file can hold


def images(size: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (2, size, size, 3), np.uint8)


def pixels(image_u8: np.ndarray, mean, std) -> torch.Tensor:
    x = (image_u8.astype(np.float32) / 255 - np.float32(mean)) / np.float32(std)
    return torch.from_numpy(x.transpose(0, 3, 1, 2).copy())


def clip_ids(eot: int, pad: int, more: tuple[int, ...]) -> np.ndarray:
    """Three texts of different length, and one with more ids after its end."""
    rng, rows = np.random.default_rng(2), np.full((4, T), pad, np.int32)
    for row, length in zip(rows, (5, 3, T - 2, 4)):
        row[: length + 2] = [VOCAB - 2, *rng.integers(3, 60, length), eot]
    rows[3, 6 : 6 + len(more)] = more
    return rows


def write_clip(folder: Path, activation: str, eos: int, ids: np.ndarray, seed: int) -> None:
    from transformers import CLIPConfig, CLIPModel

    text = dict(TEXT, hidden_act=activation, eos_token_id=eos, bos_token_id=1, pad_token_id=0)
    image = dict(IMAGE, hidden_act=activation)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=image, projection_dim=20)).eval()
    randomise(model, seed)
    _write_hf(folder, model, ids, (MEAN, STD))


def write_siglip(folder: Path) -> None:
    from transformers import SiglipConfig, SiglipModel

    text = dict(TEXT, hidden_size=24, num_attention_heads=4, projection_size=24)
    config = SiglipConfig(
        text_config=dict(text, eos_token_id=1, bos_token_id=1), vision_config=IMAGE
    )
    model = SiglipModel(config).eval()
    randomise(model, 5)
    ids = np.random.default_rng(3).integers(2, VOCAB, (3, T)).astype(np.int32)
    ids[0, 4:], ids[1, 9:] = 1, 1
    _write_hf(folder, model, ids, ((0.5,) * 3, (0.5,) * 3))


@torch.no_grad()
def _write_hf(folder: Path, model, ids: np.ndarray, norm) -> None:
    image_u8 = images(IMAGE["image_size"])
    image = pixels(image_u8, *norm)
    out = model(input_ids=torch.from_numpy(ids).long(), pixel_values=image)
    golden = {
        "image_u8": image_u8,
        "text_ids": ids,
        "image_tower": model.vision_model(image).pooler_output.numpy(),
        "image_emb": out.image_embeds.numpy(),
        "text_emb": out.text_embeds.numpy(),
        "logits": out.logits_per_image.numpy(),
    }
    _save_golden(folder, golden)
    model.half().save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    preprocessor = {"image_mean": norm[0], "image_std": norm[1]}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")


@torch.no_grad()
def write_resnet(folder: Path) -> None:
    from open_clip.model import CLIP
    from safetensors.torch import save_file as save_torch

    config = dict(
        embed_dim=20,
        vision_cfg=dict(image_size=64, layers=[1, 2, 1, 1], width=4, patch_size=None),
        text_cfg=dict(context_length=T, vocab_size=VOCAB, width=16, heads=2, layers=2),
        quick_gelu=True,
    )
    model = CLIP(**config).eval()
    randomise(model, 6)
    image_u8, ids = images(64), clip_ids(VOCAB - 1, 0, (7, 8))
    image = pixels(image_u8, MEAN, STD)
    image_emb = model.encode_image(image, normalize=True)
    text_emb = model.encode_text(torch.from_numpy(ids).long(), normalize=True)
    golden = {
        "image_u8": image_u8,
        "text_ids": ids,
        "image_tower": model.visual(image).numpy(),
        "image_emb": image_emb.numpy(),
        "text_emb": text_emb.numpy(),
        "logits": (model.logit_scale.exp() * image_emb @ text_emb.T).numpy(),
    }
    _save_golden(folder, golden)
    half = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_torch({k: v.contiguous() for k, v in half.items()}, folder / "open_clip_model.safetensors")
    preprocess = dict(mean=MEAN, std=STD)
    told = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(told, indent=2) + "\n")


def _save_golden(folder: Path, golden: dict[str, np.ndarray]) -> None:
    save_file(
        {k: np.ascontiguousarray(v) for k, v in golden.items()}, folder / "golden.safetensors"
    )


GOLDENS = {
    # As OpenAI's are published: eos_token_id=2 means the largest id of the row.
    "clip_quick_gelu": lambda folder: write_clip(
        folder, "quick_gelu", 2, clip_ids(VOCAB - 1, 0, (7, 8)), 3
    ),
    # With tokens added behind the end of text: the first eos_token_id counts, not the largest id.
    "clip_gelu": lambda folder: write_clip(
        folder, "gelu", VOCAB - 5, clip_ids(VOCAB - 5, VOCAB - 5, (VOCAB - 1, 9)), 4
    ),
    "siglip": write_siglip,
    "resnet": write_resnet,
}
