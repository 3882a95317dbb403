"""CLIP ViT-L/14: the largest vision transformer of the paper at 224 pixels, 428M parameters.

    mmx prepare folder DIR --name NAME
    mmx train --config clip/vit_l14 --workdir runs/vit_l14 --config.data.source=tfds:NAME

Paper: CLIP (arXiv 2103.00020) sec. 2 and tables 18, 20 (ImageNet zero-shot 75.3 %).
Pictures keep their size: of square ones (--size) the random crop has nothing to choose.
Hardware: 256 V100 for 12 days (sec. 2.5); ours v5e-256. Not trained by us; the mesh is ours.
"""

from ml_collections import ConfigDict

from mmx.core.config import parse_arg


def get_config(arg=""):
    """``:tiny`` is a run of seconds on OpenMoji."""
    tiny = parse_arg(arg, tiny=False)["tiny"]
    c = ConfigDict()
    c.family = "clip"
    c.seed = 0
    c.steps = 20 if tiny else 390_625  # sec. 2.5: 32 epochs of 400M pairs
    c.batch_size = 16 if tiny else 32_768  # table 18
    c.dtype = "float32" if tiny else "bfloat16"  # ours; theirs: half precision

    c.data = dict(
        source="tfds:openmoji/32" if tiny else "tfds:NAME",
        data_dir="",
        split="train",
        image_size=64 if tiny else 224,  # table 20
        crop="random",  # sec. 2.5
        shift=0,  # as the paper: none
        flip=False,  # as the paper: none
        threads=1 if tiny else 16,
    )
    c.text = dict(
        tokenizer="clip",  # sec. 2.4
        vocab_size=49_408,  # table 18
        max_len=24 if tiny else 77,  # sec. 2.4: 76, the code 77
    )
    c.model = dict(
        features=32 if tiny else 768,  # table 20
        activation="quick_gelu",  # the authors' code
        eps=1e-5,  # the authors' code
        remat="none" if tiny else "full",  # ours
        scale_start=1 / 0.07,  # sec. 2.5
        image=dict(
            kind="vit",  # sec. 2.4
            pixels="clip",  # the authors' code
            patch=16 if tiny else 14,  # table 20
            width=32 if tiny else 1024,  # table 20
            depth=2 if tiny else 24,  # table 20
            heads=2 if tiny else 16,  # table 20
            mlp=64 if tiny else 4096,  # the authors' code: 4 * width
            pool="cls",  # sec. 2.4
        ),
        text=dict(
            width=32 if tiny else 768,  # table 20
            depth=2 if tiny else 12,  # table 20
            heads=2 if tiny else 12,  # table 20
            mlp=64 if tiny else 3072,  # the authors' code: 4 * width
            pool="eot",  # sec. 2.4
        ),
    )
    c.loss = dict(
        kind="softmax",  # fig. 3
        form="ring",  # ours
        cached=1,  # ours
    )
    c.optim = dict(
        name="adamw",  # sec. 2.5
        lr=5e-4 if tiny else 4e-4,  # table 20; tiny: as vit_b32's, one program for both
        b1=0.9,  # table 18
        b2=0.98,  # table 18
        eps=1e-6,  # table 18
        weight_decay=0.2,  # table 18
        decays=("kernel", "embedding", "positions", "cls"),  # sec. 2.5: no gains, no biases
        warmup_steps=5 if tiny else 2000,  # table 18
        clip_norm=1e9,  # as the paper: none
        ema=0.0,  # as the paper: none
        accum=1,  # the loss is of the whole batch
        upper=dict(logit_scale=4.605170185988092),  # sec. 2.5: the scale at most 100
    )
    c.mesh = dict(slice=1, data=-1, fsdp=16, tensor=1)  # ours
    c.eval = dict(splits=("test",), examples=64 if tiny else 5000)
    c.log_every = 10 if tiny else 100
    c.eval_every = 10 if tiny else 5000
    c.preview_every = 10 if tiny else 5000
    c.save_every = 10 if tiny else 5000
    c.keep = 2
    return c
