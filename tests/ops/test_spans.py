"""The mixed mask as two numbers a query (invariant 3), and spans that are longer than the band."""

import jax
import numpy as np
import pytest

from mmx.core.errors import UserError
from mmx.ops.spans import bounds_of, check_spans
from tests.layouts import random_layouts, visible


def test_bounds_equal_the_boolean_definition():
    document_BL, image_BL = random_layouts(500, 40)
    bounds = jax.jit(bounds_of)(document_BL, image_BL)
    start_BL1, end_BL1 = (np.asarray(x)[..., None] for x in bounds)
    key_M = np.arange(40)
    got = (start_BL1 <= key_M) & (key_M < end_BL1)
    for row in range(500):
        np.testing.assert_array_equal(got[row], visible(document_BL[row], image_BL[row]))
    # Padding has bounds of no other row, so that a block of it asks for no key.
    np.testing.assert_array_equal(bounds.end_BL[document_BL < 0], np.nonzero(document_BL < 0)[1])
    assert all(x.dtype == np.int32 for x in bounds)


def test_the_layouts_have_every_corner():
    document_BL, image_BL = random_layouts(500, 40)
    patch_BL = image_BL >= 0
    changes = np.diff(document_BL) != 0
    touching = patch_BL[:, 1:] & patch_BL[:, :-1] & (np.diff(image_BL) != 0)
    assert (touching & ~changes).any(), "two images side by side in a document"
    assert (touching & changes).any(), "an image ends a document, one begins the next"
    assert patch_BL[:, 0].any() and patch_BL[:, -1].any()
    assert (document_BL < 0).all(1).any() and (document_BL >= 0).all(1).any()
    assert ((document_BL >= 0).any(1) & ~patch_BL.any(1)).any(), "text alone"
    assert (document_BL.max(1) > 1).any()


def test_bounds_by_hand():
    document = np.array([[7, 7, 7, 7, 7, 2, 2, 2, -1]])
    image = np.array([[-1, 0, 0, 1, -1, 1, 1, -1, -1]])
    bounds = bounds_of(document, image)
    np.testing.assert_array_equal(bounds.start_BL, [[0, 0, 0, 0, 0, 5, 5, 5, 8]])
    np.testing.assert_array_equal(bounds.end_BL, [[1, 3, 3, 4, 5, 7, 7, 8, 8]])


def test_a_span_longer_than_the_band_is_refused():
    document = np.array([[0] * 6, [0, 0, 0, 1, 1, -1]])
    image = np.array([[-1, -1, -1, 0, 0, -1], [-1, 0, 0, 0, 0, -1]])
    check_spans(document, image, 2)  # two images of 2: a new document is a new image
    with pytest.raises(UserError, match=r"row 1: an image of 4 patches, but max_span=3"):
        check_spans(np.zeros_like(document), image, 3)
    check_spans(np.zeros_like(document), image, 4)
    check_spans(document, np.full_like(image, -1), 1)
