"""The scripts as text: they parse, shellcheck finds nothing, each has help."""

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "tpu_scripts"
SCRIPTS = sorted(FOLDER.rglob("*.sh"))
SHELLCHECK = Path(sys.executable).with_name("shellcheck")
COMMANDS = [p for p in SCRIPTS if p.parent == FOLDER and p.name != "lib.sh"]


def test_shellcheck_finds_nothing(tmp_path):
    # From a folder without lib.sh, which it would else follow and check again for each script.
    done = subprocess.run([SHELLCHECK, *SCRIPTS], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_they_parse_and_start_strict():
    names = {p.stem for p in COMMANDS}
    assert names == {
        "create", "sync", "setup", "launch", "supervise", "status", "logs", "stop", "delete",
        "doctor", "profile", "preflight", "xpk_launch",
    }  # fmt: skip
    for script in SCRIPTS:
        text = script.read_text()
        subprocess.run(["bash", "-n", script], check=True)
        assert "set -euo pipefail" in text or 'source "$(dirname "$0")/lib.sh"\n' in text, script
        assert max(map(len, text.splitlines())) <= 130, script
    assert all(p.stat().st_mode & 0o111 for p in COMMANDS)


def test_help_names_every_flag(tmp_path):
    for script in COMMANDS:
        done = subprocess.run(
            ["bash", script, "--help"], env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.startswith(f"{script.name}: ") and not done.stderr
        parse = next(x for x in script.read_text().splitlines() if x.startswith("parse '"))
        for flag in [*parse.split("'")[1].split(), "dry-run"]:
            assert f"--{flag}" in done.stdout, (script.name, flag)
        assert "#" not in done.stdout.replace("   # needs", "")


def test_readme_knows_every_script():
    readme = (FOLDER / "README.md").read_text()
    assert [p.name for p in COMMANDS if p.name not in readme] == []
