"""What a Transfusion step spends on its frozen autoencoder: that part compiled by itself.

    python experiments/scale/encode.py --config transfusion/b7000 --topology v5e:16x16

Prints preflight's report as JSON. Needs no TPU, but libtpu; a minute or two.
"""

import argparse
import json
import sys

from mmx.core import config as configs
from mmx.core.errors import UserError
from mmx.train.topology import before_jax, parse_topology


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="transfusion/b7000")
    parser.add_argument("--topology", required=True)
    args = parser.parse_args()
    try:
        topology = parse_topology(args.topology)
        before_jax(topology)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    from mmx.core.flops import matmul_flops
    from mmx.models.registry import make_task
    from mmx.train import preflight
    from mmx.train.sharding import batch_sharding, jit_sharded, make_mesh, replicated
    from mmx.train.topology import make_devices

    config = configs.load_config(args.config)
    config.data.latents = False
    task = make_task(config, None, abstract=True)
    mesh = make_mesh(task.config.mesh, make_devices(topology, task.config.mesh.slice))
    inputs = task.abstract_frozen(), task.batch_spec()["images"]
    layouts = replicated(mesh), batch_sharding(mesh)
    encode = jit_sharded(task.latents, mesh, out_shardings=layouts[1])
    placed = [preflight.place(*pair) for pair in zip(inputs, layouts)]
    flops = matmul_flops(task.latents, *inputs)
    report = preflight.compile_report("encode", encode, placed, mesh, topology, flops)
    print(preflight.to_text(report), file=sys.stderr)
    print(json.dumps(vars(args) | report.to_json(), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
