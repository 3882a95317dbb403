"""SPAE for 128x128 images: 597 words of a language model, from 65,536 rows of 4,096 numbers.

    mmx prepare folder DIR --name NAME --size 128
    mmx prepare sentences wordllama
    mmx train --config spae/imagenet128 --workdir runs/spae128 --config.data.source=tfds:NAME \\
        --config.guidance.run=CLIP_RUN --config.loss.perceptual_weights=vgg16.safetensors

CLIP_RUN: published weights, ``mmx import openai/clip-vit-large-patch14 --workdir CLIP_RUN``, or a
run of ``clip/vit_l14``. Paper: SPAE (arXiv 2306.17842). Values tagged SPAE were written down from
memory of its sec. 3, sec. 4 and appendix: they are to be confirmed beside the text. MAGVIT is the
public code of arXiv 2212.05199, by the same authors; ours is a choice without a source. What
differs: the paper's words are of PaLM 2-S, which is closed; Qwen3 8B, as Llama 3 8B, has rows of
4,096 too. Its perceptual distance, after MAGVIT, is of a ResNet's logits, here of VGG's features;
MAGVIT's discriminator has multipliers (2, 4, 4, 4, 4), ours (2, 4, 8, 8, 8); 7 prompts of CLIP's
authors stand for their 80 (65,536 words in 80 prompts are five million texts). Hardware: ours
v5e-64. Not trained by us: no score to compare yet.
"""

from ml_collections import ConfigDict

from mmx.core.config import parse_arg


def get_config(arg=""):
    """``:tiny`` is a run of seconds on OpenMoji, with every part but the perceptual network, after
    ``clip/vit_l14:tiny``."""
    tiny = parse_arg(arg, tiny=False)["tiny"]
    c = ConfigDict()
    c.family = "spae"
    c.seed = 0
    c.steps = 20 if tiny else 450_000  # SPAE: 90 epochs
    c.batch_size = 8 if tiny else 256  # SPAE
    c.dtype = "float32" if tiny else "bfloat16"  # ours

    c.data = dict(
        source="tfds:openmoji/32" if tiny else "tfds:NAME",
        data_dir="",
        split="train",
        image_size=32 if tiny else 128,  # SPAE
        shift=0,  # ours
        flip=True,  # ours
        threads=1 if tiny else 16,
    )
    c.model = dict(
        channels=8 if tiny else 128,  # SPAE
        multipliers=(1, 2, 2, 4),  # SPAE; four levels give f = 8
        encoder_blocks=1 if tiny else 2,  # SPAE: residual blocks a resolution
        encoder_mid_blocks=1 if tiny else 2,  # MAGVIT
        decoder_blocks=1 if tiny else 2,  # SPAE
        decoder_mid_blocks=1 if tiny else 2,  # MAGVIT
        patch=1,  # as MAGVIT: no folding
        norm="group",  # MAGVIT
        linear_path=False,  # as MAGVIT
    )
    c.words = dict(
        lm="smollm2-135m-instruct" if tiny else "Qwen/Qwen3-8B",  # ours; theirs: PaLM 2-S
        width=576 if tiny else 4096,  # of its rows
        filters=("ordinary", "valid"),  # ours: as what SPAE takes of a GPT's tokens
        min_letters=0,  # as SPAE: any pieces
        list="",  # SPAE: the most frequent pieces
        size=256 if tiny else 65_536,  # SPAE: 65 thousand
        table="raw",  # SPAE: no projection
        code_dim=576 if tiny else 4096,  # SPAE: the width of the rows
    )
    c.pyramid = dict(
        sides=(1, 2, 4, 4, 4, 4) if tiny else (1, 2, 4, 8, 16, 16),  # SPAE: 597 words
        scheme="saq",  # SPAE
        standardize=False,  # as SPAE
        fill="nearest",  # ours: SPAE draws from five layers and more, which have no empty cell
        short=0.3,  # ours: of the rows are drawn from fewer layers than all
        commitment=0.33,  # SPAE: beta
    )
    c.guidance = dict(
        teacher="clip",  # SPAE: ViT-L/14
        run="",  # yours to give
        config="clip/vit_l14:tiny" if tiny else "clip/vit_l14",  # what preflight takes it to be
        # CLIP's authors' code, which lists 80 and names these 7 as nearly as good; SPAE: the 80
        prompts=(
            "itap of a {}.",
            "a bad photo of the {}.",
            "a origami {}.",
            "a photo of the large {}.",
            "a {} in a video game.",
            "art of the {}.",
            "a photo of the small {}.",
        ),
        thresholds=(0.98, 0.95, 0.90, 0.85, 0.80),  # SPAE: of the first five layers
        weight=1.0,  # SPAE: alpha
        temperature=1.0,  # SPAE has none
    )
    c.loss = dict(
        l1=0.0,  # SPAE has none
        l2=1.0,  # SPAE
        perceptual=0.0 if tiny else 0.1,  # SPAE: eta
        perceptual_weights="",  # safetensors of torchvision's vgg16: yours to give
        adversarial=0.1,  # SPAE: lambda
        gan="non_saturating",  # MAGVIT
        gan_start=2 if tiny else 0,  # MAGVIT has no start step
        r1=10.0,  # MAGVIT
        lecam=1e-4,  # SPAE: phi
    )
    c.discriminator = dict(
        kind="style",  # MAGVIT
        channels=8 if tiny else 128,  # MAGVIT: the generator's
        levels=3 if tiny else 5,  # MAGVIT: five multipliers, down to 4x4 pixels
    )
    c.optim = dict(
        name="adamw",  # SPAE: Adam, which this is without decay
        lr=1e-4,  # SPAE
        b1=0.0,  # MAGVIT
        b2=0.99,  # MAGVIT
        weight_decay=0.0,  # SPAE names none
        warmup_steps=5 if tiny else 10_000,  # ours; SPAE: linear, then root-square, here cosine
        clip_norm=1.0,  # ours
        ema=0.999,  # MAGVIT
        accum=1,  # ours
    )
    c.optim_disc = dict(
        name="adamw",  # SPAE
        lr=1e-4,  # SPAE
        b1=0.0,  # MAGVIT
        b2=0.99,  # MAGVIT
        weight_decay=0.0,  # SPAE names none
        warmup_steps=5 if tiny else 10_000,  # ours
        clip_norm=1.0,  # ours
        ema=0.0,  # ours
    )
    c.mesh = dict(slice=1, data=-1, fsdp=1, tensor=1)  # ours
    c.eval = dict(splits=("test",), examples=64 if tiny else 5000, metrics=(), scorer="")
    c.log_every = 10 if tiny else 100
    c.eval_every = 10 if tiny else 10_000
    c.preview_every = 10 if tiny else 5000
    c.save_every = 10 if tiny else 5000
    c.keep = 2
    return c
