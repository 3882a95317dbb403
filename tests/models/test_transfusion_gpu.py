"""The step that `experiments/throughput/transfusion_gpu.py` times, at toy size."""

import json

import jax
import numpy as np
import pytest
import studies

from mmx.train.sharding import make_mesh


@pytest.fixture(scope="module")
def script():
    return studies.load("throughput", "transfusion_gpu")[0]


def test_half_of_the_tokens_are_patches_and_no_row_has_room_left(script):
    config = script.run_config("transfusion/b1400", "dense", 3, "dots", 0)
    task = script.Mixed(config, None, abstract=True)
    batch = task.rows(3)
    assert {k: v.shape for k, v in batch.items() if k != "images"} == {
        k: v.shape for k, v in task.batch_spec().items() if k != "images"
    }
    assert batch["images"].shape == (3, 8, 32, 32, 8)
    np.testing.assert_array_equal((batch["image"] >= 0).sum(1), 2048)
    np.testing.assert_array_equal((batch["document"] >= 0).sum(1), 4096)
    assert np.any(batch["image"][0] != batch["image"][1])  # each row has an order of its own


def test_flops_are_of_what_is_read(script):
    config = script.run_config("transfusion/b1400:tiny", "dense", 2, "none", 0)
    text = script.Text(config)
    batch = text.rows(2)
    per_pair = 12 * config.model.depth * config.model.width
    assert script.model_flops(text, batch, 10) == 2 * 128 * 60 + per_pair * 2 * 128 * 129 / 2
    # One document of an image of four patches and padding: 1, 2, 6 four times, 7 and 8 keys.
    row = {"tokens": np.zeros((1, 12), int), "document": np.full((1, 12), -1),
           "image": np.full((1, 12), -1)}  # fmt: skip
    row["document"][0, :8], row["image"][0, 2:6] = 0, 0
    assert script.model_flops(text, row, 10) == 12 * 60 + per_pair * (1 + 2 + 4 * 6 + 7 + 8)


def test_a_toy_step_is_timed(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "start_jax", lambda: None)
    monkeypatch.setattr(script, "CANDIDATES", {})  # which would stay in spans.IMPLS
    one = lambda mesh: make_mesh(mesh, jax.devices()[:1])
    monkeypatch.setitem(script.Trainer.__init__.__globals__, "make_mesh", one)
    args = ["--runs", "mixed dense 2 none", "text absent 2 none", "--steps=1", "--repeats=2"]
    args += [f"--json={tmp_path / 'out.json'}", f"--profile={tmp_path / 'profile.txt'}"]
    timed, absent = script.main(args)
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["runs"] == [timed, absent] and "xla_flags" in report
    assert timed["step_s"] > 0 and timed["tokens_per_s"] > 0 and timed["loss"][1] < timed["loss"][0]
    assert absent == {"run": "text absent 2 none", "left_out": "not installed"}
    assert "ms a step" in (tmp_path / "profile.txt").read_text()
