"""Do all chips of all hosts answer, and does a sum over them come out right? all_reduce.py HOSTS"""

import sys

import jax
import numpy as np

hosts = int(sys.argv[1])
if hosts > 1:
    jax.distributed.initialize(initialization_timeout=120)
n = jax.device_count()
chips = jax.sharding.Mesh(np.array(jax.devices()), ("chip",))
split, whole = (
    jax.sharding.NamedSharding(chips, jax.sharding.PartitionSpec(*axes)) for axes in (("chip",), ())
)
numbers = jax.make_array_from_callback((n,), split, lambda i: np.arange(n, dtype=np.float32)[i])
total = float(jax.jit(lambda x: x.sum(), out_shardings=whole)(numbers))
print(f"{jax.local_device_count()} here, {n} on {jax.process_count()} of {hosts} hosts,", end=" ")
print(f"{jax.devices()[0].device_kind}; all-reduce {total:g}, expected {n * (n - 1) // 2}")
sys.exit(jax.process_count() != hosts or total != n * (n - 1) // 2)
