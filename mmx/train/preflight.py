"""Compile a run's real step for devices that are not here and say what it will need there.

Nothing is run and nothing is read: no data, no weights. What XLA estimates badly is left out: its
seconds and FLOPs count a loop once (see :mod:`mmx.train.hlo`).
"""

import contextlib
import dataclasses
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import NamedSharding

from mmx.core import rng
from mmx.core.errors import UserError
from mmx.core.flops import matmul_flops, scoped_flops
from mmx.train import buffers, compiler, hlo
from mmx.train.plan import plan_training
from mmx.train.sharding import (
    batch_sharding,
    frozen_shardings,
    jit_sharded,
    make_mesh,
    replicated,
)
from mmx.train.topology import Topology, make_devices

GIB = 2**30
KERNEL_EFFICIENCY = 0.5  # ours: of peak, in a kernel's live blocks; flash kernels reach 0.4 to 0.6
# Products of a backward kernel over the two of the forward one: dq takes 3, dk and dv take 4.
_BACKWARD = {"dkv": 2.0, "dq": 1.5}
_SAMPLED = 32  # prompts that `mmx sample` draws at once; more where the mesh has more shards


@dataclass(frozen=True)
class Report:
    """What a program needs on one device, and what a step can reach at most.

    Attributes:
      program: "train step" or "sampler".
      topology, devices, mesh: what it was compiled for.
      fits: it compiled; None says nothing where the memory of a device is not known.
      memory: bytes, {"total"}: arguments and heap, as the compiler holds them against the limit. Of
        a program that compiled also its parts {"arguments", "temporary"} (outputs that take no
        argument's place among the temporary), and its code {"program"}.
      memory_limit: bytes that a program may use; None where it is not known.
      largest: buffers that live at the peak, the largest first.
      model_flops: of a whole step on all devices.
      compute_seconds: scheduled cycles over the clock; None but for a TPU. A step takes longer:
        collectives that overlap nothing, and waiting for memory, come on top.
      kernel_seconds: the part of it that is estimated: Pallas kernels at ``KERNEL_EFFICIENCY``.
      mfu_ceiling: model FLOPs over what the peak gives in ``compute_seconds``.
      collectives: kind -> {"count", "bytes", "overlapped_bytes"} a step, on one device. Overlapped
        means that something is computed between start and done, not that it takes as long.
      compile_seconds: of the compiler.
      options: of the compiler, see :mod:`mmx.train.compiler`.
    """

    program: str
    topology: str
    devices: int
    mesh: dict[str, int]
    fits: bool | None
    memory: dict[str, int]
    memory_limit: int | None
    largest: list[buffers.Buffer]
    model_flops: float
    compute_seconds: float | None
    kernel_seconds: float | None
    mfu_ceiling: float | None
    collectives: dict[str, dict[str, float]]
    compile_seconds: float
    options: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def preflight_step(task, config, topology: Topology) -> Report:
    """Of the train step.

    Args:
      task: of shapes alone, of ``config``.

    Raises:
      UserError: the mesh, the batch or a parameter does not fit the topology.
    """
    mesh = make_mesh(config.mesh, make_devices(topology, config.mesh.slice))
    plan = plan_training(task, config, mesh)
    args = (
        place(plan.abstract, plan.shardings),
        _frozen(task, mesh),
        place(task.batch_spec(), batch_sharding(mesh)),
        _key(mesh),
    )
    flops = task.train_flops_per_row() * config.batch_size
    return compile_report("train step", plan.step, args, mesh, topology, flops)


def preflight_sampler(task, config, topology: Topology) -> Report:
    """Of the sampler, with the run's own options, as ``task.sampler`` compiles it.

    Raises:
      UserError: as :func:`preflight_step`; the family draws nothing from prompts.
    """
    options = task.options()
    mesh = make_mesh(config.mesh, make_devices(topology, config.mesh.slice))
    plan = plan_training(task, config, mesh)
    ways = batch_sharding(mesh).num_devices // mesh.shape["tensor"]
    prompts = task.prompt_spec(-(-_SAMPLED // ways) * ways)
    frozen = nn.unbox(task.abstract_frozen())
    shapes = (plan.abstract.averaged, plan.abstract.extra, frozen, prompts)
    # Placed as `mmx sample` does: parameters as in training, all else on every device.
    whole = replicated(mesh)
    args = (
        place(shapes[0], plan.shardings.params),
        place(shapes[1], plan.shardings.extra),
        _frozen(task, mesh),
        place(prompts, whole),
        _key(mesh),
    )
    fn = lambda *args: task.sample(*args, options)
    flops = matmul_flops(fn, *shapes, _key(None))
    sampler = jit_sharded(fn, mesh, out_shardings=whole)
    return compile_report("sampler", sampler, args, mesh, topology, flops)


def _frozen(task, mesh) -> Any:
    abstract = task.abstract_frozen()
    return place(nn.unbox(abstract), frozen_shardings(abstract, mesh))


def place(tree: Any, shardings: Any) -> Any:
    """Abstract arrays with their layout: one sharding for all, or a tree of them."""
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda leaf: shardings, tree)
    one = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return jax.tree.map(one, tree, shardings)


def _key(mesh) -> jax.ShapeDtypeStruct:
    key = jax.eval_shape(lambda: rng.base_key(0))
    return place(key, replicated(mesh)) if mesh is not None else key


def compile_report(
    program: str, call, args, mesh, topology: Topology, model_flops: float, options=None
) -> Report:
    """Compile a function of :func:`mmx.train.sharding.jit_sharded` and read what came of it.

    Args:
      program: for the report.
      call: the function.
      args: abstract, placed.
      mesh, topology: what for.
      model_flops: of one call on all devices.
      options: of the compiler; those that ``jit_sharded`` gave when None.

    Raises:
      UserError: it does not compile, for another reason than a TPU's main memory.
    """
    chip = topology.chip
    options = compiler.options_of(mesh.devices.flat[0]) if options is None else options
    with jax.set_mesh(mesh):
        lowered = call.jitted.lower(*args)
    with tempfile.TemporaryDirectory(prefix="mmx-preflight-") as folder, _uncached():
        dump = buffers.DUMP_OPTIONS | {"xla_dump_to": folder}
        began = time.monotonic()
        try:
            compiled = lowered.compile(compiler_options=options | dump)
        except jax.errors.JaxRuntimeError as error:
            # Only this: a kernel that is too large for a chip's fast memory is exhausted too.
            if chip is None or not re.search(r"Ran out of memory (on|in memory space) HBM",
                                             str(error), re.IGNORECASE):  # fmt: skip
                raise UserError(
                    f"{program} on {topology.name}: {str(error).splitlines()[0]}"
                ) from error
            compiled = None
        seconds = time.monotonic() - began
        total, largest = _peak(Path(folder), compiled, chip)
    cost, compute, kernels = hlo.Cost(), None, None
    memory = {"total": total}
    if compiled is not None:
        stats = compiled.memory_analysis()
        arguments = stats.argument_size_in_bytes
        memory |= {
            "arguments": arguments,
            "temporary": total - arguments,
            "program": stats.generated_code_size_in_bytes,
        }
        cost = hlo.cost(compiled.as_text())
        if chip:
            kernels = kernel_flops(cost) / (KERNEL_EFFICIENCY * chip.peak_flops)
            compute = cost.cycles / chip.clock_hz + kernels
    return Report(
        program=program,
        topology=topology.name,
        devices=mesh.size,
        mesh=dict(mesh.shape),
        fits=compiled is not None if chip else None,
        memory=memory,
        memory_limit=round(chip.hbm_gib * GIB) if chip else None,
        largest=largest[:10],
        model_flops=model_flops,
        compute_seconds=compute,
        kernel_seconds=kernels,
        mfu_ceiling=model_flops / (mesh.size * chip.peak_flops * compute) if compute else None,
        collectives={
            kind: {
                "count": cost.collective_counts[kind],
                "bytes": size,
                "overlapped_bytes": cost.overlapped_bytes[kind],
            }
            for kind, size in sorted(cost.collective_bytes.items())
        },
        compile_seconds=seconds,
        options=options,
    )


def _peak(folder: Path, compiled, chip) -> tuple[int, list[buffers.Buffer]]:
    """See :func:`mmx.train.buffers.read_peak`. Where a GPU's XLA writes no such report, the sum of
    ``memory_analysis``, and no buffers."""
    try:
        return buffers.read_peak(folder)
    except ValueError:
        if chip or compiled is None:
            raise
        stats = compiled.memory_analysis()
        return stats.argument_size_in_bytes + stats.temp_size_in_bytes, []


@contextlib.contextmanager
def _uncached():
    """Have jax compile in earnest: a program from its cache on disk comes without XLA's reports."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def kernel_flops(cost: hlo.Cost) -> float:
    """FLOPs in Pallas kernels, of one device: stated by their callers, times how often they run.

    Raises:
      ValueError: a kernel whose caller states none.
    """
    total = 0.0
    for op_name, times in cost.kernels.items():
        kernel = op_name.rpartition("kernel_flops_")[2]
        factor = next((f for part, f in _BACKWARD.items() if part in kernel), 1.0)
        total += times * factor * scoped_flops(op_name)
    return total


def to_text(report: Report) -> str:
    """The report as a table."""
    axes = " ".join(f"{axis}={size}" for axis, size in report.mesh.items() if size > 1)
    lines = [f"{report.program}, {report.topology}: {report.devices} devices, {axes or 'no axis'}"]
    say = lambda name, text: lines.append(f"  {name:<17}{text}")
    limit = f" of {_size(report.memory_limit)}" if report.memory_limit else ""
    verdict = {True: ", fits", False: ", DOES NOT FIT", None: ""}[report.fits]
    say("memory/device", f"{_size(report.memory['total'])}{limit}{verdict}")
    if parts := [f"{name} {_size(n)}" for name, n in report.memory.items() if name != "total"]:
        say("", ", ".join(parts))
    for at, one in enumerate(report.largest[:3]):
        made = one.module or "(the compiler)"
        say("" if at else "largest", f"{_size(one.bytes):>10}  {one.shape}  {made}")
    a_device = report.model_flops / report.devices
    say("model FLOPs", f"{report.model_flops:.3e} a call, {a_device:.3e} a device")
    if report.compute_seconds:
        share = report.kernel_seconds / report.compute_seconds
        kernels = f", {share:.0%} of it kernels at {KERNEL_EFFICIENCY:.0%} of peak" if share else ""
        say("compute", f"at least {report.compute_seconds:.4f} s{kernels}")
        say("MFU ceiling", f"{report.mfu_ceiling:.1%}")
    for at, (kind, of) in enumerate(report.collectives.items()):
        share = of["overlapped_bytes"] / of["bytes"] if of["bytes"] else 0.0
        moved = f"{of['count']:>6.0f} x, {_size(of['bytes']):>10} a device"
        say("" if at else "collectives", f"{kind:<19}{moved}, {share:.0%} beside computation")
    if report.options:
        say("compiler options", " ".join(f"{k}={v}" for k, v in report.options.items()))
    say("compiled in", f"{report.compile_seconds:.0f} s")
    return "\n".join(lines)


def _size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"
