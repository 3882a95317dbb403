"""The masked transformer: first loss, no peeking, positions, patches of codes, dropped text."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmx.core import rng as rngs
from mmx.core.config import load_config
from mmx.models.muse import loss as losses
from mmx.models.muse.model import MuseTransformer
from mmx.nn.norm import RMSNorm
from mmx.ops import masking

B, GRID, T, E = 2, 4, 5, 30
S = GRID**2
RNG = np.random.default_rng(0)
TEXT = RNG.normal(size=(B, T, 6)).astype(np.float32)
TEXT_MASK = np.arange(T) < np.array([[2], [5]])
IDS = RNG.integers(0, E + 1, (B, S)).astype(np.int32)


@functools.cache
def make(num_codes=E, **changes):
    """(network, parameters, compiled apply)."""
    kwargs = dict(depth=2, width=16, heads=2, mlp=32, patch=1, code_width=0) | changes
    net = MuseTransformer(num_codes, GRID, **kwargs)
    variables = jax.jit(net.init)(jax.random.key(0), IDS % num_codes, TEXT, TEXT_MASK)
    return net, nn.unbox(variables)["params"], jax.jit(lambda p, *a: net.apply({"params": p}, *a))


@pytest.mark.parametrize("num_codes", [1000, 8192])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_first_loss_is_log_of_the_codebook(num_codes, smoothing):
    codes = RNG.integers(0, num_codes, (B, S))
    _, params, apply = make(num_codes, logit_scale=0.1, depth=1)

    def first_loss(louder):
        norm = {"scale": louder * params["head_norm"]["scale"]}
        loss, _ = losses.masked_loss(
            lambda ids, mask: apply({**params, "head_norm": norm}, ids, TEXT, mask),
            codes, np.full((B, S), num_codes, np.int32), np.ones((B, S), bool), TEXT_MASK,
            smoothing, "row",
        )  # fmt: skip
        return float(loss)

    assert first_loss(1) == pytest.approx(np.log(num_codes), rel=0.02)
    assert first_loss(20) == pytest.approx(np.log(num_codes) + 2.0, abs=1.0)


def test_the_papers_configs_start_there_too():
    for name in ("muse/base_3b", "muse/base_632m"):
        assert load_config(name).model.logit_scale ** 2 / 2 < 0.02 * np.log(8192)


def test_logits_cover_the_codes_and_nothing_else():
    _, params, apply = make()
    logits = apply(params, IDS, TEXT, TEXT_MASK)
    assert (logits.shape, logits.dtype) == ((B, S, E), jnp.float32)
    # Tables are padded so that they divide; the mask id has a row.
    assert params["codes"]["embedding"].shape == (128, 16)
    assert params["logits_bias"].shape == (128,)
    # Tied: a code's row moves its own logit, everywhere; the padding's moves none.
    for row, change in ((7, 1.0), (100, 0.0)):
        bias = params["logits_bias"].at[row].add(1.0)
        moved = np.abs(apply({**params, "logits_bias": bias}, IDS, TEXT, TEXT_MASK) - logits)
        assert moved.sum() == pytest.approx(B * S * change, abs=1e-3)


def test_hiding_replaces_exactly_the_hidden_codes():
    key, position = rngs.base_key(0), np.arange(64, dtype=np.uint32)
    codes = RNG.integers(0, E, (64, S)).astype(np.int32)
    ids, hidden = losses.hide(key, position, codes, E)
    np.testing.assert_array_equal(ids, np.where(hidden, E, codes))
    assert 0 < hidden.mean() < 1


def test_all_hidden_says_nothing_of_the_codes():
    _, params, apply = make()
    key, position = rngs.base_key(0), np.arange(B, dtype=np.uint32)
    outputs = []
    for seed in (1, 2):
        codes = np.random.default_rng(seed).integers(0, E, (B, S)).astype(np.int32)
        ids, hidden = losses.hide_at(key, position, codes, E, jnp.ones(B))
        assert np.asarray(hidden).all()
        outputs.append(apply(params, ids, TEXT, TEXT_MASK))
    np.testing.assert_array_equal(*outputs)


@pytest.mark.parametrize("patch", [1, 2])
def test_codes_of_pure_chance_cannot_be_learned(patch):
    """Codes drawn anew each step: a loss under ln E would mean that hidden ids leak in."""
    num_codes, batch = 8, 32
    width = 8 if patch > 1 else 0
    net, params, _ = make(num_codes, patch=patch, code_width=width, depth=1, logit_scale=0.1)
    tx = optax.adam(1e-2)
    text, mask = np.zeros((batch, T, 6), np.float32), np.zeros((batch, T), bool)

    @jax.jit
    def train(params):
        def step(carry, n):
            params, opt = carry
            key = jax.random.fold_in(rngs.base_key(1), n)
            codes = jax.random.randint(rngs.stream(key, "codes"), (batch, S), 0, num_codes)
            position = n * batch + jnp.arange(batch, dtype=jnp.uint32)
            ids, hidden = losses.hide_at(key, position, codes, num_codes, jnp.full(batch, 0.6))

            def loss(p):
                logits = net.apply({"params": p}, ids, text, mask)
                return masking.masked_cross_entropy(logits, codes, hidden)[0].mean()

            value, gradient = jax.value_and_grad(loss)(params)
            updates, opt = tx.update(gradient, opt)
            return (optax.apply_updates(params, updates), opt), value

        return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(150, dtype=jnp.uint32))[1]

    last = np.asarray(train(params))[-50:].mean()
    assert np.log(num_codes) - 0.02 < last < np.log(num_codes) + 0.1


def test_without_positions_it_is_permutation_equivariant_and_with_them_not():
    _, params, apply = make()
    order = np.random.default_rng(1).permutation(S)
    blind = {k: 0 * v if k.startswith("position") else v for k, v in params.items()}
    a, b = (apply(blind, ids, TEXT, TEXT_MASK) for ids in (IDS, IDS[:, order]))
    np.testing.assert_allclose(a[:, order], b, atol=1e-5)
    a, b = (apply(params, ids, TEXT, TEXT_MASK) for ids in (IDS, IDS[:, order]))
    assert np.abs(a[:, order] - b).max() > 0.05


def test_positions_are_a_row_and_a_column():
    _, params, apply = make()
    row, column = params["position_row"], params["position_column"]
    assert row.shape == column.shape == (GRID, 16)
    # Moving one row's vector moves what the model says; moving both by opposite amounts does not.
    shift = 0.5 * np.ones(16, np.float32)
    moved = {**params, "position_row": row + shift, "position_column": column - shift}
    a, b = (apply(p, IDS, TEXT, TEXT_MASK) for p in (params, moved))
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_dropped_text_is_the_null_slot_whatever_the_caption():
    _, params, apply = make()
    nothing = np.zeros((B, T), bool)
    a = apply(params, IDS, TEXT, nothing)
    np.testing.assert_array_equal(a, apply(params, IDS, 100 * TEXT[::-1], nothing))
    assert np.abs(a - apply(params, IDS, TEXT, TEXT_MASK)).max() > 1e-3


def test_padding_of_the_text_is_not_read_but_the_text_is():
    _, params, apply = make()
    a = apply(params, IDS, TEXT, TEXT_MASK)
    padded = np.where(TEXT_MASK[..., None], TEXT, 9.0)
    np.testing.assert_array_equal(a, apply(params, IDS, padded, TEXT_MASK))
    other = TEXT.copy()
    other[:, 0] += 1
    assert np.abs(a - apply(params, IDS, other, TEXT_MASK)).max() > 1e-3


@pytest.mark.parametrize("patch", [1, 2])
def test_each_code_enters_and_leaves_at_its_own_place(patch):
    """The trunk's input and the head by loops over the grid, beside the network's reshapes."""
    Z = 8 if patch > 1 else 16
    net, params, _ = make(patch=patch, code_width=Z if patch > 1 else 0)

    @jax.jit
    def run(params):
        return net.apply(
            {"params": params}, IDS, TEXT, TEXT_MASK,
            capture_intermediates=lambda module, _: module.name in ("trunk", "head", "patch_in"),
        )  # fmt: skip

    logits, captured = run(params)
    inner = {k: np.asarray(v["__call__"][0]) for k, v in captured["intermediates"].items()}
    side = GRID // patch
    if patch > 1:
        expected = np.zeros((B, side, side, 16))
        for i in range(side):
            for j in range(side):
                codes = [IDS[:, (2 * i + a) * GRID + 2 * j + b] for a in range(2) for b in range(2)]
                vector = np.concatenate([params["codes"]["embedding"][c] for c in codes], axis=-1)
                expected[:, i, j] = vector @ params["patch_in"]["kernel"]
        np.testing.assert_allclose(inner["patch_in"], expected, atol=1e-5)
    assert inner["trunk"].shape == (B, side**2, 16)
    y_BLZ = inner["head"]
    for row in range(GRID):
        for column in range(GRID):
            at = (row // patch) * side + column // patch
            part = (row % patch) * patch + column % patch
            y = y_BLZ[:, at, part * Z : (part + 1) * Z]
            y = RMSNorm().apply({"params": params["head_norm"]}, y)
            expected = y @ params["codes"]["embedding"][:E].T / Z**0.5 + params["logits_bias"][:E]
            np.testing.assert_allclose(logits[:, row * GRID + column], expected, atol=1e-5)


def test_a_patch_shortens_the_trunk_and_hides_each_code_alone():
    _, params, apply = make(patch=2, code_width=8)
    a = apply(params, IDS, TEXT, TEXT_MASK)
    assert a.shape == (B, S, E)
    for s in (0, 1, GRID):  # all three in the first patch
        ids = IDS.copy()
        ids[:, s] = (ids[:, s] + 1) % (E + 1)
        assert np.abs(apply(params, ids, TEXT, TEXT_MASK) - a).max() > 1e-4


def test_remat_and_half_precision():
    _, params, apply = make()
    a = apply(params, IDS, TEXT, TEXT_MASK)
    np.testing.assert_allclose(a, make(remat="full")[2](params, IDS, TEXT, TEXT_MASK), atol=1e-5)
    _, fresh, half = make(dtype=jnp.bfloat16)
    b = half(params, IDS, TEXT, TEXT_MASK)
    assert b.dtype == jnp.float32  # logits, for the loss
    np.testing.assert_allclose(a, b, atol=0.1 * np.abs(a).max())
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}
