"""What finding an image's 597 words costs, beside a dense search of all cells in all layers.

    JAX_PLATFORMS=cpu XLA_FLAGS=--xla_cpu_prefer_vector_width=512 \\
        python experiments/throughput/lookup.py --json lookup_cpu.json

Three ways from the same latents to the same words: "mmx", `mmx.ops.pyramid.quantize` (each layer
at its own cells, the table in pieces); "gathered", the same cells with an [N, V] array of
distances; "dense", that array of all cells in each layer. Each is one compiled call; calls
alternate. Memory is the compiler's count of temporaries. ``--tiny`` takes a second.
Axis letters: B batch, h w latent grid, N targets, V words, Z width, T words of an image.
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import timing

from mmx.ops import pyramid as pyramids
from mmx.ops.lookup import embed_words
from mmx.ops.pyramid import SCHEMES, Pyramid, flatten

SHAPE = dict(batch=4, words=65_536, width=256)  # ours: seconds a call on two cores
TINY = dict(batch=1, words=512, width=16)


def nearest_dense(z_NZ: jax.Array, table_VZ: jax.Array) -> jax.Array:
    """int32 [N]: argmin over the whole array of distances."""
    dot_NV = jnp.dot(z_NZ, table_VZ.T, precision="highest")
    return jnp.argmin(jnp.square(table_VZ).sum(-1) - 2 * dot_NV, -1).astype(jnp.int32)


def quantize_dense(pyramid: Pyramid, z_BhwZ, table_VZ, all_cells: bool) -> jax.Array:
    """Words int32 [B, T] by :func:`nearest_dense`: of a layer's own cells, or of all, of which the
    layer's own are taken."""
    scheme, total_BhwZ, words = SCHEMES[pyramid.scheme], jnp.zeros_like(z_BhwZ), []
    counts = scheme.counts(pyramid)
    for layer in range(pyramid.num_layers):
        if all_cells:
            before = counts[layer - 1] if layer else np.zeros_like(counts[0])
            # As if each cell had a word in this layer.
            target = (before + 1)[None, ..., None] * z_BhwZ - total_BhwZ
        else:
            target = scheme.target(pyramid, layer, z_BhwZ, total_BhwZ)
        found = nearest_dense(target.reshape(-1, z_BhwZ.shape[-1]), table_VZ)
        found = found.reshape(len(z_BhwZ), *target.shape[1:3])
        words.append(found[:, *pyramid.places(layer)] if all_cells else found)
        total_BhwZ += scheme.spread(pyramid, layer, embed_words(words[-1], table_VZ))
    return flatten(words)


WAYS = {
    "mmx": lambda *args: pyramids.quantize(*args).words_BT,
    "gathered": lambda *args: quantize_dense(*args, all_cells=False),
    "dense": lambda *args: quantize_dense(*args, all_cells=True),
}


def compare(shape: dict, rounds: int) -> dict:
    """Seconds, memory and ratios of each way.

    Raises:
      SystemExit: they do not find the same words.
    """
    pyramid, rng = Pyramid(), np.random.default_rng(0)
    table_VZ = rng.normal(size=(shape["words"], shape["width"])).astype(np.float32)
    grid = (shape["batch"], pyramid.grid, pyramid.grid)
    # Near the means of three words each, as latents come to be.
    z_BhwZ = table_VZ[rng.integers(0, len(table_VZ), (*grid, 3))].mean(-2)
    args = jnp.asarray(z_BhwZ), jnp.asarray(table_VZ)
    calls, memory, found = {}, {}, {}
    for name, way in WAYS.items():
        calls[name] = (
            jax.jit(lambda z, table, way=way: way(pyramid, z, table)).lower(*args).compile()
        )
        memory[name] = calls[name].memory_analysis().temp_size_in_bytes
        found[name] = np.asarray(calls[name](*args))
    for name, words_BT in found.items():
        same = (words_BT == found["mmx"]).mean()
        if same < 0.999:  # distances that are equal but for rounding
            raise SystemExit(f"{name}: {same:.2%} of the words are those of mmx")
    ways = timing.compare({name: lambda c=call: c(*args) for name, call in calls.items()}, rounds)
    for name, of in ways.items():
        of["temporaries_mib"] = round(memory[name] / 2**20, 1)
    return {"jax": jax.__version__, "shape": shape, "rounds": rounds, "ways": ways}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", metavar="FILE", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="does it all run?")
    args = parser.parse_args()
    result = compare(TINY if args.tiny else SHAPE, args.rounds)
    print(timing.table(result["ways"], {"temporaries_mib": "temporaries, MiB"}))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
