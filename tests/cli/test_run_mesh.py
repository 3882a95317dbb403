"""A run opens on the devices that are here, whatever mesh it was trained on."""

import jax
import pytest

from mmx.cli.run import _mesh_here
from mmx.train.sharding import make_mesh

ALL_ON_DATA = {"slice": 1, "data": -1, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize(
    ("sizes", "fits"),
    [
        ((1, -1, 1, 1), True),
        ((1, 2, -1, 2), True),
        ((1, 2, 2, 2), True),
        ((1, 8, 1, 1), True),
        ((1, 4, 1, 1), False),  # divides the eight devices, but leaves four without work
        ((1, 1, 1, 1), False),
        ((1, 16, 1, 1), False),
        ((1, 3, -1, 1), False),
    ],
)
def test_a_mesh_that_does_not_fit_gives_way(sizes, fits):
    assert jax.device_count() == 8
    config = dict(zip(ALL_ON_DATA, sizes))
    chosen = _mesh_here(config)
    assert chosen == (config if fits else ALL_ON_DATA)
    assert make_mesh(chosen).size == 8
