"""A decoder piece by piece equals the decoder over whole rows, whatever the pieces."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmx.nn.cache import empty_cache, run_piece, write
from mmx.nn.decoder import Decoder, Layout
from mmx.ops.spans import bounds_of

DEPTH, HEADS, WIDTH, MLP, LENGTH = 2, 2, 8, 12, 12
RNG = np.random.default_rng(0)
# <bos> two tokens, an image of four, text; the second row has its image elsewhere.
IMAGE = np.full((2, LENGTH), -1)
IMAGE[0, 3:7], IMAGE[1, 5:9] = 0, 0
X = RNG.normal(size=(2, LENGTH, WIDTH)).astype(np.float32)


def layout_of(first, last, image_BL=IMAGE):
    bounds = bounds_of(jnp.zeros((2, last - first), int), jnp.asarray(image_BL[:, first:last]))
    at = [[i - first for i in np.flatnonzero(row >= 0)] for row in image_BL]
    at = [[i if 0 <= i < last - first else last - first for i in row] for row in at]
    position_BL = jnp.broadcast_to(jnp.arange(first, last), (2, last - first))
    return Layout(position_BL, tuple(bounds), jnp.asarray(at))


def decoder(by_modality):
    net = Decoder(DEPTH, HEADS, MLP, qk_norm=True, max_span=4, by_modality=by_modality)
    params = nn.unbox(net.init(jax.random.key(0), X, layout_of(0, LENGTH)))["params"]
    # Norms that start as ones would hide a norm that is skipped.
    return net, jax.tree.map(lambda x: x + 0.1 * RNG.normal(size=x.shape), params)


@pytest.mark.parametrize("by_modality", [False, True])
def test_pieces_equal_the_whole(by_modality):
    net, params = decoder(by_modality)
    whole = net.apply({"params": params}, X, layout_of(0, LENGTH))
    cache = empty_cache(net, 2, 16, WIDTH // HEADS)
    parts = []
    # An image is never cut: row 0 ends its image at 7, row 1 at 9.
    for first, last in ((0, 3), (3, 9), (9, 10), (10, 12)):
        x, k, v = run_piece(net, params, X[:, first:last], layout_of(first, last), cache)
        cache = write(cache, k, v, jnp.full(2, last - first))
        parts.append(net.apply({"params": params}, x, method="norm"))
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=1e-5)
    np.testing.assert_array_equal(cache.length_B, LENGTH)


def test_a_row_that_is_not_written_stays_and_junk_behind_it_is_not_read():
    net, params = decoder(False)
    cache = empty_cache(net, 2, 16, WIDTH // HEADS)
    _, k, v = run_piece(net, params, X[:, :3], layout_of(0, 3), cache)
    cache = write(cache, k, v, jnp.array([3, 2]))
    assert (np.asarray(cache.k[:, 1, :, 2:]) == 0).all()
    junk = cache._replace(k=cache.k.at[:, 0, :, 3:].set(9.0).at[:, 1, :, 2:].set(9.0))
    layout = layout_of(3, 4, np.full((2, LENGTH), -1))
    layout = layout._replace(position_BL=jnp.array([[3], [2]]))
    a, b = (run_piece(net, params, X[:, 3:4], layout, c)[0] for c in (cache, junk))
    np.testing.assert_array_equal(a, b)


def test_modalities_have_weights_of_their_own():
    net, params = decoder(True)
    run = lambda params: net.apply({"params": params}, X, layout_of(0, LENGTH))
    before = np.asarray(run(params))
    for name in params["blocks"]:
        changed = {**params, "blocks": {**params["blocks"]}}
        changed["blocks"][name] = jax.tree.map(lambda x: 1.5 * x + 0.1, params["blocks"][name])
        moved = np.abs(np.asarray(run(changed)) - before).max(-1) > 1e-6
        # Attention is over all: what follows a changed position moves too.
        first = 3 if name.startswith("image_") else 0
        assert moved[0, first] and not moved[0, :first].any(), name
