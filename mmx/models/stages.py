"""Earlier runs as frozen stages of a later one.

A config names a stage ``PATH[@STEP]``. The first start pins it: the step, the content, the config
and the weights are copied once into ``RUN/stages/NAME``, so the run survives when the earlier one
moves, is trained on or is deleted.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from etils.epath import Path
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file

from mmx.core import config as configs
from mmx.core import storage, tree
from mmx.core.errors import UserError
from mmx.core.run_dir import RunDir, parse_run

_WEIGHTS = "weights.safetensors"
# Of a tokenizer's run: what neither encodes nor decodes.
CODEC_DROP = ("params/discriminator", "extra/lecam")


def pin(
    run: RunDir,
    name: str,
    spec: str,
    drop: tuple[str, ...] = (),
    accept: Callable[[ConfigDict], object] = lambda config: None,
) -> Path:
    """Copy an earlier run's config and weights into this run; do nothing when they are there.

    The weights are those that the earlier run scores itself by at that step: the parameters'
    running average where ``config.optim.ema`` keeps one, beside ``extra`` (a codebook) as training
    left it. ``config.offline_ema`` is not applied: no tokenizer's config sets it.

    Args:
      run: the later run.
      name: of the stage, "codec".
      spec: ``PATH[@STEP]`` of the earlier run.
      drop: parameters whose path starts so are not needed (the discriminator).
      accept: raises UserError when a run with this config cannot be the stage: before it is pinned,
        as a pin cannot be taken back.

    Returns:
      The stage's folder.

    Raises:
      UserError: no such run or step, or this run is pinned to another one.
    """
    folder = run.stage(name)
    pin_file = folder / "pin.json"
    if pin_file.is_file():
        pinned = json.loads(storage.read_text(pin_file))
        if spec != pinned["spec"]:
            raise UserError(
                f"config.{name}.run={spec!r}, but this run is pinned to {pinned['spec']!r} "
                f"(step {pinned['step']}); use a new --workdir"
            )
        return folder
    if not spec:
        raise UserError(
            f"config.{name}.run is empty: name the run of the {name}, "
            f"--config.{name}.run=RUN[@STEP]"
        )
    # Orbax and jax only now: a run that is pinned already starts without them.
    from mmx.train.start import read_weights

    earlier, step = parse_run(spec)
    accept(earlier.config())
    params, extra, step = read_weights(earlier, step)
    flat = {
        path: np.asarray(leaf, order="C")
        for path, leaf in tree.flatten({"params": params, "extra": extra}).items()
        if not path.startswith(drop)
    }
    folder.mkdir(parents=True, exist_ok=True)
    with storage.staged(folder / _WEIGHTS) as local:
        save_file(flat, local)
        digest = _digest(local)
    storage.write(folder / "config.json", storage.read_text(earlier.config_file))
    if earlier.tokenizer_file.is_file():
        storage.write(folder / "tokenizer.json", storage.read_text(earlier.tokenizer_file))
    # Written last: a folder with a pin is whole.
    record = {"spec": spec, "step": step, "sha256": digest, "save": earlier.identity(step)}
    storage.write(pin_file, json.dumps(record, indent=2) + "\n")
    return folder


def planned_config(stage: ConfigDict) -> ConfigDict:
    """The config that a stage will have: of the run that it names, else of its ``config``.

    Raises:
      UserError: no such run or config.
    """
    return parse_run(stage.run)[0].config() if stage.run else configs.load_config(stage.config)


def load_config(folder: Path) -> ConfigDict:
    """The config of a pinned stage."""
    return configs.from_json(storage.read_text(folder / "config.json"))


def pinned_step(folder: Path) -> int:
    """The step of the earlier run that a stage was pinned at."""
    return json.loads(storage.read_text(folder / "pin.json"))["step"]


def identity(folder: Path) -> str:
    """Sixteen digits of what a pinned stage computes: of its weights and of its config, but for
    what may change while a run goes on."""
    weights = json.loads(storage.read_text(folder / "pin.json"))["sha256"]
    config = json.dumps(configs.fixed_items(load_config(folder)), sort_keys=True)
    return hashlib.sha256(f"{weights} {config}".encode()).hexdigest()[:16]


def load_weights(folder: Path) -> Any:
    """The weights of a pinned stage, as a tree of host arrays.

    Raises:
      UserError: the file is not what was pinned.
    """
    file = folder / _WEIGHTS
    pinned = json.loads(storage.read_text(folder / "pin.json"))
    with contextlib.suppress(FileNotFoundError), storage.fetched(file) as local:
        if _digest(local) == pinned["sha256"]:
            return tree.unflatten(load_file(local))
    raise UserError(
        f"{file}: changed or damaged since it was pinned; put back the one of sha256 "
        f"{pinned['sha256']}, or delete {folder} to pin {pinned['spec']} anew, if that is "
        f"still step {pinned['step']} of the same run (codes of another mean something else)"
    )


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
