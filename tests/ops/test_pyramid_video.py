"""Pyramids of frames, rows and columns: the image's equations with one more axis."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmx.core.errors import UserError
from mmx.ops.fill import FILLS, fill_cells, nearest_covered
from mmx.ops.pyramid import (
    SCHEMES,
    Pyramid,
    commitment,
    covered,
    decoder_input,
    flatten,
    quantize,
    reconstruct,
    unflatten,
)
from mmx.ops.resize import bicubic_pytorch

SIDES, FRAMES = (1, 2, 4, 4), (1, 2, 2, 4)  # 1, 8, 32, 64 words of 4 frames of 4x4
run = jax.jit(quantize, static_argnums=0)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def at(size, grid):
    """Frames or rows of a layer's cells by the paper's formula, which counts from 1."""
    step = grid // size
    return [step * i - -(-step // 2) for i in range(1, size + 1)]


def rows(layer):
    """Where the layer's words are in [B, t, h, w]."""
    return np.ix_(range(2), at(FRAMES[layer], 4), at(SIDES[layer], 4), at(SIDES[layer], 4))


def by_layer(values_BT):
    """[B, T, ...] -> one [B, o, p, q, ...] a layer."""
    shapes = [(frames, side, side) for frames, side in zip(FRAMES, SIDES)]
    parts = np.split(values_BT, np.cumsum([np.prod(s) for s in shapes])[:-1], 1)
    return [x.reshape(x.shape[0], *s, *x.shape[2:]) for x, s in zip(parts, shapes)]


@functools.cache
def exact(scheme):
    """z, table and what becomes of them, all in float64."""
    z, table = normal(2, 4, 4, 4, 5), normal(40, 5, seed=1)
    with jax.enable_x64(True):
        out = jax.tree.map(np.asarray, run(Pyramid(SIDES, scheme, FRAMES), z, table))
    return z, table, out


def test_words_lie_at_the_centres_in_space_and_time():
    """16 frames of 128x128 as 4x16x16 latents, layers of 1, 2, 4 frames."""
    pyramid = Pyramid((1, 2, 4, 8, 16), frames=(1, 1, 2, 4, 4))
    assert pyramid.shape == (4, 16, 16)
    assert pyramid.sizes == (1, 4, 32, 256, 1024) and pyramid.ends == (1, 5, 37, 293, 1317)
    for layer, (frames, side) in enumerate(zip(pyramid.frames, pyramid.sides)):
        words = np.zeros(pyramid.shape, bool)
        words[pyramid.places(layer)] = True
        assert [sorted(set(axis.tolist())) for axis in words.nonzero()] == [
            at(frames, 4), at(side, 16), at(side, 16)]  # fmt: skip
    assert np.argwhere(covered(pyramid)[0]).tolist() == [[2, 8, 8]]
    # Those of layer 2 are in the same frame, at other rows.
    assert [int(x.sum()) for x in covered(pyramid)] == [1, 5, 37, 293, 1024]
    assert SCHEMES["saq"].counts(pyramid)[-1].sum() == 1317


def test_average_quantization_by_its_definition_and_its_identity():
    """The mean of a cell's words; its error is the last distance divided by their number."""
    z, table, out = exact("saq")
    words, targets = by_layer(out.words_BT), by_layer(out.targets_BTZ)
    total, count = np.zeros_like(z), np.zeros((2, 4, 4, 4, 1))
    for layer in range(4):
        boosted = (count[rows(layer)] + 1) * z[rows(layer)] - total[rows(layer)]
        np.testing.assert_allclose(targets[layer], boosted, rtol=0, atol=1e-12)
        squared = np.square(boosted[..., None, :] - table).sum(-1)
        np.testing.assert_array_equal(words[layer], squared.argmin(-1))
        total[rows(layer)] += table[words[layer]]
        count[rows(layer)] += 1
        stage = out.stages_PBhwZ[layer]
        np.testing.assert_allclose(stage, total / np.maximum(count, 1), rtol=0, atol=1e-12)
        error = (stage - z)[rows(layer)]
        distance = table[words[layer]] - targets[layer]
        np.testing.assert_allclose(error, distance / count[rows(layer)], rtol=0, atol=1e-12)
    assert count.max() == 3 and count.min() == 1


def test_residual_quantization_by_its_definition():
    z, table, out = exact("rq")
    words, left = by_layer(out.words_BT), z.copy()
    for layer in range(4):
        squared = np.square(left[rows(layer)][..., None, :] - table).sum(-1)
        np.testing.assert_array_equal(words[layer], squared.argmin(-1))
        left[rows(layer)] -= table[words[layer]]
        np.testing.assert_allclose(out.stages_PBhwZ[layer], z - left, rtol=0, atol=1e-12)


def test_area_pooling_by_its_definition():
    z, table, out = exact("area")
    words, targets, left = by_layer(out.words_BT), by_layer(out.targets_BTZ), z.copy()
    for layer, (frames, side) in enumerate(zip(FRAMES, SIDES)):
        time, step = 4 // frames, 4 // side
        for o, p, q in np.ndindex(frames, side, side):
            block = left[:, o * time :, p * step :, q * step :][:, :time, :step, :step]
            np.testing.assert_allclose(
                targets[layer][:, o, p, q], block.mean((1, 2, 3)), atol=1e-12
            )
        squared = np.square(targets[layer][..., None, :] - table).sum(-1)
        np.testing.assert_array_equal(words[layer], squared.argmin(-1))
        up, up_time = bicubic_pytorch(side, 4), bicubic_pytorch(frames, 4)
        left -= np.einsum("to,hp,wq,bopqz->bthwz", up_time, up, up, table[words[layer]])
        np.testing.assert_allclose(out.stages_PBhwZ[layer], z - left, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_frame_is_the_image(scheme):
    """A video of one frame: words, stages, what a decoder sees, commitment, all as the image's; and
    frames that are equal say the same words where every layer has them all."""
    z, table = normal(2, 4, 4, 5).astype(np.float32), normal(40, 5, seed=1).astype(np.float32)
    z_video = np.repeat(z[:, None], 2, 1)
    image, alone = Pyramid(SIDES, scheme), Pyramid(SIDES, scheme, (1,) * 4)
    every = Pyramid(SIDES, scheme, (2,) * 4)

    @jax.jit
    def all_of(z, z_video):
        outs = []
        for pyramid, x in ((image, z), (alone, z_video[:, :1]), (every, z_video)):
            out = quantize(pyramid, x, table)
            seen = decoder_input(pyramid, x, out.stages_PBhwZ, 2, "nearest")
            outs.append((*out, seen, commitment(pyramid, x, out.stages_PBhwZ)))
        return outs

    still, one, two = (jax.tree.map(np.asarray, out) for out in all_of(z, z_video))
    for a, b in zip(still, one):
        np.testing.assert_allclose(a.ravel(), b.ravel(), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(still[0], one[0])
    layers = zip(unflatten(image, still[0]), unflatten(every, two[0]), strict=True)
    for words_Bpq, words_Bopq in layers:
        for frame in range(2):
            np.testing.assert_array_equal(words_Bopq[:, frame], words_Bpq)
    np.testing.assert_allclose(two[4], still[4], rtol=1e-5)


def test_words_lie_layer_by_layer_frame_by_frame_row_by_row_and_draw_alone():
    _, table, out = exact("saq")
    pyramid = Pyramid(SIDES, frames=FRAMES)
    layers = unflatten(pyramid, out.words_BT)
    for back, layer in zip(layers, by_layer(out.words_BT), strict=True):
        np.testing.assert_array_equal(back, layer)
    np.testing.assert_array_equal(flatten(layers, 3), out.words_BT)
    np.testing.assert_array_equal(out.words_BT[:, 9 + 16 + 4 * 2 + 3], layers[2][:, 1, 2, 3])
    decode = lambda words: [
        reconstruct(pyramid, words[:, :end], table, "nearest") for end in pyramid.ends
    ]
    drawn = jax.tree.map(np.asarray, jax.jit(decode)(out.words_BT))
    for video, stage, seen in zip(drawn, out.stages_PBhwZ, covered(pyramid), strict=True):
        np.testing.assert_allclose(video[:, seen], stage[:, seen], atol=1e-5)


def test_a_cell_without_a_word_is_filled_by_the_nearest_of_any_frame():
    covered_Pthw = np.random.default_rng(1).random((3, 3, 4, 5)) < 0.1
    covered_Pthw[:, 1, 2, 3] = True
    x = normal(2, 3, 4, 5, 2).astype(np.float32)
    owners = nearest_covered(covered_Pthw)
    for stage, is_covered in enumerate(covered_Pthw):
        places = np.argwhere(is_covered)
        filled = np.asarray(fill_cells(x, covered_Pthw, stage, "nearest"))
        for cell, owner in zip(np.ndindex(3, 4, 5), owners[stage], strict=True):
            far = [(np.square(place - cell).sum(), *place) for place in places]
            nearest = min(far)[1:]
            assert np.unravel_index(owner, (3, 4, 5)) == nearest
            np.testing.assert_array_equal(filled[:, *cell], x[:, *nearest])
    for fill in FILLS:  # a row's own number of layers
        by_row = fill_cells(x, covered_Pthw, jnp.asarray([2, 0]), fill, jnp.ones(2))
        np.testing.assert_array_equal(
            by_row[1], fill_cells(x[1:], covered_Pthw, 0, fill, jnp.ones(2))[0]
        )


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ((1, 2, 4), r"pyramid.frames=\(1, 2, 4\): 1 and more for each of 4 layers"),
        ((0, 2, 4, 4), "1 and more"),
        ((1, 3, 4, 4), "3 does not divide the largest, 4"),
    ],
)
def test_wrong_frames_are_named(frames, message):
    with pytest.raises(UserError, match=message):
        Pyramid(SIDES, frames=frames)
    with pytest.raises(ValueError, match="4x4x4 grid"):
        quantize(Pyramid(SIDES, frames=FRAMES), np.zeros((1, 2, 4, 4, 5)), np.zeros((5, 5)))
