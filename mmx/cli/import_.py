"""Make a run of published weights: CLIP and SigLIP of the Hugging Face hub."""

import sys

from mmx.core import config as configs
from mmx.core import storage
from mmx.core.run_dir import (
    RunDir,
    check_workdir,
    open_or_create,
    record_environment,
    train_alone,
)

HELP = "make a run of published weights"
EXAMPLES = """\
examples:
  mmx import openai/clip-vit-base-patch32 --workdir runs/clip_b32 --config.data.source=tfds:NAME
  mmx import /path/of/siglip-base-patch16-224 --workdir runs/siglip
  mmx train --config clip/vit_b32 --init_from runs/clip_b32 --workdir runs/tuned

A folder with config.json and model.safetensors, or an id OWNER/NAME[@REVISION] of the Hugging Face
hub: then the files come from the cache of huggingface_hub, or over the network. The run has one
checkpoint, step 0, and its own copy of weights and tokenizer: everything that takes a run takes it.
Read are OpenAI's CLIP and SigLIP in the form of transformers, and CLIP's ResNets in open_clip's
(open_clip_config.json). Fields of the config are flags, as of `mmx train`.
"""


def add_arguments(parser):
    parser.add_argument("source", metavar="FOLDER|ID", help="a folder, or OWNER/NAME[@REVISION]")
    parser.add_argument("--workdir", required=True, metavar="RUN", help="the run to make")
    parser.add_argument(
        "--print_config", action="store_true", help="show the resolved config and stop"
    )


def run(args) -> int:
    from mmx.cli.arguments import check_writable
    from mmx.cli.overrides import apply
    from mmx.models import registry

    published = registry.open_published(args.source)
    config = apply(published.config(), args.overrides)
    if args.print_config:
        print(configs.to_text(config))
        return 0
    configs.check_numbers(config)
    workdir = RunDir(storage.normal(args.workdir))
    check_workdir(workdir, config)
    if workdir.steps():
        print(f"{workdir.path}: the weights are there; `mmx evaluate` scores them")
        return 0
    check_writable(f"--workdir={workdir.path}", workdir.path)

    from mmx.cli.backend import start_jax

    start_jax()
    with train_alone(workdir):
        _write(published, config, workdir)
    print(f"{workdir.path}: the weights of {args.source}, as step 0")
    return 0


def _write(published, config, workdir: RunDir) -> None:
    import flax.linen as nn
    import jax
    import numpy as np

    from mmx.core import rng, tree
    from mmx.models.registry import make_task
    from mmx.train.checkpoint import Checkpoints
    from mmx.train.state import TrainState

    # Shapes first: what does not fit is told before anything is written.
    task = make_task(config, None, abstract=True)
    params, extra = nn.unbox(jax.eval_shape(task.init, rng.base_key(0)))
    tokenizer = published.tokenizer_json()
    params, extra = published.read(params, extra)
    open_or_create(workdir.path, config)
    storage.write(workdir.tokenizer_file, tokenizer)
    make_task(config, workdir)  # that they go together
    checkpoints = Checkpoints(workdir.checkpoints)
    # No optimiser state: a run that trains starts from these weights by --init_from.
    checkpoints.save(
        0,
        TrainState(
            step=np.zeros((), np.int32),
            params=params,
            opt_state=(),
            ema=None,
            extra=extra,
            bad_step=np.full((), -1, np.int32),
        ),
    )
    checkpoints.close()
    record_environment(workdir, [str(device) for device in jax.devices()])
    print(f"{tree.num_params(params):,} parameters", file=sys.stderr)
