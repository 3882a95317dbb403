"""What `mmx prepare latents` does: a run's codec over all images of a data set."""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mmx.core.errors import UserError
from mmx.core.run_dir import RunDir, parse_run
from mmx.data import latents
from mmx.models import registry, stages
from mmx.models.rows import to_float
from mmx.train.sharding import batch_sharding, jit_sharded, make_mesh, place, replicated

_AT_ONCE = 16  # ours: images that a device encodes together


def prepare(
    source: str, codec_run: str, name: str | None, size: int | None, data_dir: str | None
) -> tuple[str, Path, bool]:
    """See :func:`mmx.data.latents.prepare`.

    Args:
      source: the spec of the data set.
      codec_run: ``PATH[@STEP]`` of a tokenizer of continuous latents.
      name: of the config that is made.
      size: pixels of a side; those that the codec was trained with when None.
      data_dir: where data sets lie.

    Raises:
      UserError: see there; the run is not there, is damaged or no such tokenizer; the size.
    """
    field = f"--codec={codec_run}"
    config = parse_run(codec_run)[0].config()
    registry.check_codec(config, field)
    codec = registry.make_codec(config, "latents", field)
    size = config.data.image_size if size is None else size
    if size % codec.scale:
        raise UserError(f"--size={size}: give a multiple of the tokenizer's f={codec.scale}")
    grid = codec.grid(size)
    with tempfile.TemporaryDirectory(prefix="mmx-") as folder:
        # As a run pins it, so that a run knows it again.
        stage = stages.pin(RunDir(folder), "codec", codec_run, stages.CODEC_DROP)
        weights, identity = stages.load_weights(stage), stages.identity(stage)
        step = stages.pinned_step(stage)
    mesh = make_mesh({"slice": 1, "data": -1, "fsdp": 1, "tensor": 1})
    weights, rows = place(weights, replicated(mesh)), batch_sharding(mesh)
    encode = jit_sharded(
        lambda weights, image_u8: codec.encode(weights, to_float(image_u8)).astype(jnp.float16),
        mesh,
        out_shardings=rows,
    )
    return latents.prepare(
        source,
        {
            "codec": identity,
            "run": f"{parse_run(codec_run)[0].path}@{step}",
            "image_size": size,
            "shape": [grid, grid, codec.latent_dim],
        },
        lambda image_u8: np.asarray(encode(weights, place(image_u8, rows))),
        _AT_ONCE * jax.device_count(),
        name,
        data_dir,
    )
