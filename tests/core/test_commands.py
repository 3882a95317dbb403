"""The command of TensorBoard works as it is printed."""

from mmx.core import commands


def test_the_command_of_tensorboard_works_as_printed(tmp_path, monkeypatch):
    """An environment need not be activated: `make demo` calls .venv/bin/mmx."""
    scripts = tmp_path / "my project" / ".venv" / "bin"
    scripts.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr("sys.executable", str(scripts / "python"))
    monkeypatch.chdir(tmp_path / "my project")
    assert commands._script() == "tensorboard"
    (scripts / "tensorboard").touch()
    assert commands._script() == ".venv/bin/tensorboard"
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert commands._script() == "'../my project/.venv/bin/tensorboard'"
    monkeypatch.chdir(scripts)
    assert commands._script() == "./tensorboard"
