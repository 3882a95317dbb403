"""Solvers of diffusion beside the schedulers of diffusers, step by step: `make parity`.

    make parity                                      # in an environment of its own
    python experiments/parity/solvers.py             # the library now, beside the golden, and mmx
    python experiments/parity/solvers.py --write     # the golden of tests/ anew

Each case runs one scheduler with a made-up network and keeps what it saw at every call, (t, z),
what the network said, and where that led. Tables of noise are the library's own, in float32.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
)
from safetensors.numpy import load_file, save_file

from mmx.ops.diffusion.predictions import to_x0
from mmx.ops.diffusion.schedules import SCHEDULES, STEPS
from mmx.ops.diffusion.solvers import solve

GOLDEN = Path(__file__).resolve().parents[2] / "tests/goldens/diffusion.safetensors"
STEPS_RUN = 10
SHAPE = (3, 4)
NAMES = {"x0": "sample", "eps": "epsilon", "v": "v_prediction"}  # ours: the library's
BETAS = {
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "ddpm_linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "scaled_linear": {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
    },
}
BETAS["zero_terminal_snr"] = BETAS["scaled_linear"] | {"rescale_betas_zero_snr": True}
# solver, schedule, prediction. "exploding" is sigma(t) = t, alpha = 1, as k-diffusion sees a table.
CASES = (
    ("ddpm", "cosine", "x0"),
    ("ddpm", "ddpm_linear", "eps"),
    ("ddpm", "scaled_linear", "v"),
    ("ddpm", "zero_terminal_snr", "v"),
    ("ddim", "cosine", "v"),
    ("ddim", "ddpm_linear", "x0"),
    ("ddim", "scaled_linear", "eps"),
    ("ddim", "zero_terminal_snr", "v"),
    ("dpmpp_2m", "cosine", "x0"),
    ("dpmpp_2m", "ddpm_linear", "v"),
    ("dpmpp_2m", "scaled_linear", "eps"),
    ("euler", "rectified_flow", "velocity"),
    ("heun", "rectified_flow", "velocity"),
    ("heun", "exploding", "eps"),
)


class Trace(NamedTuple):
    """One run: float32 t [C] by our clock, z and out [C, *SHAPE], noise added, the result."""

    t: np.ndarray
    z: np.ndarray
    out: np.ndarray
    noise: np.ndarray
    result: np.ndarray


def network(xp, z, t):
    """Any smooth function will do."""
    return xp.tanh(0.5 * z + xp.sin(3 * t))


def _scheduler(solver: str, schedule: str, prediction: str):
    common = {"num_train_timesteps": STEPS}
    if schedule == "rectified_flow":
        make = {"euler": FlowMatchEulerDiscreteScheduler, "heun": FlowMatchHeunDiscreteScheduler}
        return make[solver](**common)
    common |= {"prediction_type": NAMES[prediction], "timestep_spacing": "trailing"}
    if schedule == "exploding":
        return HeunDiscreteScheduler(**common, **BETAS["scaled_linear"])
    common |= BETAS[schedule]
    if solver == "dpmpp_2m":
        return DPMSolverMultistepScheduler(**common, solver_order=2)
    return {"ddpm": DDPMScheduler, "ddim": DDIMScheduler}[solver](**common, clip_sample=False)


def trace(solver: str, schedule: str, prediction: str) -> Trace:
    """Run the library."""
    scheduler = _scheduler(solver, schedule, prediction)
    even = 1 - np.arange(STEPS_RUN) / STEPS_RUN
    if solver == "euler":
        scheduler.set_timesteps(sigmas=even)
    else:
        scheduler.set_timesteps(STEPS_RUN)
    if schedule in ("rectified_flow", "exploding"):
        times = scheduler.sigmas[:-1]
    else:
        times = (scheduler.timesteps.to(torch.float64) + 1) / STEPS
    z = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if schedule == "exploding":
        z = z * times[0]
    draws, twin = (torch.Generator().manual_seed(1) for _ in range(2))
    seen = []
    for step, t in zip(scheduler.timesteps, times):
        out = network(torch, z, t)
        last = len(seen) == len(times) - 1
        noise = torch.zeros(SHAPE)
        if solver == "ddpm" and not last:
            noise = torch.randn(SHAPE, generator=twin, dtype=torch.float64)
        seen.append((t, z, out, noise))
        options = {"generator": draws} if solver == "ddpm" else {}
        z = scheduler.step(out, step, z, **options).prev_sample.to(torch.float64)
    columns = [np.stack([np.asarray(x) for x in column]) for column in zip(*seen)]
    return Trace(*(np.float32(x) for x in (*columns, z)))


def traces() -> dict[str, np.ndarray]:
    """Name of a case and of a field -> array."""
    return {
        f"{'/'.join(case)}/{field}": value
        for case in CASES
        for field, value in trace(*case)._asdict().items()
    }


def compare_golden(now: dict[str, np.ndarray]) -> None:
    kept = load_file(GOLDEN)
    assert kept.keys() == now.keys()
    for name, value in now.items():
        np.testing.assert_allclose(kept[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
    print(f"goldens: {GOLDEN.name} is what diffusers says now, {len(CASES)} runs")


def compare_ours(case: tuple[str, str, str], now: dict[str, np.ndarray]) -> None:
    """The whole run of mmx, from noise to image, with the same network."""
    solver, name, prediction = case
    schedule = SCHEDULES[name]
    t, z, wanted = (now[f"{'/'.join(case)}/{field}"] for field in ("t", "z", "result"))
    times = np.unique(t)[::-1]
    denoise = lambda z, t: to_x0(prediction, schedule, z, t, network(jnp, z, t[:, None]))
    got = jax.jit(lambda z: solve(denoise, schedule, solver, times, z, None))(z[0])
    np.testing.assert_allclose(got, wanted, rtol=5e-5, atol=5e-5, err_msg=str(case))
    worst = float(np.abs(got - wanted).max())
    print(f"{' '.join(case)}: the image after {len(times)} steps differs by {worst:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write the golden anew, then compare")
    now = traces()
    if parser.parse_args().write:
        save_file(now, GOLDEN)
    compare_golden(now)
    for case in CASES:
        # Others are compared step by step, in tests/: their noise is not ours, or their schedule.
        if case[0] != "ddpm" and case[1] in SCHEDULES:
            compare_ours(case, now)


if __name__ == "__main__":
    main()
