"""Cells that have nothing yet: each fill by itself, its gradient, and no NaN (SPAE pitfall 8)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmx.core.errors import UserError
from mmx.ops.fill import fill_cells, nearest_covered
from mmx.ops.pyramid import Pyramid, covered

COVERED = covered(Pyramid((1, 2, 4)))  # 1, 5, 16 cells of 4x4: row and column 2; 1 and 3; all
X = np.random.default_rng(0).normal(size=(3, 4, 4, 2)).astype(np.float32)
MASK = np.float32([7, -7])


def test_each_fill_leaves_covered_cells_alone_and_lets_nothing_else_through():
    for stage, is_covered in enumerate(COVERED):
        x = np.where(is_covered[..., None], X, np.nan)
        out = {fill: fill_cells(x, COVERED, stage, fill, MASK) for fill in ("zeros", "mask")}
        out["nearest"] = fill_cells(x, COVERED, stage, "nearest")
        for filled in out.values():
            np.testing.assert_array_equal(np.asarray(filled)[:, is_covered], X[:, is_covered])
        assert (np.asarray(out["zeros"])[:, ~is_covered] == 0).all()
        assert (np.asarray(out["mask"])[:, ~is_covered] == MASK).all()
        assert np.isfinite(out["nearest"]).all()


def test_nearest_is_the_nearest_covered_cell():
    assert [owners.tolist() for owners in nearest_covered(COVERED)[:1]] == [[10] * 16]
    covered_Phw = np.random.default_rng(1).random((4, 5, 6)) < 0.2
    covered_Phw[:, 3, 3] = True
    for is_covered, owners in zip(covered_Phw, nearest_covered(covered_Phw)):
        places = np.argwhere(is_covered)
        for cell, owner in zip(np.ndindex(5, 6), owners):
            far = [(np.square(place - cell).sum(), *place) for place in places]
            assert divmod(owner, 6) == min(far)[1:]


@pytest.mark.parametrize("fill", ["zeros", "mask", "nearest"])
def test_rows_may_be_at_different_stages(fill):
    stage_B = jnp.asarray([0, 2, 1])
    by_row = jax.jit(lambda stage: fill_cells(X, COVERED, stage, fill, MASK))(stage_B)
    alone = [
        fill_cells(X[b : b + 1], COVERED, int(s), fill, MASK)[0] for b, s in enumerate(stage_B)
    ]
    np.testing.assert_array_equal(by_row, alone)


def test_gradient_goes_to_what_fills_a_cell():
    weight = np.random.default_rng(2).normal(size=X.shape).astype(np.float32)
    uncovered = ~COVERED[1]

    def slopes(fill):
        loss = lambda x, mask: (weight * fill_cells(x, COVERED, 1, fill, mask)).sum()
        return jax.grad(loss, (0, 1))(jnp.asarray(X), jnp.asarray(MASK))

    own = np.where(COVERED[1][..., None], weight, 0)
    for fill, to_mask in (("zeros", 0), ("mask", weight[:, uncovered].sum((0, 1)))):
        dx, dmask = slopes(fill)
        np.testing.assert_array_equal(dx, own)
        np.testing.assert_allclose(dmask, to_mask, rtol=1e-5)
    by_owner = np.zeros((3, 16, 2))
    for cell, owner in enumerate(nearest_covered(COVERED)[1]):
        by_owner[:, owner] += weight.reshape(3, 16, 2)[:, cell]
    np.testing.assert_allclose(slopes("nearest")[0], by_owner.reshape(X.shape), rtol=1e-5)


def test_a_fill_is_chosen_and_complete():
    with pytest.raises(UserError, match="fill='near': use one of zeros, mask, nearest"):
        fill_cells(X, COVERED, 0, "near")
    with pytest.raises(ValueError, match="needs mask_Z"):
        fill_cells(X, COVERED, 0, "mask")
