"""The sampler against a joint distribution that is known exactly (invariant 19; 2510.04525)."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from mmx.ops import decoding

TOKENS, VALUES, MASK = 4, 3, 3
STATES = np.array(list(itertools.product(range(VALUES), repeat=TOKENS)))
JOINT = np.random.default_rng(5).dirichlet(np.full(len(STATES), 0.3))


def oracle(ids_BS, step):
    """log p(value at a position | the known positions), exactly."""
    agrees = (ids_BS[:, None] == MASK) | (ids_BS[:, None] == STATES)
    weight = jnp.where(agrees.all(-1), JOINT, 0)
    marginal = jnp.einsum("bn,nsv->bsv", weight, jax.nn.one_hot(STATES, VALUES))
    return jnp.log(marginal / weight.sum(-1)[:, None, None])


def distance(num=100_000, steps=TOKENS, **options):
    """Total variation between the joint and what the sampler draws from scratch."""

    def sample(keys_B):
        ids = jnp.full((num, TOKENS), MASK)
        return decoding.decode(oracle, ids, keys_B, mask_id=MASK, num_steps=steps, **options)[0]

    ids = np.asarray(jax.jit(sample)(jax.random.split(jax.random.key(0), num)))
    drawn = np.bincount(ids @ VALUES ** np.arange(TOKENS)[::-1], minlength=len(STATES)) / num
    return 0.5 * np.abs(drawn - JOINT).sum()


def test_random_order_one_at_a_time_draws_from_the_joint():
    assert distance(selection="random") < 0.02


def test_a_fixed_order_one_at_a_time_draws_from_the_joint():
    assert distance(selection="halton") < 0.02


def test_choosing_by_confidence_is_biased_and_noise_lessens_it():
    biased = distance(selection="confidence", choice_temperature=0.0)
    assert biased > 0.1
    assert distance(selection="confidence", choice_temperature=20.0) < 0.75 * biased


def test_all_at_once_loses_the_dependence():
    assert distance(selection="random", steps=1) > 0.1
