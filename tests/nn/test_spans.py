"""Attention over intervals of keys: leakage, padding, and every implementation equals the dense."""

import jax
import numpy as np

from mmx.nn.spans import attend_spans
from mmx.ops.spans import bounds_of
from tests.layouts import random_layouts, visible

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def test_dense_equals_the_boolean_definition():
    """500 layouts, in float64 by NumPy; what reads nothing is zero."""
    document_BL, image_BL = random_layouts(500, 24)
    q, k, v = normal(3, 500, 24, 2, 4)
    attend = jax.jit(lambda *x: attend_spans(*x, bounds_of(document_BL, image_BL), "dense", 12))
    out = np.asarray(attend(q, k, v))
    seen = np.stack([visible(*row) for row in zip(document_BL, image_BL)])[:, None]
    scores = np.einsum("blnk,bmnk->bnlm", np.float64(q), k) / 2
    weights = np.where(seen, np.exp(scores), 0)
    total = weights.sum(-1, keepdims=True)
    weights = np.divide(weights, total, where=total > 0, out=np.zeros_like(weights))
    np.testing.assert_allclose(out, np.einsum("bnlm,bmnk->blnk", weights, v), atol=1e-5)
    assert (out[document_BL < 0] == 0).all() and (document_BL < 0).any()


def test_gradients_reach_exactly_what_is_read():
    """Exactly 0 elsewhere: later text, later images, other documents, padding (invariant 1)."""
    document_BL, image_BL = random_layouts(6, 24, seed=1)
    q, k, v = normal(3, 6, 24, 1, 4)

    def out(k, v):
        bounds = bounds_of(document_BL, image_BL)
        return attend_spans(q, k, v, bounds, "dense", 12, scaled=True).sum((0, 2, 3))

    by_k, by_v = jax.jit(jax.jacrev(out, (0, 1)))(k, v)
    seen = np.stack([visible(*row) for row in zip(document_BL, image_BL)], 1)  # [query, row, key]
    reach = lambda jacobian: np.abs(jacobian).max((-1, -2))
    assert ((reach(by_v) > 0) == seen).all() and np.isfinite(by_v).all()
    alone = seen.sum(-1, keepdims=True) == 1  # a softmax over one key does not move
    assert ((reach(by_k) > 0) == seen & ~alone).all() and np.isfinite(by_k).all()
