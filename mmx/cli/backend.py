"""Starting jax: what must be set before, where compiled programs are kept, what it may say."""

import ctypes
import importlib.util
import logging
import os
import sys
from pathlib import Path

from mmx.core import storage
from mmx.core.errors import UserError

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # of malloc.h


def before_jax() -> None:
    """Defaults that must be set before jax is imported; whatever the user set stays."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    flags = os.environ.get("XLA_FLAGS", "")
    # 1.4 times faster matmul gradients on CPUs with 512-bit vectors; ignored elsewhere.
    if "xla_cpu_prefer_vector_width" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_prefer_vector_width=512".strip()
    installed = importlib.util.find_spec
    alone = installed("libtpu") and not installed("jax_plugins")
    if alone and not os.environ.get("JAX_PLATFORMS") and not _has_tpu():
        # Here for preflight's compiles. jax would look for a TPU for seconds, and complain.
        os.environ["JAX_PLATFORMS"] = "cpu"
    if _computes_on_cpu():
        _keep_freed_memory()


def _has_tpu() -> bool:
    """Is there a TPU in this machine? Its driver makes /dev/accel0, a newer one /dev/vfio/0."""
    return any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*"))


def _computes_on_cpu() -> bool:
    """Will jax compute on the CPU? As far as can be told without jax: by what is installed."""
    chosen = os.environ.get("JAX_PLATFORMS")
    if chosen:
        return chosen == "cpu"
    # Where jax looks for accelerators: plugins (CUDA, ROCm, Metal), and the TPU's library.
    return not any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))


def _keep_freed_memory() -> None:
    """Have glibc keep what is freed, for the next step to use.

    A step on the CPU frees about a gigabyte of scratch at its end. Given back to the system, each
    of its pages is cleared and mapped again in the next step: a sixth of the step's CPU time.
    Not for the host of an accelerator: its many threads load data, and would wait for each other
    at the one arena.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return  # another C library
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_ARENA_MAX, 1)  # only this arena grows beyond 64 MiB without mmap


def start_jax() -> None:
    """Keep compiled programs on disk, so that a second start does not compile again."""
    import jax

    jax.config.update("jax_compilation_cache_dir", _cache_dir())
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    quiet_logs()


def _cache_dir() -> str:
    """$JAX_COMPILATION_CACHE_DIR, which may be in a bucket, else a folder of this machine."""
    local = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "mmx", "jax")
    chosen = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if chosen and "://" in chosen:
        # jax itself would wait for a wrong bucket, or complain once a program.
        try:
            storage.check_bucket(f"JAX_COMPILATION_CACHE_DIR={chosen}", storage.path(chosen))
        except UserError as error:
            print(f"mmx: warning: {error}; programs are kept in {local} instead", file=sys.stderr)
            chosen = None
    return chosen or str(local)


def quiet_logs() -> None:
    """The libraries' remarks on how we use them are not the user's concern; their errors are."""
    for name in ("absl", "orbax", "grain", "jax"):
        logging.getLogger(name).setLevel(logging.ERROR)
