"""The pyramid of words against its equations (spec SPAE sections 2, 3; pitfalls by number)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmx.core.errors import UserError
from mmx.core.flops import matmul_flops
from mmx.ops.fill import FILLS
from mmx.ops.pyramid import (
    SCHEMES,
    Pyramid,
    commitment,
    covered,
    decoder_input,
    flatten,
    quantize,
    random_layers,
    reconstruct,
    unflatten,
)
from mmx.ops.resize import bicubic_pytorch

SPAE = Pyramid()
SMALL = (1, 2, 4, 4)  # 1, 4, 16, 16 words: up to 3 of them in a cell
# Compiled as a whole: op by op these tests would spend their time in the compiler.
run = jax.jit(quantize, static_argnums=0)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def at(side, grid):
    """Rows of a layer's cells by the paper's formula, which counts from 1."""
    step = grid // side
    return [step * i - -(-step // 2) + 1 - 1 for i in range(1, side + 1)]


@functools.cache
def exact(scheme):
    """z, table and what becomes of them, all in float64."""
    z, table = normal(3, 4, 4, 6), normal(50, 6, seed=1)
    with jax.enable_x64(True):
        out = jax.tree.map(np.asarray, run(Pyramid(SMALL, scheme), z, table))
    assert out.stages_PBhwZ.dtype == np.float64
    return z, table, out


def by_layer(values_BT):
    """[B, T, ...] -> one [B, p, q, ...] a layer."""
    parts = np.split(values_BT, np.cumsum(np.square(SMALL))[:-1], 1)
    return [x.reshape(x.shape[0], p, p, *x.shape[2:]) for x, p in zip(parts, SMALL)]


def largest_array(jaxpr):
    sizes = [var.aval.size for eqn in jaxpr.eqns for var in eqn.outvars]
    bodies = [x.jaxpr for eqn in jaxpr.eqns for x in eqn.params.values() if hasattr(x, "jaxpr")]
    return max(sizes + [largest_array(body) for body in bodies], default=0)


# ------------------------------------------------------------------ where the words are


def test_positions_are_the_centres():
    """Pitfall 1, and the golden rows of the spec."""
    rows = [np.arange(16)[SPAE.cells(layer)].tolist() for layer in range(6)]
    golden = [[8], [4, 12], [2, 6, 10, 14], [1, 3, 5, 7, 9, 11, 13, 15], [*range(16)], [*range(16)]]
    assert rows == golden
    for sides in [(1, 2, 4, 8, 16), (1, 3, 9), (5, 1, 15, 3), (2, 6, 12)]:
        pyramid = Pyramid(sides)
        for layer, side in enumerate(sides):
            found = np.arange(max(sides))[pyramid.cells(layer)].tolist()
            assert found == at(side, max(sides))


def test_counts_of_words():
    """Pitfall 2."""
    assert SPAE.ends == (1, 5, 21, 85, 341, 597)
    counts = SCHEMES["saq"].counts(SPAE)
    assert counts[-1].sum() == 597
    assert np.bincount(counts[-1].ravel()).tolist() == [0, 0, 171, 85]
    assert counts[3].max() == 1  # the first four layers share no cell
    assert [int(layer.sum()) for layer in covered(SPAE)] == [1, 5, 21, 85, 256, 256]
    assert (counts[0] > 0).nonzero() == (np.array([8]), np.array([8]))


def test_words_are_sought_at_their_own_cells_only():
    """597 look-ups, not 6 x 256, and no array of all tokens by all words (pitfall 10)."""
    z, table = jax.ShapeDtypeStruct((8, 16, 16, 4), "float32"), np.zeros((8192, 4), np.float32)
    flops = matmul_flops(lambda z: quantize(SPAE, z, table), z)
    assert flops == 2 * 8 * 597 * 8192 * 4
    jaxpr = jax.make_jaxpr(functools.partial(quantize, SPAE))(z, table).jaxpr
    assert largest_array(jaxpr) == 8 * 256 * 1024  # the tokens of a layer by a piece of the table


# ------------------------------------------------------------------ streaming average


def test_average_quantization_by_its_definition():
    """Spec 3.1 cell by cell, from all words of a cell at once: neither residuals (pitfall 3) nor a
    boost by the running mean (4)."""
    z, table, out = exact("saq")
    words, targets = by_layer(out.words_BT), by_layer(out.targets_BTZ)
    for b, row, column in np.ndindex(3, 4, 4):
        spoken, cell = [], z[b, row, column]
        for layer, side in enumerate(SMALL):
            rows = at(side, 4)
            if row in rows and column in rows:
                place = (b, rows.index(row), rows.index(column))
                boosted = cell + sum(cell - e for e in spoken)
                np.testing.assert_allclose(targets[layer][place], boosted, rtol=0, atol=1e-12)
                assert words[layer][place] == np.square(boosted - table).sum(-1).argmin()
                spoken.append(table[words[layer][place]])
            stage = out.stages_PBhwZ[layer, b, row, column]
            mean = np.mean(spoken, 0) if spoken else np.zeros(6)
            np.testing.assert_allclose(stage, mean, rtol=0, atol=1e-12)
            if spoken:
                assert np.linalg.norm(stage) <= max(map(np.linalg.norm, spoken)) + 1e-12


def test_error_is_the_last_distance_divided_by_the_number_of_words():
    """Spec 3.3: stage - z = (e - z_l) / n, in float64 to 1e-12 and in float32 to 1e-5."""
    z, table, out = exact("saq")
    single = run(Pyramid(SMALL), *(x.astype(np.float32) for x in (z, table)))
    assert single.stages_PBhwZ.dtype == np.float32
    counts = SCHEMES["saq"].counts(Pyramid(SMALL))
    for result, tolerance in ((out, 1e-12), (single, 1e-5)):
        words, targets = by_layer(result.words_BT), by_layer(result.targets_BTZ)
        for layer, side in enumerate(SMALL):
            rows = np.ix_(range(3), at(side, 4), at(side, 4))
            n = counts[layer][rows[1][0], rows[2][0]][..., None]
            error = np.asarray(result.stages_PBhwZ)[layer][rows] - z[rows]
            distance = table[words[layer]] - targets[layer]
            np.testing.assert_allclose(error, distance / n, rtol=0, atol=tolerance)


def test_errors_by_layer_with_a_frozen_table():
    """Spec 3.4: on averages of words the mean error of averages falls, that of residuals rises; by
    cell neither is so, and nothing says that it should be (pitfall 5)."""
    random, table = np.random.default_rng(2), normal(300, 24, seed=1)
    table *= 4 / np.linalg.norm(table, axis=-1, keepdims=True)  # as words have, no row near 0
    share = random.dirichlet(np.ones(3), (4, 8, 8))  # of equal ones 3 words would be all of z
    z = (share[..., None] * table[random.integers(300, size=(4, 8, 8, 3))]).sum(3)
    z, table = z.astype(np.float32), table.astype(np.float32)
    errors = {}
    for scheme in ("saq", "rq"):
        out = run(Pyramid((8,) * 5, scheme), z, table)
        errors[scheme] = np.square(np.asarray(out.stages_PBhwZ) - z).sum(-1)  # [P, B, h, w]
        if scheme == "saq":
            targets = np.asarray(out.targets_BTZ).reshape(4, 5, 8, 8, 24).swapaxes(0, 1)
            squared = np.square(targets[..., None, :] - table).sum(-1).min(-1)
            n = np.arange(1, 6)[:, None, None, None]
            # The bound of O(1 / n), met exactly.
            np.testing.assert_allclose(errors["saq"] * n**2, squared, rtol=1e-4, atol=1e-8)
    means = {scheme: error.mean((1, 2, 3)) for scheme, error in errors.items()}
    assert (np.diff(means["saq"]) < 0).all() and means["saq"][-1] < 0.2 * means["saq"][0]
    assert (np.diff(means["rq"]) > 0).all() and means["rq"][-1] > 2 * means["rq"][0]
    assert (np.diff(errors["saq"], axis=0) > 0).any()


# ------------------------------------------------------------------ the alternatives


def test_residual_quantization_by_its_definition():
    z, table, out = exact("rq")
    words, targets, left = by_layer(out.words_BT), by_layer(out.targets_BTZ), z.copy()
    for layer, side in enumerate(SMALL):
        rows = np.ix_(range(3), at(side, 4), at(side, 4))
        np.testing.assert_allclose(targets[layer], left[rows], rtol=0, atol=1e-12)
        squared = np.square(left[rows][..., None, :] - table).sum(-1)
        np.testing.assert_array_equal(words[layer], squared.argmin(-1))
        left[rows] -= table[words[layer]]
        np.testing.assert_allclose(out.stages_PBhwZ[layer], z - left, rtol=0, atol=1e-12)


def test_area_pooling_by_its_definition():
    """arXiv 2404.02905 algorithm 1: residuals of the whole grid, averaged, looked up, resized."""
    z, table, out = exact("area")
    words, targets, left = by_layer(out.words_BT), by_layer(out.targets_BTZ), z.copy()
    for layer, side in enumerate(SMALL):
        step = 4 // side
        for i, j in np.ndindex(side, side):
            block = left[:, i * step : (i + 1) * step, j * step : (j + 1) * step]
            np.testing.assert_allclose(targets[layer][:, i, j], block.mean((1, 2)), atol=1e-12)
        squared = np.square(targets[layer][..., None, :] - table).sum(-1)
        np.testing.assert_array_equal(words[layer], squared.argmin(-1))
        up = bicubic_pytorch(side, 4)
        left -= np.einsum("hp,wq,bpqz->bhwz", up, up, table[words[layer]])
        np.testing.assert_allclose(out.stages_PBhwZ[layer], z - left, rtol=0, atol=1e-12)
    assert covered(Pyramid(SMALL, "area")).all()


def test_bicubic_is_pytorch_s():
    """torch 2's interpolate(mode="bicubic", align_corners=False) of the identity."""
    rows = [[1.10546875, -0.10546875, 0, 0], [0.7734375, 0.26171875, -0.03515625, 0],
            [0.2265625, 0.87890625, -0.10546875, 0],
            [-0.10546875, 0.87890625, 0.26171875, -0.03515625]]  # fmt: skip
    np.testing.assert_array_equal(bicubic_pytorch(4, 8)[:4], rows)
    np.testing.assert_array_equal(bicubic_pytorch(4, 8)[4:], np.flip(rows))
    row = [0.89550781250, 0.11474609375, -0.01025390625]
    np.testing.assert_array_equal(bicubic_pytorch(3, 12)[2], row)
    np.testing.assert_array_equal(bicubic_pytorch(4, 4), np.eye(4))
    np.testing.assert_array_equal(bicubic_pytorch(1, 4), np.ones((4, 1)))


# ------------------------------------------------------------------ serial words


def test_words_lie_layer_by_layer_row_by_row():
    """Pitfall 20."""
    layers = [normal(2, p, p, seed=p) for p in SPAE.sides]
    words = flatten(layers)
    assert words.shape == (2, 597)
    for back, layer in zip(unflatten(SPAE, words), layers, strict=True):
        np.testing.assert_array_equal(back, layer.astype(np.float32))
    np.testing.assert_array_equal(words[:, 21 + 8 * 3 + 5], layers[3][:, 3, 5].astype(np.float32))
    short = unflatten(SPAE, words[:, :21])
    assert [x.shape[1:] for x in short] == [(1, 1), (2, 2), (4, 4)]


def test_a_word_speaks_at_its_own_cell_alone():
    """Pitfall 20."""
    table, words = normal(9, 3).astype(np.float32), np.zeros((1, 37), int)
    decode = jax.jit(lambda words: reconstruct(Pyramid(SMALL), words, table, "zeros"))
    before, first = np.asarray(decode(words)), 0
    for side in SMALL:
        for place in np.ndindex(side, side):
            changed = words.copy()
            changed[0, first] = 1
            moved = (np.asarray(decode(changed)) != before).any(-1)[0]
            assert np.argwhere(moved).tolist() == [[at(side, 4)[i] for i in place]]
            first += 1


@pytest.mark.parametrize("scheme", SCHEMES)
def test_words_alone_give_what_quantizing_gave(scheme):
    """Pitfall 22, from every number of layers; what no word covers is filled, without NaN (8)."""
    _, table, out = exact(scheme)
    pyramid = Pyramid(SMALL, scheme)

    def decode(words_BT, table):
        parts = [words_BT[:, :end] for end in pyramid.ends]
        one = lambda words, fill: reconstruct(pyramid, words, table, fill, jnp.ones(6))
        return [{fill: one(words, fill) for fill in FILLS} for words in parts]

    for layer, images in enumerate(jax.jit(decode)(out.words_BT, table)):
        stage, is_covered = out.stages_PBhwZ[layer], covered(pyramid)[layer]
        for image in images.values():
            assert np.isfinite(image).all()
            np.testing.assert_allclose(image[:, is_covered], stage[:, is_covered], atol=1e-5)
        assert (np.asarray(images["zeros"])[:, ~is_covered] == 0).all()
        assert (np.asarray(images["mask"])[:, ~is_covered] == 1).all()
    assert is_covered.all()


def test_a_row_may_be_drawn_from_fewer_layers():
    """Pitfall 21: training sees every depth, a row its own."""
    keys = jax.random.split(jax.random.key(0), 4000)
    draw = jax.jit(lambda keys: random_layers(keys, SPAE, 0.5))
    share = np.bincount(draw(keys), minlength=7) / 4000
    np.testing.assert_allclose(share, [0, *[0.1] * 5, 0.5], atol=0.03)  # 4 standard deviations
    np.testing.assert_array_equal(draw(keys[7:8]), draw(keys)[7:8])
    np.testing.assert_array_equal(random_layers(keys[:9], Pyramid((4,)), 1.0), 1)
    z, table, out = exact("saq")
    pyramid, stages = Pyramid(SMALL), jnp.asarray(out.stages_PBhwZ)

    def both(layers_B):
        rows = decoder_input(pyramid, z, stages, layers_B, "nearest")
        words = [out.words_BT[:, : pyramid.ends[layers - 1]] for layers in (4, 1, 2)]
        return rows, [reconstruct(pyramid, x, table, "nearest") for x in words]

    rows, whole = jax.jit(both)(np.array([4, 1, 2]))
    np.testing.assert_allclose(rows, [image[b] for b, image in enumerate(whole)], atol=1e-5)


# ------------------------------------------------------------------ gradients


@pytest.mark.parametrize("layers", [2, 4])
def test_decoder_input_passes_its_gradient_straight_through(layers):
    """Pitfall 7: the decoder's gradient at its input, handed to z; through a fill at few layers."""
    z, table, _ = exact("saq")
    z, table, pyramid = z.astype(np.float32), table.astype(np.float32), Pyramid(SMALL)
    weight = normal(6, 6, seed=3).astype(np.float32)
    decode = lambda x: jnp.tanh(x @ weight).mean()
    stage = run(pyramid, z, table).stages_PBhwZ

    def loss(z, table):
        out = quantize(pyramid, z, table)
        return decode(decoder_input(pyramid, z, out.stages_PBhwZ, layers, "zeros"))

    seen = decoder_input(pyramid, z, stage, layers, "zeros")
    np.testing.assert_array_equal(seen, stage[layers - 1])
    dz, dtable = jax.jit(jax.grad(loss, (0, 1)))(z, table)
    is_covered = covered(pyramid)[layers - 1][..., None]
    expected = np.where(is_covered, jax.grad(decode)(seen), 0)
    np.testing.assert_allclose(dz, expected, rtol=1e-5, atol=1e-7)
    assert np.abs(dz).max() > 0
    np.testing.assert_array_equal(dtable, 0)


@pytest.mark.parametrize("scheme", ["saq", "area"])
def test_commitment_is_over_all_layers_at_covered_cells(scheme):
    """Spec 3.5: value and gradient; the encoder has to move, the table has none (pitfall 6)."""
    z, table, out = exact(scheme)
    z, table = z.astype(np.float32), table.astype(np.float32)
    pyramid = Pyramid(SMALL, scheme)
    seen = covered(pyramid)[:, None, ..., None]
    distance = np.where(seen, z - out.stages_PBhwZ, 0)

    def loss(z, table):
        return commitment(pyramid, z, quantize(pyramid, z, table).stages_PBhwZ)

    value, (dz, dtable) = jax.jit(jax.value_and_grad(loss, (0, 1)))(z, table)
    np.testing.assert_allclose(value, np.square(distance).sum() / z.size, rtol=1e-5)
    np.testing.assert_allclose(dz, 2 * distance.sum(0) / z.size, rtol=1e-4, atol=1e-8)
    np.testing.assert_array_equal(dtable, 0)


def test_a_target_moves_with_its_latent_and_not_with_the_words():
    """Spec 3.5: z_l = n z - the words so far, in which those are constants."""
    z, table, _ = exact("saq")
    z, table, pyramid = z.astype(np.float32), table.astype(np.float32), Pyramid(SMALL)
    last = lambda z, table: quantize(pyramid, z, table).targets_BTZ[:, -16:].sum()
    dz, dtable = jax.jit(jax.grad(last, (0, 1)))(z, table)
    counts = SCHEMES["saq"].counts(pyramid)[-1]
    np.testing.assert_array_equal(dz, np.broadcast_to(counts[..., None], z.shape))
    np.testing.assert_array_equal(dtable, 0)


def test_words_alone_are_linear_in_the_table():
    """What a projection of the table learns from."""
    _, table, out = exact("saq")
    total = lambda table: reconstruct(Pyramid(SMALL), out.words_BT, table, "zeros")[..., 0].sum()
    slope = jax.jit(jax.grad(total))(table.astype(np.float32))
    n = SCHEMES["saq"].counts(Pyramid(SMALL))[-1].astype(float)
    expected = np.zeros(50)
    for side, words in zip(SMALL, by_layer(out.words_BT)):
        rows = at(side, 4)
        np.add.at(expected, words, 1 / n[np.ix_(rows, rows)])
    np.testing.assert_allclose(slope[:, 0], expected, rtol=1e-5)
    np.testing.assert_array_equal(slope[:, 1:], 0)


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Pyramid((1, 3, 16)), r"pyramid.sides=\(1, 3, 16\): 3 does not divide"),
        (lambda: Pyramid(()), "at least one layer"),
        (lambda: Pyramid((0, 4)), "sides of 1 and more"),
        (lambda: Pyramid(scheme="qsa"), "pyramid.scheme='qsa': use one of saq, rq, area"),
        (lambda: unflatten(SPAE, np.zeros((1, 20))), "20 words: .* end at 1, 5, 21, 85, 341, 597"),
    ],
)
def test_a_wrong_number_is_named(wrong, message):
    with pytest.raises(UserError, match=message):
        wrong()


def test_latents_of_another_grid_are_refused():
    with pytest.raises(ValueError, match="16x16 grid"):
        quantize(SPAE, np.zeros((1, 8, 8, 4)), np.zeros((5, 4)))
