"""What runs on the workers, in earnest: each is a folder here, and ssh is a local shell."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

HOSTILE = [
    "--config", "muse/base_3b:tiny", "--workdir=gs://my-bucket/a b",
    "it's \"quoted\"; touch pwned", "$(touch pwned)", "`touch pwned`", "two  spaces", "a\nline",
    "-n", "--", "*", "~", "\\", "", "café", "tab\there", "!!", "#no",
]  # fmt: skip
ASKED = ("--config", "c", "--workdir", "gs://bucket/run")


def launch(pod, *args, **kwargs):
    return pod.run("launch", "--run=muse-1", "--", *(args or ASKED), **kwargs)


def rows(pod) -> list[str]:
    return pod.run("status").stdout.splitlines()[2:]


def wait_for(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def until(pod, *how: str) -> None:
    """Wait until the workers stand as said; the time is cut off."""
    folders = [pod.worker("my-tpu", i) / "mmx-tpu/current" for i in range(len(how))]
    wait_for(lambda: all("ed " not in h or (f / "exit").exists() for h, f in zip(how, folders)))
    assert [r.split()[:4] for r in rows(pod)] == [
        ["my-tpu", f"w-{i}", *h.split()] for i, h in enumerate(how)
    ]


def is_alive(pid: str) -> bool:
    """And no zombie, which waits here for its parent to take note."""
    stat = Path("/proc", pid.strip(), "stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def behave(pod, *scripts: str) -> None:
    for i, script in enumerate(scripts):
        (pod.worker("my-tpu", i) / "behaviour").write_text(script)


def test_arguments_arrive_as_they_were_written(pod):
    launch(pod, *HOSTILE)
    until(pod, "exited 0", "exited 0")
    for i in (0, 1):
        home = pod.worker("my-tpu", i)
        assert json.loads((home / "mmx-calls").read_text()) == ["train", *HOSTILE]
        assert list(home.rglob("pwned")) == []
    assert not (pod.home / "pwned").exists()


def test_a_run_outlives_the_session_and_keeps_its_exit_code(pod):
    behave(pod, "echo first; until [ -e ~/go ]; do sleep 0.05; done; exit 3", "exit 0")
    launch(pod)
    until(pod, "running", "exited 0")
    (pod.worker("my-tpu", 0) / "go").touch()
    until(pod, "exited 3", "exited 0")
    log = (pod.worker("my-tpu", 0) / "mmx-tpu/runs/muse-1/log").read_text()
    assert "mmx train --config c --workdir gs://bucket/run\nfirst\n" in log
    assert pod.run("logs", "--lines=1").stdout == "first\n"


def test_a_second_launch_is_the_same_run_or_refused(pod):
    behave(pod, *2 * ["trap 'exit 75' TERM; while :; do sleep 0.05; done"])
    launch(pod)
    launch(pod)  # a second time: says that it is running
    until(pod, "running", "running")
    assert len((pod.worker("my-tpu", 0) / "mmx-calls").read_text().splitlines()) == 1
    other = pod.run("launch", "--run=muse-2", "--", *ASKED, code=1).stderr
    assert "busy: processes of run muse-1 are alive" in other
    assert "busy: run muse-1 is alive; stop.sh first" in pod.run("sync", code=1).stderr
    assert not (pod.worker("my-tpu", 0) / "mmx-tpu/src.new").exists()

    said = pod.run("stop").stdout
    assert [line.split()[:4] for line in said.splitlines()] == [
        ["my-tpu", f"w-{i}", "exited", "75"] for i in (0, 1)
    ]
    until(pod, "stopped 75", "stopped 75")
    assert "not running" in pod.run("stop").stdout

    behave(pod, "exit 0", "exit 0")
    launch(pod)  # the earlier end is forgotten, the log goes on
    until(pod, "exited 0", "exited 0")
    log = (pod.worker("my-tpu", 0) / "mmx-tpu/runs/muse-1/log").read_text()
    assert log.count("mmx train") == 2


def test_stop_waits_for_the_save_and_kills_what_ignores_it(pod):
    forever = "while :; do sleep 0.05; done"
    child = f"trap '' TERM; ({forever}) & echo $! >~/child; wait"
    saves = f"trap 'sleep 0.5; touch ~/saved; exit 75' TERM; touch ~/hears; {forever}"
    behave(pod, saves, child)
    launch(pod)
    wait_for((pod.worker("my-tpu", 0) / "hears").exists)
    wait_for((pod.worker("my-tpu", 1) / "child").exists)
    said = pod.run("stop", "--wait=2").stdout
    assert (pod.worker("my-tpu", 0) / "saved").exists()
    assert "w-0 exited 75" in said and "w-1 exited 137" in said
    assert not is_alive((pod.worker("my-tpu", 1) / "child").read_text())


def test_a_host_that_shuts_down_signals_the_wrapper_too(pod):
    hears = "trap 'sleep 0.3; exit 75' TERM; touch ~/hears; while :; do sleep 0.05; done"
    behave(pod, hears, hears)
    launch(pod)
    for i in (0, 1):
        wait_for((pod.worker("my-tpu", i) / "hears").exists)
        session = (pod.worker("my-tpu", i) / "mmx-tpu/runs/muse-1/session").read_text()
        os.killpg(int(session), signal.SIGTERM)
    until(pod, "exited 75", "exited 75")  # nobody ran stop.sh


def test_a_killed_session_is_lost_and_the_first_failure_is_found(pod):
    behave(pod, "while :; do sleep 0.05; done", "sleep 0.1; echo peer is gone; exit 134")
    launch(pod)
    until(pod, "running", "exited 134")
    session = (pod.worker("my-tpu", 0) / "mmx-tpu/runs/muse-1/session").read_text()
    os.killpg(int(session), signal.SIGKILL)
    wait_for(lambda: not is_alive(session))
    until(pod, "lost", "exited 134")
    assert pod.run("logs", "--first-failed").stdout.startswith("my-tpu w-0 lost\n")

    behave(pod, "sleep 1.2; exit 134", "echo out of memory; exit 137")
    launch(pod)
    until(pod, "exited 134", "exited 137")
    said = pod.run("logs", "--first-failed", "--lines=1").stdout.splitlines()
    assert said[0].startswith("my-tpu w-1 exited 137 ") and said[1] == "out of memory"

    pod.run("logs", "--fetch=all logs")
    fetched = {p.name: p.read_text() for p in (pod.home / "all logs").iterdir()}
    assert set(fetched) == {"my-tpu-w-0.log", "my-tpu-w-1.log"}
    assert fetched["my-tpu-w-1.log"].endswith("out of memory\n")
    assert "is there already" in pod.run("logs", "--fetch=all logs", code=2).stderr


def test_variables_of_an_earlier_slice_do_not_reach_the_run(pod):
    pod.env |= {"MEGASCALE_COORDINATOR_ADDRESS": "10.0.0.1", "KEPT": "yes"}
    launch(pod)
    until(pod, "exited 0", "exited 0")
    environment = (pod.worker("my-tpu", 0) / "mmx-environment").read_text()
    assert "MEGASCALE" not in environment and "KEPT=yes" in environment


def test_sync_leaves_exactly_the_commit(pod, source):
    git = ["git", "-C", source]
    hashes = subprocess.check_output([*git, "log", "--format=%H"], text=True).split()
    src = pod.worker("my-tpu", 1) / "mmx-tpu/src"
    assert (src / "COMMIT").read_text().split() == hashes[:1]
    tracked = subprocess.check_output([*git, "ls-files"], text=True).split()
    files = {p.relative_to(src).as_posix() for p in src.rglob("*") if p.is_file()}
    assert files == {*tracked, "COMMIT"}
    assert not list(src.parent.parent.glob("*.tar.gz"))

    (source / "new.txt").write_text("not committed")
    try:
        assert "not committed" in pod.run("sync", code=2).stderr
        pod.run("sync", "--ignore-dirty")
        assert not (src / "new.txt").exists()
    finally:
        (source / "new.txt").unlink()
    pod.run("sync", f"--commit={hashes[1]}")
    assert (src / "COMMIT").read_text().split() == hashes[1:]
    assert (pod.record() / "commit").read_text().split() == hashes[1:]


def test_setup_installs_the_same_everywhere_or_says_what_differs(pod):
    home = pod.worker("my-tpu", 0)
    assert "../venv gcs,tpu" not in (home / "install-calls").read_text()
    assert (home / "install-calls").read_text().rstrip().endswith("../venv gcs tpu")
    said = pod.run("setup").stderr
    assert f"python={'.'.join(map(str, sys.version_info[:3]))} " in said and "packages=" in said

    python = home / "mmx-tpu/venv/bin/python"
    (pod.worker("my-tpu", 1) / "install-fails").touch()
    assert "w-1 failed: the registry is down" in pod.run("setup", code=1).stderr
    (pod.worker("my-tpu", 1) / "install-fails").unlink()
    install = home / "mmx-tpu/src/constraints/install.sh"
    install.write_text(f"printf '#!/bin/sh\\necho jax=0.1 packages=0\\n' >'{python}'\n")
    said = pod.run("setup", code=1).stderr
    assert "the workers differ" in said and "w-0 installed" in said and "w-1 installed" in said


def test_setup_brings_a_python_where_the_image_has_an_old_one(pod, tmp_path):
    old = tmp_path / "old"
    old.mkdir()
    fake = f"""#!/bin/sh
    case "$*" in
        *version_info*) exit 1 ;;
        "-m pip install --user --quiet uv" | "-m uv python install 3.12") echo "$*" >>~/uv-calls ;;
        "-m uv python find 3.12") echo "{sys.executable}" ;;
        *) exit 3 ;;
    esac
    """
    for name in ("python3", "python3.11", "python3.12", "python3.13"):
        (old / name).write_text(fake)
        (old / name).chmod(0o755)
    pod.env["WORKER_PATH"] = f"{old}:{os.environ['PATH']}"
    pod.run("setup")
    home = pod.worker("my-tpu", 1)
    assert len((home / "uv-calls").read_text().splitlines()) == 2
    assert (home / "install-calls").read_text().splitlines()[-1].startswith(f"{sys.executable} ../")


def test_data_is_mounted_read_only_once(pod, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "gcsfuse").write_text('#!/bin/sh\nprintf "%s\\n" "$@" >>~/gcsfuse-calls\n'
                                   'for m; do :; done; touch "$m/mounted"\n')  # fmt: skip
    (tools / "mountpoint").write_text('#!/bin/sh\n[ -e "$2/mounted" ]\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    pod.env["WORKER_PATH"] = f"{tools}:{os.environ['PATH']}"
    home = pod.worker("my-tpu", 0)
    pod.run("setup", "--data=gs://my-bucket/some data/tfds/")
    flags = (home / "gcsfuse-calls").read_text().splitlines()
    assert flags[:2] == ["-o", "ro"] and flags[-2:] == ["my-bucket", "data"]
    assert "--only-dir=some data/tfds" in flags
    pod.run("setup")  # the record knows it
    assert (home / "gcsfuse-calls").read_text().splitlines() == flags
    other = pod.run("setup", "--data=gs://other-bucket", code=1).stderr
    assert "failed: gs://my-bucket/some data/tfds is mounted" in other

    launch(pod)
    until(pod, "exited 0", "exited 0")
    environment = (home / "mmx-environment").read_text()
    (home / "mmx-tpu/data/mounted").unlink()  # the host restarted
    assert "w-0 failed: data is not mounted; setup.sh mounts it" in launch(pod, code=1).stderr
    assert f"TFDS_DATA_DIR={home}/mmx-tpu/data\n" in environment


def test_doctor_adds_over_all_devices_and_writes_to_the_workdir(pod, tmp_path):
    home = pod.worker("my-tpu", 0)
    command = ["bash", home / "mmx-tpu/src/tpu_scripts/worker/doctor.sh"]
    env = os.environ | {"HOME": str(home), "HOSTNAME": "t1v-n-0-w-0"}

    def doctor(*args):
        said = subprocess.check_output([*command, *args], env=env, text=True)
        said = [line.removeprefix("mmx-answer w-0 ") for line in said.splitlines()]
        # Whoever compiles for a TPU on this machine leaves libtpu's lock file in /tmp.
        return [line for line in said if not line.startswith("warn lock: ")]

    workdir = tmp_path / "work dir"
    said = doctor("1", str(workdir))
    assert [s.split()[:2] for s in said] == [
        ["ok", "commit:"],
        ["ok", "devices:"],
        ["ok", "workdir:"],
    ]
    assert "8 here, 8 on 1 of 1 hosts, cpu; all-reduce 28, expected 28" in said[1]
    assert workdir.is_dir() and list(workdir.iterdir()) == []

    # A run is alive: its chips are left alone. Two hosts are asked for, and the workdir is a file.
    (tmp_path / "file").touch()
    env["MEGASCALE_COORDINATOR_ADDRESS"] = "10.0.0.1"
    behave(pod, *2 * ["trap 'exit 75' TERM; while :; do sleep 0.05; done"])
    launch(pod)
    said = doctor("2", str(tmp_path / "file"))
    assert said[1].startswith("warn environment: stale MEGASCALE_COORDINATOR_ADDRESS: ")
    assert said[2] == "ok run: muse-1 is running; the chips are not tried"
    assert said[3].startswith("bad workdir: ")
    pod.run("stop")


def test_a_worker_without_an_answer_is_named(pod):
    pod.set(dead=["my-tpu/1"])
    (pod.record() / "workers").unlink()  # create.sh did not wait for the machines: they are counted
    assert "no answer from my-tpu/w-1" in pod.run("status", code=3).stderr
    assert "not started everywhere" in launch(pod, code=1).stderr


def test_what_was_never_synced_says_so(cloud):
    cloud.create()
    assert cloud.run("status").stdout.splitlines()[2:] == [
        "my-tpu w-0 unsynced",
        "my-tpu w-1 unsynced",
    ]
    assert "sync.sh and setup.sh first" in launch(cloud, code=1).stderr


def test_a_supervised_run_saves_crashes_and_ends(pod):
    """Nothing is scripted but mmx: it saves at its first start, one dies at the second."""
    behave(pod, *2 * ["""
        n=$(cat ~/starts 2>/dev/null) && n=$((n + 1)) || n=1
        echo $n >~/starts
        case $n$HOSTNAME in
            1*) exit 75 ;;
            2*-0) trap 'exit 75' TERM; while :; do sleep 0.05; done ;;
            2*-1) exit 139 ;;
        esac
    """])  # fmt: skip
    pod.tool("sleep", f"#!/bin/sh\nexec {shutil.which('sleep')} 0.2\n")
    said = pod.run("supervise", "--run=muse-1", "--", *ASKED, "it's; $(x)").stdout.splitlines()
    states = [line.split(" ", 1)[1] for line in said if "RUNNING" not in line]
    assert [s.partition(":")[0] for s in states] == [
        "ACTIVE", "SAVED", "preemptions 1 of 50", "CRASHED", "crashes 1 of 3", "DONE", "DONE"
    ]  # fmt: skip
    assert "first failed: my-tpu w-1 exited 139" in states[4]
    for i in (0, 1):
        calls = (pod.worker("my-tpu", i) / "mmx-calls").read_text().splitlines()
        assert list(map(json.loads, calls)) == 3 * [["train", *ASKED, "it's; $(x)"]]
