"""What `experiments/throughput/lookup.py` compares: three ways to one image's words."""

import jax.numpy as jnp
import pytest
import studies

from mmx.ops.pyramid import Pyramid


def test_the_ways_find_the_same_words(monkeypatch):
    (script,) = studies.load("throughput", "lookup")
    result = script.compare(script.TINY, rounds=2)
    assert set(result["ways"]) == {"mmx", "gathered", "dense"}
    for of in result["ways"].values():
        assert of["temporaries_mib"] > 0
        for key in ("cpu_s", "cpu_ratio", "wall_s", "wall_ratio"):
            assert 0 < of[key][1] <= of[key][0] <= of[key][2]
    # "dense" measures all cells in all layers: 1,536 targets of an image, not 597.
    sizes, dense = [], script.nearest_dense
    monkeypatch.setattr(script, "nearest_dense", lambda z, t: sizes.append(len(z)) or dense(z, t))
    z, table = jnp.ones((1, 16, 16, 2)), jnp.eye(3, 2)
    for all_cells, expected in ((True, 6 * 256), (False, 597)):
        assert script.quantize_dense(Pyramid(), z, table, all_cells).shape == (1, 597)
        assert sum(sizes) == expected
        sizes.clear()
    monkeypatch.setitem(script.WAYS, "dense", lambda p, z, t: script.WAYS["mmx"](p, z, -t))
    with pytest.raises(SystemExit, match=r"dense: .* of the words are those of mmx"):
        script.compare(script.TINY, rounds=1)
