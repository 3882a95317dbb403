"""Where converted networks lie: ``weights/NAME.safetensors`` in the data directory. Without jax."""

import hashlib
import os

from etils.epath import Path

from mmx.core import storage
from mmx.data.build import default_data_dir

# How features are made (network, size or resizing) -> the file of weights that it needs.
FEATURES = {
    "mobilenetv2_96px": "mobilenetv2",
    "inception2015_legacy_tensorflow": "inception2015",
    "inception2015_legacy_pytorch": "inception2015",
    "inception2015_clean": "inception2015",
}


def weights_file(name: str, data_dir: str | os.PathLike | None = None) -> Path:
    """Where the weights of a network lie, or would."""
    return storage.path(default_data_dir(data_dir)) / "weights" / f"{name}.safetensors"


def digest(name: str, data_dir: str | os.PathLike | None = None) -> str:
    """Of the content of a file that is there: its sha256's first eight digits."""
    return hashlib.sha256(storage.read_bytes(weights_file(name, data_dir))).hexdigest()[:8]
