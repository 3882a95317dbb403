"""``mmx sample`` and ``mmx.load`` on a trained run: what is drawn, and what the files say."""

import errno
import os
import shutil
import signal
from functools import partialmethod
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mmx as package
from mmx.cli.main import main
from mmx.core.run_dir import RunDir
from mmx.eval.images import to_uint8
from mmx.eval.png import read_metadata

PROMPTS = ("red heart", "dog face")


@pytest.fixture(scope="module")
def run(muse_run):
    return package.load(str(muse_run))


@pytest.fixture
def sample(muse_run, capsys):
    """``sample(argv) -> stdout``; three decoding steps, unless told otherwise."""

    def call(*argv, where=muse_run) -> str:
        capsys.readouterr()
        argv = [str(a) for a in argv]
        steps = [] if "--steps" in argv else ["--steps", "3"]
        code = main(["sample", str(where), *argv, *steps])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return captured.out

    return call


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_a_sample_does_not_depend_on_how_many_are_drawn(run):
    """Codes, bit by bit: alone, in a batch, in a padded batch, from the middle on."""
    options = run.options(steps=3)
    texts = [PROMPTS[i % 2] for i in range(7)]
    whole = run.draw(texts, "", options, 5)
    assert len({codes.tobytes() for codes in whole["codes"]}) == 7
    for batch_size in (1, 3):
        again = run.draw(texts, "", options, 5, batch_size=batch_size)
        np.testing.assert_array_equal(again["codes"], whole["codes"])
    tail = run.draw(texts[4:], "", options, 5, first_index=4, batch_size=2)
    np.testing.assert_array_equal(tail["codes"], whole["codes"][4:])
    np.testing.assert_array_equal(tail["trace"], whole["trace"][4:])
    other = run.draw(texts, "", options, 6)
    assert (other["codes"] != whole["codes"]).any(axis=1).all()


def test_python_and_command_draw_the_same(run, sample, tmp_path):
    """Also: picture i of a prompt file is the same whatever -n."""
    image_u8 = run.sample(list(PROMPTS), steps=3, seed=7)
    assert image_u8.shape == (2, 32, 32, 3) and image_u8.dtype == np.uint8
    file = tmp_path / "my prompts.txt"
    file.write_text("\ufeffred heart\n\n  dog face \n")  # as some editors leave it
    for n in (1, 3):
        out = tmp_path / f"n {n}"
        assert sample("--prompts", file, "--out", out, "-n", n, "--seed", 7) == (
            f"{2 * n} pictures in {out}\n"
        )
        assert sorted(p.name for p in out.iterdir()) == [f"{i:05d}.png" for i in range(2 * n)]
        for i in range(2):
            np.testing.assert_array_equal(pixels(out / f"{i:05d}.png"), image_u8[i])
    assert read_metadata(out / "00005.png")["prompt"] == "dog face"


def test_metadata_says_how_to_draw_it_again(muse_run, sample, tmp_path):
    out = tmp_path / "a b;$(x)" / "it's.png"
    argv = ["red heart", "--negative", "blue", "--guidance", 4, "--seed", 3, "--out", out]
    assert sample(*argv, where=f"{muse_run}@10") == f"{out}\n"
    assert pixels(out).shape == (32, 32, 3)
    record = read_metadata(out)
    assert record["run"] == str(muse_run) and record["step"] == 10
    assert record["prompt"] == "red heart" and record["negative"] == "blue"
    assert record["seed"] == 3 and record["count"] == 1
    # What was asked for, and the run's own for the rest.
    asked = {"steps": 3, "guidance": 4.0}
    assert record["settings"] == RunDir(muse_run).config().sample.to_dict() | asked
    assert {"sampling_temperature", "choice_temperature"} <= set(record["settings"])
    assert record["attribution"] == "OpenMoji, CC BY-SA 4.0"
    # Each of them matters, so leaving one out of the record would be a loss.
    for changed in (["--seed", 4], ["--negative", ""], ["--guidance", 0], ["--steps", 2]):
        sample(*argv, *changed, "--out", tmp_path / "x.png", where=f"{muse_run}@10")
        assert (pixels(tmp_path / "x.png") != pixels(out)).any(), changed
    sample(*argv, "--out", tmp_path / "x.png")
    assert read_metadata(tmp_path / "x.png")["step"] == 20
    assert (pixels(tmp_path / "x.png") != pixels(out)).any()


def test_several_pictures_are_one_captioned_grid(sample, tmp_path):
    out = tmp_path / "grid.PNG"
    assert sample("red heart", "-n", 3, "--out", out) == f"{out}\n"
    assert Image.open(out).width > 3 * 128
    record = read_metadata(out)
    assert record["count"] == 3 and record["attribution"]
    with Image.open(out) as picture:
        assert picture.info["Copyright"] == "OpenMoji, CC BY-SA 4.0"


def test_progress_goes_to_stderr(muse_run, tmp_path, capsys):
    argv = ["sample", str(muse_run), "red heart", "--steps", "3", "--out", str(tmp_path / "x.png")]
    assert main(argv) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("draw 1/1 eta ") and captured.err.count("\n") == 1
    assert captured.out == f"{tmp_path / 'x.png'}\n"


def test_odd_paths(muse_run, sample, tmp_path, monkeypatch):
    where = tmp_path / "runs @ home; 'ü'@20"
    shutil.copytree(muse_run, where)
    monkeypatch.chdir(where.parent)
    out = sample("red heart", where=where.name).strip()
    assert out == f"{where.name}/samples/step20-seed0.png"
    assert read_metadata(out)["run"] == where.name
    sample("red heart", "--out", "ten.png", where=f"{where.name}@10")
    assert read_metadata("ten.png")["step"] == 10


def test_disk_that_is_full(muse_run, tmp_path, monkeypatch, capsys):
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mmx.eval.png.os.fsync", full)
    out = tmp_path / "x.png"
    assert main(["sample", str(muse_run), "red heart", "--steps", "3", "--out", str(out)]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"mmx: error: {out}: not written (No space left on device)"
    assert list(tmp_path.iterdir()) == []


def damage_nothing_left(step: Path, other: Path) -> None:
    shutil.rmtree(step)
    step.mkdir()


def damage_truncate(step: Path, other: Path) -> None:
    for path in step.rglob("*"):
        if path.is_file():
            with path.open("r+b") as file:
                file.truncate(path.stat().st_size // 2)


def damage_data(step: Path, other: Path) -> None:
    """The index stays; the weights themselves are cut."""
    largest = max((p for p in (step / "model").rglob("*") if p.is_file()), key=size_of)
    with largest.open("r+b") as file:
        file.truncate(size_of(largest) // 2)


def size_of(path: Path) -> int:
    return path.stat().st_size


def damage_foreign(step: Path, other: Path) -> None:
    shutil.rmtree(step)
    shutil.copytree(other, step)
    shutil.rmtree(
        step.parents[1] / "checksums"
    )  # else that it is not what was saved is found first


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (damage_nothing_left, "cannot be read"),
        (damage_truncate, "cannot be read"),
        (damage_data, "cannot be read"),
        (damage_foreign, "is of another model than its config.json says"),
    ],
)
def test_damaged_checkpoints(damage, says, muse_run, vqgan_run, tmp_path, capsys):
    """One line that names the checkpoint; a run is never drawn from with half its weights."""
    where = tmp_path / "run"
    shutil.copytree(muse_run, where)
    damage(where / "checkpoints" / "20", vqgan_run / "checkpoints" / "20")
    out = tmp_path / "x.png"
    assert main(["sample", str(where), "red heart", "--out", str(out)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("mmx: error: ") and says in lines[0], lines
    assert str(where) in lines[0]
    assert not out.exists()


def test_a_run_of_another_version_is_named(muse_run, tmp_path, capsys):
    where = tmp_path / "run"
    shutil.copytree(muse_run, where)
    config = where / "config.json"
    config.write_text(config.read_text().replace('"code_width"', '"code_size"'))
    assert main(["sample", str(where), "red heart", "--out", str(tmp_path / "x.png")]) == 2
    err = capsys.readouterr().err
    assert "does not fit this version of mmx" in err and "code_width" in err
    assert err.count("\n") == 1


def test_python_says_what_is_wrong(run, muse_run):
    from mmx.core.errors import UserError

    for call, says in (
        (lambda: run.sample("red heart"), "takes a list"),
        (lambda: run.sample([]), "one or more prompts"),
        (lambda: run.sample([""]), "is empty"),
        (lambda: run.sample(["red heart"], steps=0), "steps=0"),
        (lambda: run.sample(["red heart"], guidance=-1), "guidance=-1"),
        (lambda: package.load(muse_run, step=15), "no checkpoint of step 15"),
        (lambda: package.load(f"{muse_run}-gone"), "no such run directory"),
    ):
        with pytest.raises(UserError, match=says):
            call()


@pytest.mark.parametrize("verb", ["folder", "grid"])
def test_asked_to_stop_it_keeps_what_is_drawn(run, muse_run, tmp_path, monkeypatch, capsys, verb):
    """SIGTERM while the first of two batches is drawn: it is kept, the second is not begun."""
    (tmp_path / "prompts.txt").write_text("red heart\n")
    many = ["--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "out"]
    argv = many if verb == "folder" else ["red heart", "--out", tmp_path / "grid.png"]
    real = to_uint8

    def asked(images):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(images)

    monkeypatch.setattr("mmx.eval.images.to_uint8", asked)
    batches = partialmethod(type(run).draw_batches, batch_size=2)
    monkeypatch.setattr(type(run), "draw_batches", batches)
    code = main(["sample", str(muse_run), *map(str, argv), "-n", "4", "--steps", "3"])
    told = capsys.readouterr()
    assert code == 75
    assert told.err.endswith("mmx: stopped after 2 of 4 pictures, which are kept\n")
    if verb == "folder":
        assert len(list((tmp_path / "out").glob("*.png"))) == 2
    else:
        assert read_metadata(tmp_path / "grid.png")["prompt"] == "red heart"
