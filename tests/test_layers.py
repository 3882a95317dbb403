"""Who may import whom, how long a file may be, what no file may hold: read off the syntax trees."""

import ast
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
FILES = sorted(
    path.relative_to(REPO).as_posix()
    for folder in ("mmx", "configs", "experiments", "tests", "tpu_scripts")
    for path in (REPO / folder).rglob("*.py")
)
MAX_LINES = {"mmx/train/loop.py": 199}
MAX_LINES_ELSEWHERE = 399

# Layer -> the layers it may import besides itself. "family" is one family's model, loss, sample
# and what else it splits off; "task" is its task.py, report.py and validation.py, which put it to
# work; "models" is mmx/models/*.py, all that the verbs may know of families.
_TASK = ("task.py", "report.py", "validation.py")
_GROUND = {"core", "nn", "ops", "data"}
MAY_IMPORT = {
    "core": set(),
    "nn": {"core"},
    "ops": {"core"},
    "data": {"core"},
    "train": _GROUND,
    "eval": _GROUND | {"pretrained"},
    "pretrained": _GROUND,
    "protocols": {"core"},
    "family": _GROUND | {"pretrained", "protocols"},
    "models": _GROUND | {"pretrained", "protocols", "train", "eval"},
    "task": _GROUND | {"pretrained", "protocols", "train", "eval", "family", "models"},
    "cli": _GROUND | {"pretrained", "protocols", "train", "eval", "models"},
    "mmx": {"cli"},
    "configs": {"core"},
    "tpu_scripts": set(),
    "experiments": _GROUND
    | {"pretrained", "protocols", "train", "eval", "family", "models", "task", "cli", "mmx"},
}
BANNED = {
    "tensorflow": "nothing imports tensorflow",
    "pickle": "nothing unpickles",
    "flax.nnx": "Linen only",
}


def layer(path: str) -> str:
    """``mmx/models/muse/loss.py`` -> ``family``."""
    parts = path.split("/")
    if parts[0] != "mmx":
        return parts[0]
    if len(parts) == 2:
        return "mmx"
    if parts[1] != "models":
        return parts[1]
    if len(parts) == 3:
        return "protocols" if parts[2] in ("protocols.py", "__init__.py") else "models"
    return "task" if parts[3] in _TASK else "family"


def family(path: str) -> str | None:
    parts = path.split("/")
    return parts[2] if parts[:2] == ["mmx", "models"] and len(parts) > 3 else None


def module_file(module: str) -> str | None:
    """``mmx.core.rng`` -> ``mmx/core/rng.py``; None when it is no module of this repository."""
    path = module.replace(".", "/")
    return next((f for f in (f"{path}.py", f"{path}/__init__.py") if (REPO / f).is_file()), None)


def imports(tree: ast.AST) -> list[str]:
    """Every module a tree imports, in functions too, and by importlib when given a constant."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            # `from mmx.core import rng` imports a module, `from mmx.core.rng import fold` a name.
            found += [
                full if base.startswith("mmx") and module_file(full) else base
                for alias in node.names
                for full in [f"{base}.{alias.name}"]
            ]
            found += [f"flax.{a.name}" for a in node.names if base == "flax"]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called in ("import_module", "__import__"):
                found.append(str(node.args[0].value))
    return found


class WithoutFunctions(ast.NodeTransformer):
    """What runs when a module is imported."""

    def visit_FunctionDef(self, node):
        return None


def import_errors(path: str, source: str) -> list[str]:
    """Every import of a file that its layer forbids."""
    tree = ast.parse(source)
    here, errors = layer(path), []
    for module in imports(tree):
        root = module.partition(".")[0]
        errors += [
            f"{module}: {why}"
            for banned, why in BANNED.items()
            if module == banned or module.startswith(f"{banned}.")
        ]
        if module.startswith("."):
            errors.append(f"{module}: relative import")
        if here == "ops" and root == "flax":
            errors.append(f"{module}: ops are plain JAX")
        if here == "configs" and root not in ("ml_collections", "mmx"):
            errors.append(f"{module}: configs import ml_collections and mmx.core")
        if here in MAY_IMPORT and root in ("configs", "experiments", "tests", "tpu_scripts"):
            errors.append(f"{module}: imported by nobody")
        if here in MAY_IMPORT and root == "mmx" and module != "mmx":
            there = module_file(module) or f"{module.replace('.', '/')}.py"
            if layer(there) not in MAY_IMPORT[here] | {here}:
                errors.append(f"{module}: {here} may not import {layer(there)}")
            if family(path) and family(there) and family(path) != family(there):
                errors.append(f"{module}: families do not import each other")
    if here == "data" and path != "mmx/data/pipeline.py":
        at_once = imports(WithoutFunctions().visit(tree))
        errors += [f"{m}: data loads jax in functions" for m in at_once if m.startswith("jax")]
    return errors


def text_errors(path: str, source: str) -> list[str]:
    """A file that is too long, unfinished or, among tests, skipped."""
    errors, limit = [], MAX_LINES.get(path, MAX_LINES_ELSEWHERE)
    lines = len(source.splitlines())
    if lines > limit:
        errors.append(f"{lines} lines, at most {limit}")
    for node in ast.walk(ast.parse(source)):
        name = getattr(node, "attr", getattr(node, "id", None))
        if name == "NotImplementedError":
            errors.append(f"line {node.lineno}: NotImplementedError")
        if layer(path) == "tests" and name in ("skip", "skipif", "xfail", "importorskip"):
            errors.append(f"line {node.lineno}: {name}")
    errors += [
        f"line {i}: unfinished"
        for i, line in enumerate(source.splitlines(), 1)
        if "# TO" + "DO" in line or "# FIX" + "ME" in line
    ]
    return errors


@pytest.mark.parametrize("path", FILES)
def test_file_keeps_the_rules(path):
    source = (REPO / path).read_text()
    assert import_errors(path, source) + text_errors(path, source) == []


def test_all_layers_are_known():
    assert {layer(path) for path in FILES} <= MAY_IMPORT.keys() | {"tests"}


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("mmx/core/rng.py", "from mmx.ops import masking"),
        ("mmx/core/rng.py", "from .tree import flatten"),
        ("mmx/nn/conv.py", "import mmx.train.loop"),
        ("mmx/ops/vq.py", "import flax.linen as nn"),
        ("mmx/ops/vq.py", "from flax import linen"),
        ("mmx/ops/vq.py", "from mmx.nn import attention"),
        ("mmx/data/source.py", "def f():\n    import tensorflow as tf"),
        ("mmx/data/source.py", "def f():\n    importlib.import_module('tensorflow.io')"),
        ("mmx/data/source.py", "import jax"),
        ("mmx/data/source.py", "class A:\n    import jax.numpy"),
        ("mmx/data/source.py", "def f():\n    from mmx.models import registry"),
        ("mmx/eval/grid.py", "from mmx.models.muse import sample"),
        ("mmx/eval/grid.py", "from mmx.models import protocols"),
        ("mmx/train/loop.py", "def f():\n    from mmx.models.registry import make_task"),
        ("mmx/train/loop.py", "from mmx import eval"),
        ("mmx/train/loop.py", "from mmx import cli"),
        ("mmx/models/muse/loss.py", "from mmx.train import optim"),
        ("mmx/models/muse/task.py", "from mmx.models.vqgan.codec import VqganCodec"),
        ("mmx/models/muse/task.py", "from mmx.models.vqgan import codec"),
        ("mmx/models/muse/task.py", "from mmx.cli import run"),
        ("mmx/models/muse/model.py", "from flax import nnx"),
        ("mmx/models/stages.py", "import pickle"),
        ("mmx/models/vqgan/report.py", "from mmx.models.muse import loss"),
        ("mmx/models/vqgan/codec.py", "from mmx.models.vqgan import report"),
        ("mmx/models/registry.py", "from mmx.models.muse.task import MuseTask"),
        ("mmx/models/stages.py", "def f():\n    from mmx.models.vqgan import codec"),
        ("mmx/cli/evaluate.py", "from mmx.models.vqgan.report import Reconstruction"),
        ("mmx/cli/run.py", "def f():\n    from mmx.models.muse.task import SampleOptions"),
        ("mmx/cli/run.py", "from mmx.models.muse import sample"),
        ("mmx/cli/run.py", "from mmx.models.muse.model import MuseTransformer"),
        ("mmx/cli/train.py", "import experiments.throughput"),
        ("mmx/cli/train.py", "from tests import helpers"),
        ("configs/muse/base_3b.py", "import jax"),
        ("configs/muse/base_3b.py", "from mmx.models.muse import task"),
        ("tests/test_x.py", "import tensorflow"),
    ],
)
def test_forbidden_import_is_found(path, source):
    assert import_errors(path, source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("mmx/ops/vq.py", "import jax.numpy as jnp\nfrom mmx.core.errors import UserError"),
        ("mmx/data/source.py", "import grain\nclass A:\n  def f(): import jax"),
        ("mmx/data/pipeline.py", "import jax\nfrom mmx.data import source"),
        (
            "mmx/models/muse/task.py",
            "from mmx.models import protocols, stages\nimport mmx.eval.grid",
        ),
        (
            "mmx/models/muse/task.py",
            "from mmx.models.muse import loss\nfrom mmx.train import optim",
        ),
        ("mmx/cli/evaluate.py", "from mmx.models import protocols, registry, rows, stages"),
        ("configs/muse/base_3b.py", "import ml_collections\nfrom mmx.core.config import parse_arg"),
        ("experiments/throughput/run.py", "import torch\nfrom mmx.models.muse.model import Muse"),
    ],
)
def test_allowed_import_passes(path, source):
    assert import_errors(path, source) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("mmx/train/loop.py", "pass\n" * 200),
        ("mmx/train/state.py", "pass\n" * 400),
        ("mmx/train/state.py", "raise NotImplementedError"),
        ("mmx/train/state.py", "pass  # TO" + "DO: later"),
        ("tests/test_x.py", "@pytest.mark.skipif(True)\ndef test(): pass"),
        ("tests/test_x.py", "def test(): pytest.importorskip('torch')"),
    ],
)
def test_bad_text_is_found(path, source):
    assert text_errors(path, source)
