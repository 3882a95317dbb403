"""Transfusion on OpenMoji at 32x32 and WordNet's glosses: text, pictures, captions, on two cores.

    mmx prepare openmoji --config 32
    mmx prepare wordnet
    mmx train --config vqgan/openmoji32_kl --workdir runs/kl
    mmx train --config transfusion/openmoji32 --config.codec.run=runs/kl --workdir runs/transfusion

38 minutes of CPU time on two cores: training caption recall R@1 0.66 (the codec alone 0.99),
training images captioned exactly 0.80. What made it learn to draw, at equal compute: four patches a
picture rather than 16, times near the noise, and reading the mean (`mmx.ops.diffusion.inputs`)
rather than z. Everything here is ours: no paper trains at this size. `:edit` after it: README.
"""

from ml_collections import ConfigDict

from mmx.core.config import parse_arg


def get_config(arg=""):
    """``:edit`` goes on with such a run on edits; ``:tiny`` is a run of seconds, for tests."""
    args = parse_arg(arg, tiny=False, edit=False)
    tiny, edit = args["tiny"], args["edit"]
    c = ConfigDict()
    c.family = "transfusion"
    c.seed = 0
    c.steps = 20 if tiny else 1000 if edit else 7000
    c.batch_size = 2
    c.dtype = "float32"

    c.data = dict(
        source="edits:openmoji/32" if edit else "tfds:openmoji/32",
        data_dir="",
        # How often an epoch holds each example is the mixing: 4 tokens of pairs to 1 of text,
        # and five tones of one drawing teach less than five drawings. Edits: 4 of tones to 1 of
        # colours, to 3 of pairs, to 2 of text, so that drawing and writing are not forgotten.
        split="train*50+train_colour*500" if edit else "train*400+train_toned*100",
        mix=("tfds:openmoji/32 train*140+train_toned*55",) * edit + ("tfds:wordnet train",),
        image_size=32,
        latents=False,
        row_len=128 if tiny else 256,
        max_images=4 if tiny else 24,
        threads=1,
    )
    # `config` is what preflight assumes of the tokenizer where no run of one is named.
    c.codec = dict(run="", config="vqgan/openmoji32_kl:tiny" if tiny else "vqgan/openmoji32_kl")
    c.text = dict(max_len=32, vocab_size=2048)
    c.model = dict(
        depth=2 if tiny else 4,
        width=32 if tiny else 256,
        heads=2 if tiny else 4,
        mlp=64 if tiny else 704,
        patch=4,
        patches="linear",
        positions=True,
        attention="auto",
        qk_norm=True,
        by_modality=False,
        remat="none",
    )
    c.diffusion = dict(
        schedule="rectified_flow",
        prediction="x0",
        input="mean",
        weighting="x0",
        times="shift_4",
    )
    c.loss = dict(
        diffusion=1.0,
        chunk=128,
        image_first=0.2,
        noise_limit=0.0 if edit else 0.5,  # what is edited is read clean, as at sampling
        drop=0.1,
    )
    c.optim = dict(
        name="adamw",
        lr=1e-3 if edit else 3e-3,
        b1=0.9,
        b2=0.95,
        weight_decay=0.03,
        warmup_steps=50,
        clip_norm=1.0,
        ema=0.0,
        accum=1,
    )
    c.mesh = dict(slice=1, data=-1, fsdp=1, tensor=1)
    c.sample = dict(
        steps=4 if tiny else 25,
        solver="euler",
        guidance=3.0,
        temperature=0.0,
        images=1,
        text=32,
    )
    c.preview_prompts = ("red heart", "violin", "dog face", "red apple")
    c.eval = dict(splits=("test",), examples=256, metrics=(), scorer="")
    c.log_every = 10 if tiny else 100
    c.eval_every = 10 if tiny else 1400
    c.preview_every = 10 if tiny else 1400
    c.save_every = 10 if tiny else 500
    c.keep = 2
    return c
