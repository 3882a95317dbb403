"""Attention with the mixed mask on one GPU: who equals the dense definition, and what it costs.

    python experiments/throughput/attention_gpu.py --json attention_gpu.json
    python experiments/throughput/attention_gpu.py --float32 --json attention_gpu_float32.json

On a GPU: forward and backward at the shape of a 1.4B decoder, beside cuDNN's causal attention; the
sizes of flash's blocks; then each candidate against "dense" on 200 random layouts, values and
gradients. What does not fit into ``--seconds`` is listed as left out. On a CPU: toy sizes, and
"dense" alone. Tokamax takes part where it is installed (Python 3.12).
Axis letters: B batch, L length, M keys, N heads, K head size.
"""

import argparse
import concurrent.futures
import functools
import importlib.util
import json
import os
import statistics
import sys
import time
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mmx.nn.flash import KERNELS, Blocks, attend_flash
from mmx.nn.spans import attend_dense, visible_keys
from mmx.ops.spans import bounds_of

STARTED = time.perf_counter()
IMAGE = 256  # patches


def cudnn(q_BLNK, k_BLNK, v_BLNK, bounds, max_span):
    """The mask as a bias, which is what JAX makes of it for cuDNN; no bounds: its causal kernel."""
    attend = functools.partial(jax.nn.dot_product_attention, scale=1.0, implementation="cudnn")
    if bounds is None:
        return attend(q_BLNK, k_BLNK, v_BLNK, is_causal=True)
    start_BL, end_BL = bounds
    # A row without keys would be a mean of all; it reads one key, and is cut off.
    mask_BLM = visible_keys((start_BL, jnp.maximum(end_BL, start_BL + 1)), k_BLNK.shape[1])
    out_BLNK = attend(q_BLNK, k_BLNK, v_BLNK, mask=mask_BLM[:, None])
    return jnp.where((start_BL < end_BL)[..., None, None], out_BLNK, 0)


@functools.cache
def _tokamax():
    for name in ("xprof", "xprof.cli", "xprof.cli.tools"):
        # 30 MB for a reader of profiles, which attention does not use.
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["xprof.cli.tools"].get_kernel_stats_tool = None
    from tokamax._src.ops.attention import api, base

    return api.IMPLEMENTATIONS, base.Mask


def tokamax(q_BLNK, k_BLNK, v_BLNK, bounds, max_span, implementation="mosaic_gpu"):
    """Its kernels take the bounds as they are."""
    implementations, mask = _tokamax()
    attend = functools.partial(implementations[implementation], logits_scale=1.0)
    if bounds is None:
        return attend(q_BLNK, k_BLNK, v_BLNK, mask=mask(is_causal=True))
    start_BL, end_BL = bounds
    start_B1L, end_B1L = start_BL[:, None], jnp.maximum(end_BL, start_BL + 1)[:, None]
    out_BLNK = attend(q_BLNK, k_BLNK, v_BLNK, mask=mask(k_start=start_B1L, k_end=end_B1L))
    return jnp.where((start_BL < end_BL)[..., None, None], out_BLNK, 0)


def in_rows(attend, rows: int):
    """``attend`` for some queries at a time, over the keys up to the band's end: skips the rest."""

    def attend_in_rows(q_BLNK, k_BLNK, v_BLNK, bounds, max_span):
        length, parts = q_BLNK.shape[1], []
        for at in range(0, length, rows):
            keys = min(length, -(-(at + rows + max_span - 1) // 128) * 128)
            part = [x[:, at : at + rows] for x in (q_BLNK, *bounds)]
            parts.append(attend(part[0], k_BLNK[:, :keys], v_BLNK[:, :keys], part[1:], max_span))
        return jnp.concatenate(parts, axis=1)

    return attend_in_rows


CANDIDATES = {
    "dense": attend_dense,
    "flash": attend_flash,
    "cudnn": cudnn,
    "cudnn_rows_1024": in_rows(cudnn, 1024),
    "cudnn_rows_512": in_rows(cudnn, 512),
}
if importlib.util.find_spec("tokamax"):
    CANDIDATES |= {"tokamax": tokamax, "tokamax_rows_1024": in_rows(tokamax, 1024)}

# Sizes of each flash kernel that are tried while the others keep theirs.
SIZES = {
    "forward": [(128, 128, 8, 2), (128, 64, 8, 3), (128, 64, 4, 3), (64, 64, 4, 3), (128, 32, 4, 3),
                (64, 128, 4, 2)],
    "by_q": [(128, 64, 8, 2), (128, 64, 4, 2), (64, 64, 4, 2), (64, 64, 4, 3), (128, 32, 4, 3),
             (64, 128, 8, 2), (128, 128, 8, 1)],
    "by_kv": [(64, 128, 8, 2), (64, 128, 4, 2), (64, 64, 4, 2), (32, 128, 4, 3), (32, 64, 4, 3),
              (64, 64, 8, 2), (128, 128, 8, 1)],
}  # fmt: skip


def random_layouts(rng, rows: int, length: int, longest: int):
    """Bounds of texts and images of random sizes, several documents a row, some padding."""
    document_BL, image_BL = np.full((2, rows, length), -1, np.int32)
    for document_L, image_L in zip(document_BL, image_BL):
        at = number = 0
        used = rng.choice([length, rng.integers(0, length)])
        while at < used:
            to = min(at + rng.integers(1, longest + 1), used)
            document_L[at:to] = number // 4
            if rng.random() < 0.5:
                image_L[at:to] = number
            number += rng.integers(1, 3)
            at = to
    return bounds_of(document_BL, image_BL)


def interleaved(rng, rows: int, length: int, documents: int):
    """Bounds of rows that are half text and half images of ``IMAGE`` patches."""
    document_BL, image_BL = np.full((2, rows, length), -1, np.int32)
    images = length // (2 * IMAGE)
    for document_L, image_L in zip(document_BL, image_BL):
        document_L[:] = np.arange(length) * documents // length
        gaps = np.sort(rng.integers(0, length - images * IMAGE + 1, images))
        for number, gap in enumerate(gaps):
            at = gap + number * IMAGE
            image_L[at : at + IMAGE] = number
    return bounds_of(document_BL, image_BL)


def pull(attend, max_span: int, by="qkv", exact=False):
    """(q, k, v, slope, bounds) -> output and gradients by some of q, k, v; none: output alone."""

    def run(q, k, v, slope, bounds):
        with jax.default_matmul_precision("highest" if exact else "default"):
            out, back = jax.vjp(lambda *qkv: attend(*qkv, bounds, max_span), q, k, v)
            gradients = dict(zip("qkv", back(slope)))
        return out, *(gradients[one] for one in by)

    return run


def normals(rng, shape, dtype):
    """q (divided by sqrt(K)), k, v and a slope."""
    q, *rest = (jnp.asarray(rng.normal(size=shape), dtype) for _ in range(4))
    return [(q.astype(jnp.float32) * shape[-1] ** -0.5).astype(dtype), *rest]


class Bench:
    """Compiles in threads, then measures one after another; a row of the report for each."""

    def __init__(self, seconds: float, threads: int):
        self.seconds, self.report = seconds, []
        self.pool = concurrent.futures.ThreadPoolExecutor(threads)

    def compile(self, run, *args):
        return self.pool.submit(lambda: jax.jit(run).lower(*args).compile())

    def row(self, label: dict, needs, measure) -> dict:
        """``measure`` of what is compiled, or why there is none."""
        at = time.perf_counter()
        try:
            left = max(0.0, STARTED + self.seconds - at)
            row = measure(*(one.result(timeout=left) for one in needs))
        except concurrent.futures.TimeoutError:
            row = {"left_out": "no time"}
        except Exception as error:  # a kernel that cannot run must not hide the others
            row = {"failed": " ".join(f"{type(error).__name__}: {error}".split())[:400]}
        row = {**label, **row, "at": round(time.perf_counter() - STARTED, 1)}
        self.report.append(row)
        print(json.dumps(row), flush=True)
        return row


def milliseconds(run, args, calls: int, repeats: int = 5) -> dict:
    """Median and range of ``repeats`` means of some calls in a row, after one that warms up."""
    jax.block_until_ready(run(*args))
    times = []
    for _ in range(repeats):
        at = time.perf_counter()
        for _ in range(calls):
            out = run(*args)
        jax.block_until_ready(out)
        times.append((time.perf_counter() - at) / calls * 1e3)
    low, high = min(times), max(times)
    return {"ms": round(statistics.median(times), 3), "range": [round(low, 3), round(high, 3)]}


def worst_difference(ours, dense, args, layouts) -> float:
    """Largest difference to dense attention in float32, over the largest value or 1."""
    wide, worst = [x.astype(jnp.float32) for x in args], 0.0
    for bounds in layouts:
        for a, b in zip(ours(*args, bounds), dense(*wide, bounds)):
            gap = jnp.abs(a.astype(jnp.float32) - b).max() / jnp.maximum(jnp.abs(b).max(), 1)
            worst = max(worst, float(jnp.where(jnp.isnan(gap), jnp.inf, gap)))
    return worst


def times(bench: Bench, candidates: dict, shape, on_gpu: bool) -> None:
    """Forward and backward, of plain causal attention and of the mixed mask."""
    rng = np.random.default_rng(0)
    batch, length, heads, size = shape
    inputs = normals(rng, shape, jnp.bfloat16)
    layouts = {"causal": None, "mixed": interleaved(rng, batch, length, 1),
               "mixed, 4 documents": interleaved(rng, batch, length, 4)}  # fmt: skip
    jobs = [(name, "causal") for name in candidates if "rows" not in name]
    jobs += [(name, layout) for layout in list(layouts)[1:] for name in candidates]
    jobs = [one for one in jobs if not (one[0] == "dense" and "4" in one[1])]
    made = [bench.compile(pull(candidates[name], IMAGE), *inputs, layouts[layout])
            for name, layout in jobs]  # fmt: skip
    concurrent.futures.wait(made, timeout=max(0, STARTED + bench.seconds - time.perf_counter()))
    for (name, layout), one in zip(jobs, made):
        bounds = layouts[layout]
        pairs = batch * length * (length + 1) / 2
        if bounds is not None:
            pairs = float(jnp.sum(bounds.end_BL - bounds.start_BL))

        def measure(run, name=name, bounds=bounds, pairs=pairs):
            row = milliseconds(
                run, (*inputs, bounds), calls=10 if on_gpu and name != "dense" else 1
            )
            # Seven products of what is visible: two forward, five backward.
            return {**row, "tflops": round(14 * pairs * heads * size / row["ms"] / 1e9, 1)}

        label = {"what": "time", "impl": name, "layout": layout, "shape": list(shape)}
        bench.row(label, [one], measure)


def tune(bench: Bench, shape):
    """The fastest sizes of each of flash's kernels: (mixed mask) output, then gradients of one."""
    rng = np.random.default_rng(0)
    args = (*normals(rng, shape, jnp.bfloat16), interleaved(rng, shape[0], shape[1], 1))
    kernels, jobs = KERNELS[2], []
    for kernel, by in (("forward", ""), ("by_q", "q"), ("by_kv", "kv")):
        for sizes in SIZES[kernel]:
            one = kernels._replace(**{kernel: Blocks(*sizes)})
            attend = functools.partial(attend_flash, kernels=one)
            jobs.append((kernel, sizes, bench.compile(pull(attend, IMAGE, by), *args)))
    wait = [one for *_, one in jobs]
    concurrent.futures.wait(wait, timeout=max(0, STARTED + bench.seconds - time.perf_counter()))
    best = {}
    for kernel, sizes, one in jobs:
        label = {"what": "sizes", "kernel": kernel, "sizes": sizes}
        row = bench.row(label, [one], lambda run: milliseconds(run, args, 10, 3))
        best[kernel] = min(best.get(kernel, (np.inf, None)), (row.get("ms", np.inf), sizes))
    sizes = {kernel: Blocks(*one) for kernel, (ms, one) in best.items() if one and ms < np.inf}
    return kernels._replace(**sizes)


def equality(bench: Bench, candidates: dict, dtype, head_size: int, on_gpu: bool) -> None:
    """Values and gradients on random layouts, against dense attention in float32."""
    rng = np.random.default_rng(0)
    count, rows, length, longest = (10, 20, 640, 200) if on_gpu else (1, 4, 64, 20)
    args = normals(rng, (rows, length, 2, head_size), dtype)
    layouts = [random_layouts(rng, rows, length, longest) for _ in range(count)]
    wide = [x.astype(jnp.float32) for x in args]
    dense = bench.compile(pull(attend_dense, longest, exact=True), *wide, layouts[0])
    limit = 2e-2 if dtype == jnp.bfloat16 else 1e-4
    made = {name: bench.compile(pull(attend, longest), *args, layouts[0])
            for name, attend in candidates.items()}  # fmt: skip
    for name, one in made.items():

        def measure(ours, dense):
            worst = worst_difference(ours, dense, args, layouts)
            return {"worst": float(f"{worst:.2e}"), "equal": worst <= limit}

        label = {"what": "equal", "impl": name, "dtype": jnp.dtype(dtype).name,
                 "head_size": head_size, "layouts": count * rows}  # fmt: skip
        bench.row(label, [one, dense], measure)


def float32(bench: Bench) -> None:
    """Is flash equal to dense attention in float32, and is it faster?"""
    for head_size in (128, 64, 32):
        equality(bench, {"flash": attend_flash}, jnp.float32, head_size, on_gpu=True)
    sizes = {(4, 4096, 16, 128): 256, (32, 128, 4, 64): 64, (2, 256, 4, 64): 16}
    for shape, longest in sizes.items():
        rng = np.random.default_rng(0)
        args = (*normals(rng, shape, jnp.float32), random_layouts(rng, *shape[:2], longest))
        measure = functools.partial(milliseconds, args=args, calls=5)
        for name in ("flash", "dense"):
            run = bench.compile(pull(CANDIDATES[name], IMAGE), *args)
            label = {"what": "time", "impl": name, "dtype": "float32", "shape": list(shape)}
            bench.row(label, [run], measure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where to write what is printed")
    parser.add_argument(
        "--seconds", type=float, default=85.0, help="what is not done by then is not"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="that compile")
    parser.add_argument("--float32", action="store_true", help="flash and dense in it alone")
    args = parser.parse_args()
    on_gpu = jax.default_backend() == "gpu"
    candidates = CANDIDATES if on_gpu else {"dense": attend_dense}
    shape = (4, 4096, 16, 128) if on_gpu else (1, 512, 1, 16)
    bench = Bench(args.seconds, args.threads)
    about = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    print(json.dumps(about))
    if args.float32:
        float32(bench)
    else:
        all_of(bench, about, candidates, shape, on_gpu)
    if args.json:
        args.json.write_text(json.dumps({**about, "rows": bench.report}, indent=1) + "\n")
    print(f"{time.perf_counter() - STARTED:.0f} s", flush=True)
    os._exit(0)  # whatever still compiles is not waited for


def all_of(bench: Bench, about: dict, candidates: dict, shape, on_gpu: bool) -> None:
    """Times, the sizes of flash's blocks and equality, of every candidate."""
    times(bench, candidates, shape, on_gpu)
    if on_gpu:
        kernels = tune(bench, shape)
        about["tuned"] = kernels._asdict()
        tuned = {"flash_tuned": functools.partial(attend_flash, kernels=kernels)}
        times(bench, tuned, shape, on_gpu)
        candidates = {**tuned, **candidates}
    for dtype, head_size in ((jnp.bfloat16, 128), (jnp.bfloat16, 64), (jnp.float32, 128)):
        equality(bench, candidates, dtype, head_size, on_gpu)


if __name__ == "__main__":
    main()
