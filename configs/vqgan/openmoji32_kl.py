"""OpenMoji at 32x32 into an 8x8 grid of 8 numbers: continuous latents, to be diffused.

    mmx prepare openmoji --config 32
    mmx train --config vqgan/openmoji32_kl --workdir runs/kl

The networks of vqgan/openmoji32 with the bottleneck of Transfusion's autoencoder (arXiv 2408.11039
app. A). A minute of CPU time: PSNR 24.4 dB on test; the standard deviation of its latents there is
0.97 [0.95, 0.99], of the channel that varies least 0.90 (the drawings of test differ a little from
those of training, where it is 0.99). Everything here is ours: no paper trains at this size.
"""

from ml_collections import ConfigDict

from mmx.core.config import parse_arg


def get_config(arg=""):
    """``:tiny`` is a run of seconds, for tests."""
    tiny = parse_arg(arg, tiny=False)["tiny"]
    c = ConfigDict()
    c.family = "vqgan"
    c.seed = 0
    c.steps = 20 if tiny else 600
    c.batch_size = 16 if tiny else 64
    c.dtype = "float32"

    c.data = dict(
        source="tfds:openmoji/32",
        data_dir="",
        split="train+train_toned",
        image_size=32,
        shift=0,
        flip=False,
        threads=1,
    )
    c.model = dict(
        channels=16 if tiny else 64,
        multipliers=(1,),
        encoder_blocks=0,
        encoder_mid_blocks=0,
        decoder_blocks=1 if tiny else 2,
        decoder_mid_blocks=0,
        patch=4,
        norm="rms",
        linear_path=True,
    )
    c.quantizer = dict(kind="kl", latent_dim=8, kl=1e-3)
    c.loss = dict(l1=0.0, l2=1.0, perceptual=0.0, adversarial=0.0)
    c.optim = dict(
        name="adamw",
        lr=2e-3,
        b1=0.9,
        b2=0.99,
        weight_decay=0.0,
        warmup_steps=20,
        clip_norm=1.0,
        ema=0.0,
        accum=1,
    )
    c.mesh = dict(slice=1, data=-1, fsdp=1, tensor=1)
    c.eval = dict(
        splits=("test",),
        examples=256,
        metrics=("kid_mobilenetv2_96px", "ssim"),
        scorer="",
    )
    c.log_every = 10 if tiny else 50
    c.eval_every = 10 if tiny else 150
    c.preview_every = 10 if tiny else 150
    c.save_every = 10 if tiny else 100
    c.keep = 2
    return c
