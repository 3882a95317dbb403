"""A frozen language model at work, on tiny random weights: what it scores and what it writes."""

import dataclasses
import functools
import json
from pathlib import Path
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from safetensors.numpy import save_file

from experiments.parity.lm_weights import weights
from mmx.core.errors import UserError
from mmx.core.rng import base_key
from mmx.models import language_model
from mmx.models.language_model import FrozenLM, Sampling, draw, load_frozen_lm
from mmx.nn.causal_lm import Architecture, CausalLM
from mmx.nn.rope import Rope
from mmx.pretrained.causal_lm import load_causal_lm
from mmx.pretrained.hub import Repository
from mmx.train.sharding import infer_shardings, make_mesh

V = 40
# A window of fewer positions than the texts have, and fewer key heads than heads.
ARCH = Architecture(
    vocab_size=V, width=16, depth=2, heads=4, kv_heads=2, head_size=4, mlp=24, context=64,
    eps=1e-5, windows=(5, 0), ropes=(Rope(), Rope(100.0)), query_scale=0.5,
)  # fmt: skip
RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(0, V, n) for n in (3, 9, 1, 14)]
KEY = base_key(7)
SAMPLING = Sampling(temperature=1.3, top_k=20, top_p=0.9)


def params_of(arch):
    shapes = jax.eval_shape(CausalLM(arch).init, jax.random.key(0), jnp.zeros((1, 1), int))
    rng = np.random.default_rng(1)
    fill = lambda x: (rng.normal(size=x.shape) * 1.5 * x.shape[-1] ** -0.25).astype(np.float32)
    return jax.tree.map(fill, nn.unbox(shapes)["params"])


@functools.cache
def lm():
    return FrozenLM(ARCH, params_of(ARCH))


@jax.jit
def forward(params, ids):
    return CausalLM(ARCH).apply({"params": params}, ids)


def log_probs(ids):
    """[n, V] of one text, by the whole forward pass; padded behind, which changes nothing."""
    padded = np.zeros((1, 32), np.int32)
    padded[0, : len(ids)] = ids
    return np.asarray(jax.nn.log_softmax(forward(lm().params, padded)))[0, : len(ids)]


def by_hand(prompt, candidate):
    table = log_probs([*prompt, *candidate])[len(prompt) - 1 : -1]
    return sum(row[token] for row, token in zip(table, candidate))


def test_a_score_is_the_sum_of_its_tokens():
    """Of candidates of different lengths, one of which begins as another does; by hand, neither
    other prompts nor other candidates are read."""
    candidates = [
        [[5], [5, 6, 7], [5, 6]],
        [RNG.integers(0, V, 6), [1, 1]],
        [[0], [V - 1]],
        [[2, 3, 4, 5]],
    ]
    scores = lm().score(PROMPTS, candidates)
    for prompt, row, got in zip(PROMPTS, candidates, scores, strict=True):
        for candidate, score in zip(row, got, strict=True):
            wanted = by_hand(prompt, candidate)
            np.testing.assert_allclose(score.sum, wanted, atol=1e-4)
            assert score.count == len(candidate)
            np.testing.assert_allclose(score.mean, wanted / len(candidate), atol=1e-4)


def test_questions_that_begin_alike_are_scored_as_if_alone():
    """What they share is read once, and what each adds, of another length or nothing, by itself."""
    first, second = RNG.integers(0, V, 11), RNG.integers(0, V, 8)
    prompts = [
        [*first, 1, 2, 3], [*first, 4], first, [7, 8, 9], [*second, 1], [*second, *first[:7]],
    ]  # fmt: skip
    candidates = [[[5, 6], [5]]] * len(prompts)
    starts, group = language_model.shared_starts(prompts)
    assert group == [0, 0, 0, 1, 2, 2]
    assert starts == [[*first[:-1]], [7, 8], [*second]]
    for prompt, got in zip(prompts, lm().score(prompts, candidates), strict=True):
        wanted = [by_hand(prompt, candidate) for candidate in ([5, 6], [5])]
        np.testing.assert_allclose([score.sum for score in got], wanted, atol=1e-4)


def test_a_short_prompt_does_not_take_the_start_of_a_group_away():
    start, one = [*range(20)], [1, 2]
    starts, group = language_model.shared_starts([start + one, [*start, 3], start[:4] + one])
    assert group == [0, 0, 1] and starts == [start, [*start[:4], 1]]


def test_next_logits_are_of_the_last_token():
    logits = lm().next_logits(PROMPTS)
    for row, prompt in zip(logits, PROMPTS):
        np.testing.assert_allclose(jax.nn.log_softmax(row), log_probs(prompt)[-1], atol=1e-4)


def test_the_likeliest_by_the_cache_is_the_likeliest_without():
    for prompt, drawn in zip(PROMPTS, lm().generate(PROMPTS, 10, KEY), strict=True):
        ids = list(prompt)
        for _ in range(10):
            ids.append(int(log_probs(ids)[-1].argmax()))
        np.testing.assert_array_equal(drawn.ids, ids[len(prompt) :])
        np.testing.assert_allclose(drawn.log_prob, by_hand(prompt, drawn.ids), atol=1e-4)
        assert not drawn.ended


def test_what_is_drawn_for_a_row_knows_no_neighbour():
    together = lm().generate(PROMPTS, 10, KEY, sampling=SAMPLING)
    apart = lm().generate([PROMPTS[3], [1], [2, 3], [4]], 10, KEY, sampling=SAMPLING, first_row=3)
    np.testing.assert_array_equal(apart[0].ids, together[3].ids)
    assert len({tuple(d.ids) for d in lm().generate([[1]] * 4, 10, KEY, sampling=SAMPLING)}) == 4


def test_a_thousand_tokens_are_all_of_the_allowed():
    """Ids that the model finds unlikely, however they are drawn: the mask comes before all else."""
    unlikely = np.argsort(lm().next_logits(PROMPTS)[0])[:7]
    allow = np.isin(np.arange(V), unlikely)
    # The last rows have a mask of their own; log-probabilities are those among the allowed.
    masks = np.tile(allow, (104, 1))
    masks[100:] = np.eye(V)[4:8]
    drawn = lm().generate([[3]] * 104, 10, KEY, masks, SAMPLING)
    ids = np.concatenate([d.ids for d in drawn[:100]])
    assert len(ids) == 1000 and set(ids) <= {*unlikely} and len(set(ids)) > 4
    assert [d.ids.tolist() for d in drawn[100:]] == [[n] * 10 for n in range(4, 8)]
    assert all(d.log_prob == 0.0 for d in drawn[100:])
    for likeliest in lm().generate(PROMPTS, 10, KEY, allow):
        assert len(likeliest.ids) == 10 and set(likeliest.ids) <= {*unlikely}


def test_one_program_serves_a_bucket():
    run = lambda n, length, allow: lm().generate([[1] * n] * 4, length, KEY, allow)
    run(16, 16, np.arange(V) < 5)
    programs = language_model._generate._cache_size()
    run(2, 9, np.arange(V) > 5)
    assert language_model._generate._cache_size() == programs
    run(17, 16, np.arange(V) > 5)
    assert language_model._generate._cache_size() == programs + 1


def test_a_stop_ends_its_row_and_is_not_of_the_text():
    free = lm().generate(PROMPTS, 10, KEY)
    stop = int(free[1].ids[4])
    first = [np.flatnonzero(d.ids == stop) for d in free]
    for before, after, at in zip(free, lm().generate(PROMPTS, 10, KEY, stop_ids=[stop]), first):
        assert after.ended == bool(len(at))
        np.testing.assert_array_equal(after.ids, before.ids[: at[0]] if len(at) else before.ids)
    assert len(first[1])


def test_draws_have_the_law_that_is_asked_for():
    logits = jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1]))
    keys = jax.random.split(KEY, 4000)
    rows = jnp.broadcast_to(logits, (4000, 4))
    shares = lambda *s: np.bincount(draw(keys, rows, Sampling(*s)), minlength=4) / 4000
    squares = np.array([16, 9, 4, 1]) / 30
    for got, wanted in (
        (shares(1.0), [0.4, 0.3, 0.2, 0.1]),
        (shares(0.5), squares),
        (shares(1.0, 2), [4 / 7, 3 / 7, 0, 0]),
        (shares(1.0, 9), [0.4, 0.3, 0.2, 0.1]),
        (shares(1.0, 0, 0.75), [4 / 9, 3 / 9, 2 / 9, 0]),  # 0.7 is less, so a third one stays
        (shares(1.0, 0, 0.69), [4 / 7, 3 / 7, 0, 0]),
        (shares(1.0, 3, 0.5), [4 / 7, 3 / 7, 0, 0]),  # of the three, 4/9 is less than a half
        (shares(1.0, 0, 0.01), [1, 0, 0, 0]),
    ):
        np.testing.assert_allclose(got, wanted, atol=0.03)
        assert ((got > 0) == (np.array(wanted) > 0)).all()


@pytest.mark.parametrize("tied", [True, False])
def test_weights_that_lie_on_a_mesh_write_the_same(tied):
    arch = dataclasses.replace(ARCH, tied=tied)
    mesh = make_mesh(dict(slice=1, data=2, fsdp=2, tensor=2))
    shapes = jax.eval_shape(CausalLM(arch).init, jax.random.key(0), jnp.zeros((1, 1), int))
    shardings = infer_shardings(shapes["params"], mesh)
    params = lm().params
    if not tied:  # other rows than those that are read
        params |= {"head": {"embedding": 2 * jnp.roll(params["tokens"]["embedding"], 1, 0)}}
    whole = FrozenLM(arch, params)
    sharded = FrozenLM(arch, jax.device_put(params, shardings), mesh=mesh)
    table = sharded.params["tokens" if tied else "head"]["embedding"]
    assert table.sharding.spec == PartitionSpec("tensor", "fsdp")
    three = PROMPTS[:3]  # four devices have a row each, one of them a copy
    for a, b in zip(sharded.generate(three, 2, KEY), whole.generate(PROMPTS, 2, KEY)):
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_allclose(a.log_prob, b.log_prob, atol=1e-4)
    # Two of one start and one of another, on four devices.
    three, candidates = [[*PROMPTS[3], 1], [*PROMPTS[3], 2, 3], PROMPTS[1]], [[[5], [6, 7]]] * 3
    sums = lambda rows: [[score.sum for score in row] for row in rows]
    wanted = sums(whole.score(three, candidates))
    np.testing.assert_allclose(sums(sharded.score(three, candidates)), wanted, atol=1e-4)


GOLDENS = Path(__file__).parents[1] / "goldens/pretrained/language_models"


def published(folder, name, heads=4):
    """A repository of random weights, four numbers a head."""
    model = json.loads((GOLDENS / "configs.json").read_text())[name]
    width = 4 * heads
    sizes = {"hidden_size": width, "num_attention_heads": heads, "num_key_value_heads": heads}
    (folder / "config.json").write_text(json.dumps(model["config"] | sizes))
    shapes = {n: [width if d in (8, 16) else d for d in s] for n, s in model["tensors"].items()}
    save_file(weights(shapes), folder / "model.safetensors")
    return Repository(folder)


def test_a_model_is_spread_within_each_slice():
    devices = [SimpleNamespace(slice_index=i // 8) for i in range(16)]
    assert language_model._spread(576, devices) == {"slice": 2, "data": -1, "fsdp": 8, "tensor": 1}
    assert language_model._spread(12, devices) == {"slice": 2, "data": -1, "fsdp": 4, "tensor": 1}
    assert language_model._spread(576, [SimpleNamespace()] * 5)["fsdp"] == 1


def scores_of(net):
    """Of three prompts, two of which begin alike."""
    rows = net.score([[*range(20), 1], [*range(20), 2, 3], [7]], [[[5], [6, 7]]] * 3)
    return np.array([[score.sum for score in row] for row in rows])


def held(params, shard=lambda x: x):
    return sum(shard(x).nbytes for x in jax.tree.leaves(params))


# One head of rows of its own, one that is the embeddings.
@pytest.mark.parametrize(("name", "heads", "ways"), [("llama2", 4, 8), ("smollm2", 3, 4)])
def test_a_published_model_is_spread_over_all_devices(name, heads, ways, tmp_path):
    """Over four of two times four where eight do not divide its width; norms are whole on each."""
    repository = published(tmp_path, name, heads)
    net, alone = load_frozen_lm(repository, "float32"), FrozenLM(*load_causal_lm(repository))
    first = held(net.params, lambda x: x.addressable_data(0))
    assert 1 / ways <= first / held(alone.params) < 1.1 / ways
    for x in jax.tree.leaves(net.params):
        assert len(x.sharding.device_set) == 8
    np.testing.assert_allclose(scores_of(net), scores_of(alone), atol=1e-4)


def test_bfloat16_is_kept_and_computed_with(tmp_path):
    """Log-probabilities of one or two tokens, each about -4, differ by hundredths; logits are
    sums that nobody rounded."""
    repository = published(tmp_path, "llama2")
    half, full = (load_frozen_lm(repository, dtype) for dtype in ("bfloat16", "float32"))
    assert {x.dtype for x in jax.tree.leaves(half.params)} == {jnp.dtype(jnp.bfloat16)}
    assert 2 * held(half.params) == held(full.params)
    error = np.abs(scores_of(half) - scores_of(full))
    assert 1e-4 < error.max() < 0.15
    logits = half.next_logits([[1, 2, 3]])
    assert logits.dtype == np.float32
    assert (logits != logits.astype(jnp.bfloat16).astype(np.float32)).mean() > 0.9
    assert all(len(drawn.ids) == 5 for drawn in half.generate([[1, 2], [3]], 5, KEY))


def test_the_table_is_the_rows_of_the_vocabulary():
    table = lm().embedding_table()
    np.testing.assert_array_equal(table, lm().params["tokens"]["embedding"][:V])
    assert table.shape == (V, 16)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: m.generate([[]], 4, KEY), "an empty prompt"),
        (lambda m: m.generate([[V]], 4, KEY), f"prompt with ids {V}..{V}: this model's are 0..39"),
        (lambda m: m.generate([[1] * 60], 5, KEY), "60 tokens and 5 more: this model reads 64"),
        (lambda m: m.generate([[1]], 4, KEY, np.zeros(V, bool)), "it allows no id"),
        (lambda m: m.generate([[1]], 4, KEY, np.ones(V + 1, bool)), r"allow of shape \(1, 41\)"),
        (lambda m: m.generate([[1]], 4, KEY, sampling=Sampling(-1.0)), "temperature=-1.0"),
        (lambda m: m.generate([[1]], 4, KEY, sampling=Sampling(1.0, 0, 0.0)), "top_p=0.0"),
        (lambda m: m.generate([[1]], 4, KEY, sampling=Sampling(1.0, -2)), "top_k=-2"),
        (lambda m: m.score([[1]], [[[]]]), "an empty candidate"),
        (lambda m: m.score([[1]], [[[-1]]]), "candidate with ids -1..-1"),
        (lambda m: m.score([[1] * 63], [[[1, 2]]]), "63 tokens and 2 more"),
    ],
)
def test_bad_input_is_one_clear_line(call, words):
    with pytest.raises(UserError, match=words):
        call(lm())


def test_positions_of_a_table_end_where_it_ends():
    """GPT-2's: a prompt in the last bucket is padded beyond the table."""
    arch = dataclasses.replace(ARCH, ropes=(), windows=(0, 0), context=20, layer_norm=True)
    net = FrozenLM(arch, params_of(arch))
    run = jax.jit(CausalLM(arch).apply)
    whole = run({"params": net.params}, np.arange(18)[None])[0, -1]
    np.testing.assert_allclose(net.next_logits([np.arange(18)])[0], whole, atol=1e-4)
    # To the table's last place, of a shared start, of its two tails the longer one.
    log_probs = jax.nn.log_softmax(run({"params": net.params}, np.arange(20)[None])[0])
    longer, shorter = net.score([np.arange(18), np.arange(15)], [[[18, 19]], [[15]]])
    np.testing.assert_allclose(longer[0].sum, log_probs[17, 18] + log_probs[18, 19], atol=1e-4)
    np.testing.assert_allclose(shorter[0].sum, log_probs[14, 15], atol=1e-4)
