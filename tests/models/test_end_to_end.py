"""Runs made by the real commands, opened by their path: samples and scores."""

import json
import shutil

import jax
import numpy as np
import pytest

import mmx
from mmx.core import tree
from mmx.core.errors import UserError
from mmx.models.rows import to_float
from mmx.train.optim import offline_ema
from mmx.train.start import read_weights


@pytest.fixture(scope="module")
def muse(muse_run):
    return mmx.load(muse_run)


def test_a_run_draws_prompts(muse):
    a = muse.sample(["red heart", "violin"], steps=3)
    assert a.shape == (2, 32, 32, 3) and a.dtype == np.uint8
    np.testing.assert_array_equal(a, muse.sample(["red heart", "violin"], steps=3))
    second = muse.sample(["violin"], steps=3, first_index=1)
    np.testing.assert_array_equal(a[1], second[0])
    assert (a != muse.sample(["red heart", "violin"], steps=3, seed=1)).any()


def test_more_prompts_than_a_batch(muse):
    options = muse.options(steps=2)
    texts = [f"red heart {i}" for i in range(5)]
    whole = muse.draw(texts, "", options, 0)
    parts = muse.draw(texts, "", options, 0, batch_size=2)
    assert whole["trace"].shape[:2] == (5, 2)
    np.testing.assert_array_equal(whole["codes"], parts["codes"])


def test_the_samples_are_pictures_of_the_codec(muse):
    out = muse.draw(["rocket"], "", muse.options(steps=2), 0)
    codes = out["codes"].reshape(1, 8, 8)
    image = muse.task.codec.decode(muse.frozen["codec"], codes)
    np.testing.assert_allclose(out["image"], image, atol=1e-4)


def test_the_stage_holds_the_tokenizer_that_was_trained(muse, vqgan_run):
    tokenizer = mmx.load(vqgan_run)
    frozen, own = (tree.flatten(w) for w in (muse.frozen["codec"]["params"], tokenizer.params))
    assert set(frozen) == {p for p in own if not p.startswith("discriminator")}
    for path, leaf in frozen.items():
        np.testing.assert_array_equal(leaf, own[path])


def test_scores_of_both_stages_are_in_their_ranges(muse, vqgan_run):
    (evaluator,) = muse.task.evaluators(muse.mesh)
    scores = dict(evaluator.run(muse.params, muse.extra, muse.frozen))
    assert 0 < scores["test/loss"] < 1.2 * np.log(64)
    tokenizer = mmx.load(vqgan_run)
    (evaluator,) = tokenizer.task.evaluators(tokenizer.mesh)
    scores = dict(evaluator.run(tokenizer.params, tokenizer.extra, tokenizer.frozen))
    assert 8 < scores["test/psnr"] < 40
    assert 0 < scores["test/codebook_use"] <= 1
    # Twenty steps are worth something: far above one grey picture.
    image = to_float(evaluator._plain(evaluator.source[0], None)["image"][None])
    codes = jax.jit(tokenizer.task.codec.encode)(
        {"params": tokenizer.params, "extra": tokenizer.extra}, image
    )
    assert len(np.unique(codes)) > 2


def test_a_tokenizer_run_does_not_sample(vqgan_run):
    with pytest.raises(UserError, match="image tokenizer"):
        mmx.load(vqgan_run).sample(["red heart"])


def test_prompts_are_checked_before_anything_is_drawn(muse):
    with pytest.raises(UserError, match="is empty"):
        muse.sample([" "])
    with pytest.raises(UserError, match="steps=0"):
        muse.sample(["red heart"], steps=0)


def test_weights_are_averaged_over_checkpoints_where_the_config_says(muse, muse_run, tmp_path):
    shutil.copytree(muse_run, tmp_path / "run")
    file = tmp_path / "run" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"offline_ema": 0.7}))
    steps = muse.dir.steps()
    assert len(steps) == 2
    first, last = (tree.flatten(read_weights(muse.dir, s)[0]) for s in steps)
    averaged = tree.flatten(mmx.load(tmp_path / "run").params)
    for path, leaf in averaged.items():
        np.testing.assert_allclose(leaf, 0.7 * first[path] + 0.3 * last[path], atol=1e-6)
    alone = tree.flatten(mmx.load(tmp_path / "run", step=steps[0]).params)
    for path, leaf in alone.items():
        np.testing.assert_array_equal(leaf, first[path])


def test_offline_average_in_closed_form():
    c = [{"w": np.float64(x)} for x in (3.0, -1.0, 10.0)]
    expected = 0.7 * (0.7 * 3.0 + 0.3 * -1.0) + 0.3 * 10.0
    assert offline_ema(iter(c), 0.7)["w"] == pytest.approx(expected)
