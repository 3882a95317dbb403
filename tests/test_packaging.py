"""The package as a user gets it: metadata, wheel, constraints files, the time of an import."""

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mmx

REPO = Path(__file__).resolve().parent.parent
CONSTRAINTS = sorted((REPO / "constraints").glob("*.txt"))
# Import name -> distribution, where the two differ.
DISTRIBUTION = {"PIL": "pillow", "absl": "absl-py", "orbax": "orbax-checkpoint"}


def run_python(code: str, **kwargs) -> str:
    """What a fresh Python prints, outside the repository unless PYTHONPATH names it."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True, **kwargs).stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from a copy of the sources, without a network."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(REPO / name, source)
    for name in ("mmx", "configs", "tests"):
        shutil.copytree(REPO / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    flags = ["--no-build-isolation", "--no-deps", "--no-index", "--quiet"]
    command = [sys.executable, "-m", "pip", "wheel", *flags, "--wheel-dir", out, source]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return next(out.glob("mmx-*.whl"))


@pytest.fixture(scope="module")
def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def requirements(metadata, *extras: str) -> dict[str, Requirement]:
    """Name -> requirement of the package with some extras."""
    parsed = [Requirement(line) for line in metadata.get_all("Requires-Dist")]
    return {
        canonicalize_name(r.name): r
        for r in parsed
        for extra in ("", *extras)
        if r.marker is None or r.marker.evaluate({"extra": extra})
    }


def pins(path: Path) -> dict[str, str]:
    """Name -> version of a constraints file; every line is a comment or one exact version."""
    lines = [x for x in path.read_text().splitlines() if not x.startswith("#")]
    matches = {line: re.fullmatch(r"([a-z0-9-]+)==([0-9][0-9a-z.]*)", line) for line in lines}
    assert all(matches.values()), [line for line in lines if not matches[line]]
    return {m[1]: m[2] for m in matches.values()}


def third_party(paths) -> set[str]:
    """The distributions that some files import."""
    roots = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                roots |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                roots.add(node.module.partition(".")[0])
    ours = {"mmx", "tests", "experiments"} | {path.stem for path in REPO.glob("tests/**/*.py")}
    roots -= sys.stdlib_module_names | ours
    return {canonicalize_name(DISTRIBUTION.get(root, root)) for root in roots}


def test_metadata(metadata):
    assert (metadata["Name"], metadata["Version"]) == ("mmx", mmx.__version__)
    assert "Apache-2.0" in (metadata["License"], metadata["License-Expression"])
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata.get_payload().strip() == (REPO / "README.md").read_text().strip()
    assert set(metadata.get_all("Provides-Extra")) == {
        "demo", "test", "dev", "cuda", "gcs", "parity", "preflight", "tpu"
    }  # fmt: skip


def test_requirements_are_floors(metadata):
    for line in metadata.get_all("Requires-Dist"):
        requirement = Requirement(line)
        assert requirement.url is None, line
        floored = [s.operator for s in requirement.specifier] == [">="]
        assert floored or requirement.extras, line  # jax[cuda12] has jax's own floor


def test_what_is_imported_is_required_and_the_other_way_round(metadata):
    base, demo = requirements(metadata).keys(), requirements(metadata, "demo").keys()
    library = third_party([*REPO.glob("mmx/**/*.py"), *REPO.glob("configs/**/*.py")])
    assert library - demo == set()
    assert base - library == set()
    tests = third_party(REPO.glob("tests/**/*.py"))
    assert tests - requirements(metadata, "test").keys() == set()


def test_wheel_holds_the_package_and_the_configs(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {n for n in archive.namelist() if ".dist-info/" not in n}
        scripts = archive.read(
            next(n for n in archive.namelist() if n.endswith("entry_points.txt"))
        )
        assert any(n.endswith("LICENSE") for n in archive.namelist())
    package = {p.relative_to(REPO).as_posix() for p in REPO.glob("mmx/**/*.py")}
    package |= {"mmx/data/clip_bpe.txt.gz", "mmx/data/clip_bpe.LICENSE.txt"}
    configs = {f"mmx/{p.relative_to(REPO).as_posix()}" for p in REPO.glob("configs/**/*.py")}
    assert configs and names == package | configs
    assert b"mmx = mmx.cli.main:main" in scripts


def test_configs_resolve_by_short_name_without_a_checkout(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "from mmx.core import config; print(*config.list_configs()); "
        "print(config.find_config('muse/openmoji32')[0])"
    )
    shipped = {
        p.relative_to(REPO / "configs").with_suffix("").as_posix()
        for p in REPO.glob("configs/*/*.py")
    }
    env = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    names, path = run_python(code, cwd=tmp_path, env=env).splitlines()
    assert set(names.split()) == shipped
    assert Path(path) == tmp_path / "site/mmx/configs/muse/openmoji32.py"


def test_import_is_quick_and_light():
    code = (
        "import sys, time; start = time.perf_counter(); import mmx; "
        "print(time.perf_counter() - start); print(*{m.partition('.')[0] for m in sys.modules})"
    )
    runs = [run_python(code, cwd=REPO).splitlines() for _ in range(3)]
    assert min(float(seconds) for seconds, _ in runs) < 0.1
    assert set(runs[0][1].split()) & {"jax", "tensorflow_datasets", "numpy", "flax"} == set()


def test_platforms_are_covered():
    platforms = ("linux-x86_64", "linux-x86_64-cuda", "linux-x86_64-tpu", "macos-arm64")
    expected = {f"{p}-py{v}.txt" for p in platforms for v in (311, 312, 313)}
    assert {path.name for path in CONSTRAINTS} == expected


@pytest.mark.parametrize("path", CONSTRAINTS, ids=lambda path: path.stem)
def test_constraints_satisfy_the_floors(path, metadata):
    extras = ["demo", "test", "dev", *(x for x in ("cuda", "tpu") if f"-{x}-" in path.name)]
    pinned = pins(path)
    for name, requirement in requirements(metadata, *extras).items():
        assert name in pinned, f"{name}: run constraints/update.sh"
        assert requirement.specifier.contains(pinned[name]), f"{requirement}: {pinned[name]}"
    # The newest jax for Python 3.11 is 0.10; later Pythons get a later one.
    assert pinned["jax"].startswith("0.10." if "py311" in path.name else "0.12.")
    assert pinned["jax"] == pinned["jaxlib"] == pinned.get("jax-cuda12-plugin", pinned["jax"])
    assert path.read_text().startswith(f"# {path.stem.partition('-py')[0]}, Python 3.")


def test_install_script_stops_with_one_line(tmp_path):
    """A Python that is too old, one without venv and none at all: three clear lines."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "uname", "tr", "sed"):
        (tools / name).symlink_to(shutil.which(name))

    def install(pretend: str | None, path: Path = tools / "python3", **env: str) -> str:
        """What the script says on a machine whose only Python first does ``pretend``."""
        if pretend is not None:
            code = f"import sys; {pretend}; exec(sys.argv[1])"
            fake = f'#!/bin/sh\nexec \'{sys.executable}\' -c "{code}" "$2"\n'
            path.write_text(fake)
            path.chmod(0o755)
        result = subprocess.run(
            [REPO / "constraints/install.sh", tmp_path / "venv", "demo"],
            env={"PATH": str(tools), **env},
            cwd=REPO,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 1 and result.stdout == ""
        assert len(result.stderr.splitlines()) == 1, result.stderr
        return result.stderr

    assert "needs Python 3.11 or newer (no python3 here)" in install(None)
    too_old = "sys.version_info = (3, 10, 9, 'final', 0)"
    assert "needs Python 3.11 or newer (python3 is 3.10)" in install(too_old)
    no_venv = "sys.modules['ensurepip'] = None; sys.version_info = (3, 12, 1, 'final', 0)"
    assert "apt install python3.12-venv" in install(no_venv)
    mine = tmp_path / "my python"
    assert f"({mine} is 3.10)" in install(too_old, path=mine, PYTHON=str(mine))
