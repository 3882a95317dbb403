"""A family that does nothing but take its time: a step as long as asked, a state as large as asked.

A row is a picture of 64 x 64, as much as a real one to load and send.
"""

import contextlib
import ctypes
import subprocess
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mmx.train.sharding import replicated

METRICS = 12  # as many as Muse has


class Pictures:
    """4096 pictures, and no file."""

    info = SimpleNamespace(attribution="")

    def __len__(self):
        return 4096

    def __getitem__(self, index):
        return {"image": np.full((64, 64, 3), index % 256, np.uint8)}


def make_config(steps: int, **fields) -> ConfigDict:
    optim = dict(name="adamw", lr=1e-3, b1=0.9, b2=0.99, weight_decay=0.0, warmup_steps=2,
                 clip_norm=1.0, ema=0.0, accum=1)  # fmt: skip
    return ConfigDict(
        dict(
            family="overhead", seed=0, steps=steps, batch_size=16, optim=optim, keep=2,
            data=dict(source="pictures", data_dir="", split="train", threads=1),
            mesh=dict(slice=1, data=-1, fsdp=1, tensor=1),
            log_every=10**9, eval_every=10**9, preview_every=10**9, save_every=10**9,
        )
        | fields
    )  # fmt: skip


def burn(turns):
    """Keep one core busy, and no other: each turn needs the one before."""
    return jax.lax.fori_loop(0, turns, lambda _, x: jnp.sin(x) + 1.0, jnp.float32(0.5))


def sleeping_device():
    """The call of ``device.cc``, compiled: (step, seconds) -> 0.0, with no core and no Python."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "device.so"
        command = [
            "g++",
            "-std=c++17",
            "-O1",
            "-w",
            "-shared",
            "-fPIC",
            "-I",
            jax.ffi.include_dir(),
        ]
        command += ["-o", str(library), str(Path(__file__).with_name("device.cc"))]
        subprocess.run(command, check=True)
        handler = ctypes.CDLL(str(library)).mmx_sleep
    jax.ffi.register_ffi_target("mmx_sleep", jax.ffi.pycapsule(handler), platform="cpu")
    return jax.ffi.ffi_call(
        "mmx_sleep", jax.ShapeDtypeStruct((), jnp.float32), has_side_effect=True
    )


class Task:
    """Contract 1.

    Args:
      seconds: that a step takes.
      how: "burn" keeps one core busy, "sleep" leaves all cores to the host, as an accelerator;
        "empty" takes no time at all.
      megabytes: of the state besides, in 16 arrays that are not trained.
    """

    batch_coupled = False

    def __init__(self, seconds: float, how: str, megabytes: int = 0):
        self.seconds, self.how, self.megabytes = seconds, how, megabytes
        self.turns = 0
        if how == "burn":
            run, turns = jax.jit(burn), 1_000_000
            run(turns).block_until_ready()
            took = []
            for _ in range(5):
                began = time.perf_counter()
                run(turns).block_until_ready()
                took.append(time.perf_counter() - began)
            self.turns = int(turns * seconds / min(took))
        elif how == "sleep":
            self.sleep = sleeping_device()

    def transform(self, example, rng):
        del rng
        return {"image": (example["image"] / 127.5 - 1.0).astype(np.float32)}

    def init(self, key):
        box = lambda value: nn.LogicallyPartitioned(value, (None,) * value.ndim)
        params = {"layer": {"kernel": box(jax.random.normal(key, (256, 256)))}}
        size = self.megabytes * 2**20 // 4 // 16 // 1024
        for i in range(16 if self.megabytes else 0):
            noise = jax.random.normal(jax.random.fold_in(key, i), (1024, size))
            params[f"ballast{i}"] = {"kernel": box(noise)}  # numbers that do not compress
        return params, {}

    def load_frozen(self, mesh):
        return jax.device_put({}, replicated(mesh))

    def param_labels(self, params):
        return {
            name: jax.tree.map(
                lambda _, name=name: "main" if name == "layer" else "fixed",
                group,
                is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned),
            )
            for name, group in params.items()
        }

    def loss(self, params, extra, frozen, batch, rng, step, train=True):
        del frozen, rng, train
        loss = jnp.square(params["layer"]["kernel"]).mean() + batch["image"].mean() * 1e-3
        if self.how == "empty":
            spent = jnp.float32(0.0)
        elif self.how == "burn":
            spent = burn(self.turns + step * 0)  # not a constant: else it is computed at compiling
        else:
            spent = self.sleep(step, seconds=np.float32(self.seconds))
        loss += 1e-9 * jax.lax.stop_gradient(spent)
        return loss, ({f"loss/part_{i}": loss * i for i in range(METRICS)}, extra)

    def evaluators(self, mesh):
        del mesh
        return []

    def preview(self, *unused):
        return {}

    def train_flops_per_row(self):
        return 0.0


@contextlib.contextmanager
def pictures_for(loop):
    """The loop reads these pictures instead of a data set."""
    real, loop.open_source = loop.open_source, lambda *unused: Pictures()
    try:
        yield
    finally:
        loop.open_source = real
