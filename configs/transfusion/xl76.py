"""Transfusion's 0.76B model: text and 256x256 images in one row, 256 patches an image.

    mmx prepare folder DIR --name NAME --size 256
    mmx train --config vqgan/transfusion256_kl --workdir runs/kl256 \\
        --config.data.source=tfds:NAME
    mmx train --config transfusion/xl76 --workdir runs/xl76 \\
        --config.data.source=tfds:NAME --config.data.mix="('tfds:TEXTS train',)" \\
        --config.codec.run=runs/kl256

Paper: Transfusion (arXiv 2408.11039) sec. 3 to 4.2; the values are those of its
controlled comparison with Chameleon, 0.5T tokens. What it leaves open is ours: the hidden width of
the MLPs (Llama's ratio), how often a caption is dropped for guidance, the data (theirs: Llama 2's
texts and 380M pairs) and the vocabulary, which a run learns from its own texts.
Hardware: theirs is not stated; one large accelerator holds it with a smaller batch_size.
Not trained by us.
"""

from ml_collections import ConfigDict

from mmx.core.config import parse_arg


def get_config(arg=""):
    """``:tiny`` is a run of seconds on OpenMoji, after ``vqgan/transfusion256_kl:tiny``."""
    tiny = parse_arg(arg, tiny=False)["tiny"]
    c = ConfigDict()
    c.family = "transfusion"
    c.seed = 0
    c.steps = 20 if tiny else 250_000  # sec. 4.1
    c.batch_size = 4 if tiny else 512  # sec. 4.1: 2M tokens
    c.dtype = "float32" if tiny else "bfloat16"  # ours

    c.data = dict(
        source="tfds:openmoji/32" if tiny else "tfds:NAME",
        data_dir="",
        split="train",
        # Sec. 4.1: as many tokens of images as of text; ``*N`` in split and mix sets the shares.
        mix=("tfds:wordnet train",) if tiny else ("tfds:TEXTS train",),
        image_size=32 if tiny else 256,  # sec. 4.1
        latents=False,  # ours
        row_len=128 if tiny else 4096,  # sec. 4.1
        max_images=4 if tiny else 12,  # ours: 7 or 8 at the mean
        threads=1 if tiny else 16,
    )
    # `config` is what preflight assumes of the tokenizer where no run of one is named.
    c.codec = dict(
        run="", config="vqgan/transfusion256_kl:tiny" if tiny else "vqgan/transfusion256_kl"
    )
    c.text = dict(
        max_len=32 if tiny else 1024,  # ours
        vocab_size=2048 if tiny else 32_000,  # sec. 4.1: Llama 2's
    )
    c.model = dict(
        depth=2 if tiny else 24,  # sec. 4.1
        width=32 if tiny else 1536,  # sec. 4.1
        heads=2 if tiny else 24,  # sec. 4.1
        mlp=64 if tiny else 4096,  # ours, as Llama 2's ratio
        patch=2,  # sec. 4.2: 256 patches an image
        patches="linear",  # sec. 4.2
        positions=False,  # as the paper: RoPE along the row alone
        attention="auto",  # ours
        qk_norm=False,  # as Llama 2
        by_modality=False,  # as the paper: all weights are shared but the patches' maps
        remat="none" if tiny else "attention",  # ours
    )
    c.diffusion = dict(
        schedule="cosine",  # sec. 4.1
        prediction="eps",  # sec. 2.2
        weighting="eps",  # eq. 3: the plain squared error
        times="uniform",  # sec. 2.2
    )
    c.loss = dict(
        diffusion=5.0,  # sec. 4.1: lambda
        chunk=128 if tiny else 512,  # ours
        image_first=0.2,  # sec. 4.1
        noise_limit=0.5,  # sec. 4.3
        drop=0.1,  # ours
    )
    c.optim = dict(
        name="adamw",  # sec. 4.1
        lr=3e-4,  # sec. 4.1
        lr_end=1.5e-5,  # sec. 4.1
        b1=0.9,  # sec. 4.1
        b2=0.95,  # sec. 4.1
        weight_decay=0.1,  # sec. 4.1
        warmup_steps=5 if tiny else 4000,  # sec. 4.1
        clip_norm=1.0,  # sec. 4.1
        ema=0.0,  # as the paper: none
        accum=1,  # ours
    )
    c.mesh = dict(slice=1, data=1, fsdp=-1, tensor=1)  # ours
    c.sample = dict(
        steps=4 if tiny else 250,  # sec. 4.1
        solver="ddpm",  # sec. 2.2
        guidance=5.0,  # sec. 4.1; 3 in its ablations
        temperature=0.0,  # sec. 4.1: greedy
        images=1,  # ours
        text=32 if tiny else 256,  # ours
    )
    c.preview_prompts = ("red heart", "violin", "dog face", "red apple")
    c.eval = dict(
        splits=("test",),
        examples=64 if tiny else 5000,
        metrics=(),
        scorer="",
    )
    c.log_every = 10 if tiny else 100
    c.eval_every = 10 if tiny else 10_000
    c.preview_every = 10 if tiny else 5000
    c.save_every = 10 if tiny else 5000
    c.keep = 2
    return c
