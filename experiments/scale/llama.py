"""A dense decoder of Llama-2-7B's shape, built from mmx/nn, compiled for a TPU slice.

    python experiments/scale/llama.py --topology v5p:4x4x4 --rows 4 --length 4096 \\
        --remat attention_mlp
    python experiments/scale/llama.py --topology v5e:16x16 --rows 4 --length 2048 --remat qkv \\
        --loss_chunk 512

Prints preflight's report as JSON; needs no TPU, but libtpu. A 7B step takes two to five minutes on
two cores, whatever the depth; with ``--width 512 --mlp 1408`` less than one.
"""

import argparse
import json
import math
import sys

from ml_collections import ConfigDict

from mmx.core.errors import UserError
from mmx.train.topology import before_jax, parse_topology


def make_task(config):
    """Contract 1 as far as preflight goes: rows of token ids, loss of the next one."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import optax

    from mmx.nn.decoder import LanguageModel
    from mmx.nn.dtypes import DTYPES
    from mmx.ops.token_loss import chunked_cross_entropy

    m = config.model
    net = LanguageModel(
        m.vocab_size, m.width, m.depth, m.heads, m.mlp, m.attention, m.remat, DTYPES[config.dtype]
    )

    class Task:
        batch_coupled = False

        def init(self, rng):
            # Parameters do not depend on the length.
            return net.init(rng, jnp.zeros((1, 128), jnp.int32))["params"], {}

        def param_labels(self, params):
            return jax.tree.map(lambda leaf: "main", nn.unbox(params))

        def abstract_frozen(self):
            return {}

        def batch_spec(self):
            shape = (config.batch_size, config.length)
            return {"ids": jax.ShapeDtypeStruct(shape, jnp.int32),
                    "labels": jax.ShapeDtypeStruct(shape, jnp.int32)}  # fmt: skip

        def train_flops_per_row(self):
            return train_flops(config) / config.batch_size

        def loss(self, params, extra, frozen, batch, rng, step, train):
            ids_BL, labels_BL = batch["ids"], batch["labels"]
            if config.loss_chunk:
                hidden_BLD = net.apply({"params": params}, ids_BL, method="hidden")
                weights_BL = jnp.full(labels_BL.shape, 1 / labels_BL.size)
                loss = chunked_cross_entropy(
                    hidden_BLD,
                    params["head"]["kernel"],
                    labels_BL,
                    weights_BL,
                    m.vocab_size,
                    config.loss_chunk,
                )
            else:
                logits_BLV = net.apply({"params": params}, ids_BL)
                losses = optax.softmax_cross_entropy_with_integer_labels(logits_BLV, labels_BL)
                loss = losses.mean()
            return loss, ({"loss/token": loss}, extra)

    return Task()


def train_flops(config) -> float:
    """Of a step: 6 a token and weight in a product, and attention, of which a half is visible."""
    m = config.model
    layer = 4 * m.width**2 + 3 * m.width * m.mlp
    weights = m.depth * layer + m.width * m.vocab_size
    tokens = config.batch_size * config.length
    return tokens * (6.0 * weights + 6.0 * m.depth * config.length * m.width)


def make_config(args, topology) -> ConfigDict:
    """Of Llama 2 7B (arXiv 2307.09288) where the arguments do not say otherwise."""
    c = ConfigDict()
    c.seed = 0
    c.steps = 500_000
    c.batch_size = args.rows * math.prod(topology.shape)
    c.length = args.length
    c.dtype = "bfloat16"
    c.loss_chunk = args.loss_chunk
    c.model = dict(
        vocab_size=32_000,
        width=args.width,
        depth=args.depth,
        heads=args.width // 128,
        mlp=args.mlp,
        attention=args.attention,
        remat=args.remat,
    )
    c.optim = dict(
        name="adamw", lr=3e-4, b1=0.9, b2=0.95, weight_decay=0.1, warmup_steps=2000, clip_norm=1.0,
        ema=0.0, accum=1,
    )  # fmt: skip
    c.mesh = dict(slice=1, data=args.data, fsdp=-1, tensor=1)
    return c


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", required=True)
    parser.add_argument("--rows", type=int, default=4, help="of a chip")
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--depth", type=int, default=32)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--mlp", type=int, default=11008)
    parser.add_argument("--attention", default="splash")
    parser.add_argument("--remat", default="full")
    parser.add_argument("--loss_chunk", type=int, default=0, help="positions; 0: all at once")
    parser.add_argument("--data", type=int, default=1, help="of the mesh; fsdp is the rest")
    return parser.parse_args(argv)


def main() -> int:
    args = parse()
    try:
        topology = parse_topology(args.topology)
        before_jax(topology)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    from mmx.train import preflight

    config = make_config(args, topology)
    report = preflight.preflight_step(make_task(config), config, topology)
    print(preflight.to_text(report), file=sys.stderr)
    print(json.dumps(vars(args) | report.to_json(), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
