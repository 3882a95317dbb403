"""A run in a bucket: as in a folder, and what happens when the bucket does not answer.

The bucket is one of our own on loopback (fake_gcs.py); gcsfs, tensorstore, Orbax and
google-cloud-storage are the real ones.
"""

import asyncio
import importlib.util
import re
import time
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import tiny_tfds
import toy
from conftest import read_scalars, training
from etils.epath import gpath
from fake_gcs import FakeGcs, fail

from mmx.cli import backend, evaluate, main
from mmx.core import exits, storage, tree
from mmx.core.errors import UserError
from mmx.core.run_dir import RunDir, check_workdir, parse_run
from mmx.data import openmoji, source
from mmx.eval.png import read_metadata, save_image
from mmx.models import stages
from mmx.train import bucket_events
from mmx.train.checkpoint import Checkpoints, Unreadable
from mmx.train.metrics import Writer
from mmx.train.start import read_weights

WRITE = "^POST "


@pytest.fixture(scope="module")
def server():
    """One for the module: tensorstore asks for its address once."""
    patch, server = pytest.MonkeyPatch(), FakeGcs()
    patch.setenv("STORAGE_EMULATOR_HOST", server.url)  # gcsfs, google-cloud-storage
    patch.setenv("TENSORSTORE_GCS_HTTP_URL", server.url)
    patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")  # tensorstore's
    # Else it asks gRPC what bucket it is.
    patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    yield server
    server.close()
    patch.undo()


@pytest.fixture
def bucket(server, monkeypatch):
    """The server, empty and well; gcsfs and mmx wait a hundredth of the time between tries."""
    server.objects.clear()
    server.requests.clear()
    storage.path("gs://bucket")
    from gcsfs import retry

    waits = SimpleNamespace(sleep=lambda seconds: asyncio.sleep(seconds / 1000))
    monkeypatch.setattr(retry, "asyncio", waits)
    monkeypatch.setattr(storage, "_FIRST_WAIT", 0.001)
    yield server
    server.trouble = lambda request: None


def scalars(bucket, folder, prefix="run/") -> dict:
    """What TensorBoard shows of a run in the bucket."""
    folder.mkdir(exist_ok=True)
    for name in bucket.names(f"{prefix}events"):
        (folder / name.rpartition("/")[2]).write_bytes(bucket.objects["bucket", name][0])
    return training(read_scalars(folder))


def without_goodput(scalars) -> dict:
    return {tag: points for tag, points in scalars.items() if not tag.startswith("goodput")}


def test_a_run_as_in_a_folder(bucket, toy_config, train_toy, tmp_path, capsys):
    train_toy(toy_config(), tmp_path / "local")
    want = without_goodput(training(read_scalars(tmp_path / "local")))
    train_toy(toy_config(), "gs://bucket/run")
    assert without_goodput(scalars(bucket, tmp_path / "whole")) == want
    for name in bucket.names("run/checkpoints/12"):
        del bucket.objects["bucket", name]
    train_toy(toy_config(), "gs://bucket/run")  # goes on from step 8
    assert "going on from step 8 of gs://bucket/run" in capsys.readouterr().err
    assert without_goodput(scalars(bucket, tmp_path / "again")) == want
    for text, step in (("gs://bucket/run", None), ("gs://bucket//run/@8", 8)):
        run, found = parse_run(text)
        assert found == step and str(run.path) == "gs://bucket/run"
    assert run.steps() == RunDir(tmp_path / "local").steps() == [8, 12]
    assert run.config().steps == 12 and run.attribution() == "toy numbers"
    assert not bucket.names("run/.lock") and not [n for n in bucket.names() if "tmp" in n]
    with pytest.raises(UserError, match="gs://bucket/run: no checkpoint of step 9"):
        parse_run("gs://bucket/run@9")
    for mine, other in zip(read_weights(run, 8)[:2], read_weights(RunDir(tmp_path / "local"), 8)):
        mine, other = tree.flatten(mine), tree.flatten(other)
        assert mine.keys() == other.keys()
        assert all(np.array_equal(mine[path], other[path]) for path in mine)


@pytest.fixture(scope="module")
def trained(server, tmp_path_factory):
    """Objects of a run with the checkpoints 4 and 8, gs://bucket/run, to be put where wanted."""
    from mmx.core.config import load_config
    from mmx.core.run_dir import open_or_create
    from mmx.train import loop

    server.objects.clear()
    config = load_config(f"{toy.__file__.replace('toy.py', 'toy_config.py')}:")
    with config.unlocked():
        config.steps, config.eval_every, config.preview_every = 8, 99, 99
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "open_source", toy.open_toy)
        loop.train(toy.ToyTask(config), config, open_or_create("gs://bucket/run", config))
    return dict(server.objects)


def test_other_runs_start_from_it(bucket, trained, toy_config, train_toy, tmp_path):
    bucket.objects.update(trained)
    earlier = RunDir("gs://bucket/run")
    for later in (RunDir(tmp_path / "later"), RunDir("gs://bucket/later")):
        folder = stages.pin(later, "codec", "gs://bucket/run@4", drop=("params/last",))
        kept = tree.flatten(stages.load_weights(folder))
        want = tree.flatten(dict(zip(("params", "extra"), read_weights(earlier, 4))))
        assert kept.keys() == {path for path in want if not path.startswith("params/last")}
        assert all(np.array_equal(kept[path], want[path]) for path in kept)
        assert stages.load_config(folder).family == "toy"
    name = "later/stages/codec/weights.safetensors"
    bucket.put("bucket", name, bucket.objects["bucket", name][0][:-1])
    with pytest.raises(UserError, match=r"gs://bucket/later/.*: changed or damaged since"):
        stages.load_weights(folder)
    config = toy_config(steps=1, eval_every=99, preview_every=99)
    train_toy(config, tmp_path / "new", init_from="gs://bucket/run@4")
    assert RunDir(tmp_path / "new").steps() == [1]


def test_an_unfinished_checkpoint_is_none(bucket, trained, toy_config, train_toy, capsys):
    """Killed before Orbax set its mark."""
    bucket.objects.update(trained)
    del bucket.objects["bucket", "run/checkpoints/8/commit_success.txt"]
    run = RunDir("gs://bucket/run")
    assert run.steps() == [4]
    left = {n.partition("/8/")[2] for n in bucket.names("run/checkpoints/8/")}
    train_toy(toy_config(steps=8, eval_every=99, preview_every=99), run.path)
    told = capsys.readouterr().err
    assert "going on from step 4 of gs://bucket/run" in told
    assert "WARNING: gs://bucket/run/checkpoints/8: a save that did not end; moved to gs://" in told
    assert run.steps() == [4, 8]
    aside = f"run/broken/{storage.children(run.broken)[0].name}/"
    assert {n.removeprefix(aside) for n in bucket.names(aside)} == left != set()


def test_a_bucket_that_refuses_counts_no_save_as_unfinished(bucket, trained):
    bucket.objects.update(trained)
    bucket.trouble = fail(403, "GET .*commit_success")
    with pytest.raises(Exception, match=r"403|Forbidden"):
        Checkpoints("gs://bucket/run/checkpoints")
    assert not bucket.names("run/broken") and bucket.objects == trained


def test_following_looks_again_at_a_checkpoint_whose_files_changed(bucket):
    run, file = RunDir("gs://bucket/run"), "run/checkpoints/8/model/d/0"
    bucket.put("bucket", "run/checkpoints/8/commit_success.txt", b"")
    score = Mock(side_effect=Unreadable("half"))
    scorer = Mock(dir=run, score=score, is_complete=lambda step: False)
    follower = evaluate._Follower(scorer, waits=True)
    for content, tries in ((b"half", 1), (None, 1), (b"all!", 2)):
        if content:
            bucket.put("bucket", file, content)
        list(map(follower._try, follower._open()))
        assert score.call_count == tries, content


def test_a_broken_checkpoint_is_moved_aside(bucket, trained, toy_config, train_toy, capsys):
    bucket.objects.update(trained)
    for name in bucket.names("run/checkpoints/8/model"):
        if "/d/" in name:
            bucket.put("bucket", name, bucket.objects["bucket", name][0][:20])
    train_toy(toy_config(steps=8, eval_every=99, preview_every=99), "gs://bucket/run")
    told = capsys.readouterr().err
    assert "moved to gs://bucket/run/broken/8-" in told and "going on from step 4 of" in told
    assert RunDir("gs://bucket/run").steps() == [4, 8]
    (aside,) = storage.children(storage.path("gs://bucket/run/broken"))
    assert (aside / "commit_success.txt").exists()


@pytest.mark.parametrize("where", ["/8/model/_METADATA", "/8/model/ocdbt|/8/model/d/"])
def test_a_bucket_that_refuses_breaks_no_checkpoint(bucket, trained, toy_config, train_toy, where):
    bucket.objects.update(trained)
    bucket.trouble = fail(403, f"GET .*({where})")
    with pytest.raises(UserError, match="the bucket, not the checkpoint, is at fault"):
        train_toy(toy_config(steps=12), "gs://bucket/run")
    bucket.trouble = lambda request: None
    assert RunDir("gs://bucket/run").steps() == [4, 8] and not bucket.names("run/broken")


def test_writes_that_fail_for_a_moment_are_tried_again(bucket, toy_config, train_toy, tmp_path):
    array, other = fail(503, f"{WRITE}.*uploadType=media", 3), fail(429, f"{WRITE}.*resumable", 9)
    bucket.trouble = lambda request: array(request) or other(request)
    train_toy(toy_config(steps=4), "gs://bucket/run")
    assert array.left == [0] and other.left == [0]
    assert RunDir("gs://bucket/run").steps() == [4]


def test_a_save_that_failed_is_made_again(bucket, toy_config, train_toy, capsys):
    """An outage longer than gcsfs bears: over one save, and over the beginning of the last."""
    outage = fail(503, f"{WRITE}.*name=run/checkpoints/(4/commit|8/)", 15)
    bucket.trouble = outage
    train_toy(toy_config(steps=8, eval_every=99, preview_every=99, log_every=99), "gs://bucket/run")
    assert outage.left == [0] and RunDir("gs://bucket/run").steps() == [8]
    told = re.findall("WARNING: .*", capsys.readouterr().err)
    assert len(told) == 1 and "the checkpoint of step 4 was not written (HttpError" in told[0]
    assert told[0].endswith("Saving step 8 instead.")


@pytest.mark.parametrize(("status", "reason"), [(503, "tried 3 times"), (403, "Forbidden")])
def test_a_bucket_that_stays_away_stops_the_run(
    bucket, trained, toy_config, train_toy, status, reason
):
    """One line, exit code 70 where it may pass, else 2; the last good checkpoint is kept."""
    bucket.objects.update(trained)
    config = toy_config(steps=12, eval_every=99, preview_every=99, log_every=99)
    bucket.trouble = fail(status, f"{WRITE}.*name=run/checkpoints/12.*resumable")
    want = rf"step 12 was not written \(.*{reason}.*\); the last good checkpoint is step 8\."
    with pytest.raises(UserError, match=want) as raised:
        train_toy(config, "gs://bucket/run")
    code, told = exits.told(raised.value)
    assert code == (70 if status == 503 else 2) and "\n" not in told
    bucket.trouble = lambda request: None
    assert RunDir("gs://bucket/run").steps() == [4, 8]
    train_toy(config, "gs://bucket/run")
    assert RunDir("gs://bucket/run").steps() == [8, 12]


def test_a_slow_write_has_a_deadline(bucket, monkeypatch):
    monkeypatch.setattr(storage._store(), "requests_timeout", 0.2)
    file = storage.path("gs://bucket/a/config.json")
    bucket.trouble = fail(None, f"{WRITE}.*config", times=1, seconds=0.6)
    began = time.monotonic()
    storage.write(file, "text")
    assert storage.read_text(file) == "text" and time.monotonic() - began >= 0.2
    bucket.trouble = fail(None, f"{WRITE}.*config", seconds=0.6)
    with pytest.raises(UserError, match=r"cannot be written \(no answer in time; tried 6"):
        storage.write(file, "another")


def test_events_are_copied_now_and_then(bucket, tmp_path, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(
        bucket_events, "time", SimpleNamespace(monotonic=lambda: clock.now, time=time.time)
    )
    copies = lambda: len([r for r in bucket.requests if re.search("^POST .*name=run/events", r)])
    writer = Writer(storage.path("gs://bucket/run"), 0)
    for step in range(1, 100):
        clock.now += 1.0
        writer.scalars(step, {"x": step})
    assert copies() == 4  # at once, then each 30 seconds
    assert scalars(bucket, tmp_path / "early")["x"].keys() < {*range(1, 100)}
    writer.sync()  # as with a checkpoint
    assert scalars(bucket, tmp_path / "synced")["x"].keys() == {*range(1, 100)} and copies() == 5
    writer.sync()
    assert copies() == 5  # nothing new
    monkeypatch.setattr(bucket_events, "_MAX_BYTES", 2000)
    for step in range(100, 200):
        writer.scalars(step, {"x": step})
        writer.sync()
    writer.scalars(200, {"x": 200})
    writer.close()
    assert scalars(bucket, tmp_path / "all")["x"] == {step: step for step in range(1, 201)}
    sizes = [len(bucket.objects["bucket", name][0]) for name in bucket.names("run/events")]
    assert len(sizes) > 2 and max(sizes[1:]) < 2200


def test_events_that_cannot_be_written_stop_the_run(bucket):
    writer = Writer(storage.path("gs://bucket/run"), 0)
    bucket.trouble = fail(503, WRITE)
    want = (
        "cannot be written.*503; tried 6 times.*run the same command again to go on from the last"
    )
    with pytest.raises(UserError, match=want):
        for step in range(99):
            writer.scalars(step, {"x": 1.0})
            writer.sync()


def test_a_folder_made_in_the_browser_is_a_new_workdir(bucket, toy_config):
    bucket.put("bucket", "run/", b"")
    run = RunDir("gs://bucket/run")
    check_workdir(run, toy_config())
    bucket.put("bucket", "run/notes.txt", b"")
    with pytest.raises(UserError, match="the folder is not empty and is no run"):
        check_workdir(run, toy_config())


def test_data(bucket, tmp_path, monkeypatch):
    """Read by TFDS and ArrayRecord from the bucket; prepared in a folder."""
    monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", bucket.url)  # array_record's client
    features = {"image": tiny_tfds.IMAGE, "caption": tiny_tfds.TEXT}
    examples = [{"image": tiny_tfds.png(i), "caption": f"a {i}"} for i in range(5)]
    tiny_tfds.build(tmp_path, "captioned", features, examples, license="CC0")
    for file in tmp_path.rglob("*.*"):
        if file.is_file():
            bucket.put("bucket", f"data/{file.relative_to(tmp_path)}", file.read_bytes())
    local, remote = (
        source.open_source("tfds:captioned", "train", where)
        for where in (tmp_path, "gs://bucket/data")
    )
    assert len(remote) == 5 and str(remote.info.directory) == "gs://bucket/data/captioned/1.0.0"
    for i in range(5):
        assert remote[i]["text"] == local[i]["text"]
        assert np.array_equal(remote[i]["image"], local[i]["image"])
    assert remote.info.fingerprint == local.info.fingerprint
    assert remote.info.attribution == local.info.attribution == "CC0"
    with pytest.raises(UserError, match=r"tfds:other: not prepared in gs://bucket/data; run"):
        source.open_source("tfds:other", "train", "gs://bucket/data")
    del bucket.objects["bucket", next(n for n in bucket.names() if "array_record" in n)]
    with pytest.raises(UserError, match=r"gs://.*00000-of-00001: missing; the data set"):
        source.open_source("tfds:captioned", "train", "gs://bucket/data")
    with pytest.raises(UserError, match="data is prepared in a local folder; then copy"):
        openmoji.prepare("32", "gs://bucket/data")


def test_tensorflow_is_left_alone_where_it_is_installed(bucket, tmp_path, monkeypatch):
    (tmp_path / "tensorflow.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    assert importlib.util.find_spec("tensorflow") is not None
    gpath._is_tf_installed.cache_clear()
    storage.write(storage.path("gs://bucket/a"), "text")
    assert bucket.names() == ["a"]


def test_pictures(bucket):
    image_u8 = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    path = save_image("gs://bucket/pictures/a.png", image_u8, {"seed": 3})
    assert read_metadata(path) == {"seed": 3} and bucket.names() == ["pictures/a.png"]


@pytest.fixture
def command(monkeypatch, capsys):
    """``mmx ARGS`` with the toy as the only family -> (exit code, stderr)."""
    monkeypatch.setattr("mmx.models.registry._TASKS", {"toy": ("toy", "ToyTask")})
    monkeypatch.setattr("mmx.data.source.open_source", toy.open_toy)
    monkeypatch.setattr("mmx.train.loop.open_source", toy.open_toy)
    config = toy.__file__.replace("toy.py", "toy_config.py")

    def run(verb, *args, steps=4):
        if verb == "train":
            args = ("--config", config, f"--config.steps={steps}", *args)
        code = main.main([verb, *args])
        return code, capsys.readouterr().err

    return run


def test_train_by_command(bucket, command):
    assert command("train", "--workdir", "gs://bucket/run")[0] == 0
    assert RunDir("gs://bucket/run").steps() == [4]
    code, told = command("train", "--workdir", "gs://bucket/run", "--config.optim.lr=0.5", steps=8)
    assert code == 2 and "optim.lr: 0.01 -> 0.5" in told
    bucket.trouble = fail(403, f"{WRITE}.*checkpoints/8/")
    code, told = command("train", "--workdir", "gs://bucket/run", steps=8)
    assert code == 2 and "the last good checkpoint is step 4" in told.splitlines()[-1]


@pytest.mark.parametrize("verb", ["train", "sample"])
@pytest.mark.parametrize(("status", "reason"), [(401, "injected, 401"), (403, "Forbidden")])
def test_no_access_is_one_line(bucket, command, verb, status, reason):
    bucket.trouble = fail(status, "")
    args = ["--workdir", "gs://bucket/run"] if verb == "train" else ["gs://bucket/run", "red heart"]
    code, told = command(verb, *args)
    assert code == 2 and told.count("\n") == 1 and reason in told


def test_a_workdir_that_cannot_be_written_is_found_out_before_training(bucket, command):
    code, told = command("train", "--workdir", "gs://nobucket/run")
    assert code == 2 and told == (
        "mmx: error: --workdir=gs://nobucket/run: no bucket gs://nobucket\n"
    )
    bucket.trouble = fail(403, WRITE)
    code, told = command("train", "--workdir", "gs://bucket/run")
    assert code == 2 and told.count("\n") == 1
    assert told.startswith("mmx: error: --workdir=gs://bucket/run: cannot write there (Forbidden")
    assert bucket.names() == []


def test_the_compilation_cache_in_a_bucket(bucket, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "gs://bucket/cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert backend._cache_dir() == "gs://bucket/cache" and bucket.names() == []
    for wrong, reason in (("gs://nobucket/cache", "no bucket"), ("s3://bucket", "name a local")):
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", wrong)
        assert backend._cache_dir() == str(tmp_path / "mmx/jax")
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and wrong in told and reason in told
