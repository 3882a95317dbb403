"""Attention with the mixed mask on one GPU: who equals the dense definition, and what it costs.

    python experiments/throughput/attention_gpu.py --json attention_gpu.json

On a GPU: each candidate against "dense" on 200 random layouts, values and gradients; then forward
and backward at the shape of a 1.4B decoder, beside cuDNN's plain causal attention. What does not
fit into ``--seconds`` is listed as left out. On a CPU: toy sizes, and "dense" alone.
Tokamax takes part where it is installed (Python 3.12).
Axis letters: B batch, L length, M keys, N heads, K head size.
"""

import argparse
import functools
import importlib.util
import json
import statistics
import sys
import time
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

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
    "cudnn": cudnn,
    "cudnn_rows_1024": in_rows(cudnn, 1024),
    "cudnn_rows_512": in_rows(cudnn, 512),
}
if importlib.util.find_spec("tokamax"):
    CANDIDATES |= {
        "tokamax": tokamax,
        "tokamax_rows_1024": in_rows(tokamax, 1024),
        "tokamax_rows_512": in_rows(tokamax, 512),
    }


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


def pull(attend, max_span: int):
    """jitted (q, k, v, slope, bounds) -> output and gradients."""

    def run(q, k, v, slope, bounds):
        out, back = jax.vjp(lambda *qkv: attend(*qkv, bounds, max_span), q, k, v)
        return out, *back(slope)

    return jax.jit(run)


def normals(rng, shape, dtype):
    """q (divided by sqrt(K)), k, v and a slope."""
    q, *rest = (jnp.asarray(rng.normal(size=shape), dtype) for _ in range(4))
    return [(q.astype(jnp.float32) * shape[-1] ** -0.5).astype(dtype), *rest]


def worst_difference(name, dtype, head_size, layouts, rows, length, longest) -> float:
    """Largest difference to dense attention in float32, over the largest value or 1."""
    rng, worst = np.random.default_rng(0), 0.0
    ours, dense = pull(CANDIDATES[name], longest), pull(attend_dense, longest)
    args = normals(rng, (rows, length, 2, head_size), dtype)
    wide = [x.astype(jnp.float32) for x in args]
    for _ in range(layouts // rows):
        bounds = random_layouts(rng, rows, length, longest)
        with jax.default_matmul_precision("highest"):
            expected = dense(*wide, bounds)
        for a, b in zip(ours(*args, bounds), expected):
            gap = jnp.abs(a.astype(jnp.float32) - b).max() / jnp.maximum(jnp.abs(b).max(), 1)
            worst = max(worst, float(jnp.where(jnp.isnan(gap), jnp.inf, gap)))
    return worst


def seconds_a_call(run, args, calls: int, repeats: int = 5) -> list[float]:
    """Of calls in a row, ``repeats`` times; the first is not counted."""
    jax.block_until_ready(run(*args))
    times = []
    for _ in range(repeats):
        at = time.perf_counter()
        for _ in range(calls):
            out = run(*args)
        jax.block_until_ready(out)
        times.append((time.perf_counter() - at) / calls)
    return times


def attempt(report: dict, kind: str, label: dict, seconds: float, measure) -> None:
    """Add a row to the report: what was measured, or why it was not."""
    at = time.perf_counter()
    if at - STARTED > seconds:
        row = {"left_out": "no time"}
    else:
        try:
            row = measure()
        except Exception as error:  # one kernel that cannot run must not hide the others
            row = {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
    row = {**label, **row, "took": round(time.perf_counter() - at, 1)}
    report[kind].append(row)
    print(kind, json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where to write what is printed")
    parser.add_argument("--seconds", type=float, default=85.0, help="no measurement begins after")
    parser.add_argument("--only", nargs="*", help="names of candidates; all if left out")
    args = parser.parse_args()
    on_gpu = jax.default_backend() == "gpu"
    names = [n for n in CANDIDATES if n in (args.only or CANDIDATES) and (on_gpu or n == "dense")]
    report = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "equal": [],
              "time": []}  # fmt: skip
    print(report["device"], report["jax"], names)

    # Times first: they are what only this machine can say.
    rng = np.random.default_rng(0)
    batch, length, heads, size = (4, 4096, 16, 128) if on_gpu else (1, 512, 1, 16)
    inputs = normals(rng, (batch, length, heads, size), jnp.bfloat16)
    layouts = {"causal": None, "mixed": interleaved(rng, batch, length, 1),
               "mixed, 4 documents": interleaved(rng, batch, length, 4)}  # fmt: skip
    causal_ms = None

    def clock(name, layout):
        nonlocal causal_ms
        bounds = layouts[layout]
        run = pull(CANDIDATES[name], IMAGE)
        times = seconds_a_call(
            run, (*inputs, bounds), calls=10 if on_gpu and name != "dense" else 1
        )
        ms = statistics.median(times) * 1e3
        if causal_ms is None:  # the first measured: cuDNN's causal, or dense on a CPU
            causal_ms = ms
        pairs = batch * length * (length + 1) / 2
        if bounds is not None:
            pairs = float(jnp.sum(bounds.end_BL - bounds.start_BL))
        flops = 3.5 * 4 * pairs * heads * size  # seven products of what is visible, forward two
        return {"ms": round(ms, 3), "range": [round(t * 1e3, 3) for t in (min(times), max(times))],
                "to_causal": round(ms / causal_ms, 3), "tflops": round(flops / ms / 1e9, 1)}  # fmt: skip

    order = [(n, "causal") for n in ("cudnn", "tokamax") if n in names]
    order += [(n, one) for one in layouts if one != "causal" for n in names if n != "dense"]
    order += [("dense", "causal"), ("dense", "mixed")] if "dense" in names else []
    for name, layout in order:
        label = {"impl": name, "layout": layout, "shape": [batch, length, heads, size]}
        measure = functools.partial(clock, name, layout)
        attempt(report, "time", label, args.seconds, measure)

    sizes = {"layouts": 200, "rows": 20, "length": 640, "longest": 200}
    if not on_gpu:
        sizes = {"layouts": 4, "rows": 4, "length": 64, "longest": 20}
    for dtype, limit in ((jnp.bfloat16, 2e-2), (jnp.float32, 1e-4)):
        for name in names:
            for head_size in (128, 64):

                def measure(name=name, dtype=dtype, head_size=head_size, limit=limit):
                    worst = worst_difference(name, dtype, head_size, **sizes)
                    return {"worst": worst, "equal": worst <= limit}

                label = {"impl": name, "dtype": jnp.dtype(dtype).name, "head_size": head_size}
                attempt(report, "equal", label, args.seconds, measure)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{time.perf_counter() - STARTED:.0f} s")


if __name__ == "__main__":
    main()
