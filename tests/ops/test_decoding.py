"""Parallel decoding: counts, commitment, temperatures, guidance (invariants 6-9; P7, P9-P12).

The checks are functions of their own, so that each can be shown to fail on a planted bug.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmx.core.errors import UserError
from mmx.ops import decoding, schedules

MASK = 20
VOCAB = 20
TABLES = {  # spec section 7.1: newly revealed tokens at each step
    (256, 24): "1 2 2 4 5 6 7 8 9 9 11 11 13 13 13 14 15 16 15 16 17 16 17 16",
    (256, 12): "3 6 11 15 18 22 26 27 31 31 33 33",
    (256, 8): "5 15 24 31 39 45 48 49",
    (4096, 8): "79 233 379 509 621 708 768 799",
    (64, 12): "1 2 2 4 5 5 7 6 8 8 8 8",
    (64, 8): "2 3 6 8 10 11 12 12",
}


def keys(num, seed=0):
    return jax.random.split(jax.random.key(seed), num)


def network(dtype=jnp.float32, spread=2.0):
    """A stand-in for a model: logits of a row depend on all its ids, and on the step."""
    table = jax.random.normal(jax.random.key(7), (VOCAB + 1, VOCAB))

    def logits_fn(ids_BS, step):
        x = table[ids_BS] + 0.3 * table[jnp.roll(ids_BS, 1, 1)] + 0.01 * step
        return (spread * x).astype(dtype)

    return logits_fn


def constant(dtype=jnp.float32):
    return lambda ids_BS, step: jnp.zeros((*ids_BS.shape, VOCAB), dtype)


def compiled(logits_fn, steps, **options):
    """(ids_BS, keys_B) -> (ids, trace), compiled afresh, so that a planted bug is seen."""

    def decode(ids, keys_B):
        return decoding.decode(logits_fn, ids, keys_B, mask_id=MASK, num_steps=steps, **options)

    return jax.jit(decode)


def run(ids, logits_fn, steps, **options):
    out, trace = compiled(logits_fn, steps, **options)(ids, keys(ids.shape[0]))
    return np.asarray(out), np.asarray(trace)


def revealed(ids, trace):
    hidden = np.concatenate([np.asarray(ids)[None], trace]) == MASK
    return -np.diff(hidden.sum(-1), axis=0)  # [R, B]


def holes(unknown, tokens=64, seed=1):
    """Ids [B, tokens] of which row b has unknown[b] hidden, scattered."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, VOCAB, (len(unknown), tokens), np.int32)
    for row, count in zip(ids, unknown):
        row[rng.permutation(tokens)[:count]] = MASK
    return jnp.asarray(ids)


# ------------------------------------------------------------------ checks


def check_counts(logits_fn, **options):
    ids = holes([64, 64])
    out, trace = run(ids, logits_fn, 12, **options)
    expected = [int(n) for n in TABLES[64, 12].split()]
    for row in revealed(ids, trace).T:
        np.testing.assert_array_equal(row, expected)
    assert ((out >= 0) & (out < VOCAB)).all()


def check_per_row_counts():
    """Each row follows the schedule of its own number of holes."""
    unknown = [64, 40, 12, 3, 1, 0]
    ids = holes(unknown)
    out, trace = run(ids, network(), 12)
    assert (out != MASK).all()
    got = revealed(ids, trace)
    for row, n in zip(got.T, unknown):
        left, expected = n, []
        for t in range(12):
            keep = int(np.floor(n * np.cos(np.pi / 2 * (t + 1) / 12) + 1e-9))
            keep = 0 if t == 11 or left == 0 else min(max(keep, 1), left - 1)
            expected.append(left - keep)
            left = keep
        np.testing.assert_array_equal(row, expected)


def check_known_stay(dtype=jnp.float32, **options):
    ids = holes([64, 40, 12, 3, 0])
    known = np.asarray(ids) != MASK
    _, trace = run(ids, network(dtype), 12, **options)
    before = np.asarray(ids)
    for now in trace:
        committed = before != MASK
        np.testing.assert_array_equal(now[committed], before[committed])
        before = now
    np.testing.assert_array_equal(trace[-1][known], np.asarray(ids)[known])


# ------------------------------------------------------------------ counts


@pytest.mark.parametrize("tokens, steps", TABLES)
def test_reveal_tables(tokens, steps):
    ids = jnp.full((2, tokens), MASK)
    out, trace = run(ids, network(), steps)
    expected = [int(n) for n in TABLES[tokens, steps].split()]
    for row in revealed(ids, trace).T:
        np.testing.assert_array_equal(row, expected)
    assert sum(expected) == tokens and min(expected) > 0
    np.testing.assert_array_equal(trace[-1], out)


@pytest.mark.parametrize("logits", [network, constant])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_counts_are_exact_with_ties(logits, dtype):
    check_counts(logits(dtype), choice_temperature=0.0)


@pytest.mark.parametrize("selection", decoding.SELECTIONS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_counts_do_not_depend_on_the_selection(selection, temperature):
    check_counts(network(), selection=selection, sampling_temperature=temperature)


def test_counts_are_exact_where_logits_are_not_finite():
    def logits_fn(ids_BS, step):
        return jnp.full((*ids_BS.shape, VOCAB), -jnp.inf).at[..., 0].set(jnp.nan)

    check_counts(logits_fn)


@pytest.mark.parametrize("compare", [jnp.greater, jnp.greater_equal])
def test_count_check_catches_a_threshold(monkeypatch, compare):
    """Spec P11: comparing with the count-th score reveals none or all of equal scores."""

    def threshold(score_BS, eligible_BS, count_B):
        ordered = -jnp.sort(-jnp.where(eligible_BS, score_BS, -jnp.inf), -1)
        cut = jnp.take_along_axis(ordered, jnp.maximum(count_B - 1, 0)[:, None], -1)
        return eligible_BS & compare(score_BS, cut)

    monkeypatch.setattr(decoding, "top_count", threshold)
    with pytest.raises(AssertionError):
        check_counts(constant(), choice_temperature=0.0)


def test_every_row_follows_its_own_number_of_unknowns():
    check_per_row_counts()


def test_row_check_catches_a_schedule_of_the_whole_length(monkeypatch):
    """Spec P12 (and P13): counts from the sequence length, not from what is unknown."""
    own = schedules.hidden_counts

    def of_length(schedule, num_steps, tokens):
        return np.repeat(own(schedule, num_steps, tokens)[:, -1:], tokens + 1, 1)

    monkeypatch.setattr(schedules, "hidden_counts", of_length)
    with pytest.raises(AssertionError):
        check_per_row_counts()


@pytest.mark.parametrize("steps", [1, 64, 100])
def test_one_step_as_many_as_tokens_and_more(steps):
    ids = holes([64, 3])
    out, trace = run(ids, network(), steps)
    got = revealed(ids, trace)
    assert (out != MASK).all()
    np.testing.assert_array_equal(got.sum(0), [64, 3])
    assert got.max() == 64 if steps == 1 else got.max() == 1
    if steps <= 64:
        assert (got[:, 0] > 0).all()


def test_at_least_one_token_stays_hidden_while_more_than_one_is_left(monkeypatch):
    """The lower clamp, which only a curve that falls below one token early can show."""
    monkeypatch.setitem(schedules.HIDDEN_SHARE, "steep", lambda x: (1 - x) ** 4)
    ids = holes([64])
    _, trace = run(ids, constant(), 6, schedule="steep")
    # 64 (1/3)^4 is 0.8: without the clamp the fourth step would reveal all of the last four.
    np.testing.assert_array_equal(revealed(ids, trace)[:, 0], [34, 18, 8, 3, 1, 0])


# ------------------------------------------------------------------ commitment


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_known_tokens_never_change(dtype):
    check_known_stay(dtype, sampling_temperature=100.0, choice_temperature=100.0)


def test_commitment_check_catches_overwriting(monkeypatch):
    """Spec P9: known tokens score +inf, are among the best, and are drawn afresh."""
    own = decoding.top_count

    def overwrite(score_BS, eligible_BS, count_B):
        score_BS = jnp.where(eligible_BS, score_BS, jnp.inf)
        known_B = (~eligible_BS).sum(-1)
        return own(score_BS, jnp.ones_like(eligible_BS), count_B + known_B)

    monkeypatch.setattr(decoding, "top_count", overwrite)
    with pytest.raises(AssertionError):
        check_known_stay()


def test_count_check_catches_a_finite_confidence_of_known_tokens(monkeypatch):
    """Spec P10: log of the largest float16 is 11; at temperature 100 the noise is above it."""
    own = decoding.top_count

    def finite(score_BS, eligible_BS, count_B):
        score_BS = jnp.where(eligible_BS, score_BS, jnp.log(jnp.finfo(jnp.float16).max))
        known_B = (~eligible_BS).sum(-1)
        shown = own(score_BS, jnp.ones_like(eligible_BS), count_B + known_B)
        return shown & eligible_BS

    monkeypatch.setattr(decoding, "top_count", finite)
    with pytest.raises(AssertionError):
        check_counts(network(), choice_temperature=100.0)


@pytest.mark.parametrize("selection", decoding.SELECTIONS)
def test_a_row_does_not_depend_on_its_batch(selection):
    ids, keys_B = holes([64, 30, 5]), keys(3)
    decode = compiled(network(), 4, selection=selection)
    together, _ = decode(ids, keys_B)
    for i in range(3):
        alone, _ = decode(ids[i : i + 1], keys_B[i : i + 1])
        np.testing.assert_array_equal(alone[0], together[i])
    # Rows of equal ids but different keys differ.
    twins, _ = decode(jnp.stack([ids[0]] * 3), keys_B)
    assert (twins[0] != twins[1]).any()


# ------------------------------------------------------------------ temperatures


def test_temperature_zero_is_deterministic():
    ids = holes([64, 40])
    zero = compiled(network(), 8, sampling_temperature=0.0, choice_temperature=0.0)
    np.testing.assert_array_equal(zero(ids, keys(2, 0))[1], zero(ids, keys(2, 1))[1])
    one = compiled(network(), 8)
    assert (one(ids, keys(2, 0))[0] != one(ids, keys(2, 1))[0]).any()


def test_temperature_zero_takes_the_most_likely_ids_most_confident_first():
    def logits_fn(ids_BS, step):
        tokens = jnp.arange(ids_BS.shape[1])
        return jnp.zeros((*ids_BS.shape, VOCAB)).at[:, tokens, tokens % VOCAB].set(0.1 * tokens)

    ids = jnp.full((1, 64), MASK)
    out, trace = run(ids, logits_fn, 8, sampling_temperature=0.0, choice_temperature=0.0)
    np.testing.assert_array_equal(out[0], np.arange(64) % VOCAB)
    hidden = (trace[:, 0] == MASK).sum(-1)
    for step in range(8):
        np.testing.assert_array_equal(trace[step, 0] == MASK, np.arange(64) < hidden[step])


def scores_of_steps(monkeypatch, steps, **options):
    """The scores [R, S] that positions were ranked by, in a run over six hidden tokens."""
    scores = []
    own = decoding.top_count

    def spy(score_BS, eligible_BS, count_B):
        jax.debug.callback(lambda score: scores.append(np.asarray(score)), score_BS, ordered=True)
        return own(score_BS, eligible_BS, count_B)

    monkeypatch.setattr(decoding, "top_count", spy)
    run(jnp.full((1, 6), MASK), constant(), steps, **options)
    jax.effects_barrier()
    return np.stack(scores)[:, 0]


def test_noise_on_the_confidence_falls_on_a_line(monkeypatch):
    """Spec P7, in the loop itself: with noise 1 and equal logits the score is the weight - ln V."""
    monkeypatch.setattr(jax.random, "gumbel", lambda key, shape: jnp.ones(shape))
    weights = scores_of_steps(monkeypatch, 5, choice_temperature=4.5) + np.log(VOCAB)
    expected = 4.5 * (1 - np.arange(1, 6) / 5)
    np.testing.assert_allclose(weights, np.repeat(expected[:, None], 6, 1), atol=1e-5)


def test_every_step_draws_anew(monkeypatch):
    scores = scores_of_steps(monkeypatch, 5, selection="random")
    assert len(np.unique(scores)) == scores.size


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_sampling_temperature_divides_the_logits(temperature):
    logits_V = jnp.linspace(-2, 2, VOCAB)

    def logits_fn(ids_BS, step):
        return jnp.broadcast_to(logits_V, (*ids_BS.shape, VOCAB))

    out, _ = run(jnp.full((200, 64), MASK), logits_fn, 1, sampling_temperature=temperature)
    share = np.bincount(out.ravel(), minlength=VOCAB) / out.size
    np.testing.assert_allclose(share, jax.nn.softmax(logits_V / temperature), atol=0.012)


def test_halton_reveals_in_its_order():
    ids = jnp.full((2, 64), MASK)
    _, trace = run(ids, network(), 6, selection="halton")
    place = schedules.halton_order((8, 8))
    for shown in trace != MASK:
        np.testing.assert_array_equal(shown[0], place < shown[0].sum())
        np.testing.assert_array_equal(shown[0], shown[1])


def test_schedules_reach_the_loop():
    ids = jnp.full((1, 256), MASK)
    first = {
        name: int(revealed(ids, run(ids, constant(), 12, schedule=name)[1])[0, 0])
        for name in schedules.HIDDEN_SHARE
    }
    assert first == {"cosine": 3, "arccos": 14, "linear": 22}


# ------------------------------------------------------------------ guidance


def test_guidance():
    a, b = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    np.testing.assert_array_equal(decoding.guide(a, b, 0.0), a)
    for t in (0.5, 3.0, 1e4):
        np.testing.assert_array_equal(decoding.guide(a, a, t), a)
        np.testing.assert_allclose(decoding.guide(a, b, t), (1 + t) * a - t * b, rtol=2e-3)
    s = 1 + 3.0
    np.testing.assert_allclose(decoding.guide(a, b, 3.0), b + s * (a - b), atol=1e-5)


# ------------------------------------------------------------------ mistakes


def test_mistakes_are_named():
    ids = jnp.full((1, 6), MASK)
    with pytest.raises(ValueError, match="mask_id = 20 is one of the 21 ids"):
        run(ids, lambda ids_BS, step: jnp.zeros((1, 6, VOCAB + 1)), 2)
    with pytest.raises(UserError, match=r"selection = 'best'.*confidence, random, halton"):
        run(ids, constant(), 2, selection="best")
    with pytest.raises(UserError, match="sampling_temperature = -1"):
        run(ids, constant(), 2, sampling_temperature=-1)
    with pytest.raises(UserError, match="num_steps = 0"):
        run(ids, constant(), 0)
    with pytest.raises(ValueError, match="6 tokens are no square"):
        run(ids, constant(), 2, selection="halton")
