"""Muse's tokenizer for 256x256 images: f = 16, a 16x16 grid of 8192 codes.

    mmx prepare folder DIR --name NAME --size 256
    mmx train --config vqgan/muse256 --workdir runs/vqgan256 \\
        --config.data.source=tfds:NAME --config.loss.perceptual_weights=vgg16.safetensors

Paper: Muse (arXiv 2301.00704) sec. 2.2 and table 5. What it leaves open is tagged: MaskGIT is the
public code of arXiv 2202.04200, by the same authors; MAGVIT that of arXiv 2212.05199; ours is a
choice without a source. Hardware: the paper's batch and a million steps want a pod; on one large
accelerator lower batch_size. ``:fsq`` and ``:lfq`` (joined by commas with ``tiny``) take the
quantizers without a codebook. Not trained to the end by us: no score to compare yet.
"""

from ml_collections import ConfigDict

from mmx.core.config import one_of, parse_arg


def get_config(arg=""):
    """``:tiny`` is a run of seconds on OpenMoji, with every part but the perceptual network."""
    flags = parse_arg(arg, tiny=False, fsq=False, lfq=False)
    tiny, quantizer = flags["tiny"], one_of(flags, "fsq", "lfq")
    c = ConfigDict()
    c.family = "vqgan"
    c.seed = 0
    c.steps = 20 if tiny else 1_000_000  # table 5
    c.batch_size = 8 if tiny else 256  # table 5
    c.dtype = "float32" if tiny else "bfloat16"  # ours

    c.data = dict(
        source="tfds:openmoji/32" if tiny else "tfds:NAME",
        data_dir="",
        split="train",
        image_size=64 if tiny else 256,  # sec. 2.2
        shift=0,  # ours
        flip=True,  # ours
        threads=1 if tiny else 16,
    )
    c.model = dict(
        channels=8 if tiny else 128,  # sec. 2.2
        multipliers=(1, 1, 2, 2, 4),  # MaskGIT; five levels give f = 16 (sec. 2.2)
        encoder_blocks=1 if tiny else 2,  # sec. 2.2: residual blocks a resolution
        encoder_mid_blocks=1 if tiny else 2,  # MaskGIT; how the paper's 19 blocks split is unknown
        decoder_blocks=1 if tiny else 2,  # sec. 2.2
        decoder_mid_blocks=1 if tiny else 2,  # MaskGIT
        patch=1,  # as the paper: no folding
        norm="group",  # MaskGIT
        linear_path=False,  # as the paper
    )
    if quantizer == "fsq":
        levels = (4, 4, 4) if tiny else (8, 8, 8, 4, 4)  # 8192 codes; arXiv 2309.15505
        c.quantizer = dict(kind="fsq", levels=levels)  # ours
    elif quantizer == "lfq":
        c.quantizer = dict(
            kind="lfq",  # ours
            bits=6 if tiny else 13,  # 2^13 = 8192 codes; arXiv 2310.05737
            commitment=0.25,  # arXiv 2409.16211
            entropy=0.02,  # arXiv 2409.16211
            entropy_temperature=0.01,  # arXiv 2409.16211
        )
    else:
        c.quantizer = dict(
            kind="vq",  # sec. 2.2
            num_codes=64 if tiny else 8192,  # sec. 2.2
            code_dim=8 if tiny else 32,  # arXiv 2110.04627: low width, unit length
            l2_normalize=True,  # arXiv 2110.04627
            commitment=0.25,  # MaskGIT
            ema=0.99,  # arXiv 1711.00937
            restart_below=0.1,  # ours: a tenth of even use
            entropy=0.1,  # MaskGIT
            entropy_temperature=0.01,  # MaskGIT
        )
    c.loss = dict(
        l1=0.0,  # MaskGIT
        l2=1.0,  # MaskGIT
        perceptual=0.0 if tiny else 0.05,  # table 5
        perceptual_weights="",  # safetensors of torchvision's vgg16: yours to give
        adversarial=0.1,  # table 5
        gan="non_saturating",  # MaskGIT
        gan_start=2 if tiny else 0,  # MaskGIT has no start step
        r1=10.0,  # MaskGIT
        lecam=0.001,  # ours, after MAGVIT
    )
    c.discriminator = dict(
        kind="style",  # MaskGIT
        channels=8 if tiny else 128,  # ours: the generator's
        levels=3 if tiny else 6,  # ours: down to 4x4 pixels
    )
    c.optim = dict(
        name="adamw",  # table 5
        lr=1e-4,  # table 5
        b1=0.9,  # table 5
        b2=0.99,  # table 5
        weight_decay=1e-4,  # table 5
        warmup_steps=5 if tiny else 10_000,  # table 5
        clip_norm=1.0,  # ours
        ema=0.999,  # MaskGIT
        accum=1,  # ours
    )
    c.optim_disc = dict(
        name="adamw",  # table 5
        lr=1e-4,  # table 5
        b1=0.0,  # MaskGIT; table 5 gives one pair of betas, we read it as the generator's
        b2=0.99,  # table 5
        weight_decay=1e-4,  # table 5
        warmup_steps=5 if tiny else 10_000,  # table 5
        clip_norm=1.0,  # ours
        ema=0.0,  # ours
    )
    c.mesh = dict(slice=1, data=-1, fsdp=1, tensor=1)
    c.eval = dict(
        splits=("test",),
        examples=64 if tiny else 5000,
        metrics=("kid_mobilenetv2_96px", "ssim"),
        scorer="",
    )
    c.log_every = 10 if tiny else 100
    c.eval_every = 10 if tiny else 10_000
    c.preview_every = 10 if tiny else 5000
    c.save_every = 10 if tiny else 5000
    c.keep = 2
    return c
