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


def make_config(arm: str, seed: int, data_dir: str) -> ConfigDict:
    """The config of a run: ``spae/openmoji32``, shorter and narrower."""
    config = configs.load_config("spae/openmoji32").copy_and_resolve_references()
    with config.unlocked():
        config.update_from_flattened_dict(
            {
                "seed": seed,
                "steps": STEPS,
                "data.data_dir": data_dir,
                "model.channels": CHANNELS,
                # Scored here, when all is trained.
                "eval_every": STEPS,
                "eval.examples": 64,
                "preview_every": STEPS,
                "log_every": 50,
                "save_every": 100,
                "keep": 1,
                **ARMS[arm],
            }
        )
    return config
