"""Every script says what it would run, and runs nothing; no name gets past its quotes."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

GOLDEN = Path(__file__).resolve().with_name("dry_runs.txt")
TRAIN = (
    "-- --config muse/base_3b --workdir gs://my-bucket/muse-1 --config.data.source='it'\\''s $(x)'"
)
KIND = "--accelerator-type=v5litepod-256"
SPEC = f"{KIND} --runtime-version=v2-alpha-tpuv5-lite"
COMMANDS = [
    f"create {SPEC}",
    f"create {SPEC} --slices=4 --spot --valid-until=6h -- --network=my-net --tags=a,b",
    f"create {SPEC} --reserved",
    "sync --ignore-dirty",
    "setup --data=gs://my-bucket/data",
    f"launch --run=muse-1 {TRAIN}",
    f"supervise --run=muse-1 --data=gs://my-bucket/data {TRAIN}",
    "status",
    "logs --follow --worker=3 --lines=5",
    "logs --first-failed --run=muse-1",
    "logs --fetch=logs",
    "stop --wait=60",
    "doctor --workdir=gs://my-bucket/muse-1",
    "profile --workdir=gs://my-bucket/muse-1 --to=trace",
    "preflight --accelerator-type=v5litepod-256 --config=muse/base_3b -- --sample",
    "preflight --topology=v5p:4x4x4 --config=muse/base_3b --  --json out.json",
    "delete",
    "delete --all-mine",
    f"xpk_launch --cluster=c --run=muse-1 --image=gcr.io/p/mmx:1 --slices=2 {KIND} {TRAIN}",
]


def script_names(cloud) -> set[str]:
    return {p.stem for p in cloud.scripts.glob("*.sh")} - {"lib"}


def test_dry_runs_are_as_recorded(cloud, source):
    """The exact commands. After a change that is meant, this writes the file anew: see its diff."""
    hash_ = subprocess.check_output(["git", "-C", source, "rev-parse", "HEAD"], text=True).strip()
    record = cloud.record()
    record.mkdir(parents=True)
    fields = {"token": "abc", "slices": "2", "workers": "2", "tier": "spot"}
    fields |= {"accelerator-type": "v6e-8", "runtime-version": "v2-alpha-tpuv6e"}
    for field, value in (fields | {"extra": "--network=my net"}).items():
        (record / field).write_text(f"{value}\n")
    before = sorted(cloud.state.rglob("*")), sorted(cloud.home.rglob("*"))
    text = ""
    for command in COMMANDS:
        name, *args = shlex.split(command)
        said = cloud.run(name, "--dry-run", *args).stdout
        for path, short in ((cloud.state, "STATE"), (source, "REPO"), (hash_, "HASH")):
            said = said.replace(str(path), short)
        text += f"$ {command}\n{said}\n"
    assert {c.split()[0] for c in COMMANDS} == script_names(cloud)
    assert cloud.calls() == [] and not (cloud.path / "sleeps").exists()
    assert before == (sorted(cloud.state.rglob("*")), sorted(cloud.home.rglob("*")))
    if text != GOLDEN.read_text():
        GOLDEN.write_text(text)
        raise AssertionError(f"{GOLDEN} did not match and is written anew: is its diff as meant?")


def test_a_dry_run_changes_nothing(cloud):
    """No tool that changes anything is started, and git only to read."""
    cloud.create()
    ran = cloud.path / "ran"
    tools = "gcloud git mmx xpk mkdir mv cp ln touch tee tar rm rmdir flock ssh scp kill"
    for tool in shlex.split(tools):
        real = shutil.which(tool) or "false"
        cloud.tool(tool, f'#!/bin/sh\necho "{tool} $*" >>"{ran}"\nexec {real} "$@"\n')
    for command in [*COMMANDS, "sync", "sync --commit=HEAD~1"]:
        if command.startswith("create"):
            command += " --name=other"
        name, *args = shlex.split(command)
        cloud.run(name, "--dry-run", *args, TMPDIR=str(cloud.path))
    said = ran.read_text().replace(str(cloud.scripts), "HERE").splitlines()
    said = [s for s in said if not s.startswith(f"rm -rf {cloud.path}/tmp.")]  # their scratch
    reads = ("git -C HERE rev-parse ", "git -C HERE/.. --no-optional-locks status ")
    assert [s for s in said if not s.startswith(reads)] == []
    assert len(said) > 4 and not list(cloud.path.glob("tmp.*"))


def test_a_dry_run_reads_back_as_the_words_of_the_real_run(cloud):
    """What --dry-run prints, parsed by a shell, is what gcloud gets."""
    args = ("--run=muse-1", "--", "--config", "c", "--workdir=gs://my-bucket/a b", "it's", '"$(x)"')
    cloud.create()
    cloud.set(answers={"launch": [["launched"]]})
    printed = cloud.run("launch", "--dry-run", *args).stdout
    cloud.run("launch", *args)
    (called,) = cloud.calls("tpu-vm", "ssh")
    assert shlex.split(printed) == ["gcloud", "compute", "tpus", *called]


def test_hostile_names_are_refused_in_one_line(cloud):
    bad = ["a b", "a;b", "$(x)", "`x`", "a'b", 'a"b', "a\nb", "-a", "../a", "é", "a*", "x" * 70]
    flags = {"name": "status", "project": "status", "zone": "status", "run": "launch"}
    launch = ("--", "--config", "c", "--workdir", "gs://my-bucket/x")
    for i, value in enumerate(bad):
        for flag in ("name", ["project", "zone", "run"][i % 3]):
            more = launch if flag == "run" else ()
            said = cloud.run(flags[flag], f"--{flag}={value}", *more, code=2).stderr
            assert said.startswith(f"{flags[flag]}: error: --{flag}="), said
            assert said.count("\n") == 1, said
    assert cloud.calls() == []


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("create --nmae=x", "--nmae=x: no such flag; see create.sh --help"),
        ("create my-tpu", "my-tpu: not a flag; see create.sh --help"),
        ("create '; rm'", "'; rm': not a flag; see create.sh --help"),
        ("create --zone", "--zone: needs a value, --zone=VALUE"),
        ("create --zone=", "--zone: the value is empty"),
        ("create --spot=1", "--spot=1: no such flag; see create.sh --help"),
        ("create --dry-run=", "--dry-run=: no such flag; see create.sh --help"),
        ("create", "--accelerator-type: not given; say --accelerator-type=v5litepod-16 (or MMX"),
        (f"create {SPEC} --spot --reserved", "--spot --reserved: give one of them"),
        (f"create {SPEC} --slices=0", "--slices=0: at least 1"),
        (f"create {SPEC} --valid-until=soon", "--valid-until=soon: give one like 6h"),
        (f"create {SPEC} --timeout=1h", "--timeout=1h: give a whole number"),
        ("launch --run=r -- --workdir gs://bucket", "--config: not given; say -- --config FILE"),
        ("launch --run=r -- --config c", "--workdir='': give gs://BUCKET or gs://BUCKET/FOLDER"),
        ("launch --run=r -- --config c --workdir runs/a", "--workdir=runs/a: give gs://BUCKET"),
        ("setup --data=/disk", "--data=/disk: give gs://BUCKET or gs://BUCKET/FOLDER"),
        ("logs --slice=1", "--slice=1: my-tpu has 1"),
        ("logs --lines=many", "--lines=many: give a whole number"),
        ("sync --commit=--help", "--commit=--help: no commit of "),
        ("profile --to=x", "--workdir: not given, and nothing was launched from here"),
        ("profile --workdir=gs://bucket/x", "--to: not given; name a folder for the traces"),
        ("preflight --accelerator-type=v6e-256", "--config: not given; say --config=muse/base_3b"),
        ("preflight --config=c --accelerator-type=v5p-24", "--accelerator-type=v5p-24: its shape"),
        ("xpk_launch --cluster=c", "--run: not given; say --run=muse-1"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(cloud, command, message):
    cloud.record().mkdir(parents=True)
    (cloud.record() / "token").write_text("abc\n")
    name, *args = shlex.split(command)
    said = cloud.run(name, *args, code=2).stderr
    assert said.startswith(f"{name}: error: {message}") and said.count("\n") == 1, said
    assert cloud.calls() == []


def test_settings_come_from_flags_then_environment_then_file(cloud):
    cloud.env = {k: v for k, v in cloud.env.items() if k not in ("MMX_TPU_PROJECT", "MMX_TPU_NAME")}
    assert "--name: not given" in cloud.run("status", code=2).stderr
    conf = cloud.home / ".config/mmx/tpu.conf"
    conf.parent.mkdir(parents=True)
    conf.write_text("# mine\nname=from-file\n\nproject = file-project \nzone=eu-west1-b")
    said = cloud.run("status", "--dry-run").stdout
    assert " from-file " in said and "--project=file-project --zone=us-central2-b\n" in said
    said = cloud.run("status", "--dry-run", "--project", "flag-project", MMX_TPU_NAME="env").stdout
    assert " env " in said and "--project=flag-project" in said
    conf.write_text("name=x\nzoen=y\n")
    said = cloud.run("status", code=2).stderr
    assert "tpu.conf line 2: zoen is none of: name project zone accelerator-type" in said
    assert "no such file" in cloud.run("status", code=2, MMX_TPU_CONFIG="nowhere").stderr


def test_preflight_compiles_for_the_shape_that_is_rented(cloud):
    shapes = {
        "v5litepod-8": "v5e:2x4",
        "v5litepod-16": "v5e:4x4",
        "v5litepod-128": "v5e:8x16",
        "v6e-256": "v6e:16x16",
        "v4-8": "v4:2x2x1",
        "v4-16": "v4:2x2x2",
        "v4-32": "v4:2x2x4",
        "v5p-64": "v5p:2x4x4",
        "v5p-128": "v5p:4x4x4",
        "v4-1024": "v4:8x8x8",
        "v4-2048": "v4:8x8x16",
    }
    for kind, shape in shapes.items():
        said = cloud.run(
            "preflight", "--dry-run", "--config=c", f"--accelerator-type={kind}"
        ).stdout
        assert said == f"mmx preflight --config c --topology {shape}\n"


def test_a_missing_tool_is_named(cloud):
    for tool in ("bash", "mktemp", "rm", "dirname", "sed"):
        (cloud.home / tool).symlink_to(shutil.which(tool))
    env = {"PATH": str(cloud.home)}
    assert "no gcloud here" in cloud.run("status", code=2, **env).stderr
    assert (
        "no mmx here"
        in cloud.run("preflight", "--topology=v5e:4x4", "--config=c", code=2, **env).stderr
    )


def test_preflight_and_xpk_and_profile_run_what_they_print(cloud):
    note = '#!/bin/sh\nfor a; do printf "%s|" "$a"; done >"$0.called"\nexit 1\n'
    for tool in ("mmx", "xpk"):
        cloud.tool(tool, note)
    cloud.run("preflight", "--topology=v5e:4x4", "--config=c", code=1)
    assert (cloud.bin / "mmx.called").read_text() == "preflight|--config|c|--topology|v5e:4x4|"
    spec = ("--cluster=c", "--run=r", "--accelerator-type=v6e-8", "--image=i:1")
    cloud.run("xpk_launch", *spec, "--", "--config", "it's", "--workdir=gs://my-bucket", code=1)
    words = (cloud.bin / "xpk.called").read_text().split("|")
    assert words[-2] == "--command=mmx train --config 'it'\\''s' --workdir=gs://my-bucket"
    cloud.run("profile", "--workdir=gs://my-bucket/r/", "--to=a b")
    assert cloud.calls("storage")[0][-2:] == [
        "gs://my-bucket/r/plugins/profile",
        "a b/plugins/profile",
    ]
