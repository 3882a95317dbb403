"""A frozen language model at work: it scores what may follow a text, and writes what follows.

    lm = load_frozen_lm(repository, "float32")
    scores = lm.score([prompt_ids], [[cat_ids, dog_ids]])
    drawn = lm.generate([prompt_ids], max_new=20, key=key, allow=allow_V)

Ids go in and ids come out. Programs are compiled for lengths rounded up
(:func:`mmx.core.lengths.bucket`), so that many prompts share one.
Axis letters: B rows, T tokens of a prompt, S tokens of its candidates, R new tokens, V vocabulary.
"""

import contextlib
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmx.core.errors import UserError
from mmx.core.lengths import bucket
from mmx.core.rng import row_keys
from mmx.nn.cache import Cache, write
from mmx.nn.causal_lm import Architecture, CausalLM
from mmx.nn.dtypes import DTYPES
from mmx.pretrained.causal_lm import load_causal_lm, read_architecture
from mmx.pretrained.hub import Repository
from mmx.train.sharding import infer_shardings, make_mesh

Ids = Sequence[int] | np.ndarray
_LEAST = 16  # ours: the shortest length of prompts that is compiled
_FEW = 4  # ours: and of what follows a prompt that others share: a few words, an answer


class Sampling(NamedTuple):
    """How a token is drawn of its distribution.

    Attributes:
      temperature: divides the logits; 0 takes the likeliest.
      top_k: only of so many; 0: of all.
      top_p: only of the likeliest that have so much together, after the others.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0


GREEDY = Sampling()


class Scores(NamedTuple):
    """Of a candidate: the log-probability of its tokens, and how many they are."""

    sum: float
    count: int

    @property
    def mean(self) -> float:
        return self.sum / self.count


class Drawn(NamedTuple):
    """What followed a prompt, without the token that ended it.

    Attributes:
      ids: int32 [n].
      log_prob: of those, at temperature 1 among the allowed.
      ended: by a stop token, which log_prob counts too; else there was no more room.
    """

    ids: np.ndarray
    log_prob: float
    ended: bool


def load_frozen_lm(repository: Repository, dtype: str) -> "FrozenLM":
    """A published model on all devices, its parameters spread over as many as divide its width.

    Args:
      repository: of `transformers`' form.
      dtype: of `DTYPES`: what its parameters are kept in and computed with.

    Raises:
      UserError: see :func:`mmx.pretrained.causal_lm.load_causal_lm`.
    """
    mesh = make_mesh(_spread(read_architecture(repository).width, jax.devices()))
    spread = lambda boxed: infer_shardings(boxed, mesh)
    arch, params = load_causal_lm(repository, spread, DTYPES[dtype])
    return FrozenLM(arch, params, DTYPES[dtype], mesh)


def _spread(width: int, devices: Sequence[jax.Device]) -> dict[str, int]:
    """Sizes of a mesh: within each TPU slice over as many devices as divide the width."""
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    ways = math.gcd(width, len(devices) // slices)
    return {"slice": slices, "data": -1, "fsdp": ways, "tensor": 1}


class FrozenLM:
    """Weights of a causal language model, none of which changes.

    Args:
      arch, params: of :func:`mmx.pretrained.causal_lm.load_causal_lm`.
      dtype: of the computation; log-probabilities are float32 in any.
      mesh: that the parameters lie on, or None.
    """

    def __init__(
        self, arch: Architecture, params: Any, dtype: jnp.dtype = jnp.float32, mesh: Any = None
    ):
        self.arch, self.mesh = arch, mesh
        self.params = jax.tree.map(jnp.asarray, params)
        self._net = CausalLM(arch, dtype)

    def embedding_table(self) -> jax.Array:
        """[V, D], the rows as they are kept: the first layer reads ``arch.embed_scale`` times
        those."""
        return self.params["tokens"]["embedding"][: self.arch.vocab_size]

    def next_logits(self, prompts: Sequence[Ids]) -> np.ndarray:
        """float32 [B, V]: of what follows each prompt. Raises UserError as :meth:`generate`."""
        self._check_prompts(prompts, 0)
        ids_BT, length_B = self._rows(prompts)
        return self._run(_next_logits, ids_BT, length_B)[: len(prompts)]

    def score(
        self, prompts: Sequence[Ids], candidates: Sequence[Sequence[Ids]]
    ) -> list[list[Scores]]:
        """Log-probabilities of candidates, each as what follows its prompt.

        A prompt is read once, its candidates together after it; where prompts that follow each
        other begin alike, as an episode's questions do, what they share is read once for them all.

        Args:
          prompts: at least one id each (a start of text where there is no other).
          candidates: of each prompt, at least one id each.

        Raises:
          UserError: an empty prompt or candidate, ids of no token, more than the context holds.
        """
        longest = [max((len(c) for c in row), default=0) for row in candidates]
        for row in candidates:
            for candidate in row:
                self._check("candidate", candidate)
        self._check_prompts(prompts, max(longest, default=0))
        start_ids, group = shared_starts(prompts)
        start_GT, start_G = self._rows(start_ids)
        tail_BR, tail_B = self._rows(
            [p[len(start_ids[g]) : -1] for p, g in zip(prompts, group, strict=True)], _FEW
        )
        more = [group[0]] * (len(tail_BR) - len(group))  # rows that fill up are the first one again
        group_B = np.array([*group, *more], np.int32)
        # Each candidate is read behind the prompt's last token, and all at once as texts of one
        # row that do not read one another.
        total = [sum(len(c) for c in row) for row in candidates]
        shape = (len(tail_BR), bucket(max(total, default=0), _FEW))
        ids_BS, target_BS, offset_BS = (np.zeros(shape, np.int32) for _ in range(3))
        document_BS = np.full(shape, -1, np.int32)
        for b, row in enumerate(candidates):
            at = 0
            for number, candidate in enumerate(row):
                here = slice(at, at := at + len(candidate))
                ids_BS[b, here] = [prompts[b][-1], *candidate[:-1]]
                target_BS[b, here], document_BS[b, here] = candidate, number
                offset_BS[b, here] = np.arange(len(candidate))
        prompt = start_GT, start_G, group_B, tail_BR, tail_B
        out_BS = self._run(_score, *prompt, ids_BS, target_BS, offset_BS, document_BS)
        return [
            [
                Scores(float(out_BS[b, document_BS[b] == number].sum(dtype=np.float64)), len(c))
                for number, c in enumerate(row)
            ]
            for b, row in enumerate(candidates)
        ]

    def generate(
        self,
        prompts: Sequence[Ids],
        max_new: int,
        key: jax.Array,
        allow: np.ndarray | None = None,
        sampling: Sampling = GREEDY,
        stop_ids: Sequence[int] = (),
        first_row: int = 0,
    ) -> list[Drawn]:
        """Write on after each prompt.

        Args:
          prompts: of any lengths, at least one id each.
          max_new: the most new tokens.
          key: with a row's number, of all that is drawn for it: its neighbours change nothing.
          allow: bool [V], or [B, V] for each prompt: which ids may come; None: all.
          sampling: how they are drawn, of what is allowed.
          stop_ids: each of which, if allowed, ends a row.
          first_row: the number of the first row.

        Raises:
          UserError: an empty prompt, ids of no token, more than the context holds, nothing allowed,
            or sampling out of range.
        """
        _check_sampling(sampling)
        self._check_prompts(prompts, max_new)
        ids_BT, length_B = self._rows(prompts)
        allow = np.ones((1, self.arch.vocab_size), bool) if allow is None else np.atleast_2d(allow)
        if allow.shape not in {(n, self.arch.vocab_size) for n in (1, len(prompts))}:
            raise UserError(
                f"allow of shape {allow.shape}: one bool for each of the {self.arch.vocab_size} ids"
                " of this model, or such a row for each prompt"
            )
        if not allow.any(-1).all():
            raise UserError("allow: it allows no id at all")
        allow_BV = np.resize(allow, (len(ids_BT) if len(allow) > 1 else 1, allow.shape[1]))
        stops_V = np.isin(np.arange(self.arch.vocab_size), stop_ids)
        keys_B = row_keys(key, "generate", first_row + jnp.arange(len(ids_BT)))
        draw = functools.partial(_generate, places=bucket(max_new, _LEAST), sampling=sampling)
        ids_BR, log_prob_BR, count_B = self._run(
            draw, ids_BT, length_B, allow_BV, stops_V, keys_B, np.int32(max_new)
        )
        drawn = []
        for ids, log_prob, count in zip(ids_BR[: len(prompts)], log_prob_BR, count_B):
            total = float(log_prob[:count].sum(dtype=np.float64))
            ended = bool(count and stops_V[ids[count - 1]])
            drawn.append(Drawn(ids[: count - ended], total, ended))
        return drawn

    def _check(self, what: str, ids: Ids) -> None:
        if len(ids) == 0:
            raise UserError(f"an empty {what}: give at least one id")
        if min(ids) < 0 or max(ids) >= self.arch.vocab_size:
            raise UserError(
                f"{what} with ids {min(ids)}..{max(ids)}: this model's are "
                f"0..{self.arch.vocab_size - 1}"
            )

    def _check_prompts(self, prompts: Sequence[Ids], more: int) -> None:
        for prompt in prompts:
            self._check("prompt", prompt)
        longest = max(map(len, prompts))
        if longest + more > self.arch.context:
            raise UserError(
                f"a prompt of {longest} tokens and {more} more: this model reads "
                f"{self.arch.context}; shorten it"
            )

    def _rows(self, some: Sequence[Ids], least: int = _LEAST) -> tuple[np.ndarray, np.ndarray]:
        """int32 [B, T] padded with 0 behind, and each length; B may be more than there are."""
        ways = 1
        if self.mesh is not None:  # rows are spread over these axes
            ways = self.mesh.size // self.mesh.shape["tensor"]
        rows = -(-len(some) // ways) * ways
        ids_BT = np.zeros((rows, bucket(max(map(len, some)), least)), np.int32)
        filled = [*some, *[some[0]] * (rows - len(some))]
        for row, ids in zip(ids_BT, filled):
            row[: len(ids)] = ids
        return ids_BT, np.array([len(ids) for ids in filled], np.int32)

    def _run(self, program, *args):
        context = contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)
        with context:
            return jax.device_get(program(self._net, self.params, *args))


def shared_starts(prompts: Sequence[Ids]) -> tuple[list[Ids], list[int]]:
    """What prompts that follow each other begin with together.

    A prompt joins the group before it where at least half of itself and of what the group shared
    stay shared; the last id of a prompt never is.

    Returns:
      (the start of each group, the number of each prompt's group).
    """
    starts: list[Ids] = []
    group: list[int] = []
    for prompt in prompts:
        body = [int(i) for i in prompt[:-1]]
        pairs = zip(starts[-1], body) if starts else ()
        common = [one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)]
        if not starts or 2 * len(common) < max(len(prompt), len(starts[-1])):
            starts.append(body)
        else:
            starts[-1] = common
        group.append(len(starts) - 1)
    return starts, group


def _check_sampling(sampling: Sampling) -> None:
    for name, value, right, words in (
        ("temperature", sampling.temperature, sampling.temperature >= 0, "at least 0"),
        ("top_k", sampling.top_k, sampling.top_k >= 0, "at least 0"),
        ("top_p", sampling.top_p, 0 < sampling.top_p <= 1, "above 0 and at most 1"),
    ):
        if not right:
            raise UserError(f"sampling.{name}={value}: it has to be {words}")


def _prefill(net: CausalLM, params, ids_BT, length_B, cache: Cache | None = None):
    """(x [B, T, D], keys, values) of texts that are padded behind, which follow the cache: nothing
    reads the padding."""
    at_T = jnp.arange(ids_BT.shape[1])
    document_BT = jnp.where(at_T < length_B[:, None], 0, -1)
    # Padding has a place in a learned table too.
    position_BT = jnp.minimum(at_T, jnp.maximum(length_B[:, None] - 1, 0))
    if cache is not None:
        position_BT += cache.length_B[:, None]
    return net.apply({"params": params}, ids_BT, position_BT, document_BT, cache, method="hidden")


def _logits(net: CausalLM, params, x):
    return net.apply({"params": params}, x, method="logits")


def _last(x_BTD, length_B):
    return jnp.take_along_axis(x_BTD, length_B[:, None, None] - 1, axis=1)[:, 0]


@functools.partial(jax.jit, static_argnums=0)
def _next_logits(net, params, ids_BT, length_B):
    x_BTD, _, _ = _prefill(net, params, ids_BT, length_B)
    return _logits(net, params, _last(x_BTD, length_B))


@functools.partial(jax.jit, static_argnums=0)
def _score(net, params, start_GT, start_G, group_B, tail_BR, tail_B,
           ids_BS, target_BS, offset_BS, document_BS):  # fmt: skip
    """float32 [B, S]: the log-probability of each target."""
    _, k, v = _prefill(net, params, start_GT, start_G)
    R = tail_BR.shape[1]
    of_row = lambda x: jnp.pad(x[:, group_B], [(0, 0)] * 3 + [(0, R), (0, 0)])
    cache = Cache(of_row(k), of_row(v), start_G[group_B])
    _, k, v = _prefill(net, params, tail_BR, tail_B, cache)
    # The prompt's last token is read with each candidate, which predicts its first.
    cache = write(cache, k, v, tail_B)
    position_BS = cache.length_B[:, None] + offset_BS
    x_BSD, _, _ = net.apply(
        {"params": params}, ids_BS, position_BS, document_BS, cache, method="hidden"
    )
    logits_BSV = _logits(net, params, x_BSD)
    chosen_BS = jnp.take_along_axis(logits_BSV, target_BS[..., None], axis=-1)[..., 0]
    return chosen_BS - jax.nn.logsumexp(logits_BSV, axis=-1)


@functools.partial(jax.jit, static_argnums=0, static_argnames=("places", "sampling"))
def _generate(net, params, ids_BT, length_B, allow_BV, stops_V, keys_B, limit, *, places, sampling):
    """(ids, their log-probabilities [B, places], how many there are [B])."""
    x_BTD, k, v = _prefill(net, params, ids_BT, length_B)
    room = [(0, 0)] * 3 + [(0, places), (0, 0)]
    cache = Cache(jnp.pad(k, room), jnp.pad(v, room), length_B)
    logits_BV = _logits(net, params, _last(x_BTD, length_B))
    B = len(ids_BT)

    def step(state):
        number, cache, logits_BV, out, log_prob, count_B, live_B = state
        logits_BV = jnp.where(allow_BV, logits_BV, -jnp.inf)  # before all else
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys_B, number)
        id_B = draw(keys, logits_BV, sampling)
        chosen_B = jnp.take_along_axis(logits_BV, id_B[:, None], axis=-1)[:, 0]
        out = out.at[:, number].set(id_B)
        log_prob = log_prob.at[:, number].set(chosen_B - jax.nn.logsumexp(logits_BV, axis=-1))
        count_B = count_B + live_B
        live_B = live_B & ~stops_V[id_B]
        x_BTD, k, v = net.apply({"params": params}, id_B[:, None], cache=cache, method="hidden")
        cache = write(cache, k, v, jnp.ones(B, jnp.int32))
        return number + 1, cache, _logits(net, params, x_BTD[:, 0]), out, log_prob, count_B, live_B

    out = jnp.zeros((B, places), jnp.int32)
    start = (0, cache, logits_BV, out, out.astype(jnp.float32), jnp.zeros(B, jnp.int32),
             jnp.ones(B, bool))  # fmt: skip
    more = lambda state: (state[0] < limit) & state[-1].any()
    _, _, _, out, log_prob, count_B, _ = jax.lax.while_loop(more, step, start)
    return out, log_prob, count_B


def draw(keys_B: jax.Array, logits_BV: jax.Array, sampling: Sampling) -> jax.Array:
    """int32 [B]. Logits of -inf are never drawn, whatever the rest; one has to be finite."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits_BV = logits_BV / sampling.temperature
    if sampling.top_k or sampling.top_p < 1:
        falling_BV = -jnp.sort(-logits_BV, axis=-1)
        least_B1 = jnp.full((len(logits_BV), 1), -jnp.inf)
        if sampling.top_k:
            least_B1 = falling_BV[:, min(sampling.top_k, falling_BV.shape[1]) - 1][:, None]
            falling_BV = jnp.where(falling_BV >= least_B1, falling_BV, -jnp.inf)
        if sampling.top_p < 1:
            # A token stays while those before it have less than top_p: the likeliest always.
            weight_BV = jax.nn.softmax(falling_BV, axis=-1)
            before_BV = jnp.cumsum(weight_BV, axis=-1) - weight_BV
            kept_BV = before_BV < sampling.top_p
            least_p = jnp.min(jnp.where(kept_BV, falling_BV, jnp.inf), axis=-1, keepdims=True)
            least_B1 = jnp.maximum(least_B1, least_p)
        logits_BV = jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)
    return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)
