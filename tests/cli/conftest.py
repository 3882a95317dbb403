"""Runs made by hand for what is refused before anything is computed, and a guard that says so."""

import json
import os
from pathlib import Path

import pytest

from mmx.core import config as configs
from mmx.core.run_dir import RunDir


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """The command sets its own process up; the next test must not see it, nor run out of memory."""
    monkeypatch.setattr("mmx.cli.backend._keep_freed_memory", lambda: None)
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def early(monkeypatch):
    """Fail the test when a verb gets as far as starting jax."""

    def start():
        raise AssertionError("jax was started")

    monkeypatch.setattr("mmx.cli.backend.start_jax", start)


@pytest.fixture
def refused(capsys):
    """``refused(argv) -> the message``: exit code 2 and one line on stderr, nothing else."""
    from mmx.cli.main import main

    def run(*argv) -> str:
        capsys.readouterr()
        code = main([str(a) for a in argv])
        captured = capsys.readouterr()
        assert code == 2, captured
        assert captured.out == ""
        assert captured.err.startswith("mmx: error: ") and captured.err.count("\n") == 1, captured
        return captured.err.removeprefix("mmx: error: ").strip()

    return run


@pytest.fixture(scope="session")
def hollow(tmp_path_factory):
    """``hollow(name, spec) -> path``: a run with all but weights, and checkpoints 10 and 20."""
    root = tmp_path_factory.mktemp("hollow")

    def make(name: str, spec: str = "muse/openmoji32:tiny") -> Path:
        run = RunDir(root / name)
        if run.path.is_dir():
            return run.path
        for step in ("10", "20"):
            (run.checkpoints / step).mkdir(parents=True)
        config = configs.load_config(spec)
        run.config_file.write_text(json.dumps(config.to_dict()))
        if config.family == "muse":
            from mmx.data.text import train_tokenizer

            train_tokenizer(["red heart", "blue heart"] * 3, 300, run.tokenizer_file)
        return run.path

    return make
