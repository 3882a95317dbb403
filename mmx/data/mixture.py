"""What a run learns from when that is more than one data set, and the tokenizer they share.

    config.data.source, config.data.split   the first, whose pictures are shown and scored
    config.data.mix                         the others: ("tfds:wordnet train", "SOURCE SPLIT", ...)

An epoch holds each example of each source as often as its split says (``"train*4+train_toned"``):
that is the whole of the mixing, exact and without a draw. The start of a run prints the shares of
the tokens that come of it. One flag makes another mixture, or none:

    --config.data.mix="('tfds:wordnet train*2', 'tfds:scenes/64 train')"    --config.data.mix="()"
"""

import bisect
import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from etils.epath import PathLike

from mmx.core.errors import UserError
from mmx.data import source as sources
from mmx.data.source import DataInfo

_MAX_READ = 1_000_000  # ours: more texts hardly change a tokenizer


@dataclasses.dataclass(frozen=True)
class MixtureInfo:
    """`mmx.data.source.DataInfo` of several data sets, as far as a run records it."""

    infos: tuple[DataInfo, ...]

    @property
    def name(self) -> str:
        return " + ".join(info.name for info in self.infos)

    @property
    def directory(self) -> str:
        return ", ".join(str(info.directory) for info in self.infos)

    @property
    def attribution(self) -> str:
        lines = dict.fromkeys(info.attribution for info in self.infos if info.attribution)
        return "\n".join(lines)

    @property
    def splits(self) -> Mapping[str, int]:
        """The first data set's by their names, the others' as ``"wordnet/train"``."""
        others = {
            f"{info.name}/{split}": count
            for info in self.infos[1:]
            for split, count in info.splits.items()
        }
        return {**self.infos[0].splits, **others}

    @functools.cached_property
    def fingerprint(self) -> str:
        joined = " ".join(info.fingerprint for info in self.infos)
        return hashlib.sha256(joined.encode()).hexdigest()[:16]


class Mixture:
    """All examples of an epoch, source after source.

    Attributes:
      info: of the data set where it is one, else a :class:`MixtureInfo`.
      parts: splits, in order; one that occurs several times is the same object each time. Each has
        ``outlines()``, its examples with None for their images, which are not decoded.
    """

    def __init__(self, opened: list[Any]):
        self.parts = [part for one in opened for part in getattr(one, "parts", (one,))]
        infos = tuple({one.info.name: one.info for one in opened}.values())
        self.info = infos[0] if len(infos) == 1 else MixtureInfo(infos)
        self._names = ", ".join(map(repr, opened))
        self._ends = list(itertools.accumulate(map(len, self.parts)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __repr__(self) -> str:
        return self._names

    def __getitem__(self, index: int) -> dict[str, Any]:
        part = bisect.bisect_right(self._ends, index)
        return self.parts[part][index - (self._ends[part - 1] if part else 0)]


def entries(data) -> list[tuple[str, str]]:
    """(source, split) of all that ``config.data`` names. Raises UserError: a malformed entry."""
    wanted = [(data.source, data.split)]
    for entry in getattr(data, "mix", ()):
        spec, _, split = entry.strip().partition(" ")
        if not split.strip():
            raise UserError(
                f"config.data.mix: {entry!r} is not SOURCE SPLIT, such as 'tfds:wordnet train'"
            )
        wanted.append((spec, split.strip()))
    return wanted


def open_mixture(data, data_dir: PathLike | None = None) -> Mixture:
    """All that ``config.data`` trains on, pairs and texts.

    Args:
      data: ``source``, ``split``, ``data_dir`` and, where there are, ``mix`` and ``latents``.
      data_dir: instead of that of the config.

    Raises:
      UserError: a malformed entry; see `mmx.data.source.open_source`.
    """
    where, latents = data_dir or data.data_dir, getattr(data, "latents", False)
    return Mixture(
        [
            sources.open_source(spec, split, where, needs_image=False, latents=latents)
            for spec, split in entries(data)
        ]
    )


def check_latents(config, codec: str) -> None:
    """Are the latents that ``config.data`` trains on those of the run's codec?

    Args:
      config: with ``data`` and ``codec.run``.
      codec: the identity of that codec, see `mmx.models.stages.identity`.

    Raises:
      UserError: of images of another size, or of another codec; says what to do.
    """
    for info in {id(part.info): part.info for part in open_mixture(config.data).parts}.values():
        of = info.latents
        if of is None:  # texts alone
            continue
        if of["image_size"] != config.data.image_size:
            raise UserError(
                f"config.data.image_size={config.data.image_size}: {info.name} has the latents of "
                f"images of {of['image_size']} pixels; give that size, or make others: "
                f"mmx prepare latents ... --size {config.data.image_size} --name NAME"
            )
        if of["codec"] != codec:
            raise UserError(
                f"config.codec.run={config.codec.run}: {info.name} has the latents of another "
                f"codec, --codec {of['run']} ({of['codec']}, this one is {codec}); name that run, "
                f"or make others: mmx prepare latents ... --codec {config.codec.run} --name NAME"
            )


def open_training(data, data_dir: PathLike | None = None) -> Any:
    """What a run of any family trains on: a mixture where its rows are packed, else its source."""
    if "row_len" in data:
        return open_mixture(data, data_dir)
    return sources.open_source(data.source, data.split, data_dir or data.data_dir)


def texts(mixture: Mixture) -> Iterator[str]:
    """The texts of an epoch, for a tokenizer; of more than a million documents every n-th."""
    every = -(-len(mixture) // _MAX_READ)
    for part in mixture.parts:
        for example in itertools.islice(part.outlines(), 0, None, every):
            parts = example.get("parts", (example.get("text"),))
            yield from (text for text in parts if isinstance(text, str))
