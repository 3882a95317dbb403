"""Several processes as one run: which there are, how they join, and that they end together.

A run of one process starts nothing here. Which processes there are is told by the environment:
``JAX_COORDINATOR_ADDRESS``, ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID`` (or, where XPK starts a
job on GPUs, its ``NNODES`` and ``NODE_RANK``), else by the cluster that jax recognises: Cloud TPU,
GKE, a Kubernetes job, SLURM, Open MPI.

Imports jax only where there may be several.
"""

import contextlib
import ctypes
import importlib.util
import json
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from dataclasses import dataclass

from mmx.core import exits
from mmx.core.errors import EXIT_FAULT, UserError

JOIN_SECONDS = 300  # as jax: the hosts of a pod are up at different times
LOST_SECONDS = 60  # ours: without a sign of life for so long, a process counts as lost
EXIT_LOST = 76  # EX_PROTOCOL of sysexits.h, next to 75: start the same command again, everywhere
_COUNT, _INDEX = ("JAX_NUM_PROCESSES", "NNODES"), ("JAX_PROCESS_ID", "NODE_RANK")
# Where none of these is set, and no TPU's library is there, there is one process.
_SIGNS = (
    "SLURM_STEP_NODELIST",
    "OMPI_MCA_orte_hnp_uri",
    "TPU_WORKER_HOSTNAMES",
    "TPU_PROCESS_ADDRESSES",
    "JOB_COMPLETION_INDEX",
)
_ENDING, _ENDED = "mmx/ending", "mmx/ended"
# What a computation says when its peer is gone (gloo on CPUs, NCCL on GPUs); a TPU says nothing.
_PEER_GONE = ("Gloo", "NCCL operation", "Connection closed by peer", "Connection reset by peer")


@dataclass(frozen=True)
class Cluster:
    """The processes of a run, at least 2.

    Attributes:
      coordinator: ``HOST:PORT`` where process 0 listens.
      count: of the processes.
      index: which this one is.
      local_devices: numbers of the devices that are this process's; None for all of the host.
    """

    coordinator: str
    count: int
    index: int
    local_devices: tuple[int, ...] | None = None


_cluster: Cluster | None = None  # that this process has joined
_failing = False  # this process has said why it ends
_heard = False  # another has
_last_words = (EXIT_LOST, b"")  # exit code and line, should jax abort this process


def index() -> int:
    """Which process this is; 0 where there is one."""
    return _cluster.index if _cluster else 0


def is_many() -> bool:
    return _cluster is not None


def find_cluster() -> Cluster | None:
    """The processes that the environment speaks of; None for one. Starts and reaches nothing
    but, on a Cloud TPU or in a Kubernetes job, the services there that tell.

    Raises:
      UserError: only a part is set, numbers that contradict each other, or a cluster that jax
        cannot make out.
    """
    address = _address()
    count, index = _number(_COUNT[: 2 if address else 1]), _number(_INDEX[: 2 if address else 1])
    if count == 1 or not (address or count or index is not None or _signs()):
        return None
    local_devices: tuple[int, ...] | None = None
    if None in (address, count, index):
        address, count, index, local_devices = _ask_jax(address, count, index)
        if count is None and address is None and index is None:
            return None
        if None in (address, count, index):
            raise UserError(
                "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID: set all three for "
                f"a run of several processes, or none (now: {address}, {count}, {index})"
            )
    if count == 1:
        return None
    if not 0 <= index < count:
        raise UserError(
            f"JAX_PROCESS_ID={index}: the processes of JAX_NUM_PROCESSES={count} are 0 to "
            f"{count - 1}"
        )
    return Cluster(address, count, index, local_devices)


def _address() -> str | None:
    """``HOST:PORT``; XPK sets the port apart."""
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    port = os.environ.get("JAX_COORDINATOR_PORT")
    if not address:
        return None
    if not address.rpartition(":")[2].isdecimal():
        if not port:
            raise UserError(
                f"JAX_COORDINATOR_ADDRESS={address}: give HOST:PORT, a free port of process 0"
            )
        address = f"{address}:{port}"
    return address


def _number(names: tuple[str, ...]) -> int | None:
    for name in names:
        if text := os.environ.get(name):
            if not text.isdecimal():
                raise UserError(f"{name}={text!r}: give a whole number")
            return int(text)
    return None


def _signs() -> bool:
    if any(os.environ.get(name) for name in _SIGNS):
        return True
    on_cpu = os.environ.get("JAX_PLATFORMS") == "cpu"
    return not on_cpu and importlib.util.find_spec("libtpu") is not None


def _ask_jax(address, count, index) -> tuple:
    """What jax makes of the environment, with what is known put in; None for what it cannot."""
    from jax._src import clusters

    _check_megascale()
    detect = clusters.ClusterEnv.auto_detect_unset_distributed_params
    try:
        with warnings.catch_warnings():  # on a missing package, said below in our words
            warnings.simplefilter("ignore")
            found = detect(address, count, index, None, None, JOIN_SECONDS)
    except Exception as error:  # of a metadata server, a name that is not known, an API
        raise UserError(
            f"the processes of this run cannot be told from the cluster ({_line(error)}); set "
            f"JAX_NUM_PROCESSES=1 for a run of this process alone{_megascale_hint()}"
        ) from error
    address, count, index, local_devices = found
    if count is None and os.environ.get("JOB_COMPLETION_INDEX"):
        raise UserError(
            "this is a pod of an indexed Kubernetes job: install `kubernetes`, so that jax can "
            "find the others, or set JAX_NUM_PROCESSES=1 for a run of this pod alone"
        )
    per_node = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").partition("(")[0]
    if per_node == "1":
        local_devices = None  # jax would take the first one only
    return address, count, index, tuple(local_devices) if local_devices else None


def _check_megascale() -> None:
    """Refuse what an earlier job of several TPU slices may have left in the environment."""
    slices, which = (os.environ.get(f"MEGASCALE_{n}") for n in ("NUM_SLICES", "SLICE_ID"))
    address = os.environ.get("MEGASCALE_COORDINATOR_ADDRESS")
    if slices in (None, "1") and address is None:
        return
    whole = address and slices and slices.isdecimal() and which and which.isdecimal()
    if not whole or int(which) >= int(slices):
        raise UserError(
            "the variables MEGASCALE_* contradict each other, left over from another job?"
            f"{_megascale_hint()}"
        )


def _megascale_hint() -> str:
    left = sorted(f"{k}={v}" for k, v in os.environ.items() if k.startswith("MEGASCALE_"))
    return f"; if this run has one slice, unset {' '.join(left)}" if left else ""


@contextlib.contextmanager
def together():
    """Join the other processes of the run, if there are any; what fails here fails on all.

    An error in here is printed on every process, after the number of the one that had it, and all
    end with its exit code, as in :mod:`mmx.core.exits`. A process that is killed, or whose host is
    gone, ends the others with code 76: at once if that was process 0, else within a minute.

    Raises:
      UserError: the others did not come.
    """
    cluster = find_cluster()
    if cluster is None:
        yield
        return
    join(cluster)
    over = threading.Event()
    listener = threading.Thread(target=_listen, args=(over,), name="mmx-ending", daemon=True)
    listener.start()
    try:
        yield
        import jax

        jax.distributed.shutdown()  # waits for the others
    except BaseException as error:
        if _heard:  # another said first why all end; what that did to this one is no news
            listener.join()
        if isinstance(error, KeyboardInterrupt):
            _fail(130, "interrupted")
        if not isinstance(error, Exception):
            raise
        if gone := _peer_gone(error):
            _leave(EXIT_LOST, _lost(cluster, _line(gone)))
        if told := exits.told(error):
            _fail(*told)
        traceback.print_exc()
        _fail(EXIT_FAULT, _line(error))
    over.set()  # before the interpreter ends: nothing may call into it then
    listener.join()
    _speak_last(False)


def join(cluster: Cluster) -> None:
    """Start ``jax.distributed``; returns when all processes have come.

    Raises:
      UserError: jax refuses. Where the others do not come, jax aborts the process: then it is our
        line that comes last, and the exit code is 76.
    """
    global _cluster, _last_words
    import jax

    late = (
        f"process {cluster.index} of {cluster.count}: not all have joined {cluster.coordinator} "
        f"within {JOIN_SECONDS} s; start the same command on each, and see that each can reach "
        f"this address{_megascale_hint()}"
    )
    _last_words = (EXIT_LOST, f"mmx: error: {late}\n".encode())
    _speak_last()
    try:
        jax.distributed.initialize(
            cluster.coordinator,
            cluster.count,
            cluster.index,
            local_device_ids=cluster.local_devices,
            cluster_detection_method="deactivate",
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=LOST_SECONDS,
        )
    except Exception as error:
        raise UserError(f"{late} ({_line(error)})") from error
    words = _lost(cluster, "jax says why above", "aborted; most often another one is gone")
    _last_words = (EXIT_LOST, f"mmx: error: {words}\n".encode())
    _cluster = cluster


def barrier(name: str) -> None:
    """Wait until all processes are here; each name once in a process."""
    if _cluster:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def all_hold(condition: bool) -> bool:
    """Whether a condition holds on every process; all of them have to ask."""
    if not _cluster:
        return condition
    import numpy as np
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.array(condition)).all())


def of_host_0(number: int) -> int:
    """Process 0's number, on every process; all of them have to ask."""
    if not _cluster:
        return number
    import numpy as np
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


@contextlib.contextmanager
def first_on_host_0(name: str):
    """What is done here is done by process 0, and then by all others: they find it done."""
    if index():
        barrier(name)
    yield
    if not index():
        barrier(name)


def _fail(code: int, message: str) -> None:
    """Tell all why this process ends, and end."""
    global _failing
    _failing, client = True, _client()
    with contextlib.suppress(Exception):  # another was first: all have its message
        client.key_value_set(_ENDING, json.dumps([code, f"process {index()}: {message}"]))
    print(f"mmx: error: {message}", file=sys.stderr)
    _end(client, code)


def _listen(over: threading.Event) -> None:
    """Look each second whether another process says that it ends.

    Not by one call that waits for it: a thread in such a call breaks the end of the interpreter.
    """
    global _heard
    client = _client()
    while not over.wait(1.0):
        try:
            code, message = json.loads(client.key_value_try_get(_ENDING))
        except Exception as error:
            if "NOT_FOUND" in str(error):
                continue
            return  # all is over
        if not _failing:  # then this thread need not end what ends already
            _heard = True
            print(f"mmx: error: {message}", file=sys.stderr)
            _end(client, code)
        return


def _end(client, code: int) -> None:
    """Leave with all others, so that none takes another for lost.

    One that is lost in truth, and may be the cause, makes jax end this process while it waits.
    """
    global _last_words
    with contextlib.suppress(Exception):  # one that is stuck
        client.wait_at_barrier(_ENDED, (LOST_SECONDS + 10) * 1000)
    _last_words = (code, b"")
    if index() == 0:
        time.sleep(1.0)  # the others need its service as long as they live
    _exit(code)


def _leave(code: int, message: str) -> None:
    print(f"mmx: error: {message}", file=sys.stderr)
    _exit(code)


def _exit(code: int) -> None:
    """At once: what jax does at the end of a process waits for the others."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _peer_gone(error: BaseException | None) -> BaseException | None:
    """What says that a peer is gone: the error, or one that it came from (a save that failed)."""
    import jax

    while error:  # of jax alone: a bucket resets connections, too
        said = str(error) if isinstance(error, jax.errors.JaxRuntimeError) else ""
        if any(mark in said for mark in _PEER_GONE):
            return error
        error = error.__cause__ or error.__context__
    return None


def _lost(cluster, reason: str, what: str = "another one is gone or does not answer") -> str:
    return (
        f"process {cluster.index} of {cluster.count}: {what} ({reason}); start the same command on "
        "all to go on from the last checkpoint"
    )


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _on_abort(number: int) -> None:
    code, words = _last_words
    os.write(2, words)
    os._exit(code)


def _speak_last(on: bool = True) -> None:
    """jax aborts a process whose peers are gone, from a thread of its own: Python is not asked, and
    its callback for that cannot be written in Python. So the C library asks us. A handler cannot
    tell such an abort from any other (a failed check in XLA): hence "most often" in our line."""
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(_on_abort, ctypes.c_void_p) if on else None)


def _client():
    from jax._src import distributed

    return distributed.global_state.client
