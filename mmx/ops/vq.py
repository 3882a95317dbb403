"""Vector quantization: nearest code, its losses, and a codebook kept by running means.

The codebook is plain state in, state out: `VQState` lives in the task's `extra`, is never given
to an optimiser, and `ema_update`, `restart_dead` and `init_from_vectors` return a new one. These
three see the whole batch at once (under jit: the global one), with one key, so that all devices
hold the same codebook. Legend: Z latent width, E number of codes, N all leading axes as one.
Source: arXiv 1711.00937 (VQ, EMA in app. A.1), 2110.04627 (low width, l2-normalised).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmx.ops.lookup import search
from mmx.ops.quantize import (
    Quantized,
    code_histogram,
    entropy_loss,
    straight_through,
    usage_metrics,
)

_FAR = 1e4  # where a dead code lies while its successor is sought: no latent is near
_EPSILON = 1e-5  # of the Laplace smoothing (arXiv 1711.00937's public code)


class VQState(NamedTuple):
    """A codebook kept by running means.

    codebook_EZ: float32 [E, Z], the codes in use.
    count_E: float32 [E], running mean of how many latents of a batch each code got; all 0 in a
      codebook that has seen no batch.
    sum_EZ: float32 [E, Z], running mean of the sum of those latents.
    """

    codebook_EZ: jax.Array
    count_E: jax.Array
    sum_EZ: jax.Array


def l2_normalize(x: jax.Array) -> jax.Array:
    """x [..., Z] scaled to unit length, with a finite gradient at 0."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-12))


def init_vq(key: jax.Array, num_codes: int, width: int) -> VQState:
    """A codebook of random directions, unit length on average (ours), that has seen no batch."""
    codebook_EZ = jax.random.normal(key, (num_codes, width)) / width**0.5
    return VQState(codebook_EZ, jnp.zeros(num_codes), jnp.zeros_like(codebook_EZ))


def nearest_codes(z: jax.Array, codebook_EZ: jax.Array) -> jax.Array:
    """Codes with the least Euclidean distance, the lowest code among equals.

    |e|^2 - 2 z.e by matrix product, over pieces of the codebook (latents may be sharded over
    devices, the codebook is not), so no [N, E, Z] and for large E no [N, E] array is made.

    Args:
      z: float [..., Z].
      codebook_EZ: float [E, Z].

    Returns:
      int32 [...].
    """
    num_codes, width = codebook_EZ.shape
    return search(z.reshape(-1, width), codebook_EZ, num_codes)[1].reshape(z.shape[:-1])


def vq(
    z: jax.Array,
    codebook_EZ: jax.Array,
    *,
    normalize: bool = True,
    commitment_weight: float = 0.25,
    entropy_weight: float = 0.0,
    entropy_temperature: float = 0.01,
) -> Quantized:
    """Replaces each latent by its nearest code.

    Args:
      z: float [..., Z].
      codebook_EZ: float [E, Z]: `VQState.codebook_EZ`. No gradient reaches it.
      normalize: compare and return unit vectors (cosine distance).
      commitment_weight: of mean (z - sg(e))^2; 0.25 in arXiv 1711.00937 and MaskGIT.
      entropy_weight: of `entropy_loss` of -distance^2 / entropy_temperature; 0.1 in MaskGIT. Needs
        an [N, E] array.
      entropy_temperature: 0.01 in MaskGIT.

    Returns:
      Quantized.
    """
    z = z.astype(jnp.float32)
    codebook_EZ = jax.lax.stop_gradient(codebook_EZ.astype(jnp.float32))
    if normalize:
        z, codebook_EZ = l2_normalize(z), l2_normalize(codebook_EZ)
    codes = jax.lax.stop_gradient(nearest_codes(z, codebook_EZ))
    e = codebook_EZ[codes]
    commitment = jnp.square(z - e).mean()
    metrics = usage_metrics(code_histogram(codes, codebook_EZ.shape[0]))
    metrics["commitment"] = commitment
    loss = commitment_weight * commitment
    if entropy_weight:
        z_NZ = z.reshape(-1, z.shape[-1])
        # |z|^2 is the same for all codes and drops out of the softmax.
        affinity_NE = 2 * z_NZ @ codebook_EZ.T - jnp.square(codebook_EZ).sum(-1)
        metrics["entropy"] = entropy_loss(affinity_NE / entropy_temperature)
        loss += entropy_weight * metrics["entropy"]
    return Quantized(codes, straight_through(z, e), loss, metrics)


def vq_decode(codes: jax.Array, codebook_EZ: jax.Array, *, normalize: bool = True) -> jax.Array:
    """float32 [..., Z]: the vectors of int codes [...], as `vq` returned them in z_q."""
    codebook_EZ = jnp.asarray(codebook_EZ, jnp.float32)  # of the host too: codes may be traced
    return (l2_normalize(codebook_EZ) if normalize else codebook_EZ)[codes]


def ema_update(
    state: VQState, z: jax.Array, codes: jax.Array, *, decay: float = 0.99, normalize: bool = True
) -> VQState:
    """Moves each code towards the mean of the latents that chose it.

    N <- g N + (1 - g) n, m <- g m + (1 - g) sum(z), e = m / N, with N smoothed towards equal counts
    so that a code that nobody chooses cannot divide by 0.

    Args:
      state: before the batch.
      z: float [..., Z], the latents as given to `vq` (normalised here when `vq` does so).
      codes: int [...], what `vq` chose for them.
      decay: g in [0, 1).

    Source: arXiv 1711.00937 app. A.1.
    """
    num_codes, width = state.codebook_EZ.shape
    z_NZ = jax.lax.stop_gradient(z).reshape(-1, width).astype(jnp.float32)
    if normalize:
        z_NZ = l2_normalize(z_NZ)
    count_E = decay * state.count_E + (1 - decay) * code_histogram(codes, num_codes)
    sum_EZ = decay * state.sum_EZ + (1 - decay) * _sum_by_code(z_NZ, codes, num_codes)
    return VQState(_smoothed_mean(sum_EZ, count_E), count_E, sum_EZ)


def _sum_by_code(z_NZ, codes, num_codes):
    return jnp.zeros((num_codes, z_NZ.shape[1])).at[codes.reshape(-1)].add(z_NZ)


def _smoothed_mean(sum_EZ, count_E):
    total = count_E.sum()
    share_E = (count_E + _EPSILON) / (total + _EPSILON * count_E.shape[0])
    return sum_EZ / (share_E * total)[:, None]


def restart_dead(
    state: VQState, z: jax.Array, key: jax.Array, *, threshold: float, normalize: bool = True
) -> tuple[VQState, jax.Array]:
    """Replaces each code whose running count is below `threshold` by a latent of this batch.

    Latents are drawn without repeats, each with a chance in proportion to its squared distance to
    the nearest live code (as k-means++ seeds, ours): drawn evenly, pictures on a white page would
    give a dozen codes for white, and the model after this one a dozen names for nothing.
    A restarted code starts with the mean count, or the threshold if that is more, so it has time to
    win latents (ours). A latent starts one code at most: of more dead codes than latents, the last
    wait for the next batch. Live codes stay as they are, to the bit.

    Args:
      state: after `ema_update`.
      z: float [..., Z], the latents of the batch.
      key: one key for the batch (codes are shared by all rows).
      threshold: in latents a batch, well below the N / E of a codebook in even use.
      normalize: distances are those between unit vectors, as `vq(normalize=True)` sees them.

    Returns:
      The new state, and the number of codes restarted (int32 scalar).

    Source: arXiv 2005.00341 (random restarts), k-means++ (Arthur and Vassilvitskii 2007).
    """
    width = state.codebook_EZ.shape[1]
    z_NZ = jax.lax.stop_gradient(z).reshape(-1, width).astype(jnp.float32)
    if normalize:
        z_NZ = l2_normalize(z_NZ)
    is_dead_E = state.count_E < threshold
    restart_E = is_dead_E & (jnp.cumsum(is_dead_E) <= z_NZ.shape[0])
    return (
        _replace(state, z_NZ, key, is_dead_E, restart_E, threshold, normalize),
        restart_E.sum(),
    )


def _replace(state, z_NZ, key, is_dead_E, replace_E, threshold, normalize) -> VQState:
    """The codes `replace_E`, all dead, become latents that are far from every live code."""
    codebook_EZ = l2_normalize(state.codebook_EZ) if normalize else state.codebook_EZ
    # A dead code is moved out of reach, so that only live ones are near.
    live_EZ = jnp.where(is_dead_E[:, None], _FAR, codebook_EZ)
    error_N = jnp.square(z_NZ - live_EZ[nearest_codes(z_NZ, live_EZ)]).sum(-1)
    # Largest log-weights with Gumbel noise: a weighted draw without repeats (arXiv 1903.06059).
    noise_N = jax.random.gumbel(key, error_N.shape)
    order_N = jnp.argsort(-(jnp.log(error_N + 1e-20) + noise_N))
    nth_E = jnp.maximum(jnp.cumsum(replace_E) - 1, 0)
    fresh_EZ = z_NZ[order_N[nth_E]]
    fresh_count = jnp.maximum(state.count_E.mean(), threshold)
    codebook_EZ = jnp.where(replace_E[:, None], fresh_EZ, state.codebook_EZ)
    count_E = jnp.where(replace_E, fresh_count, state.count_E)
    sum_EZ = jnp.where(replace_E[:, None], fresh_EZ * fresh_count, state.sum_EZ)
    return VQState(codebook_EZ, count_E, sum_EZ)


def init_from_vectors(
    key: jax.Array,
    vectors: jax.Array,
    num_codes: int,
    *,
    num_iters: int = 10,
    normalize: bool = True,
) -> VQState:
    """k-means over a batch of vectors, as the first codebook (or as a whole tokenizer of patches).

    From one random vector on, each round adds as many codes as there are, seeded far from those as
    in `restart_dead`, until all E are in use (k-means++ in doubling steps, arXiv 1203.6402); then
    `num_iters` rounds more, in which a code that no vector chooses is seeded anew.

    Args:
      key: one key.
      vectors: float [..., Z].
      num_codes: E. The codes beyond the number of vectors, or of different ones, start dead.
      num_iters: rounds with all codes; 10 (ours).
      normalize: spherical k-means, for `vq(normalize=True)`.

    Returns:
      VQState whose counts are the sizes of the clusters.
    """
    x_NZ = vectors.reshape(-1, vectors.shape[-1]).astype(jnp.float32)
    if normalize:
        x_NZ = l2_normalize(x_NZ)
    first = jax.random.randint(jax.random.fold_in(key, 2**31), (), 0, x_NZ.shape[0])
    start_EZ = jnp.full((num_codes, x_NZ.shape[1]), _FAR).at[0].set(x_NZ[first])
    start = VQState(start_EZ, jnp.zeros(num_codes).at[0].set(1.0), start_EZ)

    def one_round(i, state):
        is_dead_E = state.count_E < 0.5
        as_many = jnp.minimum((~is_dead_E).sum(), x_NZ.shape[0])
        seed_E = is_dead_E & (jnp.cumsum(is_dead_E) <= as_many)
        key_i = jax.random.fold_in(key, i)
        seeded = _replace(state, x_NZ, key_i, is_dead_E, seed_E, 0.5, normalize)
        codes_N = nearest_codes(x_NZ, seeded.codebook_EZ)
        count_E = code_histogram(codes_N, num_codes)
        sum_EZ = _sum_by_code(x_NZ, codes_N, num_codes)
        mean_EZ = sum_EZ / jnp.maximum(count_E, 1)[:, None]
        if normalize:
            mean_EZ = l2_normalize(mean_EZ)
        mean_EZ = jnp.where(count_E[:, None] > 0, mean_EZ, seeded.codebook_EZ)
        return VQState(mean_EZ, count_E, sum_EZ)

    num_doublings = math.ceil(math.log2(num_codes))
    return jax.lax.fori_loop(0, num_doublings + num_iters, one_round, start)
