"""Score a run and draw what it has learned; everything is read from the run directory."""

import math
import signal
import sys
import time

from mmx.cli import arguments, zero_shot
from mmx.cli.scoring import Scorer
from mmx.core import commands, preemption, storage
from mmx.core.errors import UserError
from mmx.core.run_dir import RunDir, evaluate_alone, parse_run

HELP = "score a run and draw a picture of it"
EXAMPLES = """\
examples:
  mmx evaluate runs/muse
  mmx evaluate runs/muse@500 --seed 1
  mmx evaluate runs/clip --zero-shot tfds:caltech101 --probe train
  mmx evaluate runs/muse --every-checkpoint
  mmx evaluate gs://bucket/muse --follow
  mmx evaluate runs/muse --metrics kid_mobilenetv2_96px,clip_score --scorer runs/clip

A Muse run gets scores with 95 % intervals and a captioned grid; a tokenizer run its PSNR and
codebook use (KL and spread of continuous latents) on each split, and images beside their
reconstructions; of a split, the first 5,000 examples: config.eval.examples is how many of them the
scores during training see, and is not read here. Nor is config.eval.splits by a Muse run, which
reports on every split. A Transfusion run on edits or series gets, for each split of them, how often
it draws the right variant, and then the scores of the pairs that were mixed in. The scores go to
RUN/evals.jsonl and, at the checkpoint's step, to TensorBoard. Each checkpoint is scored once: the
same command again shows what is there, and computes what is missing alone, as a metric that is
named later, or whose network came later (`mmx prepare features`).

Metrics are those of config.eval.metrics: of what a Muse run draws, of what a tokenizer rebuilds.
clip_score and cmmd need a CLIP that scores (config.eval.scorer); one that guided, taught or ordered
the pictures (`mmx rerank`) is not to score them.

--follow scores each checkpoint as training writes it, on this machine or on another that sees the
folder or bucket. It ends with the last step, when training has said that its loss is not finite,
and after --idle MINUTES without a checkpoint: a training that was stopped or killed may go on. It
writes nothing that training reads; a checkpoint that training removes before it was read, or that
is half there, is named and not counted; a run with config.offline_ema averages the checkpoints that
are left, so its scores depend on when they are made. Stopped
(SIGTERM, Ctrl-C: exit code 75), the same command goes on. One evaluator a run: on one machine a
second is refused; in a bucket, or from another machine, two can lose lines of each other. It is one
process on the devices of one machine: beside a training on many hosts it needs one of its own.
"""
_POLL = 10.0  # ours: seconds between two looks for a checkpoint
_PATIENCE = 300.0  # ours: seconds that what came half may take to become whole, after the last step


def add_arguments(parser):
    parser.add_argument("run_dir", metavar="RUN[@STEP]")
    several = parser.add_mutually_exclusive_group()
    several.add_argument("--every-checkpoint", action="store_true", help="all that are there")
    several.add_argument(
        "--follow", action="store_true", help="all, and those that training is still to write"
    )
    parser.add_argument(
        "--idle",
        metavar="MINUTES",
        type=arguments.count,
        help="end --follow when no checkpoint came for so long (default: never)",
    )
    arguments.add_metrics(parser)
    parser.add_argument("--seed", type=arguments.seed, default=0, help="default 0")
    parser.add_argument("--data_dir", help="where the data is now, if not where it was in training")
    zero_shot.add_arguments(parser)


def run(args) -> int:
    if args.zero_shot:
        if args.follow or args.every_checkpoint:
            raise UserError("--zero-shot is of one checkpoint: name it, RUN@STEP")
        return zero_shot.run(args)
    if args.idle and not args.follow:
        raise UserError(f"--idle={args.idle} is for --follow, which is not given")
    for flag in ("split", "classes", "templates", "probe"):
        if getattr(args, flag) is not None:
            raise UserError(
                f"--{flag}={getattr(args, flag)} is for --zero-shot, which is not given"
            )
    run_dir, step = parse_run(args.run_dir, may_wait=args.follow)
    if step is not None and (args.follow or args.every_checkpoint):
        raise UserError(f"{args.run_dir}: --every-checkpoint and --follow are of all; name no step")
    scorer = Scorer(run_dir, args.seed, args.data_dir, args.metrics, args.scorer)
    if not (args.follow or args.every_checkpoint):
        step = run_dir.steps()[-1] if step is None else step
        if not scorer.is_complete(step):
            _score_one(scorer, step)
        _print(scorer, step)
        return 0
    loop = _Follower(scorer, args.follow, args.idle)
    if not loop.is_over():
        scorer.prepare()
        with evaluate_alone(run_dir), preemption.watch() as stop:
            try:
                loop.run(stop)
            except preemption.Interrupted:
                raise preemption.Preempted(
                    f"stopped; {loop.counted()} scored; run the same command to go on"
                ) from None
            finally:
                scorer.close()
    print(f"scored:      {loop.counted()}")
    print(f"scores:      {run_dir.evals_file}")
    print(f"TensorBoard: {commands.tensorboard(run_dir.path)}")
    if loop.unread:
        steps = ", ".join(map(str, sorted(loop.unread)))
        raise UserError(f"{run_dir.checkpoints}: not scored, as they cannot be read: {steps}")
    return 0


def _score_one(scorer: Scorer, step: int) -> None:
    scorer.prepare()
    with evaluate_alone(scorer.dir), preemption.watch((signal.SIGTERM,)):
        try:
            scorer.score(step)
        except preemption.Interrupted:
            raise preemption.Preempted("stopped before the scores were there") from None
        finally:
            scorer.close()


class _Follower:
    """Scores what is there, oldest first, and looks again.

    Args:
      scorer: of the run.
      waits: whether to look again until training has come to its end; else all that is there.
      idle: minutes without a checkpoint after which that is over; None: never.
    """

    def __init__(self, scorer: Scorer, waits: bool, idle: int | None = None):
        self.scorer, self.dir, self.waits = scorer, scorer.dir, waits
        self._idle = math.inf if idle is None else 60.0 * idle
        self.unread: dict[int, tuple] = {}  # step -> how its files were when it could not be read
        self._seen: set[int] = set()
        self._gone: set[int] = set()

    def counted(self) -> str:
        count = sum(map(self.scorer.is_complete, self._seen | set(self.dir.steps())))
        return f"{count} checkpoint{'' if count == 1 else 's'}"

    def _open(self) -> list[int]:
        """Steps that are to be scored and may be read by now."""
        self.scorer.refresh()
        self._note_gone()
        return [
            step
            for step in self.dir.steps()
            if not self.scorer.is_complete(step)
            and (step not in self.unread or self.unread[step] != _state(self.dir, step))
        ]

    def is_over(self) -> bool:
        """Is all scored that there will ever be?"""
        steps = self.dir.steps()
        ends = not self.waits or (steps and steps[-1] >= self.dir.config().steps)
        return bool(ends) and all(map(self.scorer.is_complete, steps))

    def run(self, stop: preemption.Watch) -> None:
        """Until :meth:`is_over`, or what is left cannot be read. Raises Interrupted."""
        from mmx.train.goodput import ending

        told, since = None, time.monotonic()
        while True:
            for step in self._open():
                self._try(step)
                told, since = None, time.monotonic()
            if self.is_over():
                return
            if self._open():
                continue  # came meanwhile
            steps = self.dir.steps()
            last, end = (steps[-1] if steps else 0), self.dir.config().steps
            waited, why = time.monotonic() - since, ending(self.dir)
            if not self.waits or (last >= end and waited > _PATIENCE):
                return
            if last < end and why == "NonFinite":
                _say(f"training ended at step {last} of {end}: its loss or gradient is not finite")
                return
            if waited > self._idle:
                _say(f"no checkpoint came for {waited / 60:.0f} min (step {last} of {end})")
                return
            if told != (last, why):
                what = "for what is not whole yet" if last >= end else "for the next checkpoint"
                stopped = f"training has stopped, {why}; " if why not in ("", "done") else ""
                _say(f"waiting {what} (step {last} of {end}; {stopped}looking every {_POLL:.0f} s)")
                told = (last, why)
            with stop.waiting():
                time.sleep(_POLL)

    def _try(self, step: int) -> None:
        from mmx.train.checkpoint import Unreadable

        preemption.check()
        self._seen.add(step)
        state = _state(self.dir, step)
        began = time.monotonic()
        try:
            self.scorer.score(step)
        except (Unreadable, FileNotFoundError) as error:
            # Gone, or of what its average needs one is gone: then there is nothing to say of it.
            if isinstance(error, FileNotFoundError) and step in self.dir.steps():
                raise
            if step in self.dir.steps():
                again = "; tried again once its files change" if self.waits else ""
                _say(f"step {step}: not scored, {error}{again}")
                self.unread[step] = state
            self._note_gone()
            return
        self.unread.pop(step, None)
        scores = self.scorer.scores(step)
        _say(f"step {step}: {len(scores)} scores in {time.monotonic() - began:.0f} s")

    def _note_gone(self) -> None:
        """Say which steps training removed before they were scored."""
        there = set(self.dir.steps())
        for step in sorted(self._seen - there - self._gone):
            if not self.scorer.is_complete(step):
                keep = self.dir.config().get("keep")
                _say(f"step {step}: not scored, training has removed it (config.keep={keep})")
            self._gone.add(step)
            self.unread.pop(step, None)
        self._seen |= there


def _state(run_dir: RunDir, step: int) -> tuple:
    """What changes when files of a checkpoint do, or which ones there are to average with it."""
    folder, before = run_dir.checkpoints / str(step), [s for s in run_dir.steps() if s < step]
    return before, storage.versions(folder)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _print(scorer: Scorer, step: int) -> None:
    from mmx.eval.ledger import spell

    scores = scorer.scores(step)
    width = max(map(len, scores))
    for name, score in scores.items():
        print(f"{name.ljust(width)}  {spell(score)}")
    print(f"scores:      {scorer.dir.evals_file}")
    print(f"picture:     {scorer.picture(step)}")
    print(f"TensorBoard: {commands.tensorboard(scorer.dir.path)}")
