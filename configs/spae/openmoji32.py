"""OpenMoji at 32x32 into words of SmolLM2: 1, 4, 16, 64 and 64 of them, 149 an image.

    mmx prepare openmoji --config 32
    mmx prepare lm
    mmx prepare sentences minilm
    mmx prepare sentences wordllama
    mmx train --config spae/openmoji32 --workdir runs/spae
    mmx describe runs/spae heart.png

Twenty minutes on two cores: 18.7 dB of PSNR on test by all words, 2,958 different ones, and those
of the first two layers nearer to their caption than to others' by 0.115 of cosine (0.367 in
training). Everything here is ours: no paper trains at this size. Where the paper (arXiv 2306.17842,
as recalled) has a value, it is: commitment 0.33, weight 1, temperature 1, thresholds of five
layers.
"""

from ml_collections import ConfigDict

from mmx.core.config import one_of, parse_arg


def get_config(arg=""):
    """``:tiny`` is a run of seconds, for tests.

    What SPAE is compared with, and what it leaves open, one of each alone or together. Instead of
    averages of the words so far (SAQ), ``:rq`` has residuals at the same cells, ``:area`` those of
    all cells, averaged (arXiv 2404.02905). Cells that the first layers have no word for get a
    vector that is learned by ``:mask``, 0 by ``:zeros``, instead of the nearest word. ``:linear``
    learns a projection of the words' rows (arXiv 2506.18898) instead of whitening them.
    """
    args = parse_arg(arg, tiny=False, rq=False, area=False, mask=False, zeros=False, linear=False)
    tiny = args["tiny"]
    c = ConfigDict()
    c.family = "spae"
    c.seed = 0
    c.steps = 20 if tiny else 2000
    c.batch_size = 8 if tiny else 64
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
    c.words = dict(
        lm="smollm2-135m-instruct",
        width=576,  # of its rows
        filters=("ordinary", "valid", "word_initial", "letters", "lowercase", "round_trip"),
        min_letters=3,
        list="",
        size=4096,
        table="linear" if args["linear"] else "whiten",
        code_dim=32,
    )
    c.model = dict(
        channels=16 if tiny else 96,
        multipliers=(1,),
        encoder_blocks=1 if tiny else 3,  # layer 1 sees the whole image
        encoder_mid_blocks=0,
        decoder_blocks=1 if tiny else 3,
        decoder_mid_blocks=0,
        patch=4,
        norm="rms",
        linear_path=True,
    )
    c.pyramid = dict(
        sides=(1, 2, 4, 8, 8),
        scheme=one_of(args, "rq", "area") or "saq",
        standardize=True,
        fill=one_of(args, "mask", "zeros") or "nearest",
        short=0.3,  # of the rows are drawn from fewer layers than all
        commitment=0.1,
    )
    c.guidance = dict(
        teacher="captions",  # or "clip": --config.guidance.run=RUN
        run="",
        config="clip/openmoji64",
        sentences="minilm",
        prompts=("a picture of {}",),
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
    c.eval = dict(
        splits=("test",), examples=256, metrics=("kid_mobilenetv2_96px", "ssim"), scorer=""
    )
    c.log_every = 10 if tiny else 50
    c.eval_every = 10 if tiny else 250
    c.preview_every = 10 if tiny else 500
    c.save_every = 10 if tiny else 250
    c.keep = 2
    return c
