"""Which processes the environment speaks of: found without starting or reaching anything."""

import os
import sys

import jax
import pytest

from mmx.core.errors import UserError
from mmx.train import distributed
from mmx.train.distributed import Cluster, find_cluster

# As `srun` sets it for the second of three tasks, two on the first node.
SLURM = {
    "SLURM_JOB_ID": "4242",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_NTASKS": "3",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
}
EXPLICIT = {
    "JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "3",
}
GKE = {"TPU_WORKER_HOSTNAMES": "job-0.job,job-1.job", "TPU_WORKER_ID": "1"}
XPK_GPU = {
    "JAX_COORDINATOR_ADDRESS": "job-0-0.job",
    "JAX_COORDINATOR_PORT": "6002",
    "NNODES": "2",
    "NODE_RANK": "0",
}


_SPEAKING = ("SLURM_", "TPU_", "MEGASCALE_", "OMPI_", "JAX_COORDINATOR", "JAX_NUM_PROCESSES",
             "JAX_PROCESS", "KUBERNETES", "JOB_", "NNODES", "NODE_RANK")  # fmt: skip


@pytest.fixture
def given(monkeypatch):
    """``given(variables, tpu=metadata or None)``: this environment and no other."""
    from jax._src.clusters import cloud_tpu_cluster as tpu

    for name in list(os.environ):
        if name.startswith(_SPEAKING):
            monkeypatch.delenv(name)

    def set_up(variables, metadata=None, is_tpu=False):
        monkeypatch.setenv("JAX_PLATFORMS", "tpu" if is_tpu else "cpu")
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        if is_tpu:
            monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
        monkeypatch.setattr(tpu, "running_in_cloud_tpu_vm", is_tpu)
        monkeypatch.setattr("jax._src.clusters.cluster.running_in_cloud_tpu_vm", is_tpu)
        answers = metadata or {}
        monkeypatch.setattr(
            tpu, "get_metadata", lambda key: (answers.get(key, ""), 200 if key in answers else 404)
        )
        monkeypatch.setattr(tpu.socket, "gethostbyname", lambda name: "10.0.0.1")

    return set_up


VM = {
    "agent-worker-number": "2",
    "worker-network-endpoints": "a:0:10.0.0.1,b:1:10.0.0.2,c:2:10.0.0.3",
}


@pytest.mark.parametrize(
    ("variables", "kwargs", "cluster"),
    [
        (EXPLICIT, {}, Cluster("10.0.0.1:1234", 4, 3)),
        (XPK_GPU, {}, Cluster("job-0-0.job:6002", 2, 0)),
        (SLURM, {}, Cluster("node07:61586", 3, 1, (1,))),
        # A task a node has all devices of its node.
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x3)"}, {}, Cluster("node07:61586", 3, 1)),
        (SLURM | EXPLICIT, {}, Cluster("10.0.0.1:1234", 4, 3)),
        (GKE, {"is_tpu": True}, Cluster("job-0.job:8482", 2, 1)),
        ({}, {"is_tpu": True, "metadata": VM}, Cluster("10.0.0.1:8482", 3, 2)),
        (
            GKE | {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1",
                   "MEGASCALE_COORDINATOR_ADDRESS": "job-0.job"},
            {"is_tpu": True},
            Cluster("job-0.job:8482", 4, 3),
        ),
    ],
)  # fmt: skip
def test_many_are_recognised(given, variables, kwargs, cluster):
    given(variables, **kwargs)
    assert find_cluster() == cluster


@pytest.mark.parametrize(
    ("variables", "kwargs"),
    [
        ({}, {}),
        ({"SLURM_JOB_ID": "4242", "SLURM_NTASKS": "3", "SLURM_PROCID": "0"}, {}),  # no srun
        (SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, {}),
        (SLURM | {"JAX_NUM_PROCESSES": "1"}, {}),
        ({"NNODES": "2", "NODE_RANK": "0"}, {}),  # of another launcher
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.9"}, {}),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, {"is_tpu": True}),
        (
            {},
            {"is_tpu": True, "metadata": {"agent-worker-number": "0",
                                          "worker-network-endpoints": "a:0:10.0.0.1"}},
        ),
        (GKE, {}),  # of the pod, but no TPU is used
    ],
)  # fmt: skip
def test_one_is_recognised(given, variables, kwargs):
    given(variables, **kwargs)
    assert find_cluster() is None


@pytest.mark.parametrize(
    ("variables", "kwargs", "message"),
    [
        ({"JAX_NUM_PROCESSES": "2"}, {}, r"set all three .* \(now: None, 2, None\)"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, {}, r"set all three .* \(now: a:1, None, None\)"),
        (EXPLICIT | {"JAX_PROCESS_ID": "4"}, {}, "JAX_PROCESS_ID=4: the processes of .* 0 to 3"),
        (EXPLICIT | {"JAX_PROCESS_ID": "x"}, {}, "JAX_PROCESS_ID='x': give a whole number"),
        (EXPLICIT | {"JAX_COORDINATOR_ADDRESS": "a"}, {}, "ADDRESS=a: give HOST:PORT"),
        ({"JOB_COMPLETION_INDEX": "1", "KUBERNETES_SERVICE_HOST": "10.0.0.9"}, {}, "kubernetes"),
        (GKE | {"MEGASCALE_NUM_SLICES": "2"}, {"is_tpu": True}, "unset MEGASCALE_NUM_SLICES=2"),
        (
            GKE | {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "2",
                   "MEGASCALE_COORDINATOR_ADDRESS": "old"},
            {"is_tpu": True},
            "MEGASCALE_.* contradict each other.* unset MEGASCALE_COORDINATOR_ADDRESS=old",
        ),
    ],
)  # fmt: skip
def test_half_a_cluster_is_refused(given, monkeypatch, variables, kwargs, message):
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    given(variables, **kwargs)
    with pytest.raises(UserError, match=message) as raised:
        find_cluster()
    assert "\n" not in str(raised.value)


def test_a_name_of_an_earlier_job_is_named(given, monkeypatch):
    """A coordinator that no name server knows any more: bounded, and said."""
    from jax._src.clusters import cloud_tpu_cluster as tpu

    given(GKE | {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "0",
                 "MEGASCALE_COORDINATOR_ADDRESS": "gone"}, is_tpu=True)  # fmt: skip

    def unknown(name):
        raise tpu.socket.gaierror(name)

    monkeypatch.setattr(tpu.socket, "gethostbyname", unknown)
    monkeypatch.setattr(tpu.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(distributed, "JOIN_SECONDS", 0.1)
    with pytest.raises(UserError, match=r"gone.*unset MEGASCALE_COORDINATOR_ADDRESS=gone"):
        find_cluster()


def test_one_process_starts_nothing(given, monkeypatch):
    given({})
    monkeypatch.setattr(distributed, "join", None)
    with distributed.together():
        assert not distributed.is_many() and distributed.index() == 0
        distributed.barrier("alone")
        assert distributed.all_hold(True) and not distributed.all_hold(False)
    with pytest.raises(UserError, match="mine"), distributed.together():
        raise UserError("mine")


def test_a_save_that_failed_for_a_lost_peer_is_no_bad_input():
    """However often the error was wrapped; but not for what a path happens to be called."""
    gone = jax.errors.JaxRuntimeError("UNKNOWN: Gloo AllGather failed: Connection closed by peer")
    try:
        try:
            raise ValueError("in a thread") from gone
        except ValueError as error:
            raise UserError("RUN/checkpoints: step 12 was not written") from error
    except UserError as error:
        assert distributed._peer_gone(error) is gone
    assert distributed._peer_gone(UserError("runs/Gloo: no such run")) is None
    reset = ConnectionResetError(104, "Connection reset by peer")  # of a bucket
    assert distributed._peer_gone(reset) is None
    assert distributed._peer_gone(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: memory")) is None
