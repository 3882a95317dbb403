"""The arms: what is trained, each a few differences from one config.

    base         linear codec, patches of 2 (64 tokens an image), both ways inside an image
    causal       the same, causal inside images too
    discrete     the same decoder on the codes of the VQ twin, a token each (256 an image)
    no_limit     base without a limit on the noise of an image that its caption follows
    patch4       patches of 4 (16 tokens an image), linear codec
    patch4_unet  patches of 4, U-Net codec
    patch4_deep  patches of 4, linear codec, so many more layers that a step costs the U-Net's FLOPs

All get the same FLOPs, in batches of about as many tokens.
"""

from codes import CodesTask
from ml_collections import ConfigDict
from sizes import Size
from tasks import CausalTask, LatentsTask

from mmx.core import config as configs
from mmx.data.text import Tokenizer

# Arm -> (its task, the fields of the config that differ).
ARMS: dict[str, tuple[type[LatentsTask], dict]] = {
    "base": (LatentsTask, {}),
    "causal": (CausalTask, {}),
    "discrete": (CodesTask, {"model.patch": 1}),
    "no_limit": (LatentsTask, {"loss.noise_limit": 1.0}),
    "patch4": (LatentsTask, {"model.patch": 4}),
    "patch4_unet": (
        LatentsTask,
        {"model.patch": 4, "model.patches": "unet", "model.blocks": 1},
    ),
    "patch4_deep": (LatentsTask, {"model.patch": 4, "model.depth": 6}),
}
GRID = 16  # h = w of both tokenizers
CAPTION = 6  # tokens of the longest


def make_config(arm: str, size: Size, lr: float, seed: int) -> ConfigDict:
    """The config of an arm; ``lr``: the rate, constant after the warm-up."""
    config = configs.load_config("transfusion/openmoji32")
    with config.unlocked():
        config = config.copy_and_resolve_references()
    with config.unlocked():
        config.seed, config.codec.config = seed, "vqgan/scenes64_kl"
        # All that a training or a drawing reads is said here: that config changes.
        config.data.update(source="tfds:scenes/64", mix=(), image_size=64, max_images=1)
        config.model = ConfigDict(dict(
            width=size.width, depth=4, heads=4, mlp=size.mlp, patch=2, patches="linear",
            positions=True, attention="dense", qk_norm=True, by_modality=False, remat="none",
        ))  # fmt: skip
        config.diffusion = ConfigDict(dict(
            schedule="rectified_flow", prediction="x0", input=size.reads, weighting="x0",
            times="shift_4",
        ))  # fmt: skip
        config.loss = ConfigDict(dict(diffusion=1.0, image_first=0.3, noise_limit=0.5, drop=0.1))
        config.sample = ConfigDict(dict(
            steps=25, solver="euler", guidance=1.0, temperature=0.0, images=1, text=CAPTION
        ))  # fmt: skip
        # All marks of a run are of one training: the rate stays, and what is scored is an average
        # of the weights. It reaches back over about a ninth of the steps so far, however many those
        # are (mmx.train.optim.update_ema), so no mark is cooled more than another.
        config.optim = ConfigDict(dict(
            name="adamw", lr=lr, lr_end=lr, b1=0.9, b2=0.95, weight_decay=0.03, warmup_steps=30,
            clip_norm=1.0, ema=0.9999, accum=1,
        ))  # fmt: skip
        config.update_from_flattened_dict(ARMS[arm][1])
        if config.model.patches == "unet":
            config.model.channels = size.channels
        config.text.max_len, config.preview_prompts = CAPTION, ()
        length = CAPTION + (GRID // config.model.patch) ** 2 + 4
        config.data.row_len = config.loss.chunk = length
        config.batch_size = round(size.tokens / length)
    return config


def make_task(arm: str, size: Size, lr: float, seed: int, tokenizer: Tokenizer) -> LatentsTask:
    """The task of an arm, see :func:`make_config`."""
    return ARMS[arm][0](make_config(arm, size, lr, seed), tokenizer)
