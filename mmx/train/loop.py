"""The training loop of every family: it knows the Task contract and nothing else."""

import contextlib

import jax
import numpy as np

from mmx.core import commands, preemption, rng, storage
from mmx.core import config as configs
from mmx.core.progress import Progress
from mmx.core.run_dir import RunDir, parse_run, record_environment
from mmx.data import packing, pipeline
from mmx.data.source import open_source
from mmx.train.checkpoint import Checkpoints
from mmx.train.goodput import Goodput
from mmx.train.metrics import Meter, Writer, brief, peak_flops, row_flops
from mmx.train.plan import plan_training
from mmx.train.profiler import Profile
from mmx.train.sharding import batch_sharding, make_mesh, place, replicated
from mmx.train.start import init_from_run


class NonFinite(Exception):
    """The loss or a gradient stopped being finite; the last finite state was saved."""


def train(task, config, run: RunDir, init_from=None, clock=None, profile=None) -> None:
    """Train a task to ``config.steps``; start, go on, or find that all is done.

    Args:
      init_from: ``RUN[@STEP]`` to take weights from, or None.
      clock: a :class:`Goodput` that has run since the command began; one is made when None.
      profile: a range of steps to trace, or None.

    Raises:
      UserError: something in the config or the workdir cannot work.
      Preempted: asked to stop; the state is saved.
      NonFinite: names the step and the metrics; the last finite state is saved.
    """
    watch = preemption.watch(many=jax.process_count() > 1)
    with clock or Goodput() as clock, watch as stop:
        try:
            _train(task, config, run, init_from, clock, profile, stop)
        except preemption.Interrupted:
            raise preemption.Preempted(
                "stopped before the first step; nothing to save; run the same command to begin"
            ) from None


def _train(task, config, run: RunDir, init_from, clock: Goodput, profile, stop) -> None:
    configs.check_numbers(config)
    mesh = make_mesh(config.mesh)
    rows = batch_sharding(mesh)
    plan = plan_training(task, config, mesh)
    frozen = task.load_frozen(mesh)
    key = place(rng.base_key(config.seed), replicated(mesh))
    is_host_0 = jax.process_index() == 0

    # Where the state comes from, first match wins:
    # 1. the newest readable checkpoint of this run; 2. --init_from; 3. fresh parameters.
    preemption.check()
    checkpoints = Checkpoints(run.checkpoints, keep=config.keep)
    with clock.span("restore"):
        restored = checkpoints.restore_newest(plan.abstract, plan.shardings)
    if restored:
        state = restored[1].replace(bad_step=place(np.int32(-1), replicated(mesh)))
    else:
        state = plan.init(key)
        if init_from:
            state = init_from_run(state, *parse_run(init_from))
    start = int(state.step)
    evaluators = task.evaluators(mesh)

    writer = Writer(run.path, start, enabled=is_host_0)
    what = f"train {config.family}"
    progress = Progress(config.steps, what, start, config.log_every, enabled=is_host_0)
    if is_host_0:
        clock.open(run, start)
        record_environment(run, [f"{d.platform}: {d.device_kind}" for d in jax.devices()])
        if start == 0:
            progress.say(plan.table)
            writer.text(0, "config", f"```\n{configs.to_text(config)}\n```")
        elif start < config.steps:
            progress.say(f"going on from step {start} of {run.path}")
        progress.say(f"TensorBoard: {commands.tensorboard(run.path)}")
        if restored and init_from:
            progress.say(f"--init_from={init_from} is for a new run: not used")

    @clock.span("eval")
    def evaluate(state, done):
        scores = {}
        for evaluator in evaluators:
            scores |= dict(evaluator.run(state.averaged, state.extra, frozen))
        writer.scalars(done, scores)
        if scores:
            progress.say(f"step {done}: " + brief(scores))
        return scores

    @clock.span("preview")
    def preview(state, done):
        for name, picture in task.preview(state.averaged, state.extra, frozen, mesh).items():
            writer.image(done, name, picture)

    def finish_step(done, vector):
        """Read the metrics of a step that is over while the device works on the next."""
        values = dict(zip(plan.metrics, np.asarray(vector)))
        if values.pop("bad_step") >= 0:
            bad = [n for n, v in values.items() if not np.isfinite(v)]
            raise NonFinite(
                f"step {done}: {', '.join(bad)} not finite; the state of step {done - 1} is saved "
                f"in {run.path}. To go on from there, lower config.optim.lr or "
                f"config.optim.clip_norm in a new --workdir, --init_from {run.path}."
            )
        if done % config.log_every == 0 or done == config.steps:
            values |= meter.read(done)
            writer.scalars(done, values)
            progress.update(done, brief(values))
        elif progress.tty:
            progress.update(done)

    save = clock.span("save")(checkpoints.save)
    stream = _open_stream(task, config, run, progress.say if is_host_0 else None)
    meter = Meter(clock, start, config.batch_size, row_flops(task, stream), peak_flops())
    scores, pending, saved = {}, None, start if restored else -1
    if is_host_0 and stream.source.info.attribution:
        storage.write(run.attribution_file, stream.source.info.attribution + "\n")
    with contextlib.ExitStack() as stack:
        stack.callback(writer.close)
        stack.callback(clock.span("save")(checkpoints.close))  # waits; says if the last one failed
        stack.callback(progress.close)
        profiling = stack.enter_context(Profile(profile, run, clock, progress.say))
        loader = stack.enter_context(
            pipeline.batches(
                stream, config.batch_size, rows, start_step=start, num_threads=config.data.threads
            )
        )
        try:
            for done in profiling.steps(clock.steps(start, config.steps)):
                if stop.asked():
                    raise preemption.Interrupted
                with stop.waiting():
                    batch = clock.next_batch(loader)
                with jax.transfer_guard("disallow"):
                    state, vector = clock.call(plan.step, state, frozen, batch, key)
                if pending:
                    finish_step(*pending)
                pending = (done, vector)
                last = done == config.steps
                due = [n for n in ("eval", "preview", "save") if done % config[f"{n}_every"] == 0]
                if due or last:
                    finish_step(*pending)
                    pending = None
                    keep = "save" in due or last
                    try:
                        if "eval" in due or last:
                            scores = evaluate(state, done)
                        if "preview" in due or last:
                            preview(state, done)
                    except Exception as error:
                        # A score that fails must not cost the training before it. But several save
                        # together, and only a stop is met by all of them.
                        many = jax.process_count() > 1
                        if keep and (not many or isinstance(error, preemption.Interrupted)):
                            save(done, state)
                            saved = done
                        raise
                    if keep:
                        save(done, state)
                        saved = done
                        writer.sync()
                    writer.scalars(done, clock.scalars())
            if scores:
                name = str(storage.absolute(run.path))  # a/muse and b/muse are two runs
                writer.hparams(config.steps, name, configs.flat_items(config), scores)
        except (NonFinite, preemption.Interrupted) as stopped:
            try:
                if pending and isinstance(stopped, preemption.Interrupted):
                    finish_step(*pending)
            finally:  # also when that step was not finite
                done = int(state.step)
                if done > saved:
                    save(done, state)
                    writer.scalars(done, clock.scalars())
            if isinstance(stopped, NonFinite):
                raise
            then = "run the same command to go on"
            if done == config.steps:  # the same command finds that all is done
                then = "this was the last step: `mmx evaluate` scores it"
            raise preemption.Preempted(
                f"stopped at step {done}; saved in {run.path}; {then}"
            ) from None


def _open_stream(task, config, run: RunDir, say):
    if "row_len" in config.data:
        return packing.open_stream(config, task, run, say)
    source = open_source(config.data.source, config.data.split, config.data.data_dir)
    return pipeline.Stream(source, task.transform, config.seed)
