"""A run directory: opened by its path, refused in one line, never half written."""

import json

import jax
import pytest
from ml_collections import ConfigDict

from mmx.core import run_dir, tree
from mmx.core.errors import UserError
from mmx.core.run_dir import RunDir, parse_run

CONFIG = ConfigDict({"family": "toy", "steps": 5, "optim": {"lr": 1.0}})


@pytest.fixture
def run(tmp_path):
    made = run_dir.open_or_create(tmp_path / "a", CONFIG)
    for name in ("10", "9", "100", "12.orbax-checkpoint-tmp-1", "notes"):
        (made.checkpoints / name).mkdir(parents=True)
    (made.checkpoints / "7").write_text("a file is no checkpoint")
    return made


def test_a_run_is_named_with_or_without_a_step(run, tmp_path):
    assert run.steps() == [9, 10, 100]
    assert parse_run(run.path) == (run, None)
    assert parse_run(f"{run.path}@9") == (run, 9)
    odd = run_dir.open_or_create(tmp_path / "b@home", CONFIG)
    (odd.checkpoints / "3").mkdir(parents=True)
    assert parse_run(odd.path) == (odd, None) and parse_run(f"{odd.path}@3") == (odd, 3)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("a@11", r"no checkpoint of step 11; there are \[9, 10, 100\]"),
        ("a@last", "after @ comes a step, a whole number; not 'last'"),
        ("nowhere", "no such run directory"),
        ("nowhere@3", "no such run directory"),
        ("a/checkpoints", "not a run directory"),
        ("empty", "has no checkpoint yet"),
    ],
)
def test_what_is_no_run_is_refused(run, tmp_path, spec, message):
    run_dir.open_or_create(tmp_path / "empty", CONFIG)
    with pytest.raises(UserError, match=message):
        parse_run(f"{tmp_path}/{spec}")


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("dear diary")
    with pytest.raises(UserError, match="not empty and is no run"):
        run_dir.open_or_create(tmp_path, CONFIG)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_another_process_that_starts_is_no_other_thing(tmp_path):
    """Its lock, and what it tries out in a bucket."""
    for name in (".lock", ".mmx-probe-0a1b2c3d"):
        (tmp_path / name).touch()
    run_dir.check_workdir(RunDir(tmp_path), CONFIG)


def test_processes_of_one_run_agree(run):
    data = {"directory": "/data", "splits": {"train": 3}, "fingerprint": "abc"}
    run.data_file.write_text(json.dumps(data))
    run_dir.check_same(run, CONFIG, data | {"directory": "/mnt/data"})
    other = ConfigDict(CONFIG.to_dict() | {"steps": 9})  # also what a resumed run may change
    with pytest.raises(UserError, match=r"a: config\.steps: 5 of process 0, 9 here; start"):
        run_dir.check_same(run, other, data)
    want = "data fingerprint: 'abc' of process 0, 'abd' here"
    with pytest.raises(UserError, match=want):
        run_dir.check_same(run, CONFIG, data | {"fingerprint": "abd"})


def test_going_on_keeps_the_new_length_and_refuses_the_rest(run):
    longer = ConfigDict(CONFIG.to_dict() | {"steps": 9})
    assert run_dir.open_or_create(run.path, longer).config().steps == 9
    other = ConfigDict(CONFIG.to_dict() | {"optim": {"lr": 2.0}})
    with pytest.raises(UserError, match=r"optim\.lr: 1\.0 -> 2\.0"):
        run_dir.open_or_create(run.path, other)
    assert run.config().optim.lr == 1.0


DATA = {"directory": "a/1.0.0", "splits": {"train": 5}, "fingerprint": "f00"}


def test_other_data_is_refused(run):
    run_dir.check_data(run, DATA)  # begun by a version that recorded none
    run.data_file.write_text(json.dumps(DATA))
    run_dir.check_data(run, DATA | {"directory": "b/1.0.0"})  # it may move
    anew = DATA | {"splits": {"train": 6}, "fingerprint": "ba5"}
    with pytest.raises(UserError) as raised:
        run_dir.check_data(run, anew)
    for part in ("a/1.0.0: not the data that", "prepared anew", "{'train': 5} -> {'train': 6}",
                 "fingerprint f00 -> ba5", "put the old data back", "a new --workdir"):  # fmt: skip
        assert part in str(raised.value)


def test_what_saved_nothing_is_begun_anew(tmp_path):
    """A start that failed before its first checkpoint holds nobody to its config or its data."""
    run = run_dir.open_or_create(tmp_path / "a", CONFIG)
    for file in (run.tokenizer_file, run.data_file, run.stage("codec") / "pin.json"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    longer = ConfigDict(CONFIG.to_dict() | {"steps": 9})
    assert run_dir.keeps_stages(run, longer)
    run_dir.open_or_create(run.path, longer)
    # The data may be other data by now. The earlier run may be gone: its pinned weights stay.
    assert not run.tokenizer_file.exists() and not run.data_file.exists()
    assert run.stage("codec").is_dir()
    other = ConfigDict(CONFIG.to_dict() | {"optim": {"lr": 2.0}})
    assert not run_dir.keeps_stages(run, other)
    assert run_dir.open_or_create(run.path, other).config().optim.lr == 2.0
    assert not run.stage("codec").exists()
    # A model of another library, where mmx never was: its config.json stays.
    run.config_file.write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match="not of a run of mmx"):
        run_dir.open_or_create(run.path, other)
    assert "llama" in run.config_file.read_text()


def test_one_process_trains_in_a_run(tmp_path):
    run = run_dir.RunDir(tmp_path / "a")
    with run_dir.train_alone(run):
        with (
            pytest.raises(UserError, match="another `mmx train` is at work there"),
            run_dir.train_alone(run),
        ):
            pass
        run_dir.check_workdir(run, CONFIG)  # the lock alone makes it no folder of other things
    with run_dir.train_alone(run):
        pass


def test_each_start_is_recorded(run):
    for devices in (["cpu: cpu"], ["gpu: H100"]):
        run_dir.record_environment(run, devices)
    starts = json.loads((run.path / "environment.json").read_text())
    assert [start["devices"] for start in starts] == [["cpu: cpu"], ["gpu: H100"]]
    assert starts[0]["versions"]["jax"] == jax.__version__ and starts[0]["command"]


def test_paths_of_trees():
    nested = {"a": {"kernel": 1, "bias": 2}, "b": 3}
    flat = tree.flatten(nested)
    assert flat == {"a/bias": 2, "a/kernel": 1, "b": 3} and tree.unflatten(flat) == nested
    assert tree.flatten(({"x": 1}, [2])) == {"0/x": 1, "1/0": 2}
    assert tree.map_with_path(lambda p, x, y: (p, x + y), {"a": 1}, {"a": 2}) == {"a": ("a", 3)}


@pytest.mark.parametrize("text", ["{", "[]", '{"directory": "x"}'])
def test_a_damaged_record_of_the_data_is_named(tmp_path, text):
    run = RunDir(tmp_path)
    assert run.data() is None
    run.data_file.write_text(text)
    with pytest.raises(UserError, match=r"data\.json: damaged; delete it"):
        run.data()
