"""Checkpoints are whole or absent; what cannot be read or written is said in one clear line."""

import resource
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import read_scalars, training
from saved import largest, layout, run_of, same, state_of

from mmx.core.errors import Unavailable, UserError
from mmx.core.run_dir import RunDir, check_workdir, finished_steps, open_or_create
from mmx.train import distributed
from mmx.train.checkpoint import Checkpoints
from mmx.train.start import read_weights


@pytest.fixture
def tmp_path(tmp_path):
    """Not itself among the folders of other tests: checksums lie beside a folder of checkpoints."""
    (tmp_path / "test").mkdir()
    return tmp_path / "test"


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """A folder with the checkpoints 1 and 2; copy it, never write into it."""
    folder = tmp_path_factory.mktemp("two") / "checkpoints"
    checkpoints = Checkpoints(folder)
    for step in (1, 2):
        checkpoints.save(step, state_of(step))
    checkpoints.close()
    return folder


@pytest.fixture
def copied(two_steps, tmp_path):
    return shutil.copytree(two_steps, tmp_path / "run/checkpoints")


@pytest.mark.parametrize("ema", [True, False])
def test_a_state_comes_back_to_the_bit(tmp_path, ema):
    state = state_of(3, ema=ema)
    for _ in range(2):  # also by a manager that has written nothing itself
        checkpoints = Checkpoints(tmp_path)
        if not checkpoints.steps():
            checkpoints.save(3, state)
            checkpoints.wait()
        step, back = checkpoints.restore_newest(*layout(state))
        assert step == 3 and same(back, state) and (back.ema is None) == (not ema)
        model = checkpoints.read_model(3)
        assert same(model["params"], state.params) and ("ema" in model) == ema
        checkpoints.close()
    averaged, extra, _ = read_weights(run_of(tmp_path))
    assert same(averaged, state.averaged) and extra["count"] == 21


def test_what_is_saved_is_the_state_at_that_moment(tmp_path):
    """The next step reuses the state's memory while the checkpoint is still being written."""
    state = state_of(1, size=512)
    want = jax.tree.map(lambda x: np.array(x, copy=True), state)
    spoil = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 5, s), donate_argnums=0)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state)
    after = spoil(state)
    for _ in range(5):
        after = spoil(after)
    checkpoints.wait()
    assert same(checkpoints.restore(1, *layout(after)), want)
    checkpoints.close()


DAMAGES = {
    "half of the weights": lambda c: _cut(largest(c / "model"), 0.5),
    "half of the moments": lambda c: _cut(largest(c / "train"), 0.5),
    "no weights": lambda c: largest(c / "model").unlink(),
    "an empty manifest": lambda c: _cut(c / "train/manifest.ocdbt", 0.0),
    "half of the names": lambda c: _cut(c / "model/_METADATA", 0.5),
    "no names": lambda c: (c / "train/_METADATA").unlink(),
    "no model": lambda c: shutil.rmtree(c / "model"),
    "no moments": lambda c: shutil.rmtree(c / "train"),
    "nothing": lambda c: [shutil.rmtree(c), c.mkdir()],
}


def _cut(file, share):
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_truncated_checkpoint_is_moved_aside(copied, capsys, damage):
    DAMAGES[damage](copied / "2")
    checkpoints = Checkpoints(copied)
    step, state = checkpoints.restore_newest(*layout(state_of(1)))
    assert step == 1 and same(state, state_of(1))
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and told[0].startswith(f"WARNING: checkpoint {copied / '2'}")
    assert "going on from step 1" in told[0] and str(copied.parent / "broken/2-") in told[0]
    assert checkpoints.steps() == [1] and len(list((copied.parent / "broken").iterdir())) == 1
    # Its step can be written again.
    checkpoints.save(2, state_of(2))
    checkpoints.close()
    assert Checkpoints(copied).restore_newest(*layout(state_of(1)))[0] == 2


@pytest.mark.parametrize("name", ["3.orbax-checkpoint-tmp", "3.orbax-checkpoint-tmp-1764189807"])
def test_what_a_killed_save_left_is_moved_aside(copied, capsys, name):
    left = shutil.copytree(copied / "2", copied / name)
    size = len(list(left.rglob("*")))
    reader = Checkpoints(copied, read_only=True)
    assert left.is_dir() and reader.steps() == [1, 2]  # reading moves nothing
    reader.close()
    checkpoints = Checkpoints(copied)
    (aside,) = (copied.parent / "broken").iterdir()
    assert not left.exists() and len(list(aside.rglob("*"))) == size
    assert aside.name.startswith("unfinished-3-")
    told = f"WARNING: {left}: a save that did not end; moved to {aside}; the newest checkpoint is "
    assert capsys.readouterr().err == f"{told}step 2\n"
    assert checkpoints.restore_newest(*layout(state_of(1)))[0] == 2
    checkpoints.save(3, state_of(3))
    checkpoints.close()
    assert finished_steps(copied) == [1, 2, 3]


def test_a_save_under_way_is_left_alone(copied, capsys):
    """A reader may come at any time; the manager that saves has looked before its first save."""
    checkpoints = Checkpoints(copied)
    checkpoints.save(3, state_of(3, size=1024))
    for _ in range(3):
        Checkpoints(copied, read_only=True).close()
    checkpoints.close()
    assert finished_steps(copied) == [1, 2, 3] and capsys.readouterr().err == ""


def test_a_run_that_never_ended_a_save_has_not_saved(copied, toy_config):
    """So another config may start there, as in any run without a checkpoint."""
    run = open_or_create(copied.parent.parent / "new", toy_config())
    shutil.copytree(copied / "2", run.checkpoints / "4.orbax-checkpoint-tmp")
    Checkpoints(run.checkpoints).close()
    assert len(list(run.broken.iterdir())) == 1 and not run.has_saved()
    check_workdir(run, toy_config(optim__lr=0.5))
    (run.broken / "4-1764189807").mkdir()
    assert run.has_saved()


def test_when_all_are_broken_it_begins_anew(copied, capsys):
    for step in "12":
        _cut(largest(copied / step / "model"), 0.5)
    checkpoints = Checkpoints(copied)
    assert checkpoints.restore_newest(*layout(state_of(1))) is None
    assert "going on from the beginning" in capsys.readouterr().err
    checkpoints.close()


@pytest.mark.parametrize(
    "damage", ["half of the weights", "no weights", "half of the names", "no model", "nothing"]
)
def test_reading_weights_stops_and_names_the_others(copied, damage):
    DAMAGES[damage](copied / "2")
    with pytest.raises(UserError, match=r"cannot be read \(.*\); name another as RUN@STEP: \[1\]"):
        read_weights(run_of(copied))
    assert read_weights(run_of(copied), 1)[2] == 1
    with pytest.raises(UserError, match=r"no checkpoint of step 9; there are \[1, 2\]"):
        read_weights(run_of(copied), 9)
    assert (copied / "2").is_dir()  # reading moves nothing


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (state_of(1, size=32), r"params/a/kernel: float32 \(64, 64\) there, float32 \(32, 32\)"),
        (state_of(1, b=jnp.zeros(3)), "params/b: not in the checkpoint"),
        (state_of(1, ema=False), "ema/a/kernel: only in the checkpoint"),
        (
            state_of(1).replace(extra={"count": jnp.float32(1)}),
            r"extra/count: int32 \(\) there, float32 \(\) here",
        ),
        (state_of(1).replace(opt_state=({"count": jnp.int32(0)},)), "opt_state/0/count: not in"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(copied, other, difference):
    checkpoints = Checkpoints(copied)
    with pytest.raises(
        UserError, match=f"is a checkpoint of another model:\n(.*\n)*  {difference}"
    ):
        checkpoints.restore_newest(*layout(other))
    assert checkpoints.steps() == [1, 2]  # foreign, not broken: it stays where it is
    checkpoints.close()


@pytest.mark.parametrize("keep", [1, 2, None])
def test_the_newest_are_kept(tmp_path, keep):
    checkpoints = Checkpoints(tmp_path, keep=keep)
    for step in (1, 2, 5, 9):
        checkpoints.save(step, state_of(step, size=2))
    checkpoints.close()
    want = [1, 2, 5, 9][-(keep or 4) :]
    assert checkpoints.steps() == want
    assert sorted(int(p.name) for p in tmp_path.iterdir()) == want


def test_a_broken_checkpoint_does_not_count_as_kept(tmp_path):
    """Of 1, 2 and 3 the last is broken: 2 stays until two newer ones lie there whole."""
    folder = tmp_path / "checkpoints"
    checkpoints = Checkpoints(folder, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, state_of(step))
    checkpoints.close()
    assert finished_steps(folder) == [2, 3]
    _cut(largest(folder / "3/model"), 0.5)
    checkpoints = Checkpoints(folder, keep=2)
    assert checkpoints.restore_newest(*layout(state_of(1)))[0] == 2
    for step, kept in ((3, [2, 3]), (4, [3, 4])):
        checkpoints.save(step, state_of(step))
        checkpoints.wait()
        assert finished_steps(folder) == kept
    for step in kept:
        assert same(checkpoints.restore(step, *layout(state_of(1))), state_of(step))
    checkpoints.close()
    assert [p.name.partition("-")[0] for p in (tmp_path / "broken").iterdir()] == ["3"]


@pytest.fixture
def small_files():
    """No file may grow beyond 100 kB: what a full disk does, without one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(on=True):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000 if on else soft, hard))

    yield limit
    limit(False)


def _quiet(folder):
    """Until the writes that a failed save left in the air have landed: a new process has none."""
    listing = lambda: sorted(folder.rglob("*"))
    before = None
    while before != (before := listing()):
        time.sleep(0.5)


@pytest.mark.parametrize("keep", [1, 2])
def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path, small_files, keep):
    folder = tmp_path / "checkpoints"
    checkpoints = Checkpoints(folder, keep=keep)
    good = state_of(1, size=256)
    checkpoints.save(1, good)
    checkpoints.wait()
    small_files()
    checkpoints.save(2, state_of(2, size=256))
    message = r"the checkpoint of step 2 was not written \(File too large\); the last good .* 1\."
    with pytest.raises(UserError, match=message) as raised:
        checkpoints.save(3, state_of(3, size=256))
    assert "\n" not in str(raised.value)
    checkpoints.close()
    _quiet(folder)
    small_files(False)
    again = Checkpoints(folder, keep=keep)
    step, back = again.restore_newest(*layout(good))
    assert step == 1 and same(back, good)
    again.save(2, good)
    again.close()
    assert again.steps() == [1, 2][-keep:] and not list(folder.glob("*tmp*"))


def test_the_last_save_is_waited_for(tmp_path, small_files):
    checkpoints = Checkpoints(tmp_path)
    small_files()
    checkpoints.save(1, state_of(1, size=256))
    with pytest.raises(UserError, match=r"step 1 was not written \(File too large\); there is non"):
        checkpoints.close()


def test_a_save_that_orbax_declines_is_an_error(copied):
    checkpoints = Checkpoints(copied)
    checkpoints.manager.save = lambda *args, **kwargs: False
    with pytest.raises(UserError, match=r"step 3 was not written \(.*declined.*good .* is step 2"):
        checkpoints.save(3, state_of(3))
    checkpoints.close()
    checkpoints = Checkpoints(copied)
    with pytest.raises(UserError, match="the checkpoint of step 2 was not written"):
        checkpoints.save(2, state_of(2))  # is there already
    checkpoints.close()


def test_training_goes_on_from_the_one_before(toy_config, train_toy, tmp_path, capsys):
    config, folder = toy_config(), tmp_path / "run"
    train_toy(config, folder)
    unbroken = training(read_scalars(folder))
    _cut(largest(folder / "checkpoints/12/model"), 0.5)
    train_toy(config, folder)
    told = capsys.readouterr().err
    assert (
        f"going on from step 8 of {folder}" in told
        and len(list((folder / "broken").iterdir())) == 1
    )
    assert training(read_scalars(folder)) == unbroken
    assert RunDir(folder).steps() == [8, 12]


def test_training_stops_when_it_cannot_save(toy_config, train_toy, tmp_path, small_files):
    """Some step later, not at the end; and the run goes on once there is room."""
    config = toy_config(toy__ballast=256, save_every=2, steps=30, eval_every=99, preview_every=99)
    folder = tmp_path / "run"
    train_toy(toy_config(toy__ballast=256, save_every=2, steps=2), folder)
    small_files()
    with pytest.raises(UserError, match=r"step 4 was not written .* checkpoint is step 2"):
        train_toy(config, folder)
    small_files(False)
    assert max(read_scalars(folder)["loss/total"]) <= 6
    with config.unlocked():
        config.steps = 8
    train_toy(config, folder)
    assert RunDir(folder).steps() == [6, 8]


def test_process_0_says_which_step(copied, monkeypatch):
    """Another process's list may be old: longer, shorter, or empty."""
    wanted, checkpoints = layout(state_of(1)), Checkpoints(copied)
    for said in (1, -1, 3):
        monkeypatch.setattr(distributed, "of_host_0", lambda mine, said=said: said)
        monkeypatch.setattr(distributed, "is_many", lambda: True)
        if said == 3:
            with pytest.raises(Unavailable, match="checkpoints/3: not seen here, but by process 0"):
                checkpoints.restore_newest(*wanted)
        elif said < 0:
            assert checkpoints.restore_newest(*wanted) is None
        else:
            step, state = checkpoints.restore_newest(*wanted)
            assert step == 1 and same(state, state_of(1))
    checkpoints.close()
