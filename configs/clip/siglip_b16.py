"""SigLIP B/16: the sigmoid loss, every pair of the batch a decision of its own, 203M parameters.

    mmx prepare folder DIR --name NAME --size 224
    mmx train --config clip/siglip_b16 --workdir runs/siglip --config.data.source=tfds:NAME

Paper: SigLIP (arXiv 2303.15343) sec. 3 and 4; what it does not give is of Big Vision, or ours: so
the towers' first values, which are of CLIP's scheme.
Theirs are 32,000 SentencePiece ids; here those of the data's own tokenizer, in a table of that
size, and decay on kernels alone. Hardware: 16 TPU v4 chips for 3 days; ours a pod slice. Not
trained by us.
"""

from ml_collections import ConfigDict

from mmx.core.config import parse_arg


def get_config(arg=""):
    """``:tiny`` is a run of seconds on OpenMoji."""
    tiny = parse_arg(arg, tiny=False)["tiny"]
    c = ConfigDict()
    c.family = "clip"
    c.seed = 0
    c.steps = 20 if tiny else 300_000  # ours: about 10B examples
    c.batch_size = 16 if tiny else 32_768  # sec. 4.2
    c.dtype = "float32" if tiny else "bfloat16"  # ours

    c.data = dict(
        source="tfds:openmoji/32" if tiny else "tfds:NAME",
        data_dir="",
        split="train",
        image_size=64 if tiny else 224,  # the released B/16
        crop="centre",  # ours: data sets of `mmx prepare` are square
        shift=0,  # ours
        flip=False,  # ours
        threads=1 if tiny else 16,
    )
    c.text = dict(
        tokenizer="own",  # ours, see above; "siglip": that of published weights
        tokenizer_file="",  # for "siglip": their tokenizer.json
        vocab_size=2048 if tiny else 32_000,  # Big Vision
        max_len=24 if tiny else 64,  # the released B/16
    )
    c.model = dict(
        features=32 if tiny else 768,  # Big Vision: the image tower's width
        activation="gelu",  # Big Vision: the tanh form
        eps=1e-6,  # Big Vision
        remat="none" if tiny else "full",  # ours
        scale_start=10.0,  # sec. 3.2
        bias_start=-10.0,  # sec. 3.2
        image=dict(
            kind="vit",  # sec. 4
            pixels="half",  # Big Vision
            patch=16,  # B/16
            width=32 if tiny else 768,  # B/16
            depth=2 if tiny else 12,  # B/16
            heads=2 if tiny else 12,  # B/16
            mlp=64 if tiny else 3072,  # B/16
            pool="map",  # Big Vision
        ),
        text=dict(
            width=32 if tiny else 768,  # Big Vision: the size B
            depth=2 if tiny else 12,  # Big Vision: the size B
            heads=2 if tiny else 12,  # Big Vision: the size B
            mlp=64 if tiny else 3072,  # Big Vision: the size B
            pool="last",  # Big Vision
        ),
    )
    c.loss = dict(
        kind="sigmoid",  # eq. 1
        form="ring",  # sec. 3.3
        cached=1,  # ours
    )
    c.optim = dict(
        name="adamw",  # ours; theirs: Adafactor as ScalingViT has it
        lr=1e-3,  # unknown: recalled of sec. 4, not looked up
        b1=0.9,  # Big Vision
        b2=0.95,  # sec. 4.5: what steadies large batches
        eps=1e-8,  # ours
        weight_decay=1e-4,  # unknown: recalled of sec. 4, not looked up
        warmup_steps=5 if tiny else 20_000,  # ours
        clip_norm=1.0,  # Big Vision
        ema=0.0,  # ours
        accum=1,  # the loss is of the whole batch
    )
    c.mesh = dict(slice=1, data=-1, fsdp=1, tensor=1)  # ours
    c.eval = dict(splits=("test",), examples=64 if tiny else 5000)
    c.log_every = 10 if tiny else 100
    c.eval_every = 10 if tiny else 5000
    c.preview_every = 10 if tiny else 5000
    c.save_every = 10 if tiny else 5000
    c.keep = 2
    return c
