"""Checkpoints: Orbax, asynchronous, each either whole or absent.

A checkpoint has two items, so that sampling reads no optimiser state: ``model`` (params, ema,
extra) and ``train`` (step, opt_state, bad_step).
"""

import contextlib
import errno
import os
import sys
import time
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from mmx.core import storage, tree
from mmx.core.errors import Unavailable, UserError
from mmx.core.run_dir import UNFINISHED, finished_steps, unfinished_saves
from mmx.train import distributed
from mmx.train.digests import Digests
from mmx.train.state import TrainState

_MODEL = ("params", "ema", "extra")
_TRAIN = ("step", "opt_state", "bad_step")
_TRIES = 3  # ours: of a whole save; gcsfs and tensorstore try each of its requests many times


class BrokenCheckpoint(Exception):
    """A checkpoint that cannot be read: truncated, or files missing."""


class Unreadable(UserError):
    """A checkpoint that cannot be read now: gone, damaged, or not all of it is there yet."""


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Whether to stop is asked elsewhere, and counted: Orbax's own asking would upset that."""
        return False


class Checkpoints:
    """The checkpoints of a run.

    Args:
      directory: of the checkpoints, made when absent (unless ``read_only``).
      keep: how many of the newest stay; None keeps all.
      read_only: only to read; never writes or deletes. Each of several processes then reads by
        itself and waits for no other; else all of them have to do the same with it.
    """

    def __init__(self, directory: epath.PathLike, keep: int | None = None, read_only: bool = False):
        self.directory = storage.absolute(directory)
        if not read_only:
            self._clear_away()
        me = jax.process_index() if read_only else 0
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=not read_only,
            read_only=read_only,
            enable_async_checkpointing=not read_only,
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=me, active_processes={me} if read_only else None
            ),
        )
        # With handlers, not names alone: else a new manager knows no item's metadata.
        handlers = {item: ocp.StandardCheckpointHandler() for item in ("model", "train")}
        self.manager = _Manager(self.directory, options=options, item_handlers=handlers)
        self.digests = Digests(self.directory, not read_only and jax.process_index() == 0)
        # The last save, until it is known to be whole.
        self._writing: int | None = None
        self._state: TrainState | None = None

    def _clear_away(self) -> None:
        """Name the saves that earlier starts did not end, and move them aside.

        Here, before any process can save: so none of them is under way.
        """
        if jax.process_index() == 0:
            for folder in unfinished_saves(self.directory):
                aside = self._move_aside(folder, UNFINISHED)
                good = finished_steps(self.directory)
                kept = f"the newest checkpoint is step {good[-1]}" if good else "there is none yet"
                print(
                    f"WARNING: {folder}: a save that did not end; moved to {aside}; {kept}",
                    file=sys.stderr,
                )
        distributed.barrier("what earlier saves left is moved aside")

    def _move_aside(self, folder: epath.Path, prefix: str = "") -> epath.Path:
        name = f"{prefix}{folder.name.partition('.')[0]}-{time.time_ns()}"
        aside = self.directory.parent / "broken" / name
        storage.move(folder, aside)
        return aside

    def steps(self) -> list[int]:
        return sorted(self.manager.all_steps())

    def save(self, step: int, state: TrainState) -> None:
        """Start writing; the arrays are copied off the devices before this returns.

        When the save before this one failed of what may pass (a bucket that did not answer for some
        minutes), this one takes its place, is waited for, and tried again a few times.

        Raises:
          UserError: this save, or the one before it, did not write (a full disk, say). What was
            kept before is untouched.
        """
        try:
            self._join()  # the save before this one: a run that cannot save must not go on
        except Exception as error:
            if not _may_pass(error):
                raise self._failed(error) from error
            # Its state is gone by now; this one is worth more.
            print(f"WARNING: {self._failed(error)} Saving step {step} instead.", file=sys.stderr)
            self._writing, self._state = step, state
            self._save_again(error)
            return
        self._writing, self._state = step, state
        try:
            self._begin()
        except Exception as error:
            self._save_again(error)

    def wait(self) -> None:
        """Block until the last save is on disk. Raises UserError when it did not get there."""
        try:
            self._join()
        except Exception as error:
            self._save_again(error)

    def _begin(self) -> None:
        items = {
            "model": ocp.args.StandardSave(_item(self._state, _MODEL)),
            "train": ocp.args.StandardSave(_item(self._state, _TRAIN)),
        }
        args = ocp.args.Composite(**items)
        self.digests.forget(self._writing)
        if not self.manager.save(self._writing, args=args, force=True):
            raise RuntimeError("Orbax declined to save")
        self.digests.follow(self._writing)

    def _join(self) -> None:
        try:
            self.manager.wait_until_finished()
            self.manager.check_for_errors()
        finally:
            self.digests.known()
        self._state = None

    def _save_again(self, error: Exception) -> None:
        """After an error that may pass: the whole save once more, a few times, and wait for it."""
        leaves = jax.tree.leaves(self._state)
        if not leaves or not _may_pass(error) or any(x.is_deleted() for x in leaves):
            raise self._failed(error) from error

        def again():
            state = self._state
            with contextlib.suppress(Exception):
                self._join()  # what else the save before this one has to complain of
            self._state = state
            self.manager.reload()
            self._begin()
            self._join()

        try:
            storage.retry("saving it again was in vain", again, tries=_TRIES)
        except Exception as last:
            raise self._failed(last) from last

    def close(self) -> None:
        """:meth:`wait`, then give everything back."""
        try:
            self.wait()
        except UserError:
            with contextlib.suppress(Exception):  # more of the same
                self.manager.close()
            raise
        self.manager.close()
        self.digests.close()

    def _failed(self, error) -> UserError:
        # From the disk: Orbax's own list has a step that failed, not those that it was to replace.
        good = finished_steps(self.directory)
        kept = f"the last good checkpoint is step {good[-1]}" if good else "there is none yet"
        text = str(error)
        # The system's own words, where they are in there; Orbax wraps them in a page of its own.
        codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)
        known = [os.strerror(code) for code in codes if os.strerror(code) in text]
        reason = known[0] if known else f"{type(error).__name__}: {' '.join(text.split())[:200]}"
        if isinstance(error, UserError):
            reason = text
        return storage.refusal(
            error,
            f"{self.directory}: the checkpoint of step {self._writing} was not written ({reason}); "
            f"{kept}. Mend that, then run the same command again to go on from there.",
        )

    def restore(self, step: int, abstract: TrainState, shardings: TrainState) -> TrainState:
        """The whole training state of a step, laid out by ``shardings``; process 0 alone compares
        it with its checksums.

        Raises:
          UserError: the checkpoint is of another model; names what differs.
          BrokenCheckpoint: it cannot be read.
        """
        target = _with_shardings(abstract, shardings)
        if jax.process_index() == 0:  # for all: each reads but its part
            try:
                self.digests.verify(step, ("model", "train"))
            except Exception as error:
                raise self._unreadable(step, error) from error
        model = self._read(step, "model", _item(target, _MODEL))
        rest = self._read(step, "train", _item(target, _TRAIN))
        return abstract.replace(**{"ema": None, **model, **rest})

    def read_model(self, step: int) -> dict:
        """``{"params": ..., "ema": ..., "extra": ...}`` of a step, as arrays of this host.

        Raises:
          Unreadable: the checkpoint cannot be read, or there is none of this step.
        """
        others = [s for s in self.steps() if s != step]
        if others == self.steps():
            raise Unreadable(f"{self.directory}: no checkpoint of step {step}; there are {others}")
        try:
            return self._read_host(step, "model")
        except Exception as error:
            instead = f"name another as RUN@STEP: {others}" if others else "there is no other"
            raise Unreadable(
                f"{self.directory / str(step)}: this checkpoint cannot be read ({_brief(error)}); "
                f"{instead}"
            ) from error

    def is_readable(self, step: int) -> bool:
        """Whether all of a step can be read; takes the time and the memory that reading takes."""
        try:
            for item in ("model", "train"):
                self._read_host(step, item)
        except Exception:  # Orbax raises whatever its storage raises
            return False
        return True

    def _read_host(self, step: int, item: str) -> dict:
        self.digests.verify(step, (item,))
        saved = self.manager.item_metadata(step)[item]
        # Asked for on the host: else Orbax wants the devices that it was saved from.
        host = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), dict(saved))
        args = ocp.args.Composite(**{item: ocp.args.StandardRestore(host)})
        return self.manager.restore(step, args=args)[item]

    def _read(self, step: int, item: str, target: Any) -> Any:
        try:
            saved = self.manager.item_metadata(step)[item]
            saved = getattr(saved, "tree", saved)
            if saved is None:
                raise FileNotFoundError(f"no item {item!r}")
        except Exception as error:
            raise self._unreadable(step, error) from error
        differences = _differences(tree.flatten(target), tree.flatten(saved))
        if differences:
            raise UserError(
                f"{self.directory / str(step)} is a checkpoint of another model:\n  "
                + "\n  ".join(differences[:8])
            )
        try:
            args = ocp.args.Composite(**{item: ocp.args.StandardRestore(target)})
            return self.manager.restore(step, args=args)[item]
        except Exception as error:
            raise self._unreadable(step, error) from error

    def _unreadable(self, step: int, error: Exception) -> Exception:
        where = f"{self.directory / str(step)}: {_brief(error)}"
        if storage.is_transient(error) or storage.explain(error):
            return storage.refusal(
                error, f"{where}; the bucket, not the checkpoint, is at fault: try again"
            )
        return BrokenCheckpoint(where)

    def restore_newest(
        self, abstract: TrainState, shardings: TrainState
    ) -> tuple[int, TrainState] | None:
        """The newest readable state; broken ones are named and moved aside. None: there is none.

        Process 0 says which step: what another one lists may be old (NFS keeps it for a while). One
        that a single process of several cannot read is broken for all.

        Raises:
          Unavailable: a process does not see the folder that process 0 sees.
        """
        while True:
            steps, state = self.steps(), None
            mine = steps[-1] if steps else -1
            step = distributed.of_host_0(mine)
            if step != mine:
                self.manager.reload()  # what is saved next is checked against this list
            if step < 0:
                return None
            if distributed.is_many() and not (self.directory / str(step)).exists():
                raise Unavailable(
                    f"{self.directory / str(step)}: not seen here, but by process 0; start the "
                    "same command on all again once it is, in a folder that all processes share"
                )
            error = f"{self.directory / str(step)}: another process"
            reader = Checkpoints(self.directory, read_only=True)
            try:
                state = reader.restore(step, abstract, shardings)
            except BrokenCheckpoint as broken:
                error = broken
            finally:
                reader.close()
            if distributed.all_hold(state is not None):
                return step, state
            before = f"step {steps[-2]}" if len(steps) > 1 else "the beginning"
            if jax.process_index() == 0:
                aside = self._move_aside(self.directory / str(step))
                print(
                    f"WARNING: checkpoint {error} cannot be read; moved to {aside}; "
                    f"going on from {before}",
                    file=sys.stderr,
                )
            distributed.barrier(f"step {step} is moved aside")
            self.manager.reload()


def _may_pass(error: Exception) -> bool:
    """May saving again help? Of many hosts, one cannot know whether the others failed, too."""
    return jax.process_count() == 1 and storage.is_transient(error)


def _item(state: TrainState, names) -> dict:
    return {n: getattr(state, n) for n in names if jax.tree.leaves(getattr(state, n))}


def _with_shardings(abstract, shardings):
    def one(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(one, abstract, shardings)


def _differences(wanted: dict, saved: dict) -> list[str]:
    out = [f"{path}: not in the checkpoint" for path in wanted if path not in saved]
    out += [f"{path}: only in the checkpoint" for path in saved if path not in wanted]
    for path, leaf in wanted.items():
        there, here = ((tuple(x.shape), np.dtype(x.dtype)) for x in (saved.get(path, leaf), leaf))
        if there != here:
            out.append(f"{path}: {there[1]} {there[0]} there, {here[1]} {here[0]} here")
    return out


def _brief(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"
