"""A run is a folder that explains itself.

RUN/config.json        the resolved config
RUN/tokenizer.json     the text tokenizer, copied from the dataset
RUN/data.json          which data it learns from: where it lay, its splits and fingerprint
RUN/lengths.npz        of the documents, where rows hold several
RUN/environment.json   versions, devices, command of each start
RUN/checkpoints/STEP/  Orbax
RUN/checksums/         of the checkpoints' files, by step
RUN/broken/            checkpoints that cannot be read, saves that did not end; may be deleted
RUN/stages/NAME/       frozen weights of earlier runs, exported once
RUN/samples/           pictures
RUN/goodput/           where the time of each start went
RUN/plugins/           traces of ``--profile``
RUN/evals.jsonl        scores: a line for each metric of each checkpoint
RUN/evals/             TensorBoard, of evaluating
RUN/events.*           TensorBoard, of training
RUN/.lock              held by the process that trains
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from mmx.core import config as configs
from mmx.core import storage
from mmx.core.errors import UserError

if TYPE_CHECKING:
    from etils.epath import Path

# Orbax's mark of a whole checkpoint in a bucket, where none can be renamed into place.
_COMMITTED = "commit_success.txt"
# And its mark of a save that has not ended, in a name elsewhere; a number may follow.
_SAVING = ".orbax-checkpoint-tmp"
UNFINISHED = "unfinished-"  # begins its name in RUN/broken


@dataclass(frozen=True)
class RunDir:
    """Paths of a run and what is kept there as text.

    Attributes:
      path: local or ``gs://``; any path-like is taken.
    """

    path: "Path"

    def __post_init__(self):
        object.__setattr__(self, "path", storage.path(self.path))

    @property
    def config_file(self) -> "Path":
        return self.path / "config.json"

    @property
    def tokenizer_file(self) -> "Path":
        return self.path / "tokenizer.json"

    @property
    def data_file(self) -> "Path":
        return self.path / "data.json"

    @property
    def lock_file(self) -> "Path":
        return self.path / ".lock"

    @property
    def environment_file(self) -> "Path":
        return self.path / "environment.json"

    @property
    def checkpoints(self) -> "Path":
        return self.path / "checkpoints"

    @property
    def broken(self) -> "Path":
        """Checkpoints that could not be read, and saves that did not end, are moved here."""
        return self.path / "broken"

    @property
    def samples(self) -> "Path":
        return self.path / "samples"

    @property
    def goodput(self) -> "Path":
        return self.path / "goodput"

    @property
    def evals_file(self) -> "Path":
        return self.path / "evals.jsonl"

    @property
    def evals(self) -> "Path":
        return self.path / "evals"

    @property
    def attribution_file(self) -> "Path":
        return self.path / "attribution.txt"

    def attribution(self) -> str:
        """Of the data that the run learned from, as recorded with the run; "" for none."""
        file = self.attribution_file
        return storage.read_text(file).strip() if file.is_file() else ""

    def stage(self, name: str) -> "Path":
        return self.path / "stages" / name

    def config(self) -> ConfigDict:
        """The resolved config. Raises UserError when the file is none of a run of mmx."""
        try:
            config = configs.from_json(storage.read_text(self.config_file))
            known = isinstance(config.get("family"), str)
        except (OSError, AttributeError, TypeError, ValueError) as error:
            raise UserError(f"{self.config_file}: cannot be read as a config ({error})") from error
        if not known:
            raise UserError(f"{self.config_file}: not of a run of mmx (it names no family)")
        return config

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, without opening Orbax."""
        return finished_steps(self.checkpoints)

    def identity(self, step: int) -> str:
        """Eight digits that tell the save of a step from all others, and stay in a copy of it.

        They are of the names and sizes of its files, without reading any: the data files of Orbax
        (OCDBT) have random names of 128 bits, so no two saves share one. A damaged file is not seen
        here; Orbax sees it, when it reads.
        """
        files = storage.versions(self.checkpoints / str(step) / "model")
        names = sorted(f"{name.rpartition('/model/')[2]} {files[name][0]}" for name in files)
        return hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]

    def data(self) -> dict[str, Any] | None:
        """``{"directory", "splits", "fingerprint"}`` of what it learns from; None: not recorded.

        Raises:
          UserError: the record is damaged.
        """
        if not self.data_file.is_file():
            return None
        try:
            data = json.loads(storage.read_text(self.data_file))
            data["directory"], data["splits"], data["fingerprint"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.data_file}: damaged; delete it to go on with the data that is there"
            ) from error
        return data

    def has_saved(self) -> bool:
        """Was there ever a checkpoint? One may have been moved to ``broken/`` since, or away."""
        if self.steps() or self.evals_file.is_file():
            return True
        return any(not p.name.startswith(UNFINISHED) for p in storage.children(self.broken))


def finished_steps(checkpoints: "Path") -> list[int]:
    """Steps that lie whole in a folder of checkpoints, lowest first."""
    found = storage.children(checkpoints)
    return sorted(int(p.name) for p in found if p.name.isdecimal() and _is_whole(p))


def unfinished_saves(checkpoints: "Path") -> list["Path"]:
    """What lies there of saves that have not ended: under way, or their process is gone."""
    found = storage.children(checkpoints)
    if storage.is_remote(checkpoints):
        return [p for p in found if p.name.isdecimal() and not _is_whole(p)]
    return [p for p in found if _SAVING in p.name and p.is_dir()]


def _is_whole(step: "Path") -> bool:
    return (step / _COMMITTED).exists() if storage.is_remote(step) else step.is_dir()


def parse_run(spec: str, may_wait: bool = False) -> tuple[RunDir, int | None]:
    """``PATH[@STEP]`` -> (run, step or None). The run must exist.

    Args:
      may_wait: it need not have a checkpoint yet.

    Raises:
      UserError: no such run, it has no config, or no checkpoint (of that step).
    """
    text, step = str(spec), None
    if "@" in text and not storage.path(text).exists():
        path, _, number = text.rpartition("@")
        if number.isascii() and number.isdecimal():
            text, step = path, int(number)
        elif (storage.path(path) / "config.json").is_file():
            raise UserError(f"{spec}: after @ comes a step, a whole number; not {number!r}")
    run = RunDir(text)
    # exists() first: of a bucket that refuses, is_dir() says no.
    if not run.path.exists() or not run.path.is_dir():
        raise UserError(f"{text}: no such run directory; `mmx train` makes one")
    if not run.config_file.is_file():
        raise UserError(f"{text}: not a run directory (it has no config.json)")
    steps = run.steps()
    run.config()
    if not steps and not may_wait:
        raise UserError(f"{text}: this run has no checkpoint yet; train it first")
    if step is not None and step not in steps:
        raise UserError(f"{text}: no checkpoint of step {step}; there are {steps}")
    return run, step


def check_workdir(run: RunDir, config: ConfigDict) -> None:
    """Refuse a workdir in which this config can neither start nor go on; writes nothing.

    A run that never saved holds nothing that another config could spoil: any may start there.

    Raises:
      UserError: a file, a folder of other things, or another run.
    """
    if run.config_file.is_file():
        old = run.config()
        if run.has_saved():
            configs.check_resumable(old, config)
    elif run.path.is_dir():

        def ours(path):  # of another process that starts, too
            return path == run.lock_file or path.name.startswith(storage.PROBE)

        if not all(ours(path) for path in storage.children(run.path)):
            raise UserError(
                f"--workdir={run.path}: the folder is not empty and is no run; choose another"
            )
    elif run.path.exists():
        raise UserError(f"--workdir={run.path}: a file is there; name a folder")


def keeps_stages(run: RunDir, config: ConfigDict) -> bool:
    """Are the stages that lie in a workdir those of this config?"""
    return run.config_file.is_file() and not configs.changed_fields(run.config(), config)


def check_data(run: RunDir, data: dict) -> None:
    """Refuse to go on with other data: the rows would come in another order, ids mean other words.

    Args:
      run: may be new, or begun by a version that recorded no data: nothing to compare.
      data: ``{"directory": str, "splits": {name: count}, "fingerprint": str}``.

    Raises:
      UserError: the fingerprint is not the recorded one; lists what else differs.
    """
    old = run.data() if run.has_saved() else None
    if old and old["fingerprint"] != data["fingerprint"]:
        changed = [
            f"{name} {old[name]} -> {data[name]}" for name in data if old[name] != data[name]
        ]
        raise UserError(
            f"{data['directory']}: not the data that {run.path} began with, it was prepared anew "
            f"({'; '.join(changed)}); put the old data back (--config.data.data_dir) or use a new "
            "--workdir"
        )


def check_same(run: RunDir, config: ConfigDict, data: Mapping[str, Any]) -> None:
    """Refuse one of several processes whose config or data are not those that process 0 recorded.

    Args:
      data: see :func:`check_data`; where it lies may differ.

    Raises:
      UserError: names the fields that differ.
    """
    there, here = configs.flat_items(run.config()), configs.flat_items(config)
    there = {f"config.{name}": value for name, value in there.items()}
    here = {f"config.{name}": value for name, value in here.items()}
    recorded = run.data() or {}
    for name in ("fingerprint", "splits"):
        there[f"data {name}"], here[f"data {name}"] = recorded.get(name), data[name]
    changed = [
        f"{name}: {there.get(name, '(absent)')!r} of process 0, {here.get(name, '(absent)')!r} here"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    ]
    if changed:
        raise UserError(
            f"--workdir={run.path}: {'; '.join(changed[:4])}; start the same command, with the "
            "same data, on all processes"
        )


def open_or_create(workdir: "str | Path", config: ConfigDict) -> RunDir:
    """The run of a workdir: made when new, else checked to be of the same config.

    The stored config of a run that goes on is replaced by the new one, which can only differ in the
    fields that a resumed run may change. What a start that never saved took from its data, and from
    earlier runs if the config is another, is taken anew.

    Raises:
      UserError: the workdir holds another run, or files that are no run.
    """
    run = RunDir(workdir)
    check_workdir(run, config)
    if not run.has_saved():
        for file in (run.tokenizer_file, run.data_file, run.path / "lengths.npz"):
            file.unlink(missing_ok=True)
        if not keeps_stages(run, config):
            (run.path / "stages").rmtree(missing_ok=True)
            run.goodput.rmtree(missing_ok=True)
    run.path.mkdir(parents=True, exist_ok=True)
    storage.write(run.config_file, configs.to_json(config))
    return run


@contextlib.contextmanager
def train_alone(run: RunDir) -> Iterator[None]:
    """Keep other processes from training in a run meanwhile; makes its folder.

    In a local folder only, and among processes of one machine: a bucket has no lock that ends with
    its holder, and one that does not would keep a preempted run from going on. Whoever starts a run
    in a bucket twice at once gets checkpoints of both.

    Raises:
      UserError: one does already.
    """
    with _alone(
        run.lock_file,
        f"--workdir={run.path}: another `mmx train` is at work there; wait until it ends, or "
        "choose another folder",
    ):
        yield


@contextlib.contextmanager
def evaluate_alone(run: RunDir) -> Iterator[None]:
    """Keep other processes of this machine from scoring a run meanwhile: each score once.

    A bucket, and a folder that two machines see, has no such lock. One evaluator a run, then: two
    that end a score in the same moment write the file of scores over each other.

    Raises:
      UserError: one does already.
    """
    taken = f"{run.path}: another `mmx evaluate` is at work on it; wait until it ends"
    with _alone(run.evals / ".lock", taken):
        yield


@contextlib.contextmanager
def _alone(file: "Path", taken: str) -> Iterator[None]:
    if storage.is_remote(file):
        yield
        return
    import fcntl

    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(taken) from error
        except OSError:
            pass  # a file system without locks
        yield


def copy_tokenizer(run: RunDir, source: "Path") -> None:
    """Keep the tokenizer with the run."""
    storage.write(run.tokenizer_file, storage.read_bytes(source))


def record_environment(run: RunDir, devices: list[str]) -> None:
    """Append this start: when, with which command, versions and devices."""
    file = run.environment_file
    starts = json.loads(storage.read_text(file)) if file.is_file() else []
    names = ("mmx", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    starts.append(
        {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "command": sys.argv,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "versions": versions,
            "devices": devices,
            "xla_flags": os.environ.get("XLA_FLAGS", ""),
        }
    )
    storage.write(file, json.dumps(starts, indent=2) + "\n")
