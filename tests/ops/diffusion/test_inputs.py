"""What a network reads of noised latents, against least squares."""

import jax
import numpy as np
import pytest

from mmx.ops.diffusion.inputs import INPUTS, read
from mmx.ops.diffusion.schedules import SCHEDULES

T = np.array([0.0, 0.1, 0.5, 0.9, 1.0])


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_mean_is_the_best_linear_guess_of_the_clean_latents(name):
    schedule = SCHEDULES[name]
    x, eps = np.random.default_rng(0).standard_normal((2, len(T), 200, 1000))
    with jax.enable_x64(True):
        alpha, sigma = (np.asarray(f(T))[:, None, None] for f in (schedule.alpha, schedule.sigma))
        z = alpha * x + sigma * eps
        got = np.asarray(read("mean", schedule, z, T)) / z
    fitted = (x * z).sum((1, 2)) / (z * z).sum((1, 2))  # least squares through the origin
    np.testing.assert_allclose(got[:, 0, 0], fitted, atol=0.01)
    assert np.ptp(got, axis=(1, 2)).max() < 1e-9


def test_z_is_read_as_it_is_and_every_input_is_finite_at_both_ends():
    z = np.random.default_rng(0).standard_normal((len(T), 3, 4)).astype(np.float32)
    for schedule in SCHEDULES.values():
        np.testing.assert_array_equal(read("z", schedule, z, T.astype(np.float32)), z)
        for name in INPUTS:
            assert np.isfinite(read(name, schedule, z, T.astype(np.float32))).all()
