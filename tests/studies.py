"""Modules of `experiments/`: the files of a study import one another by their bare names."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

_EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"


def load(study: str, *names: str) -> list[ModuleType]:
    """Modules of a study, whose names another study may have too."""
    folder = _EXPERIMENTS / study
    sys.path.insert(0, str(folder))
    try:
        return [importlib.import_module(name) for name in names]
    finally:
        sys.path.remove(str(folder))
        for file in folder.glob("*.py"):
            sys.modules.pop(file.stem, None)
