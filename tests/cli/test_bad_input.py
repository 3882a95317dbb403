"""What cannot work is refused in one line, with exit code 2, before jax starts."""

import json
import shutil

import pytest

from mmx.cli.main import main
from mmx.core.run_dir import RunDir

pytestmark = pytest.mark.usefixtures("early")
TOKENIZER = ("train", "--config", "vqgan/openmoji32:tiny")
MUSE = ("train", "--config", "muse/openmoji32:tiny")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "required: VERB; see `mmx --help`"),
        (["frobnicate"], "invalid choice: 'frobnicate' (choose from 'prepare', 'import'"),
        (["train"], "required: --config; see `mmx train --help`"),
        (["train", "--conf", "x"], "required: --config"),  # no abbreviations
        (["sample"], "required: RUN[@STEP]"),
        (["sample", "RUN"], "give a prompt"),
        (["sample", "RUN", "red heart", "--prompts", "x"], "give a prompt"),
        (["sample", "RUN", "red heart", "--frob"], "unknown arguments: --frob"),
        (["sample", "RUN", "red", "heart"], "unknown arguments: heart"),
        (["sample", "RUN", "red heart", "-n", "0"], "argument -n: '0': give a whole number at"),
        (["sample", "RUN", "red heart", "-n", "-3"], "argument -n: '-3'"),
        (["sample", "RUN", "red heart", "-n", "two"], "argument -n: 'two'"),
        (["sample", "RUN", "red heart", "--steps", "0"], "argument --steps: '0'"),
        (["sample", "RUN", "red heart", "--guidance", "-1"], "argument --guidance: '-1': give a"),
        (["sample", "RUN", "red heart", "--guidance", "nan"], "argument --guidance: 'nan'"),
        (["sample", "RUN", "red heart", "--seed", "-1"], "argument --seed: '-1'"),
        (["sample", "RUN", "red heart", "--seed", str(2**32)], "from 0 to 2**32 - 1"),
        (["sample", "RUN", ""], "prompt '' is empty"),
        (["sample", "RUN", "  "], "prompt '  ' is empty"),
        (["sample", "RUN", "red " * 40], "is too long: 40 tokens, at most "),
        (["sample", "RUN", "red", "--negative", "red " * 40], "--negative: prompt 'red red"),
        (["sample", "RUN@15", "red heart"], "no checkpoint of step 15; there are [10, 20]"),
        (["sample", "RUN@last", "red heart"], "after @ comes a step, a whole number; not 'last'"),
        (["sample", "nowhere", "red heart"], "nowhere: no such run directory"),
        (["evaluate", "nowhere"], "nowhere: no such run directory"),
        (["evaluate", "nowhere@5"], "nowhere: no such run directory"),
        (["evaluate", "RUN@15"], "no checkpoint of step 15"),
        (["evaluate", "RUN", "--seed", "x"], "argument --seed: 'x'"),
        (["evaluate", "RUN", "--probe", "train"], "--probe=train is for --zero-shot"),
        (["evaluate", "RUN", "--follow", "--zero-shot", "tfds:x"], "--zero-shot is of one checkp"),
        (["evaluate", "RUN", "--data_dir", "/nowhere"],
         "not prepared in /nowhere; run: mmx prepare openmoji --config 32 --data_dir /nowhere"),
        (["sample", "TOKENIZER", "red heart"], "a run of the family 'vqgan', which draws nothing"),
        (["configs", "x"], "unknown arguments: x"),
    ],
)  # fmt: skip
def test_arguments(argv, says, refused, hollow):
    runs = {"RUN": hollow("muse run"), "TOKENIZER": hollow("tokens", TOKENIZER[2])}
    for name, path in runs.items():
        argv = [str(path) + a.removeprefix(name) if a.startswith(name) else a for a in argv]
    assert says in refused(*argv)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file"),
        (b"", "no prompt in it"),
        (b"\n  \n", "no prompt in it"),
        (b"\xff\xfe\x00", "not a text file in UTF-8"),
        (b"red heart\n" + b"red " * 40, "is too long"),
    ],
)
def test_prompt_files(content, says, refused, hollow, tmp_path):
    file = tmp_path / "my prompts.txt"
    if content is not None:
        file.write_bytes(content)
    message = refused("sample", hollow("muse run"), "--prompts", file, "--out", tmp_path / "o")
    assert says in message
    assert not (tmp_path / "o").exists()


def test_places_to_write(refused, hollow, tmp_path, monkeypatch):
    run = hollow("muse run")
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "prompts").write_text("red heart\n")
    draw = ("sample", run, "red heart", "--out")
    many = ("sample", run, "--prompts", tmp_path / "prompts", "--out")
    assert "has to end in .png" in refused(*draw, tmp_path / "x.jpg")
    assert "a folder is there" in refused(*draw, tmp_path / "folder.png")
    assert "is not a folder" in refused(*draw, tmp_path / "file" / "x.png")
    assert "is not a folder" in refused(*many, tmp_path / "file")
    assert "is not a folder" in refused(*many, tmp_path / "file" / "sub")

    def full(**kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    assert "cannot write in" in refused(*draw, tmp_path / "x.png")
    assert "No space left" in refused(*many, tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()


def test_folders_that_are_no_run(refused, tmp_path, hollow):
    assert "it has no config.json" in refused("sample", tmp_path, "red heart")
    (tmp_path / "config.json").write_text("{")
    assert "config.json: cannot be read as a config" in refused("sample", tmp_path, "red heart")
    (tmp_path / "config.json").write_text("[1]")
    assert "config.json" in refused("evaluate", tmp_path)
    # A model of another library: many have a file of that name.
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert "not of a run of mmx" in refused("sample", tmp_path, "red heart")
    shutil.copy(hollow("muse run") / "config.json", tmp_path)
    assert "no checkpoint yet" in refused("sample", tmp_path, "red heart")
    file = tmp_path / "file"
    file.write_text("")
    assert "no such run directory" in refused("evaluate", file)


def test_workdirs(refused, tmp_path, monkeypatch):
    assert "--workdir is missing" in refused(*TOKENIZER)
    profile = ("--workdir", tmp_path / "new", "--profile", "18:21")
    assert "--profile=18:21: name the first and the last step" in refused(*TOKENIZER, *profile)
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    assert "a file is there" in refused(*TOKENIZER, "--workdir", tmp_path / "file")
    assert "not empty and is no run" in refused(*TOKENIZER, "--workdir", tmp_path)
    assert "is not a folder" in refused(*TOKENIZER, "--workdir", tmp_path / "file" / "run")


def test_refused_start_leaves_no_run(refused, tmp_path, hollow):
    """Else the mended command would be told that the workdir holds another run."""
    run = tmp_path / "run"
    nowhere = f"--config.data.data_dir={tmp_path / 'nowhere'}"
    message = refused(*TOKENIZER, "--workdir", run, nowhere)
    assert f"run: mmx prepare openmoji --config 32 --data_dir {tmp_path / 'nowhere'}" in message
    codec = f"--config.codec.run={tmp_path / 'gone'}"
    assert "config.codec.run is empty" in refused(*MUSE, "--workdir", run, nowhere)
    assert "gone: no such run directory" in refused(*MUSE, "--workdir", run, nowhere, codec)
    codec = f"--config.codec.run={hollow('tokens', TOKENIZER[2])}@15"
    assert "no checkpoint of step 15" in refused(*MUSE, "--workdir", run, nowhere, codec)
    codec = f"--config.codec.run={hollow('muse run')}"
    message = refused(*MUSE, "--workdir", run, nowhere, codec)
    assert "family 'muse', which is no image tokenizer" in message
    assert "nowhere: no such run" in refused(
        *TOKENIZER, "--workdir", run, nowhere, "--init_from", tmp_path / "nowhere"
    )
    assert not run.exists()


def test_another_config_in_a_workdir(hollow, capsys):
    run = hollow("tokens", TOKENIZER[2])
    lr = RunDir(run).config().optim.lr
    argv = [*TOKENIZER, "--workdir", str(run), "--config.optim.lr=0.5", "--config.steps=30"]
    assert main(argv) == 2
    captured = capsys.readouterr().err
    assert "another config" in captured and f"optim.lr: {lr!r} -> 0.5" in captured
    assert "steps" not in captured.replace("warmup_steps", "")


def test_run_that_is_done_says_so(vqgan_run, capsys):
    data = f"--config.data.data_dir={RunDir(vqgan_run).config().data.data_dir}"
    assert main([*TOKENIZER, "--workdir", str(vqgan_run), data]) == 0
    assert (
        capsys.readouterr().out
        == f"{vqgan_run}: all 20 steps are done; `mmx evaluate` scores them\n"
    )


@pytest.mark.parametrize(
    ("field", "low"),
    [
        ("model.depth=0", 1),
        ("model.heads=0", 1),
        ("text.max_len=0", 1),
        ("text.width=-4", 1),
        ("text.depth=0", 1),
        ("eval.examples=0", 1),
        ("sample.steps=0", 1),
        ("data.shift=-1", 0),
        ("optim.lr=-1.0", 0),
    ],
)
def test_numbers_that_cannot_work(refused, field, low, tmp_path):
    message = refused(*MUSE, "--workdir", tmp_path / "run", f"--config.{field}")
    assert message == f"config.{field}: must be at least {low}"
    assert not (tmp_path / "run").exists()


def test_data_of_ones_own_is_asked_for(refused, tmp_path):
    message = refused("train", "--config", "vqgan/muse256", "--workdir", tmp_path / "run")
    assert "--config.data.source=tfds:YOURS" in message and "mmx prepare folder DIR" in message


def test_a_step_is_a_folder_with_a_number(hollow):
    checkpoints = RunDir(hollow("odd checkpoints")).checkpoints
    (checkpoints / "30").write_text("a file")
    (checkpoints / "40.orbax-checkpoint-tmp").mkdir()
    (checkpoints / "²").mkdir()
    assert RunDir(checkpoints.parent).steps() == [10, 20]
