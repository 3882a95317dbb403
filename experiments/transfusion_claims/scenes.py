"""The scenes that all arms share, and what the two tokenizers make of them, encoded once.

Axis letters: n scenes, h w latent grid, Z latent channels.
"""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import jax
import numpy as np

from mmx.core import tree
from mmx.core.errors import UserError
from mmx.core.run_dir import parse_run
from mmx.data.scene_grammar import KINDS, Found, Scene
from mmx.data.source import Source, open_source
from mmx.data.text import Tokenizer
from mmx.eval import scene_reader
from mmx.eval.scenes import hits
from mmx.models.registry import make_codec
from mmx.models.rows import to_float
from mmx.train.start import read_weights

SOURCE = "tfds:scenes/64"
FACTORS = ("object", "count", "size", "background", "all")
VALIDATED = 240  # of the end of train: rates and guidance are chosen on them; never learned
CODECS = {"latents": "kl", "codes": "vq"}
_KEPT = {"latents": np.float16, "codes": np.int16}  # in the files: a 4,000th of a std is noise
_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class Scenes:
    """Some scenes as the arms read them.

    Attributes:
      factors: JSON of each, of :meth:`mmx.data.scene_grammar.Scene.to_json`.
      captions: of each.
      latents: float32 [n, h, w, Z], normalised.
      codes: int32 [n, h, w].
    """

    factors: list[str]
    captions: list[str]
    latents: np.ndarray
    codes: np.ndarray

    def __len__(self) -> int:
        return len(self.factors)

    def part(self, rows: slice) -> "Scenes":
        """Some of them."""
        return Scenes(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))

    def wanted(self) -> list[Scene]:
        """What each is a picture of."""
        return [Scene.from_json(text) for text in self.factors]


@dataclasses.dataclass(frozen=True)
class Data:
    """All that training and scoring read.

    Attributes:
      train, validation, test: scenes, of training, of its end, and of the split "test".
      codecs: "latents" and "codes" -> (codec, its weights).
      tokenizer: of captions.
    """

    train: Scenes
    validation: Scenes
    test: Scenes
    codecs: dict[str, tuple]
    tokenizer: Tokenizer

    def pictures(self, gives: str, encoded: np.ndarray) -> np.ndarray:
        """What a codec makes of latents or codes: float32 [n, H, W, 3]."""
        codec, weights = self.codecs[gives]
        return _mapped(jax.jit(lambda x: codec.decode(weights, x)), encoded)


def is_chosen(scene: Scene, every: int) -> bool:
    """Has it objects of one kind, one of every so many of all kinds, and nothing else?

    Ours, so that minutes teach something.
    """
    return [group.kind in KINDS[::every] for group in scene.groups] == [True]


def prepare(out: Path, data_dir: str, runs: dict[str, str], every: int) -> Data:
    """Opens, or encodes and keeps in ``out``, the scenes of the study and their ceilings.

    Args:
      out: of the study; once all is there, nothing of the data set is read any more.
      data_dir: where the data set is.
      runs: "latents" and "codes" -> run of the tokenizer.
      every: see :func:`is_chosen`.

    Raises:
      UserError: a run, a data set or the package of the pictures is missing; ``out`` is of others.
    """
    scene_reader.read(np.zeros((1, 64, 64, 3), np.float32))  # scores need it at the end: can it?
    codecs = {gives: _codec(run, gives) for gives, run in runs.items()}
    found = {}
    _check_inputs(out / "inputs.json", every, codecs)
    words = out / "tokenizer.json"
    for split in ("train", "test"):
        file = out / f"{split}.npz"
        if not file.is_file():
            source = open_source(SOURCE, split, data_dir)
            _encode(source, codecs, every, file)
            shutil.copyfile(source.info.tokenizer_path, words)
        with np.load(file) as kept:
            columns = kept["factors"].tolist(), kept["captions"].tolist()
            latents, codes = kept["latents"].astype(np.float32), kept["codes"].astype(np.int32)
            found[split] = Scenes(*columns, latents, codes)
    data = Data(
        found["train"].part(slice(None, -VALIDATED)),
        found["train"].part(slice(-VALIDATED, None)),
        found["test"],
        codecs,
        Tokenizer.load(words),
    )
    if not (out / "ceilings.json").is_file():
        (out / "ceilings.json").write_text(json.dumps(_ceilings(data)) + "\n")
    return data


def _check_inputs(file: Path, every: int, codecs: dict[str, tuple]) -> None:
    """Is what a folder keeps of the same scenes, by the same tokenizers?"""
    inputs = {"every": every}
    for gives, (_, weights) in codecs.items():
        of = hashlib.sha256()
        for path, leaf in tree.flatten(weights).items():
            of.update(path.encode() + np.asarray(leaf).tobytes())
        inputs[gives] = of.hexdigest()[:16]
    if not file.is_file():
        file.write_text(json.dumps(inputs) + "\n")
    elif json.loads(file.read_text()) != inputs:
        raise UserError(f"{file.parent}: of another size or other tokenizers; give another --out")


def marks(wanted: list[Scene], found: list[Found]) -> dict[str, str]:
    """Factor -> a letter for each scene: 1 right, 0 wrong, - where the scene has no such factor."""
    rows = [hits(scene, seen) for scene, seen in zip(wanted, found, strict=True)]
    letter = lambda row, factor: str(int(row[factor])) if factor in row else "-"
    return {factor: "".join(letter(row, factor) for row in rows) for factor in FACTORS}


def _codec(run: str, gives: str):
    folder, step = parse_run(run)
    codec = make_codec(folder.config(), gives)
    params, extra, _ = read_weights(folder, step)
    return codec, {"params": params, "extra": extra}


def _encode(source: Source, codecs: dict, every: int, file: Path) -> None:
    chosen = lambda i: is_chosen(Scene.from_json(_factors(source, i)), every)
    rows = [i for i in range(len(source)) if chosen(i)]
    images = np.stack([source[i]["image"] for i in rows])
    encode = lambda codec, weights: jax.jit(lambda x: codec.encode(weights, to_float(x)))
    columns = {name: _mapped(encode(*codecs[name]), images) for name in CODECS}
    captions, factors = [source.caption(i) for i in rows], [_factors(source, i) for i in rows]
    unfinished = file.with_name(f".{file.name}")
    columns = {name: columns[name].astype(kind) for name, kind in _KEPT.items()}
    np.savez_compressed(unfinished, factors=factors, captions=captions, **columns)
    unfinished.rename(file)


def _factors(source: Source, index: int) -> str:
    return source.outline(index)["factors"]


def _ceilings(data: Data) -> dict[str, dict[str, str]]:
    """Of the tested scenes, what is read off each codec's reconstructions."""
    wanted = data.test.wanted()
    read = lambda gives: scene_reader.read(data.pictures(gives, getattr(data.test, gives)))
    return {gives: marks(wanted, read(gives)) for gives in CODECS}


def _mapped(fn, rows: np.ndarray) -> np.ndarray:
    """``fn`` of all rows, a batch of one shape at a time."""
    parts = []
    for start in range(0, len(rows), _AT_ONCE):
        part = rows[start : start + _AT_ONCE]
        full = np.concatenate([part, np.repeat(part[-1:], _AT_ONCE - len(part), 0)])
        parts.append(np.asarray(fn(full))[: len(part)])
    return np.concatenate(parts)
