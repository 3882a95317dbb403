"""The arms: what is trained, each one difference from the first.

    base       streaming average quantization (SAQ), guided by captions
    rq         the same cells, residual quantization, guided
    unguided   SAQ, without guidance

The same batches, steps and starts for all arms of a seed: a run is `mmx train`'s own.
"""

from ml_collections import ConfigDict

from mmx.core import config as configs

# Arm -> the fields of the config that differ.
ARMS = {
    "base": {},
    "rq": {"pyramid.scheme": "rq"},
    "unguided": {"guidance.weight": 0.0},
}
SEEDS = (0, 1, 2)
STEPS, CHANNELS = 300, 48  # of the shipped config's 2,000 and 96: about two CPU-minutes a run


# What the study is of, whatever becomes of the shipped config; its other fields are told with the
# results (:func:`settings`).
SAID = {
    "steps": STEPS,
    "batch_size": 64,
    "data.source": "tfds:openmoji/32",
    "data.split": "train+train_toned",
    "data.image_size": 32,
    "words.lm": "smollm2-135m-instruct",
    "words.size": 4096,
    "words.table": "whiten",
    "words.code_dim": 32,
    "model.channels": CHANNELS,
    "model.encoder_blocks": 3,
    "model.decoder_blocks": 3,
    "model.patch": 4,
    "pyramid.sides": (1, 2, 4, 8, 8),
    "pyramid.scheme": "saq",
    "pyramid.standardize": True,
    "pyramid.fill": "nearest",
    "pyramid.short": 0.3,
    "pyramid.commitment": 0.1,
    "guidance.teacher": "captions",
    "guidance.sentences": "minilm",
    "guidance.prompts": ("a picture of {}",),
    "guidance.thresholds": (0.98, 0.9, 0.8),
    "guidance.weight": 4.0,
    "guidance.temperature": 4.0,
    "loss.l2": 1.0,
    "optim.name": "adamw",
    "optim.lr": 1e-3,
    "optim.b2": 0.99,
    "optim.warmup_steps": 50,
    "optim.clip_norm": 1.0,
}
# How it is watched and kept; scored it is here, when all is trained.
_KEPT = {
    "eval_every": STEPS,
    "eval.examples": 64,
    "preview_every": STEPS,
    "log_every": 50,
    "save_every": 100,
    "keep": 1,
}


def make_config(arm: str, seed: int, data_dir: str) -> ConfigDict:
    """The config of a run: ``spae/openmoji32``, shorter and narrower."""
    config = configs.load_config("spae/openmoji32").copy_and_resolve_references()
    said = {**SAID, "seed": seed, **ARMS[arm]}
    with config.unlocked():
        config.update_from_flattened_dict({**said, **_KEPT, "data.data_dir": data_dir})
    return config


def settings(arm: str, seed: int) -> dict:
    """Field -> value of a run's whole config, but where it runs and how it is watched."""
    config = make_config(arm, seed, "")
    fixed = {k: v for k, v in configs.fixed_items(config).items() if not k.startswith("eval.")}
    return {"steps": config.steps, **fixed}
