"""Solvers against a distribution whose flow is known, and one loop that runs them (15 to 19).

x0 ~ N(m, s^2) has the best guess ``m + s^2 alpha (z - alpha m) / (alpha^2 s^2 + sigma^2)``, and its
flow keeps ``(z - alpha m) / sqrt(alpha^2 s^2 + sigma^2)``. Solvers are tables of numbers, which
these tests carry out in numpy; that `solve` carries them out the same way is a test of its own.
"""

import functools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmx.core.errors import UserError
from mmx.ops.diffusion import solvers
from mmx.ops.diffusion.schedules import SCHEDULES, Schedule
from mmx.ops.diffusion.solvers import SOLVERS, Table, solve

MEAN, STD = 0.7, 0.5
FIRST, LAST = 0.98, 0.02
ORDER = {"ddim": 1, "euler": 1, "heun": 2, "dpmpp_2m": 2}
# The plain cosine and the variance-exploding schedule, of which the reference errors are.
PLAIN = Schedule(
    "plain_cosine",
    lambda t: jnp.cos(math.pi / 2 * t),
    lambda t: jnp.sin(math.pi / 2 * t),
    lambda log_snr: 2 / math.pi * jnp.arctan(jnp.exp(-log_snr / 2)),
    ends_in_noise=True,
)
EXPLODING = Schedule(
    "exploding", lambda t: jnp.ones_like(t), lambda t: t, lambda s: jnp.exp(-s / 2), False
)


def run(table: Table, denoise, z, noise=None):
    """(every z seen, what comes out)."""
    seen, last_z, last_x0 = [], 0.0, 0.0
    for i, t in enumerate(table.t):
        seen.append(z)
        x0 = denoise(z, t)
        after = table.z[i] * z + table.x0[i] * x0
        after = after + table.last_z[i] * last_z + table.last_x0[i] * last_x0
        if noise is not None:
            after = after + table.noise[i] * noise[i]
        z, last_z, last_x0 = after, z, x0
    return seen, z


@jax.jit
def every_table(times, values):
    """Of any schedule, given (alpha, sigma, rates) at the times: compiled once for all of them."""
    given = types.SimpleNamespace(
        alpha=lambda t: values[0], sigma=lambda t: values[1], rates=lambda t: values[2]
    )
    return {solver: make(given, times) for solver, make in SOLVERS.items()}


def tables_at(schedule, times) -> dict[str, Table]:
    """Every solver's table, and what a schedule says at the times."""
    with jax.enable_x64(True):
        values = jax.jit(lambda t: (schedule.alpha(t), schedule.sigma(t), schedule.rates(t)))(times)
        tables = every_table(times, values)
    at = dict(zip(times.tolist(), zip(np.asarray(values[0]), np.asarray(values[1]))))
    return jax.tree.map(np.asarray, tables), at


@functools.cache
def tables(name):
    """[few steps, many], evenly from FIRST to LAST."""
    return [tables_at(SCHEDULES[name], np.linspace(FIRST, LAST, n + 1)) for n in (128, 512)]


class Gaussian:
    """x0 ~ N(MEAN, STD^2), where ``at`` says alpha and sigma by time."""

    def __init__(self, at):
        self.at = at

    def deviation(self, t):
        alpha, sigma = self.at[float(t)]
        return math.hypot(alpha * STD, sigma)

    def denoise(self, z, t):
        alpha, _ = self.at[float(t)]
        return MEAN + STD**2 * alpha / self.deviation(t) ** 2 * (z - alpha * MEAN)

    def flow(self, z, t, s):
        kept = (z - self.at[float(t)][0] * MEAN) / self.deviation(t)
        return self.at[float(s)][0] * MEAN + kept * self.deviation(s)


def error(table, at, z):
    """The largest at the last of the times, from several z at the first."""
    case = Gaussian(at)
    seen, _ = run(table, case.denoise, z)
    return np.abs(seen[-1] - case.flow(z, table.t[0], table.t[-1])).max()


@pytest.mark.parametrize("name", SCHEDULES)
def test_errors_fall_with_the_order_of_the_solver(name):
    for solver, order in ORDER.items():
        few, many = (error(all_[solver], at, np.linspace(-2, 2, 5)) for all_, at in tables(name))
        assert math.log(few / many, 4) == pytest.approx(order, abs=0.05), (solver, few, many)


def test_errors_are_those_of_the_reference():
    # Spec section 10, test 15: an independent implementation's, at 64 steps. All are met from 1.7.
    even = np.linspace(FIRST, LAST, 65)
    with jax.enable_x64(True):
        in_snr = np.asarray(solvers.even_log_snr(PLAIN, 65, FIRST, LAST))
    on_even, on_snr = (tables_at(PLAIN, times) for times in (even, in_snr))
    on_flow = tables_at(SCHEDULES["rectified_flow"], even)
    # In z / alpha and sigma / alpha, as arXiv 2206.00364 integrates.
    on_level = tables_at(EXPLODING, np.tan(math.pi / 2 * in_snr))
    first, last = (math.cos(math.pi / 2 * t) for t in (FIRST, LAST))
    for solver, (all_, at), z, expected in (
        ("ddim", on_even, 1.7, 1.79e-2),
        ("euler", on_flow, 1.7, 1.80e-2),
        ("heun", on_flow, 1.7, 9.27e-5),
        ("heun", on_level, 1.7 / first, 1.26e-3 / last),
        ("dpmpp_2m", on_snr, 1.7, 5.95e-4),
        ("dpmpp_2m", on_even, 1.7, 2.83e-3),
    ):
        assert error(all_[solver], at, z) == pytest.approx(expected, rel=4e-3), (solver, expected)


def test_euler_on_the_rectified_flow_is_ddim():
    for all_, _ in tables("rectified_flow"):
        for a, b in zip(all_["euler"], all_["ddim"]):
            np.testing.assert_allclose(a, b, atol=1e-14)


@pytest.mark.parametrize("name", SCHEDULES)
def test_tables_by_their_papers(name):
    all_, at = tables(name)[0]
    alpha, sigma = np.array([at[float(t)] for t in all_["ddim"].t]).T
    # alpha_s x0 + sigma_s eps, with the eps of z and x0.
    np.testing.assert_allclose(all_["ddim"].z[:-1], sigma[1:] / sigma[:-1], rtol=1e-12)
    x0 = alpha[1:] - alpha[:-1] * sigma[1:] / sigma[:-1]
    np.testing.assert_allclose(all_["ddim"].x0[:-1], x0, rtol=1e-9)
    assert not all_["ddim"].noise.any()
    # DPM-Solver++ begins with DDIM's step.
    for one, other in zip(all_["dpmpp_2m"], all_["ddim"]):
        np.testing.assert_allclose(one[0], other[0], rtol=1e-12)
    # q(z_s | z_t, x0) is q(z_t | z_s) q(z_s | x0), normalised: precisions add.
    step = alpha[:-1] / alpha[1:]
    variance = sigma[:-1] ** 2 - step**2 * sigma[1:] ** 2
    precision = step**2 / variance + 1 / sigma[1:] ** 2
    np.testing.assert_allclose(all_["ddpm"].noise[:-1] ** 2, 1 / precision, rtol=1e-8)
    np.testing.assert_allclose(all_["ddpm"].z[:-1], step / variance / precision, rtol=1e-8)
    x0 = alpha[1:] / sigma[1:] ** 2 / precision
    np.testing.assert_allclose(all_["ddpm"].x0[:-1], x0, rtol=1e-8)


def variance_error(table, at):
    """Relative, of the last z, from the exact variance at the first time: nothing is drawn."""
    case = Gaussian(at)
    variance = case.deviation(table.t[0]) ** 2
    for i, t in enumerate(table.t[:-1]):
        gain = case.denoise(1.0, t) - case.denoise(0.0, t)
        variance = (table.z[i] + table.x0[i] * gain) ** 2 * variance + table.noise[i] ** 2
    return variance / case.deviation(table.t[-1]) ** 2 - 1


@pytest.mark.parametrize("name", SCHEDULES)
def test_ancestral_variance_is_right_up_to_one_over_the_steps(name):
    few, many = (variance_error(all_["ddpm"], at) for all_, at in tables(name))
    assert abs(few) < 0.1 and few / many == pytest.approx(4, rel=0.1)


def test_the_noise_of_unit_variance_schedules_is_wrong_on_the_rectified_flow():
    errors = []
    for all_, at in tables("rectified_flow"):
        alpha, sigma = np.array([at[float(t)] for t in all_["ddpm"].t]).T
        noise = sigma[1:] / sigma[:-1] * np.sqrt(1 - (alpha[:-1] / alpha[1:]) ** 2)
        kept = np.sqrt(np.maximum(sigma[1:] ** 2 - noise**2, 0))
        bad = all_["ddpm"]._replace(
            z=np.append(kept / sigma[:-1], 0),
            x0=np.append(alpha[1:] - kept * alpha[:-1] / sigma[:-1], 1),
            noise=np.append(noise, 0),
        )
        errors.append(variance_error(bad, at))
    assert abs(errors[1]) > 3 * abs(errors[0])  # it grows with the steps


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_ddim_step_is_exact_for_a_single_image(name):
    all_, at = tables(name)[0]
    image, eps = 0.3, -1.1
    path = lambda t: at[float(t)][0] * image + at[float(t)][1] * eps
    seen, out = run(all_["ddim"], lambda z, t: image, path(FIRST))
    np.testing.assert_allclose(seen, [path(t) for t in all_["ddim"].t], atol=1e-13)
    assert out == image


def nonlinear(z, t):
    return jnp.tanh(z * (1 + jnp.reshape(jnp.asarray(t), (-1, 1))) + 0.3)


KEYS = jax.random.split(jax.random.key(1), 3)
NOISE = jax.random.normal(jax.random.key(2), (3, 4))


def solved(solver, schedule, times, z=NOISE, keys=KEYS, denoise=nonlinear):
    return jax.jit(lambda z, keys: solve(denoise, schedule, solver, times, z, keys))(z, keys)


def test_solve_carries_out_the_tables():
    times = np.linspace(1, 0.1, 6)
    all_, _ = tables_at(SCHEDULES["cosine"], times)
    draw = lambda i: jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, i), (4,)))(KEYS)
    noise = np.asarray(jax.vmap(draw)(jnp.arange(11)))
    every = lambda z: [solve(nonlinear, SCHEDULES["cosine"], s, times, z, KEYS) for s in SOLVERS]
    for solver, got in zip(SOLVERS, jax.jit(every)(NOISE)):
        _, wanted = run(all_[solver], nonlinear, np.asarray(NOISE), noise)
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-5, err_msg=solver)
        assert len(all_[solver].t) == (11 if solver == "heun" else 6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_solver_ends_with_what_the_denoiser_says_from_pure_noise_on(name):
    times = solvers.trailing(7)
    assert times[0] == 1
    last = jnp.arange(12.0).reshape(3, 4) / 7
    marked = lambda z, t: jnp.where(t[:, None] == times[-1], last, nonlinear(z, t))
    finite = lambda z, t: jnp.where(jnp.isfinite(z), marked(z, t), jnp.nan)
    every = lambda z: [solve(finite, SCHEDULES[name], s, times, z, KEYS) for s in SOLVERS]
    for solver, got in zip(SOLVERS, jax.jit(every)(NOISE)):
        np.testing.assert_array_equal(got, last, err_msg=solver)


def test_a_row_does_not_depend_on_its_batch():
    times = solvers.trailing(5)
    for solver in ("ddpm", "dpmpp_2m"):
        together = solved(solver, SCHEDULES["cosine"], times)
        alone = solved(solver, SCHEDULES["cosine"], times, NOISE[1:2], KEYS[1:2])
        np.testing.assert_allclose(alone, together[1:2], rtol=1e-6)
    # Two rows of one z and two keys part ways, with the solver that draws and with no other.
    twice, keys = jnp.repeat(NOISE[:1], 2, 0), KEYS[:2]
    a, b = solved("ddpm", SCHEDULES["cosine"], times, twice, keys)
    assert np.abs(a - b).max() > 0.1
    a, b = solved("dpmpp_2m", SCHEDULES["cosine"], times, twice, keys)
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("solver", "name", "steps"),
    [
        ("ddpm", "rectified_flow", 100),
        ("dpmpp_2m", "cosine", 30),
        ("heun", "zero_terminal_snr", 30),
    ],
)
def test_a_mixture_comes_out_with_its_shares_places_and_spreads(solver, name, steps):
    """Invariant 19, of four normals in the plane, whose best guess has a closed form."""
    schedule, num, std = SCHEDULES[name], 8192, 0.15
    share = np.array([0.1, 0.2, 0.3, 0.4])
    mode = np.array([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])

    def denoise(z, t):
        alpha, sigma = schedule.alpha(t)[:, None, None], schedule.sigma(t)[:, None, None]
        variance = (alpha * std) ** 2 + sigma**2
        away = z[:, None] - alpha * mode
        odds = jax.nn.softmax(jnp.log(share) - (away**2 / (2 * variance)).sum(-1), axis=-1)
        guess = mode + std**2 * alpha / variance * away
        return (odds[..., None] * guess).sum(1)

    z = jax.random.normal(jax.random.key(0), (num, 2))
    keys = jax.random.split(jax.random.key(1), num)
    x = np.asarray(solved(solver, schedule, solvers.trailing(steps) ** 2, z, keys, denoise))
    nearest = ((x[:, None] - mode) ** 2).sum(-1).argmin(1)
    for k in range(4):
        own = x[nearest == k]
        assert abs(len(own) / num - share[k]) < 3 * math.sqrt(share[k] * (1 - share[k]) / num)
        np.testing.assert_allclose(own.mean(0), mode[k], atol=4 * std / len(own) ** 0.5)
        np.testing.assert_allclose(own.std(0), std, rtol=0.1)


def test_grids_fall_evenly_between_their_ends():
    np.testing.assert_allclose(solvers.trailing(4), [1, 0.75, 0.5, 0.25])
    schedule = SCHEDULES["cosine"]
    with jax.enable_x64(True):
        even = solvers.even_log_snr(schedule, 9, 0.97, 0.01)
        assert even[0] == 0.97 and even[-1] == 0.01 and (np.diff(even) < 0).all()
        np.testing.assert_allclose(np.diff(schedule.log_snr(even), 2), 0, atol=1e-8)


def test_grids_of_a_config_fall_within_the_schedule():
    for schedule in SCHEDULES.values():
        for name, grid in solvers.GRIDS.items():
            t = np.asarray(grid(schedule, 9))
            assert len(t) == 9 and (np.diff(t) < 0).all() and t[-1] > 0 and t[0] <= 1, name
            if name != "trailing":  # arXiv 2206.00364 table 1, as far as there is such noise
                level = np.exp(-np.asarray(schedule.log_snr(t)) / 2)
                most = np.exp(-schedule.log_snr(1.0) / 2)
                np.testing.assert_allclose(level[[0, -1]], [min(80, most), 0.002], rtol=2e-2)
            np.testing.assert_array_equal(grid(schedule, 1), t[:1])


def test_bad_names_say_what_to_choose():
    with pytest.raises(UserError, match="solver='plms': use one of ddpm, ddim, euler, heun"):
        solve(nonlinear, SCHEDULES["cosine"], "plms", np.ones(2), NOISE, KEYS)
