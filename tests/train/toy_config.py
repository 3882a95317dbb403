"""The toy family of the training tests: a run of a second."""

from ml_collections import ConfigDict

from mmx.core.config import parse_arg


def get_config(arg=""):
    """``:slow`` leaves time to kill it; ``:gan`` has two players."""
    flags = parse_arg(arg, slow=False, gan=False)
    c = ConfigDict()
    c.family = "toy"
    c.seed = 3
    c.steps = 12
    c.batch_size = 8
    c.data = dict(source="toy", data_dir="", split="train", threads=1)
    c.toy = dict(
        width=16,
        ballast=512 if flags["slow"] else 0,  # bytes to save, so that a save takes a while
        delay=0.02 if flags["slow"] else 0.0,  # seconds a row
        poison="",
        poison_step=0,
        gan=flags["gan"],
        running=True,
        coupled=False,
    )
    optim = dict(
        name="adamw",
        lr=1e-2,
        b1=0.9,
        b2=0.99,
        weight_decay=0.01,
        warmup_steps=2,
        clip_norm=1.0,
        ema=0.9,
        accum=1,
    )
    c.optim = dict(optim)
    if flags["gan"]:
        c.optim_disc = dict(optim, lr=3e-2, ema=0.0)
    c.mesh = dict(slice=1, data=-1, fsdp=1, tensor=1)
    c.log_every = 1
    c.eval_every = 5
    c.preview_every = 5
    c.save_every = 4
    c.keep = 2
    return c
