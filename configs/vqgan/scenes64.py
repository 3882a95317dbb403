"""Scenes at 64x64 into a 16x16 grid of codes.

    mmx prepare scenes --config 64
    mmx train --config vqgan/scenes64 --workdir runs/scenes-vq

The twin of vqgan/scenes64_kl, to compare what is trained on either: the same networks, grid, width
of a latent, loss and training, another bottleneck. Some three minutes of CPU time: PSNR 25.7 dB on
test; of 300 of its pictures 0.970 are read entirely right after decoding (twin: 0.980, originals:
0.990). Everything here is ours.
"""

from ml_collections import ConfigDict

from mmx.core.config import parse_arg


def get_config(arg=""):
    """``:tiny`` is a run of seconds, for tests, on the scenes of 32 pixels scaled up."""
    tiny = parse_arg(arg, tiny=False)["tiny"]
    c = ConfigDict()
    c.family = "vqgan"
    c.seed = 0
    c.steps = 20 if tiny else 800
    c.batch_size = 8 if tiny else 32
    c.dtype = "float32"

    c.data = dict(
        source="tfds:scenes/32" if tiny else "tfds:scenes/64",
        data_dir="",
        split="train",
        image_size=64,
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
    c.quantizer = dict(
        kind="vq",
        num_codes=64 if tiny else 1024,
        code_dim=8,
        l2_normalize=False,
        commitment=0.25,
        ema=0.99,
        restart_below=0.0125,  # of even use
        entropy=0.0,
        entropy_temperature=0.01,
    )
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
        examples=64 if tiny else 1000,
        metrics=("kid_mobilenetv2_96px", "ssim"),
        scorer="",
    )
    c.log_every = 10 if tiny else 50
    c.eval_every = 10 if tiny else 400
    c.preview_every = 10 if tiny else 400
    c.save_every = 10 if tiny else 200
    c.keep = 2
    return c
