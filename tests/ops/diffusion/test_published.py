"""Solvers, predictions and tables beside diffusers, a step at a time.

experiments/parity/solvers.py wrote the golden: what each scheduler saw at every call, (t, z), what
a network said, and where that led. Its tables are in float32, hence the tolerance.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from mmx.ops.diffusion.predictions import to_x0
from mmx.ops.diffusion.schedules import SCHEDULES, Schedule
from mmx.ops.diffusion.solvers import SOLVERS, Table

GOLDEN = load_file(Path(__file__).parents[2] / "goldens/diffusion.safetensors")
CASES = sorted({name.rpartition("/")[0] for name in GOLDEN})
# The library's Heun runs on sigma / alpha whatever the table.
EXPLODING = Schedule("exploding", jnp.ones_like, lambda t: t, lambda s: jnp.exp(-s / 2), False)


def test_every_solver_and_table_is_there():
    solvers, schedules, predictions = (set(x) for x in zip(*(case.split("/") for case in CASES)))
    assert solvers == set(SOLVERS) and schedules == {*SCHEDULES, "exploding"}
    assert predictions == {"x0", "eps", "v", "velocity"}  # it has no EDM beside these tables


@pytest.mark.parametrize("case", CASES)
def test_every_step_leads_where_the_library_went(case):
    solver, name, prediction = case.split("/")
    schedule = SCHEDULES.get(name, EXPLODING)
    t, z, out, noise, result = (
        np.float64(GOLDEN[f"{case}/{field}"]) for field in ("t", "z", "out", "noise", "result")
    )
    with jax.enable_x64(True):

        @jax.jit
        def table_and_x0(times):
            return SOLVERS[solver](schedule, times), to_x0(prediction, schedule, z, t, out)

        table, x0 = table_and_x0(np.unique(t)[::-1])
        table, x0 = jax.tree.map(np.asarray, (table, x0))
    table = Table(*(x[:, None, None] for x in table))
    np.testing.assert_allclose(table.t.reshape(-1), t, rtol=1e-6)
    # What the call before saw and said; the first has none, and a factor of 0.
    last_z, last_x0 = (np.concatenate([x[:1], x[:-1]]) for x in (z, x0))
    after = table.z * z + table.x0 * x0 + table.last_z * last_z + table.last_x0 * last_x0
    after += table.noise * noise
    wanted = np.concatenate([z[1:], result[None]])
    np.testing.assert_allclose(after, wanted, rtol=2e-5, atol=2e-5)
