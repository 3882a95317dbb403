"""The metrics that a run is measured by: which can be computed here, and by which networks."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmx.core import config as configs
from mmx.core import preemption, storage
from mmx.core.errors import UserError
from mmx.core.run_dir import RunDir, parse_run
from mmx.models import registry

if TYPE_CHECKING:
    from mmx.eval.metrics import Embedder


class Judge:
    """Metrics of ``config.eval.metrics`` for the pictures of one run.

    Args:
      run_dir, config: the run.
      names: of `mmx.eval.metrics.METRICS`.
      scorer: ``RUN[@STEP]`` of the CLIP that scores; "" for none.
      data_dir: where ``mmx prepare features`` put the networks.

    Raises:
      UserError: metrics that no report can compute, a scorer that is none, or a network that
        taught the run.
    """

    def __init__(
        self, run_dir: RunDir, config: Any, names: Sequence[str], scorer: str, data_dir: str
    ):
        from mmx.eval import metrics

        self.names, self._data_dir = list(dict.fromkeys(names)), data_dir or None
        self._made: dict[str, Any] = {}
        self._told = False
        self._scorer: tuple[RunDir, int] | None = None
        self._absent: dict[str, list[str]] = {}  # what to type or to mend -> metrics
        teachers = _teachers(run_dir, config)
        metrics.check_config(self.names, scorer, teachers, registry.writes(config))
        if any(map(metrics.needs_scorer, self.names)):
            try:
                clip, step = parse_run(scorer)
            except UserError as error:  # gone since: the other metrics need none
                self._lack(f"config.eval.scorer={scorer}: {error}", metrics.needs_scorer)
            else:
                registry.check_embeds(clip.config(), f"config.eval.scorer={scorer}")
                _check_apart(run_dir, clip)
                self._scorer = clip, clip.steps()[-1] if step is None else step
        for name in self.names:
            if file := metrics.missing_file(name, self._data_dir):
                self._lack(f"for that: {_command(file, data_dir)}", name.__eq__)

    def _lack(self, why: str, of) -> None:
        self._absent.setdefault(why, []).extend(filter(of, self.names))

    def absent(self) -> list[str]:
        """The metrics that cannot be computed here."""
        return [name for names in self._absent.values() for name in names]

    def tell(self) -> None:
        """Say once which metrics cannot be computed, and what would help."""
        for why, names in self._absent.items():
            if not self._told:
                print(f"mmx: not scored: {', '.join(names)}; {why}", file=sys.stderr)
        self._told = True

    def recipes(self, of: str) -> dict[str, str]:
        """Metric -> all that makes its number: the network, a hash of its weights, the images.

        Args:
          of: which images, in words. Of metrics that cannot be computed here there is none.
        """
        from mmx.eval import metrics

        out = {}
        for name in self.names:
            if name in self.absent():
                continue
            by = metrics.network_of(name, self._data_dir)
            if metrics.needs_scorer(name):
                by = self._seen_by()
            out[name] = f"{by}, {of}" if by else of
        return out

    def _seen_by(self) -> str:
        clip, step = self._scorer
        data = clip.config().data
        sees = f"{data.crop} {data.image_size} px"
        return f"{_name(clip, step)} ({sees}, save {clip.identity(step)})"

    def measure(
        self, names: Sequence[str], batches: Iterable[Mapping[str, Any]]
    ) -> Iterator[tuple[str, dict, int]]:
        """One pass of the rows -> (metric, its scores, how many rows there were), in order.

        Raises:
          UserError: after the others, the first that the rows do not allow.
          Interrupted: between two batches, where `mmx.core.preemption` watches.
        """
        from mmx.eval import evaluator, metrics

        if not self._made.keys() >= set(names):
            embedder = self._embedder() if any(map(metrics.needs_scorer, names)) else None
            self._made = dict(zip(names, metrics.make(names, self._data_dir, embedder)))
        made, counted = [self._made[name] for name in names], []

        def watched():
            for batch in batches:
                preemption.check()
                counted.append(len(batch["image"]))
                yield batch

        wrong = None
        states = evaluator.states_of(made, watched())
        for name, e, state in zip(names, made, states):
            try:
                yield name, e.result(state), sum(counted)
            except UserError as error:
                wrong = wrong or UserError(f"{name}: {error}")
        if wrong:
            raise wrong

    def _embedder(self) -> "Embedder":
        from mmx.cli.run import load_run
        from mmx.eval.images import as_uint8
        from mmx.eval.metrics import Embedder

        clip, step = self._scorer
        opened = load_run(clip.path, step)
        of = opened.task.embedding(opened)

        return Embedder(
            _name(clip, step),
            lambda images: of.images(list(as_uint8(images))),
            lambda texts: of.texts(list(texts), strict=False),
        )

    def close(self) -> None:
        """Let go of the networks: another run may need the device's memory."""
        self._made = {}


def _name(clip: RunDir, step: int) -> str:
    return f"{storage.absolute(clip.path).name}@{step}"


def _command(file: str, data_dir: str) -> str:
    from mmx.pretrained.networks import command

    return command(file, data_dir or None)


def _teachers(run_dir: RunDir, config: Any) -> list[str]:
    from mmx.eval.report import taught_by

    earlier = (folder / "config.json" for folder in storage.children(run_dir.path / "stages"))
    stages = [configs.from_json(storage.read_text(f)) for f in earlier if f.is_file()]
    return [file for of in (config, *stages) for file in taught_by(of)]


def _check_apart(run_dir: RunDir, clip: RunDir) -> None:
    """A network that guided or taught a run does not score it. Raises UserError: it is a stage."""
    for folder in storage.children(run_dir.path / "stages"):
        if not (folder / "pin.json").is_file():
            continue
        pin = json.loads(storage.read_text(folder / "pin.json"))
        path = pin["spec"].removesuffix(f"@{pin['step']}")
        saves = (clip.identity(step) for step in clip.steps())
        if storage.absolute(path) == storage.absolute(clip.path) or pin.get("save") in saves:
            raise UserError(
                f"config.eval.scorer={clip.path}: {run_dir.path} has learned from it (its stage "
                f"{folder.name!r}), and a network that guided or taught never scores; name another"
            )
