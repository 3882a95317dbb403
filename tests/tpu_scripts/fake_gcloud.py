"""A Google Cloud of files, for the scripts' tests: the calls that they make, and what they answer.

$FAKE_CLOUD is its folder. Every call is appended to ``calls`` as a JSON list. ``plan.json`` has a
list of states for each queued resource to come, "STATE" or "STATE:NODE_STATE", one a look; the last
stays. A worker is a folder ``workers/NODE/I``, its home; a command over ssh runs there in earnest,
unless ``answers.json`` has what it answers: script -> a list, one a call, of lists of answers, one
a worker; the last one stays.
"""

import json
import os
import re
import sys

# No pathlib, and what few calls need is imported there: a test makes hundreds of calls.
CLOUD = os.environ["FAKE_CLOUD"]


def load(name, default):
    path = f"{CLOUD}/{name}"
    if not os.path.exists(path):
        return default
    with open(path) as file:
        return json.load(file)


def save(name, value):
    with open(f"{CLOUD}/{name}", "w") as file:
        json.dump(value, file)


def flag(argv, name, default=None):
    found = [a.partition("=")[2] for a in argv if a.startswith(f"--{name}=")]
    return found[0] if found else default


def error(text):
    print(f"ERROR: (gcloud.compute.tpus) {text}", file=sys.stderr)
    return 1


def homes(node):
    """Worker -> its home folder."""
    folder = f"{CLOUD}/workers/{node}"
    return {i: f"{folder}/{i}" for i in sorted(os.listdir(folder))}


def create(name, argv):
    resources = load("resources.json", {})
    if name in resources:
        return error("ALREADY_EXISTS: Resource already exists")
    plan = load("plan.json", [])
    if not plan:
        return error("RESOURCE_EXHAUSTED: Quota limit exceeded")
    states = plan.pop(0)
    save("plan.json", plan)
    count = int(flag(argv, "node-count", "1"))
    nodes = [f"{flag(argv, 'node-prefix')}-{i}" for i in range(count)]
    nodes = nodes if count > 1 else [flag(argv, "node-id")]
    token = re.search("mmx_token=([0-9a-f]+)", flag(argv, "labels", "")).group(1)
    resources[name] = {"token": token, "nodes": nodes, "states": states, "node_state": "READY"}
    save("resources.json", resources)
    for node in nodes:
        for i in range(load("workers_a_node.json", 2)):
            os.makedirs(f"{CLOUD}/workers/{node}/{i}")
    return 0


def describe(name):
    resources = load("resources.json", {})
    if name not in resources:
        return error("NOT_FOUND: Requested entity was not found")
    it = resources[name]
    state, _, node_state = it["states"][0].partition(":")
    it["states"] = it["states"][1:] or it["states"]
    it["node_state"] = node_state or "READY"
    save("resources.json", resources)
    print(state, it["token"], sep="\t")
    return 0


def delete(name):
    import shutil

    resources = load("resources.json", {})
    for node in resources.pop(name)["nodes"]:
        shutil.rmtree(f"{CLOUD}/workers/{node}")
    save("resources.json", resources)
    return 0


def describe_node(node):
    for it in load("resources.json", {}).values():
        if node in it["nodes"]:
            print(it["node_state"], len(homes(node)), it["token"], "HEALTHY", sep="\t")
            return 0
    left = load("left_behind.json", {})  # a node whose queued resource is gone
    if node in left:
        print("READY", 1, left[node], "HEALTHY", sep="\t")
        return 0
    return error("NOT_FOUND: Requested entity was not found")


def ssh(node, argv):
    command, which = flag(argv, "command"), flag(argv, "worker")
    targets = {i: home for i, home in homes(node).items() if which in ("all", i)}
    script = re.search(r"' (\w+)( |$)", command)  # bash -c '...' SCRIPT ARG...
    answers = load("answers.json", None)
    if answers is not None:
        return scripted(node, targets, script[1] if script else "sync", answers)
    import subprocess

    dead = load("dead.json", [])
    env = dict(os.environ, PATH=os.environ["WORKER_PATH"])
    running = [
        subprocess.Popen(
            ["bash", "-c", command],
            cwd=home,
            env=env | {"HOME": home, "HOSTNAME": f"t1v-n-0a1b2c-w-{i}"},
            stdin=subprocess.DEVNULL,
        )
        for i, home in targets.items()
        if f"{node}/{i}" not in dead
    ]
    return max([p.wait() for p in running], default=0)


def scripted(node, targets, script, answers):
    """All nodes are asked at the same time, so each counts its own calls."""
    resources = load("resources.json", {})
    nodes = next(it["nodes"] for it in resources.values() if node in it["nodes"])
    count = load(f"{node}.{script}.json", 0)
    save(f"{node}.{script}.json", count + 1)
    calls = answers.get(script, [["ok"]])
    words = calls[min(count, len(calls) - 1)]
    said = []
    for i in targets:
        worker = nodes.index(node) * len(targets) + int(i)
        said.append(words[min(worker, len(words) - 1)])
        if said[-1] is not None:
            print(f"mmx-answer w-{i} {said[-1]}")
    return int(any(w is None or w.startswith("failed") for w in said))


def scp(argv):
    import shutil

    source, target = [a for a in argv if not a.startswith("--")]
    which = flag(argv, "worker")
    if ":" in source:
        node, _, path = source.partition(":")
        shutil.copy(f"{homes(node)[which]}/{path}", target)
        return 0
    for home in homes(target.partition(":")[0]).values():
        shutil.copy(source, home)
    return 0


def main(argv):
    with open(f"{CLOUD}/calls", "a") as log:
        log.write(json.dumps(argv) + "\n")
    broken = load("broken.json", [])  # what the next calls fail with
    if broken:
        save("broken.json", broken[1:])
        return error(broken[0])
    refused, call = load("refused.json", {}), " ".join(argv[2:4])
    if refused.get(call):  # "queued-resources delete" -> its next failures; null: it works
        reason = refused[call].pop(0)
        save("refused.json", refused)
        if reason:
            return error(reason)
    if argv[:3] == ["compute", "tpus", "queued-resources"]:
        verb, name = argv[3:5]
        return {"create": lambda: create(name, argv), "describe": lambda: describe(name),
                "delete": lambda: delete(name)}[verb]()  # fmt: skip
    if argv[:3] == ["compute", "tpus", "tpu-vm"]:
        verb, node = argv[3:5]
        return {"describe": lambda: describe_node(node), "ssh": lambda: ssh(node, argv),
                "scp": lambda: scp(argv[4:]), "delete": lambda: 0}[verb]()  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
