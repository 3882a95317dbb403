"""Score checkpoints of a run, each (checkpoint, evaluator, seed) once; the verbs share it.

An evaluator is "report", what a family's task says of itself, or a metric by its name in
`mmx.eval.metrics`: one that is named later, or whose network is there later, is computed alone. The
scores go to RUN/evals.jsonl and, at the checkpoint's step, to TensorBoard in RUN/evals/: nothing
that training writes is touched.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from mmx.cli import judge, pictures
from mmx.core.errors import UserError
from mmx.core.run_dir import RunDir


class Scorer:
    """What is scored of a run already, and what can be. Needs jax only once it scores.

    Args:
      run_dir: the run.
      seed: of all draws.
      data_dir: where the data is now; None: where it was in training.
      metrics: beside the report; None: ``config.eval.metrics``.
      scorer: the CLIP that scores, ``RUN[@STEP]``; None: ``config.eval.scorer``.

    Raises:
      UserError: an unknown family, scores that cannot be read, or metrics that no report of this
        run can compute.
    """

    def __init__(
        self,
        run_dir: RunDir,
        seed: int = 0,
        data_dir: str | None = None,
        metrics: Sequence[str] | None = None,
        scorer: str | None = None,
    ):
        from mmx.data.mixture import open_training
        from mmx.data.source import is_view
        from mmx.eval.ledger import Ledger
        from mmx.eval.report import measured_on

        self.dir, self.seed = run_dir, seed
        config = run_dir.config()
        pictured = pictures.kind(config) != pictures.NONE
        self._ledger = Ledger(run_dir.evals_file)
        self.data_dir = data_dir or config.data.data_dir
        self._opened = self._writer = self._no_data = None
        trained_on = run_dir.data()
        splits = trained_on["splits"] if trained_on else {}
        fingerprint = trained_on["fingerprint"] if trained_on else ""
        try:
            info = open_training(config.data, self.data_dir).info
            self._directory, here, splits = info.directory, info.fingerprint, info.splits
        except UserError as error:  # what is scored already can be shown all the same
            self._no_data = UserError(f"{error} (or say where it is: --data_dir)")
            here = fingerprint
        self._is_other = bool(fingerprint) and here != fingerprint
        # Scores on other data, or on another choice of it, are other scores.
        data = f"{config.data.source} ({here[:8]})"
        self.recipes = {"report": data}
        names = config.eval.get("metrics", ()) if metrics is None else metrics
        if names and not pictured:
            raise UserError(
                f"{run_dir.path}: a run of the family {config.family!r} shows no pictures that "
                f"{', '.join(names)} could measure; only its own report"
            )
        if names and is_view(config.data.source):
            raise UserError(
                f"{run_dir.path}: {', '.join(names)} are of images with a text each, and it "
                f"learned from {config.data.source}; only its own report scores it"
            )
        spec = config.eval.get("scorer", "") if scorer is None else scorer
        self._judge = judge.Judge(run_dir, config, names, spec, self.data_dir)
        self._elsewhere: dict[str, str] = {}
        if names and splits:  # else the data is neither here nor known
            of = f"{measured_on(config, splits)}, {data}"
            self.recipes |= self._judge.recipes(of)
            # Scored where its network was, and shown here all the same.
            self._elsewhere = {
                line["evaluator"]: line["recipe"]
                for line in self._ledger.lines
                if line["evaluator"] in self._judge.absent() and line["recipe"].endswith(f", {of}")
            }

    def refresh(self) -> None:
        """See what another machine has scored meanwhile."""
        self._ledger.refresh()

    def is_complete(self, step: int) -> bool:
        """Is everything of a step scored that can be scored here?"""
        return not self._missing(step)

    def _missing(self, step: int) -> list[str]:
        return [
            name
            for name, recipe in self.recipes.items()
            if not self._ledger.has(step, self.seed, name, recipe)
            or (name == "report" and not self.picture(step).is_file())
        ]

    def scores(self, step: int) -> dict[str, dict]:
        """Metric -> {"value", "low", "high", "n", ...}, as far as it is known."""
        return self._ledger.scores(step, self.seed, self.recipes | self._elsewhere)

    def picture(self, step: int):
        """Where the report's picture of a step is."""
        return self.dir.samples / f"evaluate-step{step}-seed{self.seed}.png"

    def prepare(self) -> None:
        """Before anything is computed: starts jax. Raises UserError when nothing can be scored."""
        from mmx.cli import arguments
        from mmx.cli.backend import start_jax

        if self._no_data:
            raise self._no_data
        if self._is_other:
            print(
                f"mmx: warning: {self._directory} was prepared anew since {self.dir.path} began: "
                "what it is scored on is not what it learned from (the old data: --data_dir)",
                file=sys.stderr,
            )
        arguments.check_writable(f"{self.dir.path}", self.dir.path)
        start_jax()

    def score(self, step: int) -> None:
        """Compute what is missing of a step.

        Raises:
          Unreadable: the checkpoint cannot be read.
          UserError: its pictures do not allow a metric; all others are kept.
          Interrupted: where `mmx.core.preemption` watches.
        """
        missing = self._missing(step)
        if not missing:
            return
        self._open(step)
        self._judge.tell()
        rows = None
        if "report" in missing:
            scores, rows = self._report()
            self._keep(step, "report", scores)
        if named := [name for name in missing if name != "report"]:
            # What the report has drawn is not drawn again.
            batches = rows() if rows else self._opened.task.measured(self._opened, self.seed)
            for name, scores, n in self._judge.measure(named, batches):
                self._keep(step, name, scores, n)

    def _keep(self, step: int, name: str, scores: dict, n: int | None = None) -> None:
        from mmx.eval.ledger import as_lines

        of = (step, self.seed, name, self.recipes[name], scores, n)
        # TensorBoard first: what the ledger has is never computed again, so what ends the process
        # between the two may leave points twice, but never none.
        self._log(step, {line["metric"]: line for line in as_lines(*of)})
        self._ledger.add(*of)

    def _open(self, step: int) -> None:
        from mmx.cli.run import load_run

        if self._opened is None:
            self._opened = load_run(self.dir.path, step)
            self._opened.config.data.data_dir = self.data_dir
        elif self._opened.step != step:
            self._opened = self._opened.at(step)

    def _report(self) -> tuple[dict, Callable[[], Iterator] | None]:
        """(scores, the rows of the metrics, if it has drawn them)."""
        from mmx.eval.grid import draw_grid
        from mmx.eval.png import save_picture

        opened = self._opened
        report = opened.task.report(opened, self.seed)
        picture = draw_grid(
            report.sections,
            title=f"mmx {opened.config.family}, {opened.step} steps",
            subtitle=report.subtitle,
            attribution=report.credit,
        )
        path = self.picture(opened.step)
        info = {"run": str(self.dir.path), "step": opened.step, "seed": self.seed}
        try:
            save_picture(path, picture, report.info | info)
        except OSError as error:
            raise UserError(f"{path}: not written ({error.strerror})") from error
        return report.scores, report.measured

    def _log(self, step: int, new: Mapping[str, Mapping]) -> None:
        from mmx.cli import tensorboard
        from mmx.train.metrics import Writer

        if self._writer is None:
            folder = self.dir.evals / f"seed{self.seed}"
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = Writer(folder)
            cards = [f"- {name}: {recipe}" for name, recipe in self.recipes.items()]
            self._writer.text(0, "recipes", "\n".join(cards))
            known = (self.scores(s) for s in sorted({line["step"] for line in self._ledger.lines}))
            self._charts = {name: "low" in line for of in known for name, line in of.items()}
            before = None
        else:
            before = dict(self._charts)
        self._charts |= {name: "low" in line for name, line in new.items()}
        if self._charts != before:  # TensorBoard shows the charts that were said last
            self._writer.layout(0, tensorboard.layout(self._charts.items()))
        tensorboard.write_scores(self._writer, step, new)
        self._writer.sync()

    def close(self) -> None:
        """Let go of the file and of the weights: another run's may need the device's memory."""
        if self._writer:
            self._writer.close()
        self._judge.close()
        self._opened = self._writer = None
