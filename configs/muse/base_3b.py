"""Muse's base model of 3B parameters: captions to 16x16 codes of 256x256 images.

    mmx train --config muse/base_3b --workdir runs/muse3b \\
        --config.data.source=tfds:NAME --config.codec.run=runs/vqgan256

Paper: Muse (arXiv 2301.00704) sec. 2.3, 2.6 to 2.8 and table 4: 3.26B parameters, which is what
this shape has without the text encoder. Two things differ: the text encoder, small and learned here
(theirs: T5-XXL, frozen), and the data, yours (theirs: 460M pairs), so the paper's FID-30K of 7.88
is not to be expected. Hardware: theirs 512 TPU v4 cores for about a week. Not trained by us.
"""

from ml_collections import ConfigDict

from mmx.core.config import parse_arg


def get_config(arg=""):
    """``:tiny`` is a run of seconds on OpenMoji, after ``vqgan/muse256:tiny``."""
    tiny = parse_arg(arg, tiny=False)["tiny"]
    c = ConfigDict()
    c.family = "muse"
    c.seed = 0
    c.steps = 20 if tiny else 1_500_000  # table 4; its text says a million
    c.batch_size = 8 if tiny else 512  # table 4
    c.dtype = "float32" if tiny else "bfloat16"  # ours

    c.data = dict(
        source="tfds:openmoji/32" if tiny else "tfds:NAME",
        data_dir="",
        split="train",
        image_size=64 if tiny else 256,  # sec. 2.2
        shift=0,  # ours
        flip=False,  # ours
        threads=1 if tiny else 16,
    )
    # `config` is what preflight assumes of the tokenizer where no run of one is named.
    c.codec = dict(run="", config="vqgan/muse256:tiny" if tiny else "vqgan/muse256")
    # Ours: learned with the model. The paper's frozen T5-XXL (sec. 2.1) is not here yet.
    c.text = dict(
        max_len=12 if tiny else 128,  # ours
        width=32 if tiny else 1024,  # ours
        depth=1 if tiny else 12,  # ours
        heads=4 if tiny else 16,  # ours
    )
    c.model = dict(
        depth=2 if tiny else 48,  # table 4
        width=32 if tiny else 2048,  # table 4
        heads=2 if tiny else 16,  # ours: not in the paper
        mlp=64 if tiny else 8192,  # table 4
        patch=1,  # as the paper: no folding
        code_width=0,  # as the paper: the trunk's width
        logit_scale=0.5,  # ours, after the 0.02 * sqrt(768) of arXiv 2202.04200
        activation="gelu",  # ours: not in the paper
        remat="none" if tiny else "full",  # ours
    )
    c.loss = dict(
        label_smoothing=0.1,  # arXiv 2202.04200; not in the paper
        weighting="row",  # arXiv 2202.04200; not in the paper
        text_drop=0.1,  # sec. 2.7
    )
    c.optim = dict(
        name="adafactor",  # table 4
        lr=1e-4,  # table 4
        b1=0.9,  # table 4
        b2=0.96,  # table 4
        weight_decay=0.045,  # table 4
        warmup_steps=5 if tiny else 5000,  # table 4
        clip_norm=1.0,  # ours
        ema=0.0,  # sec. 3: averaged over checkpoints instead, see offline_ema
        accum=1,  # ours
    )
    c.offline_ema = 0.7  # sec. 3
    c.mesh = dict(slice=1, data=1, fsdp=-1, tensor=1)  # ours
    c.sample = dict(
        steps=4 if tiny else 24,  # sec. 2.8
        guidance=6.0,  # ours: the paper sweeps it
        sampling_temperature=1.0,  # ours: the paper sweeps it
        choice_temperature=4.5,  # arXiv 2202.04200
        schedule="cosine",  # sec. 2.8
        selection="confidence",  # sec. 2.8
    )
    c.preview_prompts = (
        "red heart",
        "violin",
        "dog face",
        "red apple",
        "rocket",
        "two cats",
        "a tree",
        "a house",
    )
    c.eval = dict(
        splits=("test",),
        examples=64 if tiny else 5000,
        metrics=("kid_mobilenetv2_96px", "precision_recall_mobilenetv2_96px"),
        scorer="",
    )
    c.log_every = 10 if tiny else 100
    c.eval_every = 10 if tiny else 10_000
    c.preview_every = 10 if tiny else 5000
    c.save_every = 10 if tiny else 5000  # sec. 3
    c.keep = 2 if tiny else 20  # ours: an older one weighs under 0.7^20 = 0.1 % in the average
    return c
