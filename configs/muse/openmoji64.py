"""Muse on OpenMoji at 64x64: captions to 16x16 codes, four to a position of the transformer.

    mmx train --config vqgan/openmoji64 --workdir runs/vqgan64
    mmx train --config muse/openmoji64 --config.codec.run=runs/vqgan64 --workdir runs/muse64

The demo's design at twice the size, for patience or a GPU. Everything here is ours: no paper trains
at this size.
"""

from ml_collections import ConfigDict

from mmx.core.config import parse_arg


def get_config(arg=""):
    """``:tiny`` is a run of seconds, for tests, on the pictures of 32 pixels scaled up."""
    tiny = parse_arg(arg, tiny=False)["tiny"]
    c = ConfigDict()
    c.family = "muse"
    c.seed = 0
    c.steps = 20 if tiny else 20_000
    c.batch_size = 8 if tiny else 128
    c.dtype = "float32"

    c.data = dict(
        source="tfds:openmoji/32" if tiny else "tfds:openmoji/64",
        data_dir="",
        split="train*4+train_toned",
        image_size=64,
        shift=0,
        flip=False,
        threads=1,
    )
    # `config` is what preflight assumes of the tokenizer where no run of one is named.
    c.codec = dict(run="", config="vqgan/openmoji64:tiny" if tiny else "vqgan/openmoji64")
    c.text = dict(max_len=17, width=32 if tiny else 192, depth=1 if tiny else 2, heads=4)
    c.model = dict(
        depth=2 if tiny else 8,
        width=32 if tiny else 384,
        heads=2 if tiny else 6,
        mlp=64 if tiny else 1536,
        patch=2,
        code_width=16 if tiny else 96,
        logit_scale=2.0,
        activation="relu2",
        remat="none",
    )
    c.loss = dict(label_smoothing=0.0, weighting="code", text_drop=0.1)
    c.optim = dict(
        name="adamw",
        lr=1e-3,
        b1=0.9,
        b2=0.98,
        weight_decay=0.03,
        warmup_steps=5 if tiny else 500,
        clip_norm=1.0,
        ema=0.99 if tiny else 0.999,
        accum=1,
    )
    c.mesh = dict(slice=1, data=-1, fsdp=1, tensor=1)
    c.sample = dict(
        steps=4 if tiny else 18,
        guidance=3.0,
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
        examples=64 if tiny else 256,
        metrics=("kid_mobilenetv2_96px", "precision_recall_mobilenetv2_96px"),
        scorer="",
    )
    c.log_every = 10 if tiny else 100
    c.eval_every = 10 if tiny else 2000
    c.preview_every = 10 if tiny else 1000
    c.save_every = 10 if tiny else 1000
    c.keep = 2
    return c
