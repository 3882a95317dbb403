"""States to save, and what is asked of them once they are."""

import jax
import jax.numpy as jnp
import numpy as np

from mmx.core.run_dir import RunDir
from mmx.train.state import TrainState


def state_of(seed, size=64, ema=True, **more):
    """A random state of step `seed`; `more`: parameters beside those of the layer "a"."""
    draw = np.random.default_rng(seed)
    weights = lambda: jnp.asarray(draw.normal(size=(size, size)), jnp.float32)
    return TrainState(
        step=jnp.int32(seed),
        params={"a": {"kernel": weights()}, **more},
        opt_state=({"mu": {"a": {"kernel": weights()}}}, (), {"count": jnp.int32(seed)}),
        ema={"a": {"kernel": weights()}} if ema else None,
        extra={"count": jnp.int32(7 * seed)},
        bad_step=jnp.int32(-1),
    )


def layout(state):
    """(shapes, shardings) to restore it by."""
    return jax.eval_shape(lambda: state), jax.tree.map(lambda x: x.sharding, state)


def same(a, b):
    """To the bit?"""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


def run_of(checkpoints):
    """A run whose checkpoints lie in this folder."""

    class Run(RunDir):
        checkpoints = property(lambda self: self.path)

    return Run(checkpoints)


def largest(folder):
    """The largest file in it."""
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
