"""Where converted networks lie: ``weights/NAME.safetensors`` in the data directory. Without jax."""

import os

from etils.epath import Path

from mmx.core import storage
from mmx.data.build import default_data_dir


def weights_file(name: str, data_dir: str | os.PathLike | None = None) -> Path:
    """Where the weights of a network lie, or would."""
    return storage.path(default_data_dir(data_dir)) / "weights" / f"{name}.safetensors"


def prepared(data_dir: str | os.PathLike | None = None) -> list[str]:
    """Names of the networks that are there."""
    files = storage.children(weights_file("", data_dir).parent)
    return sorted(f.name.removesuffix(".safetensors") for f in files if f.suffix == ".safetensors")
