"""Capacity: asked for once, waited for, and given back only by who made it."""

import pytest


def test_it_is_asked_for_once_and_waited_for(cloud):
    states = [
        "CREATING",
        "ACCEPTED",
        "WAITING_FOR_RESOURCES",
        "WAITING_FOR_RESOURCES",
        "PROVISIONING",
    ]
    said = cloud.create(plan=[*states, "ACTIVE"]).stderr.splitlines()
    assert [line.split(": ")[2] for line in said[1:-1]] == [*dict.fromkeys(states), "ACTIVE"]
    assert "in the queue; there is no capacity yet" in said[3]
    assert said[-1].endswith("1 x v5litepod-16, 2 workers a slice; next: sync.sh --name=my-tpu")
    assert (cloud.path / "sleeps").read_text().split() == ["20"] * 5
    (created,) = cloud.calls("queued-resources", "create")
    token = (cloud.record() / "token").read_text().strip()
    assert len(token) == 12 and f"--labels=mmx_token={token}" in created

    cloud.create()  # the same again: it is there
    assert len(cloud.calls("queued-resources", "create")) == 1
    said = cloud.create("--spot", code=2).stderr
    assert "there with tier on-demand, not spot; delete.sh --name=my-tpu, or choose another" in said
    assert (
        "there with extra '', not --network=n;" in cloud.create("--", "--network=n", code=2).stderr
    )
    assert (cloud.record() / "tier").read_text() == "on-demand\n"


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED", "SUSPENDING", "DELETING"])
def test_a_request_that_will_not_be_served(cloud, state):
    said = cloud.create(plan=["PROVISIONING", state], code=1).stderr
    assert said.splitlines()[-1].endswith(f"my-tpu is {state}: delete.sh --name=my-tpu, then again")


def test_waiting_ends_and_the_request_stays(cloud):
    said = cloud.create("--timeout=40", plan=["WAITING_FOR_RESOURCES"], code=1).stderr
    assert "my-tpu is WAITING_FOR_RESOURCES after 40 s; the request stays in the queue" in said
    cloud.set(plan=[])
    said = cloud.create("--timeout=0", plan=["never asked for"]).stderr
    assert len(cloud.calls("queued-resources", "create")) == 1


def test_what_google_cloud_refuses_leaves_no_tpu_behind(cloud):
    cloud.set(plan=[])
    spec = ("--accelerator-type=v6e-8", "--runtime-version=v2-alpha-tpuv6e")
    said = cloud.run("create", *spec, code=1).stderr
    assert "RESOURCE_EXHAUSTED" in said and "my-tpu was not made" in said
    cloud.create(plan=["ACTIVE"])


def test_a_lost_reply_loses_no_tpu(cloud):
    """The request arrived, its answer did not: it is found by its token, not made twice."""
    real = (cloud.bin / "gcloud").read_text()
    lost = (
        real.replace("exec ", "")
        + 'code=$?\ncase "$*" in *" create "*) code=1 ;; esac\nexit $code\n'
    )
    cloud.tool("gcloud", lost)
    cloud.create(plan=["CREATING", "ACTIVE"])
    assert len(cloud.calls("queued-resources", "create")) == 1


def test_the_name_of_somebody_else_is_refused(cloud):
    cloud.create()
    cloud.env["MMX_TPU_STATE"] = str(cloud.home / "another machine")
    said = cloud.create(code=2).stderr
    assert "my-project/us-central2-b has one that was not made from here" in said
    for script in ("delete", "status", "stop", "sync", "doctor"):
        assert "not made from here" in cloud.run(script, code=2).stderr
    assert cloud.calls("queued-resources", "delete") == []


def test_delete_gives_back_what_it_made_and_no_more(cloud):
    cloud.create("--slices=2")
    token = (cloud.record() / "token").read_text().strip()
    # One node was left behind, one of the same name is of somebody else.
    cloud.set(left_behind={"my-tpu-0": token, "my-tpu-1": "beef"})
    cloud.run("delete")
    (deleted,) = cloud.calls("queued-resources", "delete")
    assert deleted[2:5] == ["my-tpu", "--force", "--quiet"]
    assert [c[2] for c in cloud.calls("tpu-vm", "delete")] == ["my-tpu-0"]
    assert not cloud.record().exists()
    assert "not made from here" in cloud.run("delete", code=2).stderr


def test_delete_leaves_what_was_made_anew_by_somebody_else(cloud):
    cloud.create()
    (cloud.record() / "token").write_text("another\n")
    assert "made anew by somebody else; not deleted" in cloud.run("delete", code=2).stderr
    assert cloud.calls("queued-resources", "delete") == []
    assert cloud.record().exists()


def test_all_mine_lists_and_asks(cloud):
    assert "nothing was made from here" in cloud.run("delete", "--all-mine", code=2).stderr
    cloud.create("--name=a")
    cloud.create("--name=b", plan=["SUSPENDED"], code=1)
    listed = "my-project/us-central2-b/a ACTIVE\nmy-project/us-central2-b/b SUSPENDED\n"
    for answer in ("", "y\n", "no\n"):
        done = cloud.run("delete", "--all-mine", code=2, stdin=answer)
        assert done.stdout == listed and "Delete all 2? Type yes: " in done.stderr
    assert cloud.calls("queued-resources", "delete") == []
    cloud.run("delete", "--all-mine", stdin="yes\n", MMX_TPU_ZONE="", MMX_TPU_PROJECT="")
    assert [c[2] for c in cloud.calls("queued-resources", "delete")] == ["a", "b"]
    cloud.create("--name=c")
    cloud.run("delete", "--all-mine", "--yes")
    assert not list(cloud.state.rglob("token"))


def test_status_tells_each_state(cloud):
    cloud.create(plan=["ACTIVE", "SUSPENDED"])
    said = cloud.run("status").stdout
    assert said.startswith("my-tpu SUSPENDED: the machines were taken away; it never comes back")
    assert len(said.splitlines()) == 1 and cloud.calls("tpu-vm", "ssh") == []


def test_a_question_is_asked_again_unless_it_is_hopeless(cloud):
    cloud.create()
    cloud.set(broken=["UNAVAILABLE: try again"] * 3)
    assert cloud.run("status").stdout.startswith("my-tpu ACTIVE")
    assert (cloud.path / "sleeps").read_text().split() == ["10", "20", "40"]
    cloud.set(broken=["PERMISSION_DENIED: no access to the project"])
    said = cloud.run("status", code=2).stderr
    assert said.startswith("status: error: gcloud: ERROR: (gcloud.compute.tpus) PERMISSION_DENIED")
    assert said.endswith("; gcloud auth login, or ask for the role\n")
    assert said.count("\n") == 1
