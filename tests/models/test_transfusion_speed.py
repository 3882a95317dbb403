"""The shape at which `experiments/throughput/run.py --subject transfusion` compares."""

import flax.linen as nn
import jax
import numpy as np
import pytest
import studies

from mmx.core import tree


@pytest.fixture(scope="module")
def parts():
    return studies.load("throughput", "transfusion_mmx", "shape")


def test_rows_are_those_of_the_peer(parts):
    script, shape = parts
    task = script.Task(script.make_config("float32", shape.TRANSFUSION.mlp))
    batch = task.rows(np.random.default_rng(0))
    assert batch["images"].shape == (4, 2, 8, 8, 16)
    np.testing.assert_array_equal((batch["image"] >= 0).sum(1), 2 * 64)
    # bos, 60 and 56 of text, twice boi and eoi, eos: 122 of the row's 250, and 6 of padding.
    np.testing.assert_array_equal(((batch["document"] >= 0) & (batch["image"] < 0)).sum(1), 122)
    assert batch["tokens"].shape == (4, 256)
    assert batch["tokens"].max() == task.markers.eoi == shape.TRANSFUSION.vocab + 2
    # Both images are learned, at any noise.
    np.testing.assert_array_equal(batch["noise_limit"], 1.0)


@pytest.mark.parametrize("mlp, weights", [("mlp", 33.7), ("even_mlp", 87.7)])
def test_weights(parts, mlp, weights):
    """The peer has 87.3M at either."""
    script, shape = parts
    task = script.Task(script.make_config("float32", vars(shape.TRANSFUSION)[mlp]))
    params = nn.unbox(jax.eval_shape(task.init, jax.random.key(0))[0])
    count = tree.num_params(tree.flatten(params))
    assert round(count / 1e6, 1) == weights
    # Two a weight and position, the table of embeddings aside, and attention; three times.
    forward = 2 * 256 * (count - params["tokens"]["embedding"].size)
    forward += 4 * 8 * 512 * 256 * 257 / 2
    assert task.train_flops_per_row() == pytest.approx(3 * forward, rel=0.005)
