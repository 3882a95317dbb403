"""A convolution over videos on a CPU: over three axes, and over frames side by side as channels.

    JAX_PLATFORMS=cpu XLA_FLAGS=--xla_cpu_prefer_vector_width=512 \\
        python experiments/throughput/video_conv.py --json video_conv_cpu.json

"mmx" is what `mmx.nn.conv.Conv` does there, "three axes" what it does elsewhere; each alone, and
with its gradients. The shape is a layer's of spae/moving32. ``--tiny`` takes a second.
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import timing

from mmx.nn.conv import convolve_frames, convolve_volume

SHAPE = dict(batch=8, frames=16, side=8, channels=96)
TINY = dict(batch=1, frames=4, side=4, channels=4)
WAYS = {"mmx": convolve_frames, "three axes": convolve_volume}


def compare(shape: dict, rounds: int) -> dict:
    """Seconds and ratios of each way, forward and with both gradients.

    Raises:
      SystemExit: they do not give the same.
    """
    rng = np.random.default_rng(0)
    C, side = shape["channels"], shape["side"]
    x = rng.normal(size=(shape["batch"], shape["frames"], side, side, C)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 3, C, C)).astype(np.float32) / C
    args = jnp.asarray(x), jnp.asarray(kernel)
    result = {"jax": jax.__version__, "shape": shape, "rounds": rounds}
    for what in ("forward", "with gradients"):
        calls = {}
        for name, way in WAYS.items():
            gradients = jax.grad(lambda x, k, way=way: jnp.square(way(x, k)).sum(), (0, 1))
            calls[name] = jax.jit(way if what == "forward" else gradients).lower(*args).compile()
        first, second = (jax.tree.leaves(call(*args)) for call in calls.values())
        for one, other in zip(first, second, strict=True):
            if not np.allclose(one, other, rtol=1e-3, atol=1e-3 * np.abs(one).max()):
                raise SystemExit(f"{what}: the ways do not give the same")
        result[what] = timing.compare(
            {name: lambda c=call: c(*args) for name, call in calls.items()}, rounds
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", metavar="FILE", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tiny", action="store_true", help="does it all run?")
    args = parser.parse_args()
    result = compare(TINY if args.tiny else SHAPE, args.rounds)
    for what in ("forward", "with gradients"):
        print(f"{what}\n\n{timing.table(result[what], {})}\n")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
