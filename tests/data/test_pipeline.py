"""Contract 4: what is at a position, which process loads it, and where it lands."""

import itertools
import json
import os
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mmx.core.errors import UserError
from mmx.data import pipeline
from mmx.data.pipeline import Stream, batches, eval_batches

from mmx.data.pipeline import local_part, local_rows, put_batch, rows_of  # isort: skip

ENV = {**os.environ, "PYTHONPATH": ":".join(path for path in sys.path if path)}


class Counting:
    """A source that remembers what was read."""

    def __init__(self, size, delay=0.0):
        self.size, self.delay, self.reads = size, delay, []

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.reads.append(index)
        if self.delay:
            time.sleep(self.delay)
        return {"id": index, "image": np.full((4, 4, 3), index % 256, np.uint8)}

    def __repr__(self):
        return f"Counting({self.size})"


def transform(example, rng):
    return {
        "id": np.int32(example["id"]),
        "image": example["image"],
        "draw": rng.integers(0, 2**31, 2, dtype=np.int32),
    }


def _sharding(shape, names, batch_axes, devices=None):
    devices = jax.devices()[: int(np.prod(shape))] if devices is None else devices
    mesh = jax.sharding.Mesh(np.array(devices).reshape(shape), names)
    return NamedSharding(mesh, PartitionSpec(batch_axes))


ONE = ((1,), ("data",), "data")
LAYOUTS = {
    "one": ONE,
    "data": ((8,), ("data",), "data"),
    "data x tensor": ((4, 2), ("data", "tensor"), "data"),
    "tensor x data": ((2, 4), ("tensor", "data"), "data"),
    "data x fsdp x tensor": ((2, 2, 2), ("data", "fsdp", "tensor"), ("data", "fsdp")),
    "fsdp before data": ((2, 4), ("data", "fsdp"), ("fsdp", "data")),
    "tensor only": ((1, 8), ("data", "tensor"), "data"),
    "not sharded": ((8,), ("tensor",), None),
}


def _take(stream, batch_size, layout, count, **options):
    with batches(stream, batch_size, _sharding(*LAYOUTS[layout]), **options) as made:
        return [jax.tree.map(np.asarray, batch) for batch in itertools.islice(made, count)]


def _joined(taken):
    return {key: np.concatenate([batch[key] for batch in taken]) for key in taken[0]}


def _same(left, right):
    assert left.keys() == right.keys()
    for key in left:
        np.testing.assert_array_equal(left[key], right[key], err_msg=key)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_order_and_draws_are_the_same_on_any_layout(layout):
    stream = Stream(Counting(21), transform, seed=1)
    expected = _joined([{k: v[None] for k, v in stream.row(p).items()} for p in range(48)])
    _same(_joined(_take(stream, 16, layout, 3)), expected)


@pytest.mark.parametrize("batch_size", [1, 3, 5, 16, 24, 48])
def test_order_and_draws_are_the_same_in_any_batch_size(batch_size):
    stream = Stream(Counting(21), transform, seed=1)
    expected = _joined([{k: v[None] for k, v in stream.row(p).items()} for p in range(240)])
    for threads in (1, 3):
        taken = _take(stream, batch_size, "one", 240 // batch_size, num_threads=threads)
        _same(_joined(taken), expected)


@pytest.mark.parametrize("start_step", [1, 4])
def test_a_start_at_any_step_is_the_tail(start_step):
    stream = Stream(Counting(21), transform, seed=1)
    whole = _take(stream, 8, "data", 7)
    tail = _take(stream, 8, "data x tensor", 7 - start_step, start_step=start_step)
    for left, right in zip(whole[start_step:], tail, strict=True):
        _same(left, right)
    assert tail[0]["position"].tolist() == list(range(8 * start_step, 8 * start_step + 8))
    assert tail[0]["position"].dtype == np.uint32


def test_draws_depend_on_seed_and_position_alone():
    stream = Stream(Counting(5), transform, seed=1)
    rows = {p: stream.row(p)["draw"].tolist() for p in (9, 3, 0, 7)}
    again = Stream(Counting(50), transform, seed=1)  # other data, other order of calls
    assert {p: again.row(p)["draw"].tolist() for p in (0, 3, 7, 9)} == rows
    # The same example at other positions is drawn for anew.
    draws = [tuple(stream.row(p)["draw"]) for p in range(200)]
    assert len(set(draws)) == 200
    other = Stream(Counting(5), transform, seed=2)
    assert all(tuple(other.row(p)["draw"]) != draws[p] for p in range(200))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_device_gets_its_rows(layout):
    sharding = _sharding(*LAYOUTS[layout])
    stream = Stream(Counting(64), transform, seed=0)
    with batches(stream, 16, sharding) as made:
        batch = next(made)
    for value in batch.values():
        assert value.sharding.is_equivalent_to(sharding, value.ndim) and value.shape[0] == 16
    ids = np.asarray([stream.row(p)["id"] for p in range(16)])
    for shard in batch["image"].addressable_shards:
        rows = np.arange(16)[sharding.devices_indices_map((16,))[shard.device]]
        np.testing.assert_array_equal(np.asarray(shard.data)[:, 0, 0, 0], ids[rows])


def test_replicated_rows_are_read_once():
    for layout in ("data x tensor", "tensor only", "not sharded"):
        source = Counting(100_000)
        with batches(Stream(source, transform, 0), 16, _sharding(*LAYOUTS[layout])) as made:
            next(made)
        assert len(source.reads) >= 16 and len(set(source.reads)) == len(source.reads)


def _processes(layout, groups):
    """local_rows of pretended processes that hold these devices."""
    sharding = _sharding(*LAYOUTS[layout])
    devices = list(sharding.mesh.devices.flat)
    return [rows_of(sharding, 16, {devices[i] for i in group}).tolist() for group in groups]


def test_a_process_loads_what_its_devices_address():
    whole = list(range(16))
    assert _processes("data", [range(4), range(4, 8)]) == [whole[:8], whole[8:]]
    assert _processes("data x tensor", [range(4), range(4, 8)]) == [whole[:8], whole[8:]]
    # The tensor axis across processes: both read every row.
    assert _processes("tensor x data", [range(4), range(4, 8)]) == [whole, whole]
    # A process may hold rows that are not neighbours.
    assert _processes("data", [[0, 5], [7]]) == [[0, 1, 10, 11], [14, 15]]
    assert _processes("fsdp before data", [range(4)]) == [[0, 1, 4, 5, 8, 9, 12, 13]]
    for layout in LAYOUTS:
        union = set().union(
            *_processes(layout, [range(3), range(3, 8)] if layout != "one" else [[0]])
        )
        assert union == set(whole), layout
    everything = local_rows(_sharding(*LAYOUTS["data x tensor"]), 16)
    assert everything.tolist() == whole


def test_local_part_finds_rows_that_are_not_neighbours():
    rows = np.array([0, 1, 10, 11])
    value = np.arange(8).reshape(4, 2)
    np.testing.assert_array_equal(
        local_part(value, rows, (slice(10, 12), slice(None)), 16), value[2:]
    )
    np.testing.assert_array_equal(local_part(value, rows, (slice(0, 2),), 16), value[:2])
    np.testing.assert_array_equal(local_part(value, np.arange(4), (slice(None),), 4), value)


WORKER = """
import json, sys
import jax, numpy as np
index, port = int(sys.argv[1]), sys.argv[2]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=index)
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from mmx.data.pipeline import Stream, batches, eval_batches
class Source:
    def __init__(self): self.reads = []
    def __len__(self): return 21
    def __getitem__(self, i):
        self.reads.append(i)
        return i
def transform(i, rng):
    return {"id": np.int32(i), "draw": rng.integers(0, 2**31, dtype=np.int32)}
out = {}
devices = np.array(jax.devices())
for name, mesh, axes in (
    ("data", Mesh(devices, ("data",)), "data"),
    ("tensor outside", Mesh(devices.reshape(2, 4), ("tensor", "data")), "data"),
):
    sharding = NamedSharding(mesh, PartitionSpec(axes))
    with batches(Stream(Source(), transform, 5), 8, sharding, start_step=2) as made:
        batch = next(made)
    out[name] = [
        [int(shard.device.id), shard.index[0].indices(8)[0], np.asarray(shard.data).tolist(), key]
        for key, value in batch.items() for shard in value.addressable_shards
    ]
    with eval_batches(Source(), transform, 8, sharding) as made:
        out[name + " eval"] = sum(1 for _ in made)
counted = Source()
sharding = NamedSharding(Mesh(devices, ("data",)), PartitionSpec("data"))
with eval_batches(counted, transform, 8, sharding, limit=8) as made:
    list(made)
out["reads"] = counted.reads
print(json.dumps(out))
"""


def test_two_real_processes_make_the_batches_of_one():
    import socket

    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(index), port],
            env=ENV,
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    outs = [json.loads(process.communicate(timeout=600)[0].splitlines()[-1]) for process in started]

    def draw(example, rng):
        return {"id": np.int32(example), "draw": rng.integers(0, 2**31, dtype=np.int32)}

    stream = Stream(range(21), draw, seed=5)
    rows = [stream.row(16 + r) for r in range(8)]
    for name, width, shards in (("data", 1, 8), ("tensor outside", 2, 8)):
        pieces = outs[0][name] + outs[1][name]
        assert len(pieces) == 3 * shards
        for _, start, values, key in pieces:
            assert values == [int(row[key]) for row in rows[start : start + width]], (name, key)
        assert [out[name + " eval"] for out in outs] == [3, 3]
    # Each process read its own half, and only that.
    assert [sorted(out["reads"]) for out in outs] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_batch_size_has_to_divide():
    with pytest.raises(UserError, match=r"batch_size=12 does not divide by 8"):
        batches(Stream(range(9), transform, 0), 12, _sharding(*LAYOUTS["data"]))


@pytest.mark.parametrize(("kind", "raised"), [(ZeroDivisionError, RuntimeError), (UserError,) * 2])
def test_an_error_in_a_row_names_the_position_and_the_example(kind, raised):
    stream = Stream(Counting(50), lambda example, rng: _fail_at(13, kind, example, rng), seed=0)
    position = next(p for p in range(50) if stream.index(p) == 13)
    message = rf"position {position} \(example 13 of Counting\(50\)\)"
    with batches(stream, 4, _sharding(*ONE)) as made, pytest.raises(raised, match=message):
        for _ in range(13):
            next(made)
    assert _wait_for(lambda: not _threads())


def _fail_at(bad, kind, example, rng):
    if example["id"] == bad:
        raise kind("here")
    return transform(example, rng)


def test_rows_of_different_shapes_say_which():
    def ragged(example, rng):
        return {"image": np.zeros(example["id"])}

    made = batches(Stream(Counting(9), ragged, 0), 4, _sharding(*ONE))
    with made, pytest.raises(ValueError, match="shape of 'image'"):
        next(made)


def _threads():
    return [t for t in threading.enumerate() if "grain" in t.name]


def _wait_for(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_closing_is_prompt_and_leaves_no_thread(taken):
    assert _wait_for(lambda: not _threads())
    made = batches(Stream(Counting(99), transform, 0), 8, _sharding(*ONE), num_threads=3)
    for _ in range(taken):
        next(made)
    began = time.monotonic()
    made.close()
    made.close()
    assert time.monotonic() - began < 10
    assert _wait_for(lambda: not _threads())
    with pytest.raises(ValueError, match="closed"):
        next(made)


def test_abandoned_batches_make_no_noise_at_exit():
    program = """
import atexit, threading
running = lambda: [t.name for t in threading.enumerate() if "grain-thread" in t.name]
atexit.register(lambda: print(len(running())))  # registered first, so it runs last
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from mmx.data.pipeline import Stream, batches
sharding = NamedSharding(Mesh(np.array(jax.devices()[:1]), ("data",)), PartitionSpec("data"))
stream = Stream(range(9), lambda e, r: {"x": np.int32(e)}, 0)
left_open = batches(stream, 4, sharding, num_threads=2)
next(left_open)
assert running()
closed = batches(stream, 4, sharding)
next(closed)
closed.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=ENV, capture_output=True, text=True, timeout=600
    )
    # The threads have ended while the modules they use were still there.
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


def test_work_goes_on_while_the_consumer_is_busy():
    source = Counting(10_000, delay=0.05)  # 0.4 s a batch
    with batches(Stream(source, transform, 0), 8, _sharding(*ONE)) as made:
        next(made)
        assert _wait_for(lambda: len(source.reads) >= 8 * 6, seconds=60)
        began = time.monotonic()
        for _ in range(3):
            next(made)
        assert time.monotonic() - began < 0.8  # made one by one: 1.2 s
        # ... but not without bound: 4 taken, 2 ready, 1 on its way, 2 on the host, 2 in the making.
        time.sleep(2.0)
        assert len(source.reads) <= 8 * (4 + 2 + 1 + 2 + 2)


def test_batches_go_to_the_devices_in_the_background(monkeypatch):
    threads = []

    def put(*args):
        threads.append(threading.current_thread())
        return put_batch(*args)

    monkeypatch.setattr(pipeline, "put_batch", put)
    with batches(Stream(Counting(99), transform, 0), 8, _sharding(*ONE)) as made:
        next(made)
        assert _wait_for(lambda: len(threads) >= 3)  # ahead of the consumer
    assert threading.current_thread() not in threads


@pytest.mark.parametrize("batch_size", [4, 8, 12])
@pytest.mark.parametrize("layout", ["one", "tensor x data"])
def test_eval_batches_show_each_example_once(batch_size, layout):
    source = Counting(21)
    with eval_batches(source, transform, batch_size, _sharding(*LAYOUTS[layout])) as made:
        taken = [jax.tree.map(np.asarray, batch) for batch in made]
    assert len(taken) == -(-21 // batch_size)
    assert all(batch["_mask"].shape == (batch_size,) for batch in taken)
    assert all(batch["_mask"].dtype == bool for batch in taken)
    everything = _joined(taken)
    real = everything["_mask"]
    assert real.sum() == 21 and everything["id"][real].tolist() == list(range(21))
    assert everything["position"][real].tolist() == list(range(21))
    draws = everything["draw"][real]
    alone = _eval_draws(source, 1)
    np.testing.assert_array_equal(draws, alone)


def _eval_draws(source, batch_size):
    with eval_batches(source, transform, batch_size, _sharding(*ONE)) as made:
        return np.concatenate([np.asarray(batch["draw"]) for batch in made])


def test_eval_limit():
    source = Counting(21)
    for limit, expected in ((0, 0), (5, 5), (99, 21)):
        with eval_batches(source, transform, 8, _sharding(*ONE), limit=limit) as made:
            assert sum(int(np.asarray(batch["_mask"]).sum()) for batch in made) == expected
