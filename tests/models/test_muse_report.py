"""What is said of a Muse run: the validation loss while it trains, the report after."""

from types import SimpleNamespace

import numpy as np
import pytest

from mmx.models.muse import report as muse_report
from mmx.train.sharding import make_mesh


@pytest.fixture(scope="module")
def task(build):
    return build.muse()


def test_the_report_runs_the_codec_on_batches_of_the_runs_size(build, task, monkeypatch):
    mesh = make_mesh({"slice": 1, "data": -1, "fsdp": 1, "tensor": 1})
    sizes, fill_rows = [], muse_report.fill_rows
    monkeypatch.setattr(
        muse_report,
        "fill_rows",
        lambda rows, mesh: sizes.append(len(rows)) or fill_rows(rows, mesh),
    )
    run = SimpleNamespace(frozen=task.load_frozen(mesh), mesh=mesh)
    model = muse_report._model(task, run)
    image_u8 = build.images(21, 32)
    recon, codes = model.reconstruct(image_u8)
    assert set(sizes) == {model.batch_size} == {task.config.batch_size}
    np.testing.assert_array_equal(codes, task.codes(run.frozen, image_u8))
    np.testing.assert_allclose(recon, task.decode(run.frozen, codes), atol=1e-4)


def test_validation_is_deterministic_has_fixed_masks_and_buckets(build, monkeypatch):
    examples = [
        {"image": image, "text": build.captions[i % 8]}
        for i, image in enumerate(build.images(30, 32))
    ]
    monkeypatch.setattr(muse_report, "open_source", lambda *args: examples)
    mesh = make_mesh({"slice": 1, "data": -1, "fsdp": 1, "tensor": 1})

    def score(batch_size, params):
        task = build.muse(changes={"batch_size": batch_size, "eval.examples": 21})
        (evaluator,) = task.evaluators(mesh)
        frozen = task.load_frozen(mesh)
        return task, frozen, [dict(evaluator.run(p, {}, frozen)) for p in params]

    params, _ = build.params(build.muse())
    codes = {"embedding": 0 * params["model"]["codes"]["embedding"]}
    even = {**params, "model": {**params["model"], "codes": codes}}
    task, frozen, (first, second, zero) = score(8, (params, params, even))
    assert first == second
    # Whatever the batch, of each example once and with the same masks: 21 are 8 + 8 + 5, 16 + 5.
    _, _, (other,) = score(16, (params,))
    assert other == pytest.approx(first, rel=1e-4)
    buckets = {k for k in first if "mask" in k}
    assert buckets <= {f"test/loss_mask_{r}_{r + 25}" for r in (0, 25, 50, 75)}
    assert "test/loss_mask_75_100" in buckets and len(buckets) >= 2
    assert list(zero.values()) == pytest.approx([np.log(task.mask_id)] * len(zero), rel=1e-5)

    picture = task.preview(params, {}, frozen, mesh)["samples"]
    assert picture.dtype == np.uint8 and picture.shape[2] == 3 and picture.shape[1] >= 8 * 32
    quiet = build.muse(changes={"preview_prompts": ()})
    assert quiet.preview(params, {}, frozen, mesh) == {}
