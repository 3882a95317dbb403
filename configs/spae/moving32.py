"""OpenMoji that move, 16 frames of 32x32, into words of SmolLM2: 1, 4, 32, 256 and 256 of them.

    mmx prepare openmoji --config 32
    mmx prepare lm
    mmx prepare sentences minilm
    mmx prepare sentences wordllama
    mmx train --config spae/openmoji32 --workdir runs/spae
    mmx train --config spae/moving32 --workdir runs/moving --init_from runs/spae
    mmx describe runs/moving strip.png

An hour of two cores: 23.5 dB of PSNR on test by all words, 17.7 by the first
(experiments/spae_generation/README.md).
The network is that of spae/openmoji32 with windows of three frames, whose weights it takes
(arXiv 2212.05199 sec. 3.1). SPAE's video latents are 4x16x16 of 16x128x128, recalled; its layers of
them are not known to us. The sizes here are ours.
"""

from ml_collections import ConfigDict

from mmx.core.config import parse_arg


def get_config(arg=""):
    """``:tiny`` is a run of seconds, for tests."""
    tiny = parse_arg(arg, tiny=False)["tiny"]
    c = ConfigDict()
    c.family = "spae"
    c.seed = 0
    c.steps = 20 if tiny else 1000
    c.batch_size = 4 if tiny else 8
    c.dtype = "float32"

    c.data = dict(
        source="moving:openmoji/32",
        data_dir="",
        split="train+train_toned",
        image_size=32,
        frames=16,
        shift=0,
        flip=False,
        threads=1,
    )
    c.words = dict(
        lm="smollm2-135m-instruct",
        width=576,  # of its rows
        filters=("ordinary", "valid", "word_initial", "letters", "lowercase", "round_trip"),
        min_letters=3,
        list="",
        size=4096,
        table="whiten",
        code_dim=32,
    )
    c.model = dict(
        channels=8 if tiny else 96,
        multipliers=(1,),
        time=(4,),  # 16 frames become 4
        encoder_blocks=1 if tiny else 3,
        encoder_mid_blocks=0,
        decoder_blocks=1 if tiny else 3,
        decoder_mid_blocks=0,
        patch=4,
        norm="rms",
        linear_path=True,
    )
    c.pyramid = dict(
        sides=(1, 2, 4, 8, 8),
        frames=(1, 1, 2, 4, 4),
        scheme="saq",
        standardize=True,
        fill="nearest",
        short=0.3,  # of the rows are drawn from fewer layers than all
        commitment=0.1,
    )
    c.guidance = dict(
        teacher="captions",
        sentences="minilm",
        prompts=("a video of {}",),
        thresholds=(0.98, 0.9, 0.8),
        weight=4.0,
        temperature=4.0,  # rows have the length sqrt(32)
    )
    c.loss = dict(l1=0.0, l2=1.0, perceptual=0.0, adversarial=0.0)
    c.optim = dict(
        name="adamw",
        lr=1e-3,
        b1=0.9,
        b2=0.99,
        weight_decay=0.0,
        warmup_steps=50,
        clip_norm=1.0,
        ema=0.0,
        accum=1,
    )
    c.mesh = dict(slice=1, data=-1, fsdp=1, tensor=1)
    c.eval = dict(splits=("test",), examples=64, metrics=(), scorer="")
    c.log_every = 10 if tiny else 50
    c.eval_every = 10 if tiny else 250
    c.preview_every = 10 if tiny else 500
    c.save_every = 10 if tiny else 250
    c.keep = 2
    return c
