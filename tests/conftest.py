"""What many tests share: the data, and tiny runs, made once a session by the real commands."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

# Eight devices for every test: what is sharded in earnest must also be right on one.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
# Programs that run for milliseconds need not be fast: these make compiling them three to six times
# faster, which was most of the suite's time. XLA's own passes, sharding among them, are as ever.
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_parallel_codegen_split_count=1",
        # Gone in later versions, where an unknown flag ends the process.
        *["--xla_cpu_use_fusion_emitters=false"] * (version("jaxlib").startswith("0.10.")),
        os.environ.get("XLA_FLAGS", ""),
    ]
)

import pytest
from filelock import FileLock

REPO = Path(__file__).resolve().parent.parent
# The longest, which come first: else one worker ends long after the other (`--dist loadfile`).
LONGEST = ("hosts", "sharding", "resume", "configs", "preflight", "vqgan_training", "evaluate")


def pytest_collection_modifyitems(items):
    names = [f"test_{name}.py" for name in LONGEST]
    items.sort(key=lambda item: names.index(item.path.name) if item.path.name in names else 99)


def run_mmx(*args, env=None, check=True, timeout=600) -> subprocess.CompletedProcess:
    """Run ``mmx ARGS`` as a user does: in a process of its own, on one device."""
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(REPO), **(env or {})}
    command = [sys.executable, "-m", "mmx.cli.main", *map(str, args)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
    if check and done.returncode:
        raise AssertionError(f"{command} -> {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def once(tmp_path_factory, name: str, make) -> Path:
    """A folder that is made once, though several processes share the tests (pytest -n)."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # the worker's own is in it
    folder, done = base / name, base / f"{name}.done"
    with FileLock(base / f"{name}.lock"):
        if not done.exists():
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """One cache of compiled programs for the session, in-process and in subprocesses alike."""
    folder = once(tmp_path_factory, "jax_cache", Path.mkdir)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    import jax

    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return folder


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    """A data directory with openmoji/32 in it."""
    prepare = lambda to: run_mmx("prepare", "openmoji", "--config", "32", "--data_dir", to)
    return once(tmp_path_factory, "data", prepare)


@pytest.fixture(scope="session")
def vqgan_run(data_dir, tmp_path_factory) -> Path:
    """A tokenizer trained for 20 steps. Read it, never write into it."""
    command = ["train", "--config", "vqgan/openmoji32:tiny", f"--config.data.data_dir={data_dir}"]
    return once(tmp_path_factory, "vqgan", lambda to: run_mmx(*command, "--workdir", to))


@pytest.fixture(scope="session")
def muse_run(data_dir, vqgan_run, tmp_path_factory) -> Path:
    """A Muse trained for 20 steps on that tokenizer. Read it, never write into it."""
    command = ["train", "--config", "muse/openmoji32:tiny", f"--config.codec.run={vqgan_run}"]
    command += [f"--config.data.data_dir={data_dir}"]
    return once(tmp_path_factory, "muse", lambda to: run_mmx(*command, "--workdir", to))


@pytest.fixture(scope="session")
def mmx():
    """:func:`run_mmx`."""
    return run_mmx
