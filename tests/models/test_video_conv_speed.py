"""What `experiments/throughput/video_conv.py` compares: two ways to one convolution."""

import pytest
import studies


def test_the_ways_give_the_same(monkeypatch):
    (script,) = studies.load("throughput", "video_conv")
    result = script.compare(script.TINY, rounds=2)
    for what in ("forward", "with gradients"):
        assert list(result[what]) == ["mmx", "three axes"]
        for of in result[what].values():
            for key in ("cpu_s", "cpu_ratio", "wall_s", "wall_ratio"):
                assert 0 < of[key][1] <= of[key][0] <= of[key][2]
        assert result[what]["mmx"]["cpu_ratio"] == [1, 1, 1]
    monkeypatch.setitem(script.WAYS, "three axes", lambda x, k: script.WAYS["mmx"](x, 2 * k))
    with pytest.raises(SystemExit, match="forward: the ways do not give the same"):
        script.compare(script.TINY, rounds=1)
