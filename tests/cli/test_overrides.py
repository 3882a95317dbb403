"""``--config`` and ``--config.a.b``: every spelling, every mistake."""

from pathlib import Path

import pytest

from mmx.cli.main import main
from mmx.cli.train import resolve
from mmx.core.config import find_config, load_config

REPO = Path(__file__).resolve().parents[2]
SPEC = "vqgan/openmoji32:tiny"


def test_spellings(capsys):
    """All the ways to say the same give the same resolved config."""
    shown = []
    for argv in (
        ["--config", SPEC, "--config.optim.lr=1e-3", "--config.steps=7"],
        [f"--config={SPEC}", "--config.optim.lr", "1e-3", "--config.steps", "7"],
        ["--config.steps", "7", "--config.optim.lr=0.001", "--config", SPEC],
        ["--config", str(REPO / "configs/vqgan/openmoji32.py") + ":tiny", "--config.steps=7",
         "--config.optim.lr=5", "--config.optim.lr=1e-3"],
        ["--config", "configs/vqgan/openmoji32.py:tiny", "--config.steps=7",
         "--config.optim.lr=1e-3"],
    ):  # fmt: skip
        assert main(["train", "--print_config", *argv]) == 0
        shown.append(capsys.readouterr().out)
    assert "optim.lr = 0.001\n" in shown[0] and "\nsteps = 7\n" in shown[0]
    assert set(shown) == {shown[0]}


def test_each_type():
    c = resolve(
        "muse/openmoji32:tiny",
        [
            "--config.optim.lr", "-1e-3",  # a negative number is a value, not a flag
            "--config.optim.weight_decay=1",
            "--config.seed=-4",
            "--config.data.flip", "true",
            "--config.model.remat=full",
            "--config.codec.run=a b=c",
            "--config.eval.splits=('train', 'test')",
            "--config.preview_prompts=red heart", "--config.preview_prompts=dog",
        ],
    )  # fmt: skip
    assert c.optim.lr == -1e-3 and c.optim.weight_decay == 1.0 and c.seed == -4
    assert c.data.flip is True and c.model.remat == "full"
    assert c.codec.run == "a b=c"
    assert tuple(c.eval.splits) == ("train", "test")
    assert tuple(c.preview_prompts) == ("red heart", "dog")


@pytest.mark.parametrize(
    ("flags", "value"),
    [
        (["--config.data.flip"], True),
        (["--config.data.flip", "--config.steps=7"], True),
        (["--config.data.flip", "false"], False),
        (["--noconfig.data.flip"], False),
        (["--config.data.flip=true", "--noconfig.data.flip"], False),  # the last holds
        (["--noconfig.data.flip", "--config.data.flip"], True),
    ],
)
def test_true_and_false_as_flags(flags, value, capsys):
    for before in ("True", "False"):
        argv = ["train", "--print_config", "--config", SPEC, f"--config.data.flip={before}"]
        assert main([*argv, *flags]) == 0
        assert f"\ndata.flip = {value}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--config.optim.lrr=1"], "--config.optim.lrr: the config has no such field. Did you mean "
         "--config.optim.lr?"),
        (["--config.lr=1"], "Did you mean --config.optim.lr?"),
        (["--config.data.lr=1"], "Did you mean --config.optim.lr?"),
        (["--config.zzz=1"], "no such field. --print_config lists them"),
        (["--config.optim=1"], "--config.optim is a group; name one of its fields: optim.accum"),
        (["--config.optim.lr=fast"], "--config.optim.lr=fast: give a number such as 0."),
        (["--config.steps=1.5"], "--config.steps=1.5: give a whole number such as 20"),
        (["--config.data.flip=maybe"], "flip=maybe: give true or false such as False"),
        (["--config.eval.splits=(5,)"], "--config.eval.splits=(5,): give a tuple such as "
         "\"('test',)\""),
        (["--config.eval.splits=('a'"], "give a tuple such as"),
        (["--config.model.multipliers=a"], "--config.model.multipliers=a: give a tuple such as"),
        (["--config.model.multipliers[0]=2"], "Did you mean --config.model.multipliers?"),
        (["--config.steps"], "--config.steps: give a value"),
        (["--noconfig.steps"], "--noconfig.steps: give a value, --config.steps=VALUE"),
        (["--noconfig.data.flp"], "Did you mean --config.data.flip?"),
        (["--config.data.flip", "5x"], "--config.data.flip=5x: give true or false"),
        (["--config.steps", "--config.seed=1"], "--config.steps: give a value"),
        (["--confg.steps=1"], "unknown argument '--confg.steps=1'"),
        (["--config.steps=1", "stray"], "unknown argument 'stray'"),
    ],
)  # fmt: skip
def test_mistakes(flags, says, refused):
    assert says in refused("train", "--config", SPEC, "--print_config", *flags)


def write(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "my config.py"
    path.write_text(text)
    return path


def test_config_by_path_outside_the_repository(tmp_path, monkeypatch):
    text = Path(REPO, "configs/vqgan/openmoji32.py").read_text()
    path = write(tmp_path / "odd: name;$(x)", text)
    assert load_config(f"{path}:tiny").steps == 20
    assert load_config(str(path)).steps > 20
    monkeypatch.chdir(path.parent)
    assert load_config("my config.py:tiny").steps == 20
    assert find_config("my config.py") == (path.resolve(), "")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1\ndef get_config(arg=''):\n  retur 1\n", "my config.py, line 3: invalid syntax"),
        ("\ndef get_config(arg=''):\n    return nothing\n", "line 3: NameError: name 'nothing'"),
        ("import no_such_module\n", "line 1: ModuleNotFoundError"),
        ("import json\ndef get_config(arg=''):\n    return json.loads('{')\n",
         "line 3: JSONDecodeError"),
        ("x = 1\n", "has no get_config"),
        ("def get_config(arg=''):\n    return 5\n", "get_config returns int, not a ConfigDict"),
        ("import ml_collections as m\nget_config = lambda a: m.ConfigDict({'keep': None})",
         "my config.py: config.keep=None: a field is true or false, a number, a text or a tuple"),
        ("import ml_collections as m\nget_config = lambda a: m.ConfigDict({'family': 'x'})",
         "config.family='x': use one of vqgan, muse"),
    ],
)  # fmt: skip
def test_broken_config_files(text, says, tmp_path, refused, early):
    path = write(tmp_path, text)
    assert says in refused("train", "--config", path, "--workdir", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("vqgan/openmoj32", "Did you mean 'vqgan/openmoji32'?"),
        ("nowhere/x.py", "--config=nowhere/x.py: no such file or config."),
        ("", "no such file or config"),
        (SPEC + "y", "config argument 'tinyy' is unknown; known: tiny"),
    ],
)
def test_unknown_configs(spec, says, refused):
    assert says in refused("train", "--config", spec, "--print_config")
