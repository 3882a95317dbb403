"""The supervisor against scripted clouds: what it does in each state, and when it gives up."""

import os
import re
import shutil
import subprocess
import time

import pytest

ARGS = ("--run=muse-1", "--", "--config", "c", "--workdir", "gs://bucket/run", "it's; $(x)")
FRESH = ["unsynced"]  # of both workers
# What a start leads to; the reports are a list for each call, of one answer for each worker.
SETUP = [["installed commit=abc jax=0.12 packages=1"]]


def supervise(
    cloud, *args, reports, code=0, plan=(), created=("ACTIVE",), commit=None, refused=(), **answers
):
    """Create the TPU, then supervise -> the states it went through, without their times."""
    cloud.create("--spot", "--timeout=0", plan=created)
    if commit:  # what sync.sh brought before
        (cloud.record() / "commit").write_text(f"{commit}\n")
    cloud.set(plan=[list(p) for p in plan], refused=dict(refused))
    cloud.set(answers={"report": reports, "setup": SETUP, **answers})
    done = cloud.run("supervise", *args, *ARGS, code=code)
    return [line.split(" ", 1)[1] for line in done.stdout.splitlines()]


def names(said: list[str]) -> list[str]:
    return [line.partition(":")[0] for line in said]


def started(cloud) -> list[str]:
    """The words of the scripts that were sent to the workers, but for the reports."""
    sent = [c[-3].partition("' ")[2] for c in cloud.calls("tpu-vm", "ssh")]
    sent = [re.sub("^[0-9a-f]{40}$", "sync", s) for s in sent]
    return [s for s in sent if s and not s.startswith("report")]


def test_from_nothing_to_done(cloud):
    waiting = ["CREATING", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    reports = [FRESH, ["running"], ["running"], ["exited 0 5", "running"], ["exited 0 5"]]
    said = supervise(cloud, created=waiting, reports=reports)
    assert names(said) == ["WAITING", "ACTIVE", "RUNNING", "DONE", "DONE"]
    words = "--config c --workdir gs://bucket/run 'it'\\''s; $(x)'"
    assert started(cloud) == ["sync", "setup", f"launch muse-1 {words}"]
    assert len(cloud.calls("queued-resources", "create")) == 1
    assert cloud.calls("queued-resources", "delete") == []


def test_preempted_capacity_is_deleted_and_made_anew_with_the_same_spec(cloud, source):
    # The state of the node tells it before that of the request.
    first = ["ACTIVE"] * 5 + ["ACTIVE:PREEMPTED"]
    second = ["WAITING_FOR_RESOURCES", "ACTIVE", "ACTIVE", "ACTIVE", "SUSPENDED"]
    reports = [FRESH, ["running"], FRESH, ["running"], FRESH, ["exited 0 9"]]
    command = ["git", "-C", source, "rev-parse", "HEAD~1"]
    commit = subprocess.check_output(command, text=True).strip()
    said = supervise(
        cloud, created=first, plan=[second, ["ACTIVE"]], reports=reports, commit=commit
    )
    assert names(said).count("PREEMPTED") == 2 and names(said)[-1] == "DONE"
    assert [s for s in said if s.startswith("preemptions")] == [
        "preemptions 1 of 50: node my-tpu is PREEMPTED",
        "preemptions 2 of 50: the machines were taken away; it never comes back by itself and eats "
        "quota until deleted",
    ]
    order = [c[1] for c in cloud.calls("queued-resources") if c[1] != "describe"]
    assert order == ["create", "delete", "create", "delete", "create"]
    assert all("--force" in c for c in cloud.calls("queued-resources", "delete"))
    specs = [
        [w for w in c if "mmx_token" not in w] for c in cloud.calls("queued-resources", "create")
    ]
    assert specs[0] == specs[1] == specs[2] and "--spot" in specs[0]
    # Each start brings the commit that was there, not today's, and the words of the user.
    copied = {c[2] for c in cloud.calls("tpu-vm", "scp")}
    assert copied == {str(cloud.record() / f"mmx-{commit}.tar.gz")}
    launches = [s for s in started(cloud) if s.startswith("launch")]
    assert len(launches) >= 2 and len(set(launches)) == 1


def test_saved_is_started_again_on_the_same_machines(cloud):
    saved = ["exited 75 5"]
    reports = [["running"], ["exited 75 5", "running"], saved, saved, ["exited 0 9"]]
    said = supervise(cloud, reports=reports)
    assert names(said) == ["RUNNING", "SAVED", "preemptions 1 of 50", "DONE", "DONE"]
    assert [s.split()[0] for s in started(cloud)] == ["stop", "sync", "setup", "launch"]
    assert started(cloud)[0] == "stop muse-1 60 restart"


def test_a_crash_stops_all_and_starts_all_until_the_budget_is_used_up(cloud):
    crash = ["running", "exited 137 7"]
    reports = [["running"], crash]
    said = supervise(cloud, "--max-crashes=2", reports=reports, code=1)
    assert [s for s in said if s.startswith("crashes")] == [
        f"crashes {i} of 2: first failed: my-tpu w-1 exited 137 7" for i in (1, 2)
    ]
    assert said[-1].startswith("FAILED: first failed: my-tpu w-1 exited 137 7; all 2 crashes")
    assert [s.split()[0] for s in started(cloud)].count("stop") == 2
    assert cloud.calls("queued-resources", "delete") == []
    # The budget outlives the supervisor; a larger one goes on, and preemptions are counted apart.
    assert (cloud.record() / "crashes.muse-1").read_text() == "2\n"
    assert not (cloud.record() / "preemptions.muse-1").exists()
    cloud.set(answers={"report": [crash, crash, ["exited 0 9"]], "setup": SETUP})
    assert "crashes 3 of 3" in cloud.run("supervise", "--max-crashes=3", *ARGS).stdout


def test_the_budget_of_preemptions(cloud):
    budgets = ("--max-preemptions=1", "--max-crashes=0")
    said = supervise(cloud, *budgets, created=["ACTIVE", "SUSPENDED"], plan=[["SUSPENDING"]],
                     reports=[["running"]], code=1)  # fmt: skip
    assert names(said) == ["PREEMPTED", "preemptions 1 of 1", "NONE", "PREEMPTED", "FAILED"]


@pytest.mark.parametrize(
    ("report", "code", "end"),
    [
        (["exited 1 5", "exited 134 6"], 1, "FAILED"),  # a NaN comes again
        (["exited 2 5"], 1, "FAILED"),
        (["stopped 75 5"], 75, "STOPPED"),
        (["running", "stopped lost"], 75, "STOPPED"),
    ],
)
def test_what_is_not_started_again(cloud, report, code, end):
    said = supervise(cloud, reports=[["running"], report], code=code)
    assert names(said) == ["RUNNING", end, end]
    assert started(cloud) == []


def test_the_first_failure_decides(cloud):
    """A host dies, then the others end with 1 because they lost it: that is no NaN."""
    first, second = ["exited 1 9", "exited 137 7"], ["exited 76 5", "exited 1 7"]
    said = supervise(cloud, reports=[first, first, ["running"], second], code=1)
    assert names(said)[:3] == ["CRASHED", "crashes 1 of 3", "RUNNING"]
    # And 76 says that it lost another, whatever the clocks say.
    assert said[-2].startswith("FAILED: my-tpu w-1 exited 1 7: 1 is a failed training")


def test_one_worker_without_the_run_lets_the_others_wait(cloud):
    report = ["running", "none"]
    said = supervise(cloud, reports=[report, report, ["exited 0 9"]])
    assert said[0] == "CRASHED: a worker lacks the run, and all others wait for it"


def test_a_host_that_comes_back_lost_or_is_taken_away_in_between(cloud):
    """What looks like a crash at first and is a preemption at second costs no crash."""
    said = supervise(cloud, created=["ACTIVE", "ACTIVE", "ACTIVE:PREEMPTED"], plan=[["ACTIVE"]],
                     reports=[["lost"], ["exited 0 9"]])  # fmt: skip
    assert names(said)[:3] == ["CRASHED", "PREEMPTED", "preemptions 1 of 50"]
    assert not (cloud.record() / "crashes.muse-1").exists()


def test_a_worker_that_stays_silent_is_replaced(cloud):
    silent = [["running", None]] * 5
    said = supervise(cloud, plan=[["ACTIVE"]], reports=[*silent, ["exited 0 9"]])
    assert names(said) == ["UNREACHABLE", "crashes 1 of 3", "NONE", "DONE", "DONE"]


def test_a_request_that_fails_is_deleted_because_it_eats_quota(cloud):
    said = supervise(cloud, "--max-crashes=1", created=["WAITING_FOR_RESOURCES", "FAILED"],
                     plan=[["FAILED"]], reports=[FRESH], code=1)  # fmt: skip
    assert names(said) == ["UNSERVED", "crashes 1 of 1", "NONE", "UNSERVED", "FAILED"]
    assert len(cloud.calls("queued-resources", "delete")) == 1


def test_a_setup_that_fails_on_sound_machines_is_a_crash(cloud):
    said = supervise(cloud, "--max-crashes=1", reports=[FRESH], code=1,
                     setup=[["failed: the registry is down"]])  # fmt: skip
    assert names(said) == ["ACTIVE", "crashes 1 of 1", "FAILED"]


def test_a_network_that_is_down_for_minutes_harms_nothing(cloud):
    cloud.create()
    cloud.set(broken=["UNAVAILABLE: connection refused"] * 7)
    cloud.set(answers={"report": [["running"], ["exited 0 9"]], "setup": SETUP})
    said = cloud.run("supervise", *ARGS).stdout
    assert [line.split()[1] for line in said.splitlines()] == [
        "UNKNOWN:",
        "RUNNING:",
        "DONE:",
        "DONE:",
    ]
    sleeps = list(map(int, (cloud.path / "sleeps").read_text().split()))
    assert sleeps[:4] == [10, 20, 40, 80]


DOWN = "UNAVAILABLE: connection refused"
DENIED = "PERMISSION_DENIED: no"


@pytest.mark.parametrize(
    ("refused", "noted"),
    [
        ({"queued-resources delete": [DOWN]}, []),
        ({"queued-resources delete": [DOWN] * 12}, ["DELETING"]),
        ({"queued-resources describe": [None, *[DOWN] * 5]}, ["DELETING"]),
        ({"queued-resources delete": [DENIED] * 3}, ["DELETING"]),
    ],
)
def test_a_delete_that_fails_is_tried_again_and_costs_one_preemption(cloud, refused, noted):
    said = supervise(cloud, "--max-preemptions=1", created=["ACTIVE", "SUSPENDED"],
                     plan=[["ACTIVE"]], reports=[["exited 0 9"]], refused=refused)  # fmt: skip
    assert names(said) == ["PREEMPTED", "preemptions 1 of 1", *noted, "NONE", "DONE", "DONE"]


def test_a_delete_that_takes_longer_than_we_wait(cloud):
    """Google Cloud goes on with it for 1050 s."""
    real = (cloud.bin / "gcloud").read_text().removeprefix("#!/bin/sh\n")
    cloud.create("--timeout=0", plan=["SUSPENDED"], code=1)
    cloud.set(plan=[["ACTIVE"]], answers={"report": [["exited 0 9"]]})
    token = (cloud.record() / "token").read_text().strip()
    cloud.tool("gcloud", f"""#!/bin/sh
        case "$*" in *queued-resources\\ describe*)
            echo >>"{cloud.path}/looks"
            n=$(wc -l <"{cloud.path}/looks")
            [ $n -gt 2 ] || {{ echo SUSPENDED {token} && exit; }}
            [ $n -gt 70 ] || {{ echo DELETING {token} && exit; }}
        esac\n{real}""")  # fmt: skip
    done = cloud.run("supervise", *ARGS)
    assert "my-tpu is still there 900 s after it was deleted" in done.stderr
    said = [line.split(" ", 1)[1] for line in done.stdout.splitlines()]
    assert names(said)[2:] == ["DELETING", "WAITING", "NONE", "DONE", "DONE"]


@pytest.mark.parametrize("words", [
    DENIED,
    "UNAUTHENTICATED: Request had invalid authentication credentials",
    "You do not currently have an active account selected.",
])  # fmt: skip
def test_refused_credentials_end_it_at_once(cloud, words):
    cloud.create()
    cloud.set(broken=[words])
    said = cloud.run("supervise", *ARGS, code=2).stdout.splitlines()
    assert said[-1].endswith(" FAILED: my-tpu: Google Cloud refuses our credentials")


def test_credentials_that_expire_are_told_every_hour_until_renewed(cloud):
    cloud.create()
    cloud.set(refused={"queued-resources describe": [None, *[DENIED] * 4]})
    cloud.set(answers={"report": [["running"], ["exited 0 9"]]})
    clock = cloud.path / "clock"  # each look is half an hour after the one before
    cloud.tool(
        "date",
        f"""#!/bin/sh
        [ "$1" = +%s ] || exec {shutil.which("date")} "$@"
        echo >>"{clock}"; echo $((1800 * $(wc -l <"{clock}")))\n""",
    )
    said = [line.split(" ", 1)[1] for line in cloud.run("supervise", *ARGS).stdout.splitlines()]
    assert names(said)[0] == "RUNNING" and names(said)[-2:] == ["DONE", "DONE"]
    assert said[1].startswith("DENIED: Google Cloud refuses our credentials: gcloud auth login; ")
    assert said[1:-2] == [said[1]] * 3


@pytest.mark.parametrize("report", [["exited 70 5", "exited 1 7"], ["exited 76 5"]])
def test_a_machine_that_failed_or_a_peer_that_was_lost_is_a_crash(cloud, report):
    said = supervise(
        cloud, "--max-crashes=1", reports=[report, report, ["running"], report], code=1
    )
    end = ["RUNNING", "CRASHED", "FAILED"]
    assert names(said) == ["CRASHED", "crashes 1 of 1", *end]
    assert "all 1 crashes of --max-crashes are used up" in said[-1]


def test_stopped_before_goes_on_when_asked_to(cloud):
    said = supervise(cloud, reports=[["stopped 75 5"], ["running"], ["exited 0 9"]])
    assert names(said) == ["STOPPED", "RUNNING", "DONE", "DONE"]
    assert [s.split()[0] for s in started(cloud)] == ["sync", "setup", "launch"]


def test_many_slices_are_one_run(cloud):
    cloud.create("--slices=2")
    crash = ["running", "running", "running", "exited 137 7"]
    reports = [crash, crash, ["exited 0 9"]]
    cloud.set(answers={"report": reports, "setup": SETUP})
    said = cloud.run("supervise", *ARGS).stdout
    assert "first failed: my-tpu-1 w-1 exited 137 7" in said
    nodes = {c[2] for c in cloud.calls("tpu-vm", "ssh") if "launch" in c[-3]}
    assert nodes == {"my-tpu-0", "my-tpu-1"}


def test_only_one_supervisor(cloud):
    """The lock decides, not the pid in it, which can be of a dead one or used again."""
    cloud.create()
    cloud.set(answers={"report": [["running"], ["exited 0 9"]]})
    cloud.tool("sleep", f'#!/bin/sh\ntouch "{cloud.path}/waits"; read x <"{cloud.path}/go"\n')
    os.mkfifo(cloud.path / "go")
    (cloud.record() / "supervisor.lock").write_text(f"{os.getpid()}\n")
    command = ["bash", cloud.scripts / "supervise.sh", *ARGS]
    with subprocess.Popen(command, env=cloud.env, stdout=subprocess.PIPE, text=True) as first:
        try:
            until = time.monotonic() + 30
            while not (cloud.path / "waits").exists() and time.monotonic() < until:
                time.sleep(0.05)
            assert (
                f"process {first.pid} supervises it already"
                in cloud.run("supervise", *ARGS, code=2).stderr
            )
            (cloud.path / "go").write_text("\n")
            assert first.communicate(timeout=30)[0].endswith(" DONE: muse-1\n")
        finally:
            first.kill()
    cloud.run("supervise", *ARGS)  # one that ended is in nobody's way


def test_a_tpu_that_somebody_made_anew_is_left_alone(cloud):
    cloud.create()
    (cloud.record() / "token").write_text("0000\n")
    assert "made anew by somebody else" in cloud.run("supervise", *ARGS, code=2).stdout
    assert cloud.calls("queued-resources", "delete") == []
