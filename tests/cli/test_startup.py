"""What starts a process: help, short answers, pipes. Nothing heavy may be imported for them."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mmx.cli.backend import before_jax
from mmx.cli.main import _parser, main
from mmx.cli.train import resolve

REPO = Path(__file__).resolve().parents[2]
VERBS = ("prepare", "preflight", "train", "sample", "fewshot", "evaluate", "configs")
LIGHT = """
import sys
import mmx
heavy = {"jax", "flax", "orbax", "grain", "optax", "tensorflow_datasets", "numpy", "PIL", "fsspec"}
print("import mmx:", sorted(heavy & {*sys.modules}))
from mmx.cli.main import main
calls = [[], *([verb] for verb in %r)]
for call in calls:
    try:
        main([*call, "--help"])
    except SystemExit as stop:
        assert stop.code == 0, call
main(["configs"])
main(["train", "--config", "muse/openmoji32:tiny", "--print_config"])
main(["sample", "no such run", "red heart"])
print("commands:", sorted(heavy & {*sys.modules}))
"""


def start(code: str, **kwargs) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, **kwargs)


def test_help_and_refusals_import_nothing_heavy():
    # A second is what jax alone takes; without it and its like, help is a matter of 0.2 seconds.
    done = start(LIGHT % (VERBS,))
    assert done.returncode == 0, done.stderr
    assert "import mmx: []\n" in done.stdout
    assert done.stdout.endswith("commands: []\n")
    assert done.stderr.startswith("mmx: error: no such run: no such run directory")
    assert done.stderr.count("\n") == 1


def examples() -> list[str]:
    import importlib

    modules = [importlib.import_module(f"mmx.cli.{verb}") for verb in VERBS]
    texts = [_parser().epilog, *(module.EXAMPLES for module in modules)]
    lines = "\n".join(texts).splitlines()
    return [line.strip() for line in lines if line.startswith("  mmx ")]


@pytest.mark.parametrize("line", sorted(set(examples())))
def test_examples_of_the_help_are_commands(line):
    args, rest = _parser().parse_known_args(shlex.split(line, comments=True)[1:])
    if args.verb in ("train", "preflight"):
        resolve(args.config.removeprefix(f"{REPO}/"), rest)
    else:
        assert rest == []


PREPARED = [f"prepare {kind}" for kind in ("openmoji", "scenes", "noto", "folder", "tokenizer")]


@pytest.mark.parametrize("verb", ["", *VERBS, *PREPARED])
def test_each_help_has_examples(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*verb.split(), "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    shown = text.partition("\nexamples:\n")[2].partition("\n\n")[0].splitlines()
    # A command a line: what is wrapped is copied in part.
    assert shown and all(line.startswith("  mmx ") and len(line) <= 100 for line in shown)
    assert shown[0].startswith(f"  mmx {verb.partition(' ')[0]}")
    if verb in ("", "train"):
        assert {"0", "1", "2", "75"} <= set(re.findall(r"\d+", text[text.index("xit codes:") :]))


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_reader_that_goes_away_is_no_error(unbuffered):
    # As `mmx configs | head -0`: the pipe has no reader when the command writes, or when it ends.
    read, write = os.pipe()
    os.close(read)
    env = {**os.environ, "PYTHONPATH": str(REPO), "PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-m", "mmx.cli.main", "configs"]
    done = subprocess.run(command, env=env, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("chosen", "installed", "tpu", "kept"),
    [
        ("", [], False, True),
        ("cpu", ["jax_plugins", "libtpu"], True, True),
        ("", ["jax_plugins"], False, False),
        ("", ["jax_plugins", "libtpu"], False, False),
        ("", ["libtpu"], True, False),
        ("", ["libtpu"], False, True),  # there for preflight's compiles
        ("cuda", [], False, False),
        ("tpu,cpu", ["libtpu"], False, False),
    ],
)
def test_only_where_the_cpu_computes_is_freed_memory_kept(
    monkeypatch, chosen, installed, tpu, kept
):
    """One arena for all threads would hold up the host of an accelerator."""
    calls = []
    monkeypatch.setattr("mmx.cli.backend._keep_freed_memory", lambda: calls.append(1))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name in installed or None)
    monkeypatch.setattr("mmx.cli.backend._has_tpu", lambda: tpu)
    monkeypatch.setenv("JAX_PLATFORMS", chosen)
    before_jax()
    assert bool(calls) == kept
    if installed == ["libtpu"] and not chosen:
        assert os.environ["JAX_PLATFORMS"] == ("" if tpu else "cpu")


def test_interrupt_is_one_line(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("mmx.cli.configs.list_configs", interrupted)
    assert main(["configs"]) == 130
    assert capsys.readouterr().err == "mmx: interrupted\n"


@pytest.mark.parametrize("error", [RuntimeError("odd"), OSError(4, "odd")])
def test_a_fault_of_ours_is_neither_bad_input_nor_a_loss(monkeypatch, capsys, error):
    def broken():
        raise error

    monkeypatch.setattr("mmx.cli.configs.list_configs", broken)
    assert main(["configs"]) == 70
    err = capsys.readouterr().err
    assert "Traceback" in err and "odd" in err


def test_configs_lists_short_names_with_their_purpose(capsys):
    assert main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    line = next(line for line in lines if line.startswith("muse/openmoji32 "))
    assert line.split(None, 1)[1].startswith("Muse on OpenMoji")


def test_configs_survive_one_that_is_broken(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "good.py").write_text('"""Good one."""\n')
    (tmp_path / "mine" / "bad.py").write_text("def (:\n")
    monkeypatch.setattr("mmx.core.config.config_dir", lambda: tmp_path)
    assert main(["configs"]) == 0
    out = capsys.readouterr().out
    assert "mine/good  Good one." in out and "mine/bad   (not valid Python)" in out
