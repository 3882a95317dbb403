"""What the forms of the contrastive loss hold on each device: the table of mmx/ops/contrastive.py.

    JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=8 python experiments/scale/contrastive_memory.py

Compiles value and gradient for the devices that are here and reads the compiler's own count of
temporaries; nothing is computed. "global": the plain loss of the whole batch, spread by the
compiler.
"""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from mmx.core.partition import RULES
from mmx.ops.contrastive import FORMS, WHOLE, contrastive_loss
from mmx.train.sharding import make_mesh

WIDTH = 512
BATCHES = (4096, 32_768)


def temporaries(mesh, kind: str, form: str, batch: int) -> float:
    """MiB on each device, of value and gradient by both towers' embeddings."""
    rows = NamedSharding(mesh, PartitionSpec(RULES["act_batch"]))
    x = jax.ShapeDtypeStruct((batch, WIDTH), jnp.float32, sharding=rows)
    scalar = jax.ShapeDtypeStruct((), jnp.float32)

    def loss(*args):
        return WHOLE[kind](*args) if form == "global" else contrastive_loss(kind, form, *args)

    with jax.set_mesh(mesh):
        grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)))
        compiled = grad.lower(x, x, scalar, scalar).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 2**20


def main() -> None:
    mesh = make_mesh({"slice": 1, "data": -1, "fsdp": 1, "tensor": 1})
    print(f"MiB of temporaries on each of {mesh.size} devices, width {WIDTH}, float32:\n")
    print("    loss     batch   " + "".join(f"{form:>9}" for form in ("global", *FORMS)))
    for kind in WHOLE:
        for batch in BATCHES:
            found = [temporaries(mesh, kind, form, batch) for form in ("global", *FORMS)]
            print(f"    {kind:8} {batch:6}  " + "".join(f"{mib:9.0f}" for mib in found))


if __name__ == "__main__":
    main()
