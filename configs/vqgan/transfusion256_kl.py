"""Transfusion's autoencoder for 256x256 images: f = 8, a 32x32 grid of 8 numbers, continuous.

    mmx prepare folder DIR --name NAME --size 256
    mmx train --config vqgan/transfusion256_kl --workdir runs/kl256 \\
        --config.data.source=tfds:NAME --config.loss.perceptual_weights=vgg16.safetensors

Paper: Transfusion (arXiv 2408.11039) sec. 3.1 and app. A. What it leaves open is tagged: LDM is the
public code of arXiv 2112.10752, of the same lineage; ours is a choice without a source. What
differs: the paper's loss has a fifth term, 0.2 times the distance of MoCo-v2 features ("ID"), which
is not built here; the perceptual distance is of VGG features, without LPIPS' weights of their
channels; the adversarial weight is constant, where LDM scales it by the norms of gradients; no
attention. So it has 87.9M parameters, the paper's 86M. Hardware: a million steps want a pod; on one
large accelerator lower batch_size. Not trained by us: no score to compare yet.
"""

from ml_collections import ConfigDict

from mmx.core.config import parse_arg


def get_config(arg=""):
    """``:tiny`` is a run of seconds on OpenMoji, with every part but the perceptual network."""
    tiny = parse_arg(arg, tiny=False)["tiny"]
    c = ConfigDict()
    c.family = "vqgan"
    c.seed = 0
    c.steps = 20 if tiny else 1_000_000  # app. A
    c.batch_size = 8 if tiny else 256  # ours
    c.dtype = "float32" if tiny else "bfloat16"  # ours

    c.data = dict(
        source="tfds:openmoji/32" if tiny else "tfds:NAME",
        data_dir="",
        split="train",
        image_size=32 if tiny else 256,  # sec. 3.1
        shift=0,  # ours
        flip=True,  # ours
        threads=1 if tiny else 16,
    )
    c.model = dict(
        channels=8 if tiny else 128,  # LDM
        multipliers=(1, 2, 4, 4),  # LDM; four levels give f = 8 (sec. 3.1)
        encoder_blocks=1 if tiny else 2,  # LDM
        encoder_mid_blocks=1 if tiny else 3,  # ours: LDM has 2 and attention between them
        decoder_blocks=1 if tiny else 3,  # LDM
        decoder_mid_blocks=1 if tiny else 3,  # ours, as the encoder
        patch=1,  # as LDM: no folding
        norm="group",  # LDM
        linear_path=False,  # as LDM
    )
    c.quantizer = dict(
        kind="kl",  # app. A
        latent_dim=8,  # app. A
        kl=1e-6,  # app. A; of sums over an image, as LDM
    )
    c.loss = dict(
        l1=1.0,  # app. A
        l2=0.0,  # app. A
        perceptual=0.0 if tiny else 1.0,  # app. A
        perceptual_weights="",  # safetensors of torchvision's vgg16: yours to give
        adversarial=0.5,  # app. A
        gan="hinge",  # LDM
        gan_start=2 if tiny else 50_000,  # app. A
        r1=0.0,  # LDM
        lecam=0.0,  # LDM
    )
    c.discriminator = dict(
        kind="patch",  # app. A
        channels=8 if tiny else 64,  # LDM
        levels=2 if tiny else 3,  # LDM
    )
    c.optim = dict(
        name="adamw",  # LDM: Adam
        lr=1e-4,  # ours
        b1=0.5,  # LDM
        b2=0.9,  # LDM
        weight_decay=0.0,  # LDM
        warmup_steps=5 if tiny else 5000,  # ours
        clip_norm=1.0,  # ours
        ema=0.0,  # LDM; the moments of the latents are of the weights as trained
        accum=1,  # ours
    )
    c.optim_disc = dict(
        name="adamw",  # LDM: Adam
        lr=1e-4,  # ours
        b1=0.5,  # LDM
        b2=0.9,  # LDM
        weight_decay=0.0,  # LDM
        warmup_steps=5 if tiny else 5000,  # ours
        clip_norm=1.0,  # ours
        ema=0.0,  # LDM
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
